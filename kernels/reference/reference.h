/* Inside of the reference backend: its structures and its ops, one family a file. Everything is
 * plain fp32 C on one thread, written to be read beside the formulas rather than to be fast;
 * the other backends are measured against it. */
#ifndef QEP_KERNELS_REFERENCE_REFERENCE_H
#define QEP_KERNELS_REFERENCE_REFERENCE_H

#include "kernels/backend.h"

struct qep_weight {
    enum qep_weight_type type;
    int32_t rows, cols, group_size;
    void *data; /* as stored */
    uint16_t *scales;
};

struct ref_backend {
    struct qep_backend base;
    float *scratch;
    size_t scratch_cap;
};

/* `count` floats that live until the next op. */
enum qep_status ref_scratch(struct qep_backend *be, size_t count, float **out);

enum qep_status ref_weight_create(struct qep_backend *be, const struct qep_host_weight *host,
                                  struct qep_weight **out);
void ref_weight_destroy(struct qep_backend *be, struct qep_weight *weight);
bool ref_supports(const struct qep_backend *be, enum qep_weight_type weight, enum qep_act_type act);

/* One row of the matrix in fp32. */
void ref_weight_row(const struct qep_weight *weight, int32_t row, float *out);

/* Dot product in 16 partial sums, which keeps the error of long sums small. */
float ref_dot(const float *a, const float *b, int32_t n);
float ref_sum_squares(const float *x, int32_t n);

enum qep_status ref_embed(struct qep_backend *be, float *out, const struct qep_weight *weight,
                          const int32_t *ids, int32_t n);
enum qep_status ref_rms_norm(struct qep_backend *be, struct qep_rows_out out, const float *x,
                             const float *w, int32_t n, int32_t cols, float eps);
enum qep_status ref_act_convert(struct qep_backend *be, void *out, size_t row_stride,
                                enum qep_act_type type, const float *x, int32_t n, int32_t cols);
/* The activation rows of f32 rows that are done. */
enum qep_status ref_finish_rows(struct qep_backend *be, const struct qep_rows_out *out, int32_t n,
                                int32_t cols);
enum qep_status ref_matmul(struct qep_backend *be, const struct qep_product *products, int32_t num,
                           const void *act, size_t row_stride, enum qep_act_type type, int32_t n,
                           int32_t decode);
enum qep_status ref_swiglu(struct qep_backend *be, struct qep_rows_out out, const float *gate,
                           const float *up, int32_t n, int32_t cols);
enum qep_status ref_attention_kv(struct qep_backend *be, const struct qep_attention_dims *dims,
                                 const struct qep_batch *batch, const float *k, const float *v,
                                 const float *k_norm, void *const *blocks);
enum qep_status ref_attention(struct qep_backend *be, const struct qep_attention_dims *dims,
                              const struct qep_batch *batch, struct qep_rows_out out,
                              const float *qg, const float *q_norm, void *const *blocks);
enum qep_status ref_delta_conv(struct qep_backend *be, const struct qep_delta_dims *dims,
                               const struct qep_batch *batch, float *out, const float *qkv,
                               const float *weight, float *conv_state);
enum qep_status ref_delta(struct qep_backend *be, const struct qep_delta_dims *dims,
                          const struct qep_batch *batch, float *out, const float *qkv,
                          const float *a, const float *b, const float *A_log, const float *dt_bias,
                          float *state);
enum qep_status ref_delta_norm(struct qep_backend *be, const struct qep_delta_dims *dims,
                               float *out, const float *o, const float *z, const float *w,
                               int32_t n);
enum qep_status ref_router_topk(struct qep_backend *be, int32_t *topk_idx, float *topk_weights,
                                const float *logits, int32_t n, int32_t num_experts, int32_t top_k,
                                const struct qep_span *dev_spans);
enum qep_status ref_experts(struct qep_backend *be, const struct qep_expert_args *args, float *out);
enum qep_status ref_tree_sum(struct qep_backend *be, const struct qep_tree_args *args, float *out);

#endif

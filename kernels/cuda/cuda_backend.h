/* What the files of the CUDA backend share. C and C++; the kernels' launchers are extern "C" and
 * take a stream. */
#ifndef QEP_KERNELS_CUDA_BACKEND_H
#define QEP_KERNELS_CUDA_BACKEND_H

#include "kernels/device_ops.h"

#ifdef QEP_CUDA_EMU
#include "cuda_emu/runtime.h" /* the runtime API's names over the emulator */
#else
#include <cuda_runtime_api.h>
#endif

#include <pthread.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Workspaces that grow (never during capture) and stay; contents do not survive the op. */
enum cuda_workspace {
    CUDA_WS_MATMUL,
    CUDA_WS_EXPERT_HIDDEN,
    CUDA_WS_EXPERT_MAP,
    CUDA_WS_EXPERT_OUT,
    CUDA_WS_EXPERT_TABLE,
    CUDA_WS_ATTENTION,
    CUDA_WS_ATTENTION_COUNTERS, /* zero when it is made; every op leaves it zero */
    CUDA_WS_DELTA,
    CUDA_WS_TREE,
    CUDA_WS_SAMPLE,
    CUDA_WS_COUNT
};

struct cuda_backend {
    struct qep_backend base;
    int device;
    int num_sms;
    int compute_capability;   /* 80, 90, ... */
    cudaStream_t stream;      /* of all ops, in call order */
    cudaStream_t copy_stream; /* of download_async; NULL until the first one */
    bool capturing;
    struct {
        void *data;
        size_t bytes;
    } workspace[CUDA_WS_COUNT];
    char isa[16]; /* sm_80, sm_90, emulator */
    struct cuda_pool *pool;
    struct cuda_staging *staging;
    struct cuda_profile *profile; /* between profile_begin and profile_end */
    qep_wait_fn *wait;            /* NULL: the runtime's own calls */
    void *wait_ctx;
    pthread_mutex_t lock; /* alloc, upload and weight_create come from several threads */
};

static inline struct cuda_backend *cuda_backend_of(struct qep_backend *be) {
    return (struct cuda_backend *)be;
}

/* Makes the backend's device the calling thread's; first thing in entries that come from several
 * threads. */
enum qep_status cuda_enter(const struct cuda_backend *be);

/* QEP_OK, or QEP_ERR_UNAVAILABLE naming `what` (the op or call) and CUDA's own words. */
enum qep_status cuda_check(cudaError_t error, const char *what);

/* At least `bytes` of workspace `id`, 256-byte aligned. QEP_ERR_BUG when it would have to grow
 * during capture. */
enum qep_status cuda_reserve(struct cuda_backend *be, enum cuda_workspace id, size_t bytes,
                             void **dev);

/* What cuda_reserve takes when `bytes` are asked for. */
size_t cuda_workspace_grown(size_t bytes);

/* The table's entries, by file. */
/* memory.c */
enum qep_status cuda_alloc(struct qep_backend *be, size_t bytes, const char *what, void **dev);
void cuda_free(struct qep_backend *be, void *dev);
enum qep_status cuda_upload(struct qep_backend *be, void *dev, const void *host, size_t bytes);
enum qep_status cuda_download(struct qep_backend *be, void *host, const void *dev, size_t bytes);
enum qep_status cuda_zero(struct qep_backend *be, void *dev, size_t bytes);
enum qep_status cuda_sync(struct qep_backend *be);
enum qep_status cuda_copy(struct qep_backend *be, void *dst, const void *src, size_t bytes);
enum qep_status cuda_query(struct qep_backend *be, bool *idle);
enum qep_status cuda_memory_create(struct cuda_backend *be); /* pool and staging */
void cuda_memory_destroy(struct cuda_backend *be);
uint64_t cuda_block_bytes(const struct qep_backend *be, size_t bytes);
uint64_t cuda_held_bytes(const struct qep_backend *be, uint64_t staying, uint64_t loading,
                         uint64_t later);
/* profile.c */
void cuda_profile_destroy(struct cuda_backend *be); /* of a profile that was not ended */
/* The function in the name of a kernel, mangled (_ZN3fooL6kernelILi2EEEvPf) or as in source. */
void cuda_kernel_name(const char *text, char *out, size_t out_bytes);
/* weight.c, matmul.c */
enum qep_status cuda_weight_create(struct qep_backend *be, const struct qep_host_weight *host,
                                   struct qep_weight **out);
void cuda_weight_destroy(struct qep_backend *be, struct qep_weight *weight);
bool cuda_supports(const struct qep_backend *be, enum qep_weight_type weight,
                   enum qep_act_type act);
enum qep_status cuda_matmul(struct qep_backend *be, const struct qep_product *products, int32_t num,
                            const void *act, size_t row_stride, enum qep_act_type type, int32_t n,
                            int32_t decode);
enum qep_status cuda_embed(struct qep_backend *be, float *out, const struct qep_weight *weight,
                           const int32_t *ids, int32_t n);
/* experts.c */
enum qep_status cuda_experts(struct qep_backend *be, const struct qep_expert_args *args,
                             float *out);
enum qep_status cuda_tree_sum(struct qep_backend *be, const struct qep_tree_args *args, float *out);
/* elementwise.c */
/* What is agreed on about an op's output (asserted), and what kernels leave of it: activation rows
 * of other types than bf16. */
void cuda_check_rows(const struct qep_rows_out *out, int32_t cols);
enum qep_status cuda_finish_rows(struct qep_backend *be, const struct qep_rows_out *out, int32_t n,
                                 int32_t cols);
enum qep_status cuda_rms_norm(struct qep_backend *be, struct qep_rows_out out, const float *x,
                              const float *w, int32_t n, int32_t cols, float eps);
enum qep_status cuda_act_convert(struct qep_backend *be, void *out, size_t row_stride,
                                 enum qep_act_type type, const float *x, int32_t n, int32_t cols);
enum qep_status cuda_swiglu(struct qep_backend *be, struct qep_rows_out out, const float *gate,
                            const float *up, int32_t n, int32_t cols);
enum qep_status cuda_router_topk(struct qep_backend *be, int32_t *topk_idx, float *topk_weights,
                                 const float *logits, int32_t n, int32_t num_experts, int32_t top_k,
                                 const struct qep_span *dev_spans);
/* attention.c */
enum qep_status cuda_attention_kv(struct qep_backend *be, const struct qep_attention_dims *dims,
                                  const struct qep_batch *batch, const float *k, const float *v,
                                  const float *k_norm, void *const *blocks);
enum qep_status cuda_attention(struct qep_backend *be, const struct qep_attention_dims *dims,
                               const struct qep_batch *batch, struct qep_rows_out out,
                               const float *qg, const float *q_norm, void *const *blocks);
/* deltanet.c */
enum qep_status cuda_delta_conv(struct qep_backend *be, const struct qep_delta_dims *dims,
                                const struct qep_batch *batch, float *out, const float *qkv,
                                const float *weight, float *conv_state);
enum qep_status cuda_delta(struct qep_backend *be, const struct qep_delta_dims *dims,
                           const struct qep_batch *batch, float *out, const float *qkv,
                           const float *a, const float *b, const float *A_log, const float *dt_bias,
                           float *state);
enum qep_status cuda_delta_norm(struct qep_backend *be, const struct qep_delta_dims *dims,
                                float *out, const float *o, const float *z, const float *w,
                                int32_t n);
/* device_ops.c: the sub-table for device-resident routing, graphs and sampling */
extern const struct qep_device_ops cuda_device_ops;

#ifdef __cplusplus
}
#endif
#endif

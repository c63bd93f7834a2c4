/* Launchers of the attention kernels, and what their host side and the kernels agree on. */
#ifndef QEP_KERNELS_CUDA_ATTENTION_H
#define QEP_KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CUDA_MAX_HEAD_DIM = 256,
    /* Decode: a row's positions are cut into at most DECODE_MAX_SPLITS splits, each a whole number
     * of pieces of DECODE_PIECE positions; both follow from the row's own length. */
    CUDA_DECODE_PIECE = 256,
    CUDA_DECODE_MAX_SPLITS = 64,
    CUDA_DECODE_HEADS = 16 /* query heads of one KV head that a block takes */
};

struct cuda_rope {
    float freq[CUDA_MAX_HEAD_DIM / 2]; /* see kernels/rope.h */
};

/* The arguments of both ops, by value to the kernels. */
struct cuda_attention_shape {
    int32_t num_heads, num_kv_heads, head_dim, rotary_dim, max_blocks;
    float eps;
};

/* QEP_ERR_USAGE naming the limit that dims exceed. */
enum qep_status cuda_attention_limits(const struct qep_attention_dims *dims);

static inline int32_t cuda_decode_tile_heads(int32_t num_heads, int32_t num_kv_heads) {
    int32_t ratio = num_heads / num_kv_heads;
    return ratio < CUDA_DECODE_HEADS ? ratio : CUDA_DECODE_HEADS;
}
static inline int32_t cuda_decode_tiles(int32_t num_heads, int32_t num_kv_heads) {
    int32_t ratio = num_heads / num_kv_heads;
    return num_kv_heads * ((ratio + CUDA_DECODE_HEADS - 1) / CUDA_DECODE_HEADS);
}

cudaError_t cuda_launch_attention_kv(cudaStream_t stream, enum qep_kv_type type,
                                     const struct cuda_attention_shape *shape,
                                     const struct cuda_rope *rope, const struct qep_span *dev_spans,
                                     int32_t num_spans, int32_t max_rows, const float *k,
                                     const float *v, const float *k_norm, void *const *blocks);

/* Decode: span i is row i. A tile is up to DECODE_HEADS query heads of one KV head, tile_heads of
 * them. partial: [rows][tiles][DECODE_MAX_SPLITS][tile_heads][head_dim + 2] floats; counters:
 * [rows][tiles], zero before and after. */
cudaError_t cuda_launch_attention_decode(cudaStream_t stream, enum qep_kv_type type,
                                         const struct cuda_attention_shape *shape,
                                         const struct cuda_rope *rope,
                                         const struct qep_span *dev_spans, int32_t num_rows,
                                         int32_t max_end, const struct qep_rows_out *out,
                                         const float *qg, const float *q_norm, void *const *blocks,
                                         float *partial, uint32_t *counters);

cudaError_t cuda_launch_attention_prefill(cudaStream_t stream, enum qep_kv_type type,
                                          const struct cuda_attention_shape *shape,
                                          const struct cuda_rope *rope,
                                          const struct qep_span *dev_spans, int32_t num_spans,
                                          int32_t max_rows, const struct qep_rows_out *out,
                                          const float *qg, const float *q_norm,
                                          void *const *blocks);

#ifdef __cplusplus
}
#endif
#endif

/* Table entries of full attention. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/need.h"

#include "base/status.h"
#include "kernels/rope.h"

#include <assert.h>

enum qep_status cuda_attention_limits(const struct qep_attention_dims *dims) {
    if (dims->head_dim > CUDA_MAX_HEAD_DIM)
        return qep_fail(QEP_ERR_USAGE,
                        "the cuda backend has attention for head_dim up to %d, the model has %d",
                        (int)CUDA_MAX_HEAD_DIM, (int)dims->head_dim);
    if (dims->rotary_dim % 2 != 0 || dims->rotary_dim > dims->head_dim)
        return qep_fail(QEP_ERR_USAGE,
                        "rotary_dim is %d: it must be even and at most head_dim, which is %d",
                        (int)dims->rotary_dim, (int)dims->head_dim);
    if (dims->num_heads % dims->num_kv_heads != 0)
        return qep_fail(QEP_ERR_USAGE, "%d query heads do not divide over %d key heads",
                        (int)dims->num_heads, (int)dims->num_kv_heads);
    return QEP_OK;
}

static struct cuda_attention_shape shape_of(const struct qep_attention_dims *dims,
                                            struct cuda_rope *rope) {
    assert(dims->head_dim <= CUDA_MAX_HEAD_DIM && dims->rotary_dim <= dims->head_dim);
    assert(dims->num_heads % dims->num_kv_heads == 0);
    qep_rope_frequencies(dims->rope_theta, dims->rotary_dim, rope->freq);
    return (struct cuda_attention_shape){dims->num_heads,  dims->num_kv_heads, dims->head_dim,
                                         dims->rotary_dim, dims->max_blocks,   dims->eps};
}

static int32_t longest_span(const struct qep_batch *batch) {
    int32_t longest = 0;
    for (int32_t s = 0; s < batch->num_spans; s++)
        longest = batch->spans[s].num_rows > longest ? batch->spans[s].num_rows : longest;
    return longest;
}

enum qep_status cuda_attention_kv(struct qep_backend *be, const struct qep_attention_dims *dims,
                                  const struct qep_batch *batch, const float *k, const float *v,
                                  const float *k_norm, void *const *blocks) {
    struct cuda_rope rope;
    struct cuda_attention_shape shape = shape_of(dims, &rope);
    if (batch->num_rows == 0)
        return QEP_OK;
    return cuda_check(cuda_launch_attention_kv(cuda_backend_of(be)->stream, dims->kv_type, &shape,
                                               &rope, batch->dev_spans, batch->num_spans,
                                               longest_span(batch), k, v, k_norm, blocks),
                      "attention_kv");
}

/* The counters of the splits must be zero between ops, which a new workspace is not. */
static enum qep_status reserve_zeroed(struct cuda_backend *cb, enum cuda_workspace id, size_t bytes,
                                      void **dev) {
    const void *before = cb->workspace[id].data;
    size_t bytes_before = cb->workspace[id].bytes;
    QEP_TRY(cuda_reserve(cb, id, bytes, dev));
    if (cb->workspace[id].data == before && cb->workspace[id].bytes == bytes_before)
        return QEP_OK;
    return cuda_check(cudaMemsetAsync(*dev, 0, cb->workspace[id].bytes, cb->stream), "attention");
}

size_t cuda_attention_decode_bytes(const struct qep_attention_dims *dims, int32_t num_rows,
                                   size_t *counter_bytes) {
    size_t tiles =
        (size_t)num_rows * (size_t)cuda_decode_tiles(dims->num_heads, dims->num_kv_heads);
    size_t split_floats = (size_t)cuda_decode_tile_heads(dims->num_heads, dims->num_kv_heads) *
                          ((size_t)dims->head_dim + 2);
    *counter_bytes = tiles * sizeof(uint32_t);
    return tiles * CUDA_DECODE_MAX_SPLITS * split_floats * sizeof(float);
}

static enum qep_status attention_decode(struct cuda_backend *cb,
                                        const struct qep_attention_dims *dims,
                                        const struct cuda_attention_shape *shape,
                                        const struct cuda_rope *rope, const struct qep_batch *batch,
                                        const struct qep_rows_out *out, const float *qg,
                                        const float *q_norm, void *const *blocks) {
    size_t counter_bytes,
        bytes = cuda_attention_decode_bytes(dims, batch->num_rows, &counter_bytes);
    void *partial, *counters;
    assert(batch->num_rows == batch->num_spans);
    QEP_TRY(cuda_reserve(cb, CUDA_WS_ATTENTION, bytes, &partial));
    QEP_TRY(reserve_zeroed(cb, CUDA_WS_ATTENTION_COUNTERS, counter_bytes, &counters));
    return cuda_check(cuda_launch_attention_decode(
                          cb->stream, dims->kv_type, shape, rope, batch->dev_spans, batch->num_rows,
                          batch->max_end, out, qg, q_norm, blocks, partial, counters),
                      "attention");
}

enum qep_status cuda_attention(struct qep_backend *be, const struct qep_attention_dims *dims,
                               const struct qep_batch *batch, struct qep_rows_out out,
                               const float *qg, const float *q_norm, void *const *blocks) {
    struct cuda_backend *cb = cuda_backend_of(be);
    int32_t cols = dims->num_heads * dims->head_dim;
    struct cuda_rope rope;
    struct cuda_attention_shape shape = shape_of(dims, &rope);
    if (batch->num_rows == 0)
        return QEP_OK;
    cuda_check_rows(&out, cols);
    if (batch->spans[0].decode)
        QEP_TRY(attention_decode(cb, dims, &shape, &rope, batch, &out, qg, q_norm, blocks));
    else
        QEP_TRY(cuda_check(cuda_launch_attention_prefill(
                               cb->stream, dims->kv_type, &shape, &rope, batch->dev_spans,
                               batch->num_spans, longest_span(batch), &out, qg, q_norm, blocks),
                           "attention"));
    return cuda_finish_rows(be, &out, batch->num_rows, cols);
}

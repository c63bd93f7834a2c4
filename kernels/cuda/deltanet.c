/* Table entries of Gated DeltaNet. */
#include "kernels/cuda/deltanet.h"

#include "kernels/cuda/delta_chunk.h"
#include "kernels/cuda/device_entries.h"
#include "kernels/cuda/need.h"

#include <assert.h>

enum qep_status cuda_delta_limits(const struct qep_delta_dims *dims) {
    int32_t dk = dims->key_head_dim, dv = dims->value_head_dim;
    if (dk > CUDA_MAX_DELTA_DIM || dv > CUDA_MAX_DELTA_DIM)
        return qep_fail(QEP_ERR_USAGE,
                        "the cuda backend has linear attention for key and value head dims up to "
                        "%d, the model has %d and %d",
                        (int)CUDA_MAX_DELTA_DIM, (int)dk, (int)dv);
    if (dims->conv_kernel_dim > CUDA_MAX_CONV)
        return qep_fail(QEP_ERR_USAGE,
                        "the cuda backend has convolutions of up to %d inputs, the model has %d",
                        (int)CUDA_MAX_CONV, (int)dims->conv_kernel_dim);
    if (dims->num_value_heads % dims->num_key_heads != 0)
        return qep_fail(QEP_ERR_USAGE, "%d value heads do not divide over %d key heads",
                        (int)dims->num_value_heads, (int)dims->num_key_heads);
    return QEP_OK;
}

static int32_t longest_span(const struct qep_batch *batch) {
    int32_t longest = 0;
    for (int32_t s = 0; s < batch->num_spans; s++)
        longest = batch->spans[s].num_rows > longest ? batch->spans[s].num_rows : longest;
    return longest;
}

static int32_t num_channels(const struct qep_delta_dims *dims) {
    return 2 * dims->num_key_heads * dims->key_head_dim +
           dims->num_value_heads * dims->value_head_dim;
}

enum qep_status cuda_delta_conv(struct qep_backend *be, const struct qep_delta_dims *dims,
                                const struct qep_batch *batch, float *out, const float *qkv,
                                const float *weight, float *conv_state) {
    if (batch->num_rows == 0)
        return QEP_OK;
    assert(dims->conv_kernel_dim >= 1 && dims->conv_kernel_dim <= CUDA_MAX_CONV);
    return cuda_check(cuda_launch_delta_conv(cuda_backend_of(be)->stream, batch->dev_spans,
                                             batch->num_spans, longest_span(batch),
                                             num_channels(dims), dims->conv_kernel_dim, out, qkv,
                                             weight, conv_state),
                      "delta_conv");
}

static bool in_chunks(int32_t key_head_dim, int32_t value_head_dim) {
    return key_head_dim % 4 == 0 && value_head_dim % 4 == 0 &&
           key_head_dim >= CHUNKED_MIN_KEY_DIM && key_head_dim <= CHUNKED_MAX_KEY_DIM;
}

static size_t chunk_bytes(size_t chunks, int32_t num_value_heads) {
    return chunks * (size_t)num_value_heads * CHUNK_FLOATS * sizeof(float);
}

size_t cuda_delta_bytes(const struct qep_delta_dims *dims, int32_t num_rows, int32_t num_spans) {
    /* Every span's last chunk may be partly filled. */
    size_t chunks = (size_t)(num_rows / DELTA_C + num_spans);
    return in_chunks(dims->key_head_dim, dims->value_head_dim)
               ? chunk_bytes(chunks, dims->num_value_heads)
               : 0;
}

static enum qep_status delta_in_chunks(struct cuda_backend *cb, const struct cuda_delta_args *args,
                                       const struct qep_batch *batch) {
    size_t chunks = 0;
    void *workspace;
    for (int32_t s = 0; s < batch->num_spans; s++)
        chunks += (size_t)((batch->spans[s].num_rows + DELTA_C - 1) / DELTA_C);
    QEP_TRY(
        cuda_reserve(cb, CUDA_WS_DELTA, chunk_bytes(chunks, args->num_value_heads), &workspace));
    QEP_TRY(cuda_check(cuda_launch_delta_prepare(cb->stream, args, longest_span(batch), workspace),
                       "delta"));
    return cuda_check(cuda_launch_delta_chunks(cb->stream, args, workspace), "delta");
}

enum qep_status cuda_delta(struct qep_backend *be, const struct qep_delta_dims *dims,
                           const struct qep_batch *batch, float *out, const float *qkv,
                           const float *a, const float *b, const float *A_log, const float *dt_bias,
                           float *state) {
    struct cuda_delta_args args = {dims->num_key_heads,
                                   dims->num_value_heads,
                                   dims->key_head_dim,
                                   dims->value_head_dim,
                                   batch->num_spans,
                                   batch->dev_spans,
                                   out,
                                   qkv,
                                   a,
                                   b,
                                   A_log,
                                   dt_bias,
                                   state};
    if (batch->num_rows == 0)
        return QEP_OK;
    assert(dims->key_head_dim <= CUDA_MAX_DELTA_DIM);
    assert(dims->value_head_dim <= CUDA_MAX_DELTA_DIM);
    assert(dims->num_value_heads % dims->num_key_heads == 0);
    if (!batch->spans[0].decode && in_chunks(dims->key_head_dim, dims->value_head_dim))
        return delta_in_chunks(cuda_backend_of(be), &args, batch);
    return cuda_check(cuda_launch_delta_scan(cuda_backend_of(be)->stream, &args), "delta");
}

enum qep_status cuda_delta_norm(struct qep_backend *be, const struct qep_delta_dims *dims,
                                float *out, const float *o, const float *z, const float *w,
                                int32_t n) {
    if (n == 0)
        return QEP_OK;
    return cuda_check(cuda_launch_delta_norm(cuda_backend_of(be)->stream, out, o, z, w,
                                             (size_t)n * (size_t)dims->num_value_heads,
                                             dims->value_head_dim, dims->eps),
                      "delta_norm");
}

enum qep_status cuda_delta_decode(struct qep_backend *be, const struct qep_delta_dims *dims,
                                  const struct qep_batch *batch, struct qep_rows_out out,
                                  const struct qep_delta_decode_args *args) {
    const struct cuda_delta_decode_args all = {.num_key_heads = dims->num_key_heads,
                                               .num_value_heads = dims->num_value_heads,
                                               .key_head_dim = dims->key_head_dim,
                                               .value_head_dim = dims->value_head_dim,
                                               .conv_kernel_dim = dims->conv_kernel_dim,
                                               .eps = dims->eps,
                                               .channels = (size_t)num_channels(dims),
                                               .num_spans = batch->num_spans,
                                               .dev_spans = batch->dev_spans,
                                               .qkv = args->qkv,
                                               .z = args->z,
                                               .a = args->a,
                                               .b = args->b,
                                               .conv1d = args->conv1d,
                                               .A_log = args->A_log,
                                               .dt_bias = args->dt_bias,
                                               .norm = args->norm,
                                               .conv_state = args->conv_state,
                                               .recurrent_state = args->recurrent_state};
    int32_t cols = dims->num_value_heads * dims->value_head_dim;
    if (batch->num_rows == 0)
        return QEP_OK;
    assert(batch->spans[0].decode && batch->num_rows == batch->num_spans);
    assert(dims->key_head_dim <= CUDA_MAX_DELTA_DIM && dims->value_head_dim <= CUDA_MAX_DELTA_DIM);
    assert(dims->conv_kernel_dim >= 1 && dims->conv_kernel_dim <= CUDA_MAX_CONV);
    assert(dims->num_value_heads % dims->num_key_heads == 0);
    cuda_check_rows(&out, cols);
    QEP_TRY(cuda_check(cuda_launch_delta_decode(cuda_backend_of(be)->stream, &all, &out),
                       "delta_decode"));
    return cuda_finish_rows(be, &out, batch->num_rows, cols);
}

/* Launchers of the Gated DeltaNet kernels, and what their host side and the kernels agree on. */
#ifndef QEP_KERNELS_CUDA_DELTANET_H
#define QEP_KERNELS_CUDA_DELTANET_H

#include "kernels/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CUDA_MAX_DELTA_DIM = 256, /* key_head_dim, value_head_dim */
    CUDA_MAX_CONV = 8
};

/* The arguments of the delta op. Device pointers, shapes as in backend.h. */
struct cuda_delta_args {
    int32_t num_key_heads, num_value_heads, key_head_dim, value_head_dim;
    int32_t num_spans;
    const struct qep_span *dev_spans;
    float *out;
    const float *qkv, *a, *b, *A_log, *dt_bias;
    float *state;
};

/* Those of delta_decode but its output; channels: C. */
struct cuda_delta_decode_args {
    int32_t num_key_heads, num_value_heads, key_head_dim, value_head_dim, conv_kernel_dim;
    float eps;
    size_t channels;
    int32_t num_spans;
    const struct qep_span *dev_spans;
    const float *qkv, *z, *a, *b;
    const float *conv1d, *A_log, *dt_bias, *norm;
    float *conv_state, *recurrent_state;
};

/* QEP_ERR_USAGE naming the limit that dims exceed. */
enum qep_status cuda_delta_limits(const struct qep_delta_dims *dims);

/* max_rows: of the longest span. */
cudaError_t cuda_launch_delta_conv(cudaStream_t stream, const struct qep_span *dev_spans,
                                   int32_t num_spans, int32_t max_rows, int32_t channels,
                                   int32_t kernel, float *out, const float *qkv,
                                   const float *weight, float *conv_state);
/* Of out->act, bf16 rows alone. */
cudaError_t cuda_launch_delta_decode(cudaStream_t stream, const struct cuda_delta_decode_args *args,
                                     const struct qep_rows_out *out);
/* Row after row: decode, and prefill of the dims that have no chunked kernel. */
cudaError_t cuda_launch_delta_scan(cudaStream_t stream, const struct cuda_delta_args *args);
/* Prefill in chunks, key_head_dim <= 128: what does not depend on the state, then the walk over the
 * chunks. workspace: CHUNK_FLOATS (delta_chunk.h) per chunk of a span and value head. */
cudaError_t cuda_launch_delta_prepare(cudaStream_t stream, const struct cuda_delta_args *args,
                                      int32_t max_rows, float *workspace);
cudaError_t cuda_launch_delta_chunks(cudaStream_t stream, const struct cuda_delta_args *args,
                                     const float *workspace);
cudaError_t cuda_launch_delta_norm(cudaStream_t stream, float *out, const float *o, const float *z,
                                   const float *w, size_t count, int32_t width, float eps);

#ifdef __cplusplus
}
#endif
#endif

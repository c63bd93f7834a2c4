/* Launchers of the row-wise and element-wise kernels. Device pointers; shapes as in backend.h. */
#ifndef QEP_KERNELS_CUDA_ELEMENTWISE_H
#define QEP_KERNELS_CUDA_ELEMENTWISE_H

#include "kernels/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of out->act, kernels write bf16 rows; other types are act_convert's. */
cudaError_t cuda_launch_rms_norm(cudaStream_t stream, const struct qep_rows_out *out,
                                 const float *x, const float *w, int32_t n, int32_t cols,
                                 float eps);
cudaError_t cuda_launch_act_f32(cudaStream_t stream, void *out, size_t row_stride, const float *x,
                                int32_t n, int32_t cols);
cudaError_t cuda_launch_act_bf16(cudaStream_t stream, void *out, size_t row_stride, const float *x,
                                 int32_t n, int32_t cols);
cudaError_t cuda_launch_act_int8(cudaStream_t stream, void *out, size_t row_stride, const float *x,
                                 int32_t n, int32_t cols);
cudaError_t cuda_launch_swiglu(cudaStream_t stream, const struct qep_rows_out *out,
                               const float *gate, const float *up, int32_t n, int32_t cols);
cudaError_t cuda_launch_router_topk(cudaStream_t stream, int32_t *topk_idx, float *topk_weights,
                                    const float *logits, int32_t n, int32_t num_experts,
                                    int32_t top_k, const struct qep_span *dev_spans);

#ifdef __cplusplus
}
#endif
#endif

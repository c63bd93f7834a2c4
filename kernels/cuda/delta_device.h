/* Device code that the DeltaNet kernels share. */
#ifndef QEP_KERNELS_CUDA_DELTA_DEVICE_H
#define QEP_KERNELS_CUDA_DELTA_DEVICE_H

#include "kernels/cuda/deltanet.h"
#include "kernels/cuda/warp.h"
#include "kernels/mathfn.h"

__device__ __forceinline__ size_t delta_channels(const cuda_delta_args &args) {
    return 2 * static_cast<size_t>(args.num_key_heads) * static_cast<size_t>(args.key_head_dim) +
           static_cast<size_t>(args.num_value_heads) * static_cast<size_t>(args.value_head_dim);
}

/* qep_conv_row for the device. */
__device__ __forceinline__ size_t conv_row(int position, int taps) {
    return static_cast<unsigned>(position + taps) % static_cast<unsigned>(taps);
}

/* 1 / sqrt(sum of squares + 1e-6) of x [dim]; the whole warp. */
template <class P> __device__ __forceinline__ float inverse_l2(P x, int dim) {
    float sum = 0.0f;
    for (int d = static_cast<int>(threadIdx.x) % WARP; d < dim; d += WARP) {
        float v = x[d];
        sum = fmaf(v, v, sum);
    }
    return inverse_root(warp_sum(sum) + 1e-6f);
}

/* 1 / rms of o [width], the whole warp; then the gated norm of an element, gate = silu(z). */
template <class P> __device__ __forceinline__ float inverse_rms(P o, int width, float eps) {
    float sum = 0.0f;
    for (int d = static_cast<int>(threadIdx.x) % WARP; d < width; d += WARP) {
        float v = o[d];
        sum = fmaf(v, v, sum);
    }
    return inverse_root(warp_sum(sum) / static_cast<float>(width) + eps);
}

__device__ __forceinline__ float gated_norm(float o, float inv, float weight, float gate) {
    return weight * (o * inv) * gate;
}

/* The log decay g <= 0 and the write strength of one row and head. */
__device__ __forceinline__ float log_decay(float a, float A_log, float dt_bias) {
    return -qep_expf(A_log) * qep_softplusf(a + dt_bias);
}

#endif

/* Sums and maxima over the lanes of a warp and the threads of a block, in one fixed order. */
#ifndef QEP_KERNELS_CUDA_WARP_H
#define QEP_KERNELS_CUDA_WARP_H

#include "kernels/cuda/cu.h"

enum { WARP = 32 };

/* Neither infinite nor NaN. */
__device__ __forceinline__ bool is_finite(float v) {
    return fabsf(v) <= 3.4028235e38f;
}

/* The one that all backends store. */
__device__ __forceinline__ float quiet_nan() {
    return __uint_as_float(0x7fc00000u);
}

/* 1 / sqrt(v), the factor of a norm. NaN where v is infinite: 0 would make an ordinary row of zeros
 * out of one whose squares overflow. */
__device__ __forceinline__ float inverse_root(float v) {
    return 1.0f / sqrtf(is_finite(v) ? v : quiet_nan());
}

/* Every lane gets the result. */
__device__ __forceinline__ float warp_sum(float v) {
    for (int step = WARP / 2; step > 0; step /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

/* Of the lanes whose v is no NaN. */
__device__ __forceinline__ float warp_max(float v) {
    for (int step = WARP / 2; step > 0; step /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

/* Every thread gets the result; part: one float per warp, free to use before and after a barrier
 * of the block. */
__device__ __forceinline__ float block_sum(float v, sptr<float> part) {
    int warp = static_cast<int>(threadIdx.x) / WARP;
    int num_warps = static_cast<int>(blockDim.x) / WARP;
    v = warp_sum(v);
    if (threadIdx.x % WARP == 0)
        part[warp] = v;
    __syncthreads();
    float sum = part[0];
    for (int w = 1; w < num_warps; w++)
        sum += part[w];
    return sum;
}

/* The four floats of a 16-byte move. */
__device__ __forceinline__ float4 as_floats(uint4 v) {
    return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z),
                       __uint_as_float(v.w));
}
__device__ __forceinline__ uint4 as_bits(float4 v) {
    return make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z),
                      __float_as_uint(v.w));
}

#endif

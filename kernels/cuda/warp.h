/* Sums and maxima over the lanes of a warp and the threads of a block, in one fixed order. */
#ifndef QEP_KERNELS_CUDA_WARP_H
#define QEP_KERNELS_CUDA_WARP_H

#include "kernels/cuda/cu.h"
#include "kernels/mathfn.h"

enum { WARP = 32 };

/* Neither infinite nor NaN. */
__device__ __forceinline__ bool is_finite(float v) {
    return fabsf(v) <= 3.4028235e38f;
}

/* 1 / qep_norm_rootf(v), NaN where v is infinite. It is chosen before the root: behind it, v would
 * hold a register that the decode step of DeltaNet has not got. */
__device__ __forceinline__ float inverse_root(float v) {
    return 1.0f / sqrtf(is_finite(v) ? v : qep_nanf());
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

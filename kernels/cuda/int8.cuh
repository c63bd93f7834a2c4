/* Groups of int8 codes with a float scale: activation rows and the KV cache. */
#ifndef QEP_KERNELS_CUDA_INT8_CUH
#define QEP_KERNELS_CUDA_INT8_CUH

#include "kernels/cuda/warp.h"
#include "kernels/mathfn.h"

/* What orders magnitudes as fmaxf does, but for NaN, which is the largest. */
__device__ __forceinline__ uint32_t magnitude_bits(float v) {
    return __float_as_uint(v) & 0x7fffffffu;
}

/* The scale of the group whose largest magnitude has, in any of the lanes, these bits; NaN, and so
 * codes of 0, if that is not finite. */
__device__ __forceinline__ float int8_scale(uint32_t magnitude) {
    for (int step = WARP / 2; step > 0; step /= 2)
        magnitude = max(magnitude, __shfl_xor_sync(0xffffffffu, magnitude, step));
    return magnitude < static_cast<uint32_t>(QEP_INF_BITS) ? __uint_as_float(magnitude) / 127.0f
                                                           : qep_nanf();
}

__device__ __forceinline__ int8_t int8_code(float x, float scale) {
    float q = scale > 0.0f ? x / scale : 0.0f;
    q = q > 127.0f ? 127.0f : q; /* a subnormal scale may have lost bits */
    q = q < -127.0f ? -127.0f : q;
    return static_cast<int8_t>(qep_round_even_int(q));
}

#endif

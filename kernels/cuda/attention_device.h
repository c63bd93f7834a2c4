/* Device code that the attention kernels share: RMSNorm + RoPE of a head, the KV cache as bf16, the
 * softmax's exp. */
#ifndef QEP_KERNELS_CUDA_ATTENTION_DEVICE_H
#define QEP_KERNELS_CUDA_ATTENTION_DEVICE_H

#include "kernels/cuda/attention.h"
#include "kernels/cuda/warp.h"
#include "kernels/mathfn.h"

/* ---- RoPE ---- */

/* cos and sin of position * freq. The product is exact in double and is reduced there to [-pi / 4,
 * pi / 4]; Cephes' fp32 polynomials do the rest, within 1e-7. */
__device__ __forceinline__ float2 rope_cos_sin(float freq, int position) {
    double angle = static_cast<double>(position) * static_cast<double>(freq);
    double quarter = rint(angle * 0.63661977236758134308);
    double rest = fma(-quarter, 1.57079632679489661923, angle);
    rest = fma(-quarter, 6.12323399573676603587e-17, rest);
    float x = static_cast<float>(rest), z = x * x;
    float s = fmaf(z, -1.9515295891e-4f, 8.3321608736e-3f);
    s = fmaf(fmaf(z, s, -1.6666654611e-1f) * z, x, x);
    float c = fmaf(z, 2.443315711809948e-5f, -1.388731625493765e-3f);
    c = fmaf(z, c, 4.166664568298827e-2f) * z;
    c = fmaf(c, z, fmaf(z, -0.5f, 1.0f));
    int turn = static_cast<int>(quarter) & 3;
    float cosine = turn & 1 ? s : c, sine = turn & 1 ? c : s;
    return make_float2(turn == 1 || turn == 2 ? -cosine : cosine, turn >= 2 ? -sine : sine);
}

/* 1 / rms of x [head_dim]; the whole warp. */
__device__ __forceinline__ float inverse_rms(gptr<const float> x, int head_dim, float eps) {
    float sum = 0.0f;
    for (int d = static_cast<int>(threadIdx.x) % WARP; d < head_dim; d += WARP) {
        float v = x[d];
        sum = fmaf(v, v, sum);
    }
    return inverse_root(warp_sum(sum) / static_cast<float>(head_dim) + eps);
}

/* Element d of the normalised, rotated head. freq: [rotary_dim / 2]. */
__device__ __forceinline__ float norm_and_rotate(gptr<const float> x, gptr<const float> w,
                                                 float inv, int d, int rotary_dim, sptr<float> freq,
                                                 int position) {
    float weight = w[d], value = x[d];
    value = value * inv * weight;
    if (d >= rotary_dim)
        return value;
    int pairs = rotary_dim / 2, pair = d < pairs ? d : d - pairs;
    int other_d = d < pairs ? d + pairs : pair;
    float other_weight = w[other_d], other = x[other_d];
    other = other * inv * other_weight;
    float2 cs = rope_cos_sin(freq[pair], position);
    return d < pairs ? value * cs.x - other * cs.y : value * cs.x + other * cs.y;
}

/* ---- the cache ---- */

/* Index of the row (K: which = 0, V: 1) of one head at one position of a block; times head_dim, of
 * its first element; of its scale. */
__device__ __forceinline__ int kv_row(int which, int in_block, int head, int num_kv_heads) {
    return (which * QEP_KV_BLOCK + in_block) * num_kv_heads + head;
}

__device__ __forceinline__ gptr<const float> kv_scales(const void *block, int num_kv_heads,
                                                       int head_dim) {
    size_t elements = 2 * static_cast<size_t>(QEP_KV_BLOCK) * static_cast<size_t>(num_kv_heads) *
                      static_cast<size_t>(head_dim);
    return gptr<const float>(
        reinterpret_cast<const float *>(static_cast<const unsigned char *>(block) + elements));
}

template <int TYPE> __device__ __forceinline__ float kv_element(const void *block, size_t idx) {
    if (TYPE == QEP_KV_F32) {
        gptr<const float> p(static_cast<const float *>(block));
        return p[idx];
    }
    if (TYPE == QEP_KV_BF16) {
        gptr<const uint16_t> p(static_cast<const uint16_t *>(block));
        return from_bf16(p[idx]);
    }
    gptr<const int8_t> p(static_cast<const int8_t *>(block));
    int8_t q = p[idx];
    return static_cast<float>(q);
}

__device__ __forceinline__ uint32_t int8x2_to_bf16(uint32_t word, int shift) {
    return pack_bf16x2(static_cast<float>(static_cast<int8_t>(word >> shift)),
                       static_cast<float>(static_cast<int8_t>(word >> (shift + 8))));
}

/* Elements [d, d + 8) of a row as bf16, zero from head_dim on; d a multiple of 8. int8: the
 * quants, which bf16 holds exactly; their scale is the caller's. */
template <int TYPE>
__device__ __forceinline__ uint4 kv_load8(const void *block, int row, int head_dim, int d) {
    if (d >= head_dim)
        return make_uint4(0u, 0u, 0u, 0u);
    size_t idx = static_cast<size_t>(row) * static_cast<size_t>(head_dim) + static_cast<size_t>(d);
    if (head_dim % 8 != 0) {
        uint32_t word[4];
        for (int i = 0; i < 4; i++) {
            int at = 2 * i;
            float lo = d + at < head_dim ? kv_element<TYPE>(block, idx + at) : 0.0f;
            float hi = d + at + 1 < head_dim ? kv_element<TYPE>(block, idx + at + 1) : 0.0f;
            word[i] = pack_bf16x2(lo, hi);
        }
        return make_uint4(word[0], word[1], word[2], word[3]);
    }
    if (TYPE == QEP_KV_BF16)
        return load16(gptr<const uint16_t>(static_cast<const uint16_t *>(block)) + idx);
    if (TYPE == QEP_KV_F32) {
        gptr<const float> p = gptr<const float>(static_cast<const float *>(block)) + idx;
        float4 a = as_floats(load16(p)), b = as_floats(load16(p + 4));
        return make_uint4(pack_bf16x2(a.x, a.y), pack_bf16x2(a.z, a.w), pack_bf16x2(b.x, b.y),
                          pack_bf16x2(b.z, b.w));
    }
    uint2 v = load8(gptr<const int8_t>(static_cast<const int8_t *>(block)) + idx);
    return make_uint4(int8x2_to_bf16(v.x, 0), int8x2_to_bf16(v.x, 16), int8x2_to_bf16(v.y, 0),
                      int8x2_to_bf16(v.y, 16));
}

/* ---- softmax ---- */

/* exp(x) for x <= 0, 0 below -87: qep_expf's polynomial with fused steps and one exponent. */
__device__ __forceinline__ float softmax_exp(float x) {
    float bounded = fmaxf(x, -87.0f);
    float rounded = fmaf(bounded, 1.44269504088896341f, QEP_ROUND_MAGIC);
    float n = rounded - QEP_ROUND_MAGIC;
    float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, bounded));
    float p = fmaf(r, 1.9875691500e-4f, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r + 1.0f);
    uint32_t scale = (__float_as_uint(rounded) - 0x4b400000u + 127u) << 23;
    /* A NaN stays one. */
    return x < -87.0f ? 0.0f : x != x ? x : p * __uint_as_float(scale);
}

/* Over the four lanes that hold one row of an mma's d. */
__device__ __forceinline__ float quad_sum(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
__device__ __forceinline__ float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

#endif

/* Reading packed tiles (layout: weight.h) as mma fragments. */
#ifndef QEP_KERNELS_CUDA_PACKED_CUH
#define QEP_KERNELS_CUDA_PACKED_CUH

#include "kernels/cuda/cu.h"
#include "kernels/cuda/weight.h"

typedef unsigned char byte_t; /* packed data, activation rows and packets are addressed in bytes */

template <int TYPE> struct packed_type;
template <> struct packed_type<QEP_WEIGHT_INT4> {
    enum { LOADS = 1, SCALED = 1 };
};
template <> struct packed_type<QEP_WEIGHT_INT8> {
    enum { LOADS = 2, SCALED = 1 };
};
template <> struct packed_type<QEP_WEIGHT_BF16> {
    enum { LOADS = 4, SCALED = 0 };
};
template <> struct packed_type<QEP_WEIGHT_F32> {
    enum { LOADS = 8, SCALED = 0 };
};

/* f(weight_tag<TYPE>()) for the type of packed weights that mma multiplies. */
template <int TYPE> struct weight_tag {
    enum { VALUE = TYPE };
};
template <class F> static inline cudaError_t dispatch_type(enum qep_weight_type type, const F &f) {
    switch (type) {
    case QEP_WEIGHT_INT4:
        return f(weight_tag<QEP_WEIGHT_INT4>());
    case QEP_WEIGHT_INT8:
        return f(weight_tag<QEP_WEIGHT_INT8>());
    case QEP_WEIGHT_BF16:
        return f(weight_tag<QEP_WEIGHT_BF16>());
    case QEP_WEIGHT_F32:
        break;
    }
    return cudaErrorInvalidValue;
}

/* Element i of the vector; i is a constant wherever this is used. */
static __device__ __forceinline__ uint32_t word_of(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* Eight nibbles u to the bf16 pairs u - 8: 128 + u is a bf16 whose low bits are u. */
static __device__ __forceinline__ void int4_fragment(uint32_t (&a)[4], uint32_t w) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        a[i] = sub_bf16x2(((w >> (4 * i)) & 0x000f000fu) | 0x43004300u, 0x43084308u);
}

/* Bytes 0 and 2 of w, u = q + 128, to the bf16 pair q: 128 + low nibble, and 2048 + 16 * high
 * nibble less 2304, are exact, and so is their sum q. */
static __device__ __forceinline__ uint32_t int8_pair(uint32_t w) {
    uint32_t low = (w & 0x000f000fu) | 0x43004300u;
    uint32_t high = ((w >> 4) & 0x000f000fu) | 0x45004500u;
    return add_bf16x2(sub_bf16x2(high, 0x45104510u), low);
}

/* The A fragment of k-step `step` = 2 h + j of a block, from the lane's loads. */
template <int TYPE>
static __device__ __forceinline__ void
weight_fragment(uint32_t (&a)[4], const uint4 (&w)[packed_type<TYPE>::LOADS], int step) {
    if (TYPE == QEP_WEIGHT_INT4) {
        int4_fragment(a, word_of(w[0], step));
    } else if (TYPE == QEP_WEIGHT_INT8) {
        uint4 load = w[(step / 2) % packed_type<TYPE>::LOADS];
#pragma unroll
        for (int p = 0; p < 2; p++) {
            uint32_t bytes = word_of(load, 2 * (step % 2) + p);
            a[2 * p] = int8_pair(bytes);
            a[2 * p + 1] = int8_pair(bytes >> 8);
        }
    } else {
        uint4 load = w[step % packed_type<TYPE>::LOADS];
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[i] = word_of(load, i);
    }
}

/* The B fragment of step j of the 32 columns whose activations are x. */
static __device__ __forceinline__ void act_fragment(uint32_t (&b)[2], const uint4 &x, int j) {
    b[0] = j == 0 ? x.x : x.z;
    b[1] = j == 0 ? x.y : x.w;
}

/* The scale group of the 32 columns k32. */
static __device__ __forceinline__ int group_of(const cuda_matrix &m, int k32) {
    if (m.group32 == 1)
        return k32;
    return static_cast<int>((static_cast<uint64_t>(k32) * m.group_magic) >> 32);
}

/* y += scale * acc for both halves of a lane's rows, acc = 0. */
template <int NT>
static __device__ __forceinline__ void scale_sums(float (&y)[NT][4], float (&acc)[NT][4],
                                                  uint32_t scales) {
    float first = bf16x2_lo(scales), second = bf16x2_hi(scales);
#pragma unroll
    for (int j = 0; j < NT; j++) {
        y[j][0] = fmaf(first, acc[j][0], y[j][0]);
        y[j][1] = fmaf(first, acc[j][1], y[j][1]);
        y[j][2] = fmaf(second, acc[j][2], y[j][2]);
        y[j][3] = fmaf(second, acc[j][3], y[j][3]);
        acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
    }
}

template <int NT> static __device__ __forceinline__ void clear_sums(float (&sums)[NT][4]) {
#pragma unroll
    for (int j = 0; j < NT; j++)
        sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0.0f;
}

#endif

/* One row of the delta rule on 32 columns of a head's state, by four warps that hold them in
 * registers: a thread has four columns of every sixteenth key. With the old state S: p = S^T k,
 * r = S^T q;  delta = beta (v - e^g p);  o = e^g r + (k . q) delta;  S = e^g S + k delta^T. */
#ifndef QEP_KERNELS_CUDA_DELTA_STEP_DEVICE_H
#define QEP_KERNELS_CUDA_DELTA_STEP_DEVICE_H

#include "kernels/cuda/delta_device.h"

enum {
    STEP_WARPS = 4,
    STEP_THREADS = STEP_WARPS * WARP,
    STEP_COLS = 32,
    STEP_QUADS = STEP_COLS / 4,
    STEP_KEYS = STEP_THREADS / STEP_QUADS,
    STEP_SUMS = STEP_WARPS * 2 * STEP_QUADS
};

struct step_room {
    sptr<float> q, k;  /* [key_head_dim], normalised */
    sptr<float4> sums; /* [STEP_WARPS][2][STEP_QUADS]: p and r of each warp */
};

/* to = x / |x| * factor, dim floats; the whole warp. to may be x. */
template <class P>
__device__ __forceinline__ void normalise(sptr<float> to, P x, int dim, float factor) {
    float inv = inverse_l2(x, dim) * factor;
    for (int d = static_cast<int>(threadIdx.x) % WARP; d < dim; d += WARP) {
        float v = x[d];
        to[d] = v * inv;
    }
}

__device__ __forceinline__ float query_factor(int dim) {
    return 1.0f / sqrtf(static_cast<float>(dim));
}

__device__ __forceinline__ float4 fma4(float s, float4 x, float4 y) {
    return make_float4(fmaf(s, x.x, y.x), fmaf(s, x.y, y.y), fmaf(s, x.z, y.z), fmaf(s, x.w, y.w));
}

__device__ __forceinline__ float4 add4(float4 x, float4 y) {
    return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
}

__device__ __forceinline__ float4 scale4(float s, float4 x) {
    return make_float4(s * x.x, s * x.y, s * x.z, s * x.w);
}

/* Sums over the four lanes of a warp that hold the same columns. */
__device__ __forceinline__ float4 column_sum(float4 v) {
    for (int step = STEP_QUADS; step < WARP; step *= 2)
        v = add4(v, make_float4(__shfl_xor_sync(0xffffffffu, v.x, step),
                                __shfl_xor_sync(0xffffffffu, v.y, step),
                                __shfl_xor_sync(0xffffffffu, v.z, step),
                                __shfl_xor_sync(0xffffffffu, v.w, step)));
    return v;
}

/* The thread's keys, zeros beyond key_dim. key0: the first of them. */
template <int ROWS>
__device__ __forceinline__ void take_keys(float (&to)[ROWS], sptr<float> from, int key0,
                                          int key_dim) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int key = key0 + i * STEP_KEYS;
        to[i] = 0.0f;
        if (key < key_dim)
            to[i] = from[key];
    }
}

/* k . q; the whole warp. */
__device__ __forceinline__ float overlap(const step_room &room, int key_dim) {
    float sum = 0.0f;
    for (int d = static_cast<int>(threadIdx.x) % WARP; d < key_dim; d += WARP)
        sum = fmaf(room.k[d], room.q[d], sum);
    return warp_sum(sum);
}

__device__ __forceinline__ int step_warp() {
    return static_cast<int>(threadIdx.x) / WARP % STEP_WARPS;
}

/* The warp's part of p and r. */
template <int ROWS>
__device__ __forceinline__ void leave_sums(const float4 (&S)[ROWS], const float (&k)[ROWS],
                                           const float (&q)[ROWS], const step_room &room) {
    int lane = static_cast<int>(threadIdx.x) % WARP;
    float4 p = make_float4(0.0f, 0.0f, 0.0f, 0.0f), r = p;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        p = fma4(k[i], S[i], p);
        r = fma4(q[i], S[i], r);
    }
    p = column_sum(p);
    r = column_sum(r);
    if (lane < STEP_QUADS) {
        room.sums[step_warp() * 2 * STEP_QUADS + lane] = p;
        room.sums[(step_warp() * 2 + 1) * STEP_QUADS + lane] = r;
    }
}

/* p (which 0) or r (1) of the thread's columns, after a barrier behind leave_sums. */
__device__ __forceinline__ float4 joined_sum(const step_room &room, int which) {
    int at = which * STEP_QUADS + static_cast<int>(threadIdx.x) % STEP_QUADS;
    float4 sum = room.sums[at];
#pragma unroll
    for (int w = 1; w < STEP_WARPS; w++) {
        float4 more = room.sums[w * 2 * STEP_QUADS + at];
        sum = add4(sum, more);
    }
    return sum;
}

/* v: the values of the thread's columns. */
__device__ __forceinline__ float4 delta_of(float4 v, float4 p, float decay, float beta) {
    return make_float4(beta * (v.x - decay * p.x), beta * (v.y - decay * p.y),
                       beta * (v.z - decay * p.z), beta * (v.w - decay * p.w));
}

template <int ROWS>
__device__ __forceinline__ void update_state(float4 (&S)[ROWS], const float (&k)[ROWS],
                                             float4 delta, float decay) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        S[i] = fma4(k[i], delta, scale4(decay, S[i]));
}

__device__ __forceinline__ float4 outputs(float kq, float4 delta, float4 r, float decay) {
    return fma4(kq, delta, scale4(decay, r));
}

/* Four columns at p, of which `count` exist. ALIGNED: p is at 16 bytes and all four exist. */
template <bool ALIGNED>
__device__ __forceinline__ float4 load_columns(gptr<const float> p, int count) {
    if constexpr (ALIGNED) {
        return as_floats(load16(p));
    } else {
        float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (j < count)
                v[j] = p[j];
        return make_float4(v[0], v[1], v[2], v[3]);
    }
}

template <bool ALIGNED>
__device__ __forceinline__ void store_columns(gptr<float> p, float4 v, int count) {
    if constexpr (ALIGNED) {
        store16(p, as_bits(v));
    } else {
        const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (j < count)
                p[j] = values[j];
    }
}

/* The thread's part of a head's state, which begins at `state`: four columns from col on, of which
 * `left` exist (none: zeros, nothing is stored). */
template <int ROWS, bool ALIGNED>
__device__ __forceinline__ void load_state(float4 (&S)[ROWS], gptr<const float> state, int key0,
                                           int key_dim, int value_dim, int col) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int key = key0 + i * STEP_KEYS;
        S[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (col < value_dim && key < key_dim)
            S[i] = load_columns<ALIGNED>(state + key * value_dim + col, value_dim - col);
    }
}

template <int ROWS, bool ALIGNED>
__device__ __forceinline__ void store_state(const float4 (&S)[ROWS], gptr<float> state, int key0,
                                            int key_dim, int value_dim, int col) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int key = key0 + i * STEP_KEYS;
        if (col < value_dim && key < key_dim)
            store_columns<ALIGNED>(state + key * value_dim + col, S[i], value_dim - col);
    }
}

#endif

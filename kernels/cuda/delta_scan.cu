/* The delta rule row by row. A block takes one span, one value head and 32 columns of the state,
 * which it reads once, keeps in registers over the span's rows and writes once; a thread holds four
 * columns of every sixteenth key. With the old state S: p = S^T k, r = S^T q;
 *   delta = beta (v - e^g p);  o = e^g r + (k . q) delta;  S = e^g S + k delta^T. */
#include "kernels/cuda/delta_device.h"

namespace {

enum { WARPS = 4, THREADS = WARPS * WARP, COLS = 32, QUADS = COLS / 4, KEYS = THREADS / QUADS };

struct scan_room {
    sptr<float> q, k;  /* [key_head_dim padded] */
    sptr<float4> sums; /* [WARPS][2][QUADS]: p and r of each warp */
};

/* q and k of one row, normalised; q scaled. Warp 0 takes q, warp 1 k. */
__device__ __forceinline__ void load_row(const scan_room &room, const cuda_delta_args &args,
                                         gptr<const float> x, int key_head) {
    int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
    int dim = args.key_head_dim;
    if (warp >= 2)
        return;
    gptr<const float> from = x + (warp * args.num_key_heads + key_head) * dim;
    float inv = inverse_l2(from, dim);
    if (warp == 0)
        inv *= 1.0f / sqrtf(static_cast<float>(dim));
    for (int d = lane; d < dim; d += WARP) {
        float v = from[d];
        if (warp == 0)
            room.q[d] = v * inv;
        else
            room.k[d] = v * inv;
    }
}

__device__ __forceinline__ float4 fma4(float s, float4 x, float4 y) {
    return make_float4(fmaf(s, x.x, y.x), fmaf(s, x.y, y.y), fmaf(s, x.z, y.z), fmaf(s, x.w, y.w));
}

__device__ __forceinline__ float4 add4(float4 x, float4 y) {
    return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
}

/* Sums over the four lanes of a warp that hold the same columns. */
__device__ __forceinline__ float4 column_sum(float4 v) {
    for (int step = QUADS; step < WARP; step *= 2)
        v = add4(v, make_float4(__shfl_xor_sync(0xffffffffu, v.x, step),
                                __shfl_xor_sync(0xffffffffu, v.y, step),
                                __shfl_xor_sync(0xffffffffu, v.z, step),
                                __shfl_xor_sync(0xffffffffu, v.w, step)));
    return v;
}

/* One row: S and the four outputs of the thread's columns. v: their values. */
template <int ROWS>
__device__ __forceinline__ float4 delta_step(float4 (&S)[ROWS], const scan_room &room, int key0,
                                             int key_dim, float4 v, float decay, float beta) {
    int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
    float4 p = make_float4(0.0f, 0.0f, 0.0f, 0.0f), r = p;
    float kq = 0.0f, k[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int key = key0 + i * KEYS;
        float q = 0.0f;
        k[i] = 0.0f;
        if (key < key_dim) {
            k[i] = room.k[key];
            q = room.q[key];
        }
        p = fma4(k[i], S[i], p);
        r = fma4(q, S[i], r);
    }
    p = column_sum(p);
    r = column_sum(r);
    if (lane < QUADS) {
        room.sums[(warp * 2) * QUADS + lane] = p;
        room.sums[(warp * 2 + 1) * QUADS + lane] = r;
    }
    for (int d = lane; d < key_dim; d += WARP)
        kq = fmaf(room.k[d], room.q[d], kq);
    kq = warp_sum(kq);
    __syncthreads();
    p = room.sums[lane % QUADS];
    r = room.sums[QUADS + lane % QUADS];
    for (int w = 1; w < WARPS; w++) {
        float4 more_p = room.sums[w * 2 * QUADS + lane % QUADS];
        float4 more_r = room.sums[(w * 2 + 1) * QUADS + lane % QUADS];
        p = add4(p, more_p);
        r = add4(r, more_r);
    }
    float4 delta = make_float4(beta * (v.x - decay * p.x), beta * (v.y - decay * p.y),
                               beta * (v.z - decay * p.z), beta * (v.w - decay * p.w));
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        S[i] =
            make_float4(fmaf(k[i], delta.x, decay * S[i].x), fmaf(k[i], delta.y, decay * S[i].y),
                        fmaf(k[i], delta.z, decay * S[i].z), fmaf(k[i], delta.w, decay * S[i].w));
    return fma4(kq, delta, make_float4(decay * r.x, decay * r.y, decay * r.z, decay * r.w));
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

/* Grid: slices of 32 columns, value heads, spans. ROWS * 16 >= key_head_dim. ALIGNED: all head dims
 * are multiples of 4. */
template <int ROWS, bool ALIGNED>
__global__ void __launch_bounds__(THREADS) delta_scan_kernel(cuda_delta_args args) {
    shared_arena arena;
    scan_room room;
    room.q = arena.take<float>(CUDA_MAX_DELTA_DIM);
    room.k = arena.take<float>(CUDA_MAX_DELTA_DIM);
    room.sums = arena.take<float4>(WARPS * 2 * QUADS);
    gptr<const qep_span> spans(args.dev_spans);
    qep_span span = spans[blockIdx.z];
    int head = static_cast<int>(blockIdx.y), heads = args.num_value_heads;
    int key_head = head / (heads / args.num_key_heads);
    int key_dim = args.key_head_dim, value_dim = args.value_head_dim;
    int col = static_cast<int>(blockIdx.x) * COLS + static_cast<int>(threadIdx.x) % QUADS * 4;
    int key0 = static_cast<int>(threadIdx.x) / QUADS;
    int left = value_dim - col; /* columns from col on */
    bool inside = left > 0;
    gptr<float> out(args.out);
    gptr<const float> qkv(args.qkv), a(args.a), b(args.b), A_log(args.A_log), bias(args.dt_bias);
    gptr<float> state(args.state);
    size_t S_at = (static_cast<size_t>(span.slot < 0 ? 0 : span.slot) * heads + head) *
                      static_cast<size_t>(key_dim * value_dim) +
                  col;
    float4 S[ROWS];
    float head_A = A_log[head], head_bias = bias[head];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        S[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (inside && span.slot >= 0 && key0 + i * KEYS < key_dim)
            S[i] = load_columns<ALIGNED>(state + S_at + (key0 + i * KEYS) * value_dim, left);
    }
    for (int r = 0; r < span.num_rows; r++) {
        size_t row = static_cast<size_t>(span.row0 + r);
        size_t out_at = (row * heads + head) * static_cast<size_t>(value_dim) + col;
        float4 o = make_float4(0.0f, 0.0f, 0.0f, 0.0f), v = o;
        if (span.slot >= 0) {
            gptr<const float> x = qkv + row * delta_channels(args);
            load_row(room, args, x, key_head);
            if (inside)
                v = load_columns<ALIGNED>(
                    x + 2 * args.num_key_heads * key_dim + head * value_dim + col, left);
            float g = log_decay(a[row * heads + head], head_A, head_bias);
            float beta = qep_sigmoidf(b[row * heads + head]);
            __syncthreads();
            o = delta_step<ROWS>(S, room, key0, key_dim, v, qep_expf(g), beta);
            __syncthreads();
        }
        if (inside && key0 == 0)
            store_columns<ALIGNED>(out + out_at, o, left);
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        if (inside && span.slot >= 0 && key0 + i * KEYS < key_dim)
            store_columns<ALIGNED>(state + S_at + (key0 + i * KEYS) * value_dim, S[i], left);
}

template <bool ALIGNED> void (*kernel_for(int key_head_dim))(cuda_delta_args) {
    return key_head_dim <= 4 * KEYS   ? delta_scan_kernel<4, ALIGNED>
           : key_head_dim <= 8 * KEYS ? delta_scan_kernel<8, ALIGNED>
                                      : delta_scan_kernel<16, ALIGNED>;
}

} // namespace

extern "C" cudaError_t cuda_launch_delta_scan(cudaStream_t stream,
                                              const struct cuda_delta_args *args) {
    dim3 grid(static_cast<unsigned>((args->value_head_dim + COLS - 1) / COLS),
              static_cast<unsigned>(args->num_value_heads), static_cast<unsigned>(args->num_spans));
    size_t shared = 2 * CUDA_MAX_DELTA_DIM * sizeof(float) + WARPS * 2 * QUADS * sizeof(float4);
    bool aligned = args->key_head_dim % 4 == 0 && args->value_head_dim % 4 == 0;
    auto kernel =
        aligned ? kernel_for<true>(args->key_head_dim) : kernel_for<false>(args->key_head_dim);
    return launch(kernel, grid, dim3(THREADS), shared, stream, *args);
}

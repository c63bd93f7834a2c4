/* The delta rule row by row: decode, and prefill of the dims that have no chunked kernel. A block
 * takes one span, one value head and 32 columns of the state, which it reads once, keeps in
 * registers over the span's rows and writes once. */
#include "kernels/cuda/delta_step_device.h"

namespace {

/* q and k of one row, normalised; q scaled. Warp 0 takes q, warp 1 k. */
__device__ __forceinline__ void load_row(const step_room &room, const cuda_delta_args &args,
                                         gptr<const float> x, int key_head) {
    int warp = static_cast<int>(threadIdx.x) / WARP, dim = args.key_head_dim;
    if (warp == 0)
        normalise(room.q, x + key_head * dim, dim, query_factor(dim));
    else if (warp == 1)
        normalise(room.k, x + (args.num_key_heads + key_head) * dim, dim, 1.0f);
}

/* One row: S, and the outputs of the thread's columns, whose values are v. */
template <int ROWS>
__device__ __forceinline__ float4 delta_step(float4 (&S)[ROWS], const step_room &room, int key0,
                                             int key_dim, float4 v, float decay, float beta) {
    float k[ROWS], q[ROWS];
    take_keys(k, room.k, key0, key_dim);
    take_keys(q, room.q, key0, key_dim);
    leave_sums(S, k, q, room);
    float kq = overlap(room, key_dim);
    __syncthreads(); /* q and k were read, too: the next row's may come */
    float4 delta = delta_of(v, joined_sum(room, 0), decay, beta);
    update_state(S, k, delta, decay);
    return outputs(kq, delta, joined_sum(room, 1), decay);
}

/* Grid: slices of 32 columns, value heads, spans. ROWS * 16 >= key_head_dim. ALIGNED: all head dims
 * are multiples of 4. */
template <int ROWS, bool ALIGNED>
__global__ void __launch_bounds__(STEP_THREADS) delta_scan_kernel(cuda_delta_args args) {
    shared_arena arena;
    step_room room;
    room.q = arena.take<float>(CUDA_MAX_DELTA_DIM);
    room.k = arena.take<float>(CUDA_MAX_DELTA_DIM);
    room.sums = arena.take<float4>(STEP_SUMS);
    gptr<const qep_span> spans(args.dev_spans);
    qep_span span = spans[blockIdx.z];
    int head = static_cast<int>(blockIdx.y), heads = args.num_value_heads;
    int key_head = head / (heads / args.num_key_heads);
    int key_dim = args.key_head_dim, value_dim = args.value_head_dim;
    int col =
        static_cast<int>(blockIdx.x) * STEP_COLS + static_cast<int>(threadIdx.x) % STEP_QUADS * 4;
    int key0 = static_cast<int>(threadIdx.x) / STEP_QUADS;
    int left = value_dim - col; /* columns from col on */
    bool inside = left > 0;
    gptr<float> out(args.out);
    gptr<const float> qkv(args.qkv), a(args.a), b(args.b), A_log(args.A_log), bias(args.dt_bias);
    gptr<float> state =
        gptr<float>(args.state) + (static_cast<size_t>(max(span.slot, 0)) * heads + head) *
                                      static_cast<size_t>(key_dim * value_dim);
    float4 S[ROWS];
    float head_A = A_log[head], head_bias = bias[head];
    if (span.slot >= 0)
        load_state<ROWS, ALIGNED>(S, state, key0, key_dim, value_dim, col);
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
            __syncthreads(); /* the sums of the row before were read, too */
            o = delta_step<ROWS>(S, room, key0, key_dim, v, qep_expf(g), beta);
        }
        if (inside && key0 == 0)
            store_columns<ALIGNED>(out + out_at, o, left);
    }
    if (span.slot >= 0)
        store_state<ROWS, ALIGNED>(S, state, key0, key_dim, value_dim, col);
}

template <bool ALIGNED> void (*kernel_for(int key_head_dim))(cuda_delta_args) {
    return key_head_dim <= 4 * STEP_KEYS   ? delta_scan_kernel<4, ALIGNED>
           : key_head_dim <= 8 * STEP_KEYS ? delta_scan_kernel<8, ALIGNED>
                                           : delta_scan_kernel<16, ALIGNED>;
}

} // namespace

extern "C" cudaError_t cuda_launch_delta_scan(cudaStream_t stream,
                                              const struct cuda_delta_args *args) {
    dim3 grid(static_cast<unsigned>((args->value_head_dim + STEP_COLS - 1) / STEP_COLS),
              static_cast<unsigned>(args->num_value_heads), static_cast<unsigned>(args->num_spans));
    size_t shared = 2 * CUDA_MAX_DELTA_DIM * sizeof(float) + STEP_SUMS * sizeof(float4);
    bool aligned = args->key_head_dim % 4 == 0 && args->value_head_dim % 4 == 0;
    auto kernel =
        aligned ? kernel_for<true>(args->key_head_dim) : kernel_for<false>(args->key_head_dim);
    return launch(kernel, grid, dim3(STEP_THREADS), shared, stream, *args);
}

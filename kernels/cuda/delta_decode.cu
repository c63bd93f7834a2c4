/* One decode step of a DeltaNet layer in one launch: convolution, l2 norms, gates, delta rule,
 * gated norm, activation rows; the bits are those of the ops one by one. A block takes one row and
 * one value head with all columns of its state, whose loads it issues first.
 *
 * Value heads that share a key head work out its q and k each for itself, from the same old inputs;
 * the first of them keeps the new ones. That is no race: conv_state is a ring, in which the row
 * that a step writes is none of those it reads. */
#include "kernels/cuda/delta_step_device.h"
#include "kernels/cuda/rows_out.cuh"

namespace {

struct decode_args {
    cuda_delta_decode_args in;
    rows_out out;
};

struct decode_room {
    sptr<float> q, k, v;      /* of the row after the convolution; v padded to 4 with zeros */
    sptr<float> gate, weight; /* of the norm: silu(z), w */
    sptr<float> o;
    sptr<float> decay_beta;
    sptr<float4> sums; /* STEP_SUMS for each 32 columns */
};

enum {
    ROOM_ARRAYS = 6, /* of CUDA_MAX_DELTA_DIM floats */
    ROOM_SUMS = CUDA_MAX_DELTA_DIM / STEP_COLS * STEP_SUMS
};

/* The convolution of one channel of the row; keep: its input goes into the state. FOUR: taps. */
template <bool FOUR>
__device__ __forceinline__ float convolve(const cuda_delta_decode_args &in, const qep_span &span,
                                          int channel, bool keep) {
    const int taps = FOUR ? 4 : in.conv_kernel_dim;
    size_t c = static_cast<size_t>(channel), width = in.channels;
    gptr<float> state =
        gptr<float>(in.conv_state) + static_cast<size_t>(span.slot) * taps * width + c;
    gptr<const float> weight = gptr<const float>(in.conv1d) + c * taps;
    float newest = gptr<const float>(in.qkv)[static_cast<size_t>(span.row0) * width + c];
    float sum = 0.0f;
    if constexpr (FOUR) {
        float4 w = as_floats(load16(weight));
        float first = state[conv_row(span.position - 3, 4) * width];
        float second = state[conv_row(span.position - 2, 4) * width];
        float third = state[conv_row(span.position - 1, 4) * width];
        sum = sum + w.x * first + w.y * second + w.z * third + w.w * newest;
    } else {
#pragma unroll 1
        for (int j = 0; j < taps - 1; j++) {
            float w = weight[j], x = state[conv_row(span.position + j - (taps - 1), taps) * width];
            sum += w * x;
        }
        float w = weight[taps - 1];
        sum += w * newest;
    }
    if (keep)
        state[conv_row(span.position, taps) * width] = newest;
    return qep_siluf(sum);
}

/* What the block needs of its row beside the state. */
template <bool FOUR>
__device__ __forceinline__ void load_row(const decode_room &room, const cuda_delta_decode_args &in,
                                         const qep_span &span, int head) {
    int key_dim = in.key_head_dim, value_dim = in.value_head_dim;
    int per_key = in.num_value_heads / in.num_key_heads, key_head = head / per_key;
    size_t row_head = static_cast<size_t>(span.row0) * in.num_value_heads + head;
    int threads = static_cast<int>(blockDim.x), padded = (value_dim + 3) / 4 * 4;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < 2 * key_dim + padded; i += threads) {
        int part = i < key_dim ? 0 : i < 2 * key_dim ? 1 : 2, d = i - part * key_dim;
        int first = part == 2 ? 2 * in.num_key_heads * key_dim + head * value_dim
                              : (part * in.num_key_heads + key_head) * key_dim;
        float v = 0.0f;
        if (part < 2 || d < value_dim)
            v = convolve<FOUR>(in, span, first + d, part == 2 || head % per_key == 0);
        (part == 0 ? room.q : part == 1 ? room.k : room.v)[d] = v;
    }
    /* From the last thread on: those that have no channel. */
    int from_last = threads - 1 - static_cast<int>(threadIdx.x);
    if (from_last == 0) {
        float g = log_decay(gptr<const float>(in.a)[row_head], gptr<const float>(in.A_log)[head],
                            gptr<const float>(in.dt_bias)[head]);
        room.decay_beta[0] = qep_expf(g);
        room.decay_beta[1] = qep_sigmoidf(gptr<const float>(in.b)[row_head]);
    }
#pragma unroll 1
    for (int d = from_last; d < value_dim; d += threads) {
        room.gate[d] = qep_siluf(gptr<const float>(in.z)[row_head * value_dim + d]);
        room.weight[d] = gptr<const float>(in.norm)[d];
    }
}

__device__ __forceinline__ qep_span block_span(const cuda_delta_decode_args &in) {
    return gptr<const qep_span>(in.dev_spans)[blockIdx.y];
}

/* The head's state of the block's row. */
__device__ __forceinline__ gptr<float> head_state(const cuda_delta_decode_args &in, int head) {
    qep_span span = block_span(in);
    return gptr<float>(in.recurrent_state) +
           (static_cast<size_t>(span.slot) * in.num_value_heads + head) *
               static_cast<size_t>(in.key_head_dim * in.value_head_dim);
}

/* The delta rule on the thread's four columns from col on; o to shared memory. S: the state's old
 * part; all threads of the block call it. */
template <int ROWS, bool ALIGNED>
__device__ __forceinline__ void step_columns(float4 (&S)[ROWS], const decode_room &room,
                                             const cuda_delta_decode_args &in, int head, int key0,
                                             int col) {
    step_room step = {room.q, room.k, room.sums + col / STEP_COLS * STEP_SUMS};
    int key_dim = in.key_head_dim, value_dim = in.value_head_dim;
    float k[ROWS], q[ROWS];
    take_keys(k, room.k, key0, key_dim);
    take_keys(q, room.q, key0, key_dim);
    leave_sums(S, k, q, step);
    __syncthreads();
    float decay = room.decay_beta[0], beta = room.decay_beta[1];
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (col < value_dim)
        v = as_floats(load16(room.v + col));
    float4 delta = delta_of(v, joined_sum(step, 0), decay, beta);
    if (step_warp() == 0) { /* has the first key */
        float kq = overlap(step, key_dim);
        float4 o = outputs(kq, delta, joined_sum(step, 1), decay);
        if (key0 == 0 && col < value_dim)
            store16(room.o + col, as_bits(o));
    }
    /* Keys and the state's address come anew: kept from before the barrier, they would take the
     * registers of another block. */
    take_keys(k, room.k, key0, key_dim);
    update_state(S, k, delta, decay);
    store_state<ROWS, ALIGNED>(S, head_state(in, head), key0, key_dim, value_dim, col);
}

/* The head's part of the output row. */
__device__ __forceinline__ void write_normed(const decode_args &args, const decode_room &room,
                                             int head) {
    qep_span span = block_span(args.in);
    int width = args.in.value_head_dim, cols = args.in.num_value_heads * width;
    float inv = inverse_rms(room.o, width, args.in.eps);
#pragma unroll 1
    for (int d = static_cast<int>(threadIdx.x); d < width; d += static_cast<int>(blockDim.x)) {
        float o = room.o[d], weight = room.weight[d], gate = room.gate[d];
        args.out.put(static_cast<size_t>(span.row0), head * width + d, cols,
                     gated_norm(o, inv, weight, gate));
    }
}

/* A block has 128 threads for each 32 columns of a round; the state is to fit its registers. */
__host__ __device__ constexpr int round_groups(int rows) {
    return rows <= 8 ? 4 : 2;
}

/* Grid: value heads, spans. 16 * ROWS >= key_head_dim; ALIGNED: head dims are multiples of 4; EASY:
 * four taps and one round, too. */
template <int ROWS, bool ALIGNED, bool EASY>
__global__ void __launch_bounds__(round_groups(ROWS) * STEP_THREADS, EASY ? 2 : 1)
    delta_decode_kernel(decode_args args) {
    shared_arena arena;
    decode_room room;
    room.q = arena.take<float>(CUDA_MAX_DELTA_DIM);
    room.k = arena.take<float>(CUDA_MAX_DELTA_DIM);
    room.v = arena.take<float>(CUDA_MAX_DELTA_DIM);
    room.gate = arena.take<float>(CUDA_MAX_DELTA_DIM);
    room.weight = arena.take<float>(CUDA_MAX_DELTA_DIM);
    room.o = arena.take<float>(CUDA_MAX_DELTA_DIM);
    room.decay_beta = arena.take<float>(4);
    room.sums = arena.take<float4>(ROOM_SUMS);
    const cuda_delta_decode_args &in = args.in;
    int thread = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.x);
    int key_dim = in.key_head_dim, value_dim = in.value_head_dim;
    qep_span span = block_span(in);
    if (span.slot < 0) { /* padding */
        for (int d = thread; d < value_dim; d += static_cast<int>(blockDim.x))
            args.out.put(static_cast<size_t>(span.row0), head * value_dim + d,
                         in.num_value_heads * value_dim, 0.0f);
        return;
    }
    int key0 = thread % STEP_THREADS / STEP_QUADS;
    int col = thread / STEP_THREADS * STEP_COLS + thread % STEP_QUADS * 4;
    float4 S[ROWS];
    load_state<ROWS, ALIGNED>(S, head_state(in, head), key0, key_dim, value_dim, col);
    load_row<EASY>(room, in, span, head);
    __syncthreads();
    if (thread / WARP == 0)
        normalise(room.q, room.q, key_dim, query_factor(key_dim));
    else if (thread / WARP == 1)
        normalise(room.k, room.k, key_dim, 1.0f);
    __syncthreads();
    step_columns<ROWS, ALIGNED>(S, room, in, head, key0, col);
    constexpr int COLS = round_groups(ROWS) * STEP_COLS;
#pragma unroll 1
    for (int first = COLS; !EASY && first < value_dim; first += COLS) {
        col += COLS;
        load_state<ROWS, ALIGNED>(S, head_state(in, head), key0, key_dim, value_dim, col);
        step_columns<ROWS, ALIGNED>(S, room, in, head, key0, col);
    }
    __syncthreads();
    if (thread / WARP * WARP < value_dim)
        write_normed(args, room, head);
}

/* rows: of the thread, 4, 8 or 16. */
void (*kernel_for(const cuda_delta_decode_args &in, int rows))(decode_args) {
    bool aligned = in.key_head_dim % 4 == 0 && in.value_head_dim % 4 == 0;
    if (aligned && rows <= 8 && in.value_head_dim <= round_groups(rows) * STEP_COLS &&
        in.conv_kernel_dim == 4)
        return rows == 4 ? delta_decode_kernel<4, true, true> : delta_decode_kernel<8, true, true>;
    if (aligned)
        return rows == 4   ? delta_decode_kernel<4, true, false>
               : rows == 8 ? delta_decode_kernel<8, true, false>
                           : delta_decode_kernel<16, true, false>;
    return rows == 4   ? delta_decode_kernel<4, false, false>
           : rows == 8 ? delta_decode_kernel<8, false, false>
                       : delta_decode_kernel<16, false, false>;
}

} // namespace

extern "C" cudaError_t cuda_launch_delta_decode(cudaStream_t stream,
                                                const struct cuda_delta_decode_args *in,
                                                const struct qep_rows_out *out) {
    int groups = (in->value_head_dim + STEP_COLS - 1) / STEP_COLS;
    int rows = in->key_head_dim <= 4 * STEP_KEYS ? 4 : in->key_head_dim <= 8 * STEP_KEYS ? 8 : 16;
    int threads = min(groups, round_groups(rows)) * STEP_THREADS;
    dim3 grid(static_cast<unsigned>(in->num_value_heads), static_cast<unsigned>(in->num_spans));
    size_t shared =
        (ROOM_ARRAYS * CUDA_MAX_DELTA_DIM + 4) * sizeof(float) + ROOM_SUMS * sizeof(float4);
    const decode_args args = {*in, rows_out_of(*out)};
    auto kernel = kernel_for(*in, rows);
    return launch(kernel, grid, dim3(static_cast<unsigned>(threads)), shared, stream, args);
}

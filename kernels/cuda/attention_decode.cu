/* Decode attention: a block takes the query heads of one KV head (up to 16, the rows of an mma) and
 * one split of a row's positions; eight warps take 32 keys each of a piece of 256. K and V go from
 * global memory to mma fragments without shared memory: the k index of a product may be permuted
 * freely, so each lane loads 16 contiguous bytes and takes its elements from them. The splits of a
 * row follow from its length; the last block to finish a (row, tile) merges them in their order. */
#include "kernels/cuda/attention_device.h"
#include "kernels/cuda/rows_out.cuh"

namespace {

enum {
    WARPS = 8,
    THREADS = WARPS * WARP,
    WARP_KEYS = CUDA_DECODE_PIECE / WARPS,
    KEY_TILES = WARP_KEYS / 8,
    HEADS = CUDA_DECODE_HEADS,
    MERGE_SPLITS = CUDA_DECODE_MAX_SPLITS,
    RED_STRIDE = WARP + 1 /* floats of one accumulator register of all lanes */
};

struct decode_args {
    cuda_attention_shape shape;
    float scale; /* 1 / sqrt(head_dim) */
    int tile_heads, tiles_per_kv_head;
};

/* The part of a row that a block works on. */
struct decode_split {
    int end;               /* positions of the row */
    int num_splits, begin, /* positions of this split: [begin, until) */
        until;
};

__device__ __forceinline__ decode_split split_of(int position, int split) {
    decode_split s;
    s.end = position + 1;
    int pieces = (s.end + CUDA_DECODE_PIECE - 1) / CUDA_DECODE_PIECE;
    int per_split = (pieces + CUDA_DECODE_MAX_SPLITS - 1) / CUDA_DECODE_MAX_SPLITS;
    s.num_splits = (pieces + per_split - 1) / per_split;
    s.begin = split * per_split * CUDA_DECODE_PIECE;
    s.until = min(s.end, s.begin + per_split * static_cast<int>(CUDA_DECODE_PIECE));
    return s;
}

/* Queries as the A operand reads them: [16][HD + 32], rows from num_heads on zero. */
template <int HD>
__device__ __forceinline__ void
load_queries(sptr<uint16_t> q, sptr<float> freq, const cuda_attention_shape &shape,
             gptr<const float> qg, gptr<const float> q_norm, int num_heads, int position) {
    int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
    for (int h = warp; h < HEADS; h += WARPS) {
        gptr<const float> x = qg + 2 * (h < num_heads ? h : 0) * shape.head_dim;
        float inv = inverse_rms(x, shape.head_dim, shape.eps);
        for (int d = lane; d < HD; d += WARP) {
            float v = 0.0f;
            if (h < num_heads && d < shape.head_dim)
                v = norm_and_rotate(x, q_norm, inv, d, shape.rotary_dim, freq, position);
            q[h * (HD + 32) + d] = to_bf16(v);
        }
    }
}

/* Running softmax and sums of the warp's keys: rows g and g + 8; o: register 4 (8 j + i) + r is
 * dimension 64 j + 16 t + 8 (r % 2) + i of row g + 8 (r / 2). */
template <int HD> struct warp_state {
    float o[HD / 8][4];
    float max[2], sum[2];
};

/* s = scaled Q K^T of 32 keys from `key` on, all in one block; -inf from `until` on. */
template <int TYPE, int HD>
__device__ __forceinline__ void score_keys(float (&s)[KEY_TILES][4], sptr<uint16_t> q,
                                           const void *block, int key, int until, int kv_head,
                                           const decode_args &args) {
    int lane = static_cast<int>(threadIdx.x) % WARP, g = lane / 4, t = lane % 4;
    int in_block = key % QEP_KV_BLOCK, head_dim = args.shape.head_dim;
#pragma unroll
    for (int n = 0; n < KEY_TILES; n++)
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll 2
    for (int c = 0; c < HD / 32; c++) {
        uint4 k[KEY_TILES];
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++) {
            k[n] = make_uint4(0u, 0u, 0u, 0u);
            if (key + 8 * n + g < until)
                k[n] = kv_load8<TYPE>(
                    block, kv_row(0, in_block + 8 * n + g, kv_head, args.shape.num_kv_heads),
                    head_dim, 32 * c + 8 * t);
        }
        uint4 top = load16(q + g * (HD + 32) + 32 * c + 8 * t);
        uint4 low = load16(q + (g + 8) * (HD + 32) + 32 * c + 8 * t);
        uint32_t first[4] = {top.x, low.x, top.y, low.y}, second[4] = {top.z, low.z, top.w, low.w};
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++) {
            uint32_t b0[2] = {k[n].x, k[n].y}, b1[2] = {k[n].z, k[n].w};
            mma_bf16_16816(s[n], first, b0);
            mma_bf16_16816(s[n], second, b1);
        }
    }
    gptr<const float> scales = kv_scales(block, args.shape.num_kv_heads, head_dim);
#pragma unroll
    for (int n = 0; n < KEY_TILES; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int at = 8 * n + 2 * t + i;
            float factor = args.scale;
            if (TYPE == QEP_KV_INT8 && key + at < until)
                factor *= scales[kv_row(0, in_block + at, kv_head, args.shape.num_kv_heads)];
            s[n][i] = key + at < until ? s[n][i] * factor : -INFINITY;
            s[n][i + 2] = key + at < until ? s[n][i + 2] * factor : -INFINITY;
        }
}

/* Scores become weights, state->max and sum follow, o is scaled to the new maximum. */
template <int HD>
__device__ __forceinline__ void softmax_keys(float (&s)[KEY_TILES][4], warp_state<HD> &state) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = state.max[half], added = 0.0f;
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++)
            top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        top = quad_max(top);
        float correction = softmax_exp(state.max[half] - top);
        state.max[half] = top;
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++) {
            s[n][2 * half] = softmax_exp(s[n][2 * half] - top);
            s[n][2 * half + 1] = softmax_exp(s[n][2 * half + 1] - top);
            added += s[n][2 * half] + s[n][2 * half + 1];
        }
        state.sum[half] = fmaf(state.sum[half], correction, added);
#pragma unroll
        for (int n = 0; n < HD / 8; n++) {
            state.o[n][2 * half] *= correction;
            state.o[n][2 * half + 1] *= correction;
        }
    }
}

__device__ __forceinline__ uint32_t word_of(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* o += P V over the 32 keys. */
template <int TYPE, int HD>
__device__ __forceinline__ void add_values(warp_state<HD> &state, const float (&s)[KEY_TILES][4],
                                           const void *block, int key, int until, int kv_head,
                                           const decode_args &args) {
    int lane = static_cast<int>(threadIdx.x) % WARP, g = lane / 4, t = lane % 4;
    int in_block = key % QEP_KV_BLOCK, kv_heads = args.shape.num_kv_heads;
    gptr<const float> scales = kv_scales(block, kv_heads, args.shape.head_dim);
#pragma unroll
    for (int kk = 0; kk < KEY_TILES / 2; kk++) {
        uint32_t a[4];
        int row[4]; /* of V, for k = 2t, 2t + 1, 2t + 8, 2t + 9; -1 beyond the row's positions */
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int at = 16 * kk + 2 * t + i / 2 * 8 + i % 2;
            row[i] = key + at < until ? kv_row(1, in_block + at, kv_head, kv_heads) : -1;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float lo = 1.0f, hi = 1.0f;
            if (TYPE == QEP_KV_INT8 && row[2 * i] >= 0)
                lo = scales[row[2 * i]];
            if (TYPE == QEP_KV_INT8 && row[2 * i + 1] >= 0)
                hi = scales[row[2 * i + 1]];
            a[2 * i] = pack_bf16x2(s[2 * kk + i][0] * lo, s[2 * kk + i][1] * hi);
            a[2 * i + 1] = pack_bf16x2(s[2 * kk + i][2] * lo, s[2 * kk + i][3] * hi);
        }
#pragma unroll
        for (int j = 0; j < HD / 64; j++) {
            uint4 v[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                v[i] = make_uint4(0u, 0u, 0u, 0u);
                if (row[i] >= 0)
                    v[i] = kv_load8<TYPE>(block, row[i], args.shape.head_dim, 64 * j + 8 * g);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t w0 = word_of(v[0], i), w1 = word_of(v[1], i), w2 = word_of(v[2], i),
                         w3 = word_of(v[3], i);
                uint32_t even[2] = {(w0 & 0xffffu) | w1 << 16, (w2 & 0xffffu) | w3 << 16};
                uint32_t odd[2] = {w0 >> 16 | (w1 & 0xffff0000u), w2 >> 16 | (w3 & 0xffff0000u)};
                mma_bf16_16816(state.o[8 * j + 2 * i], a, even);
                mma_bf16_16816(state.o[8 * j + 2 * i + 1], a, odd);
            }
        }
    }
}

/* ---- merging the warps of a block ---- */

template <int HD> struct decode_room {
    sptr<float> red;     /* [WARPS / 2][HD / 2 registers][RED_STRIDE] */
    sptr<float> max;     /* [WARPS][16] */
    sptr<float> sum;     /* [WARPS][16] */
    sptr<float> factors; /* [MERGE_SPLITS][16] */
    sptr<uint32_t> last;
};

/* Brings all warps' sums to the block's maximum and adds them up: red[0] + ... + red[3] then hold
 * the block's sums, room.max [0] its maximum and room.sum [0] its sum of weights. */
template <int HD>
__device__ __forceinline__ void merge_warps(warp_state<HD> &state, const decode_room<HD> &room) {
    int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = quad_sum(state.sum[half]);
        if (lane % 4 == 0) {
            room.max[warp * HEADS + lane / 4 + 8 * half] = state.max[half];
            room.sum[warp * HEADS + lane / 4 + 8 * half] = sum;
        }
    }
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = -INFINITY;
        for (int w = 0; w < WARPS; w++)
            top = fmaxf(top, room.max[w * HEADS + lane / 4 + 8 * half]);
        float factor = softmax_exp(state.max[half] - top);
#pragma unroll
        for (int n = 0; n < HD / 8; n++) {
            state.o[n][2 * half] *= factor;
            state.o[n][2 * half + 1] *= factor;
        }
    }
    int slab = warp % (WARPS / 2) * (HD / 2);
    if (warp >= WARPS / 2)
#pragma unroll
        for (int r = 0; r < HD / 2; r++)
            room.red[(slab + r) * RED_STRIDE + lane] = state.o[r / 4][r % 4];
    __syncthreads();
    if (warp < WARPS / 2)
#pragma unroll
        for (int r = 0; r < HD / 2; r++) {
            float other = room.red[(slab + r) * RED_STRIDE + lane];
            room.red[(slab + r) * RED_STRIDE + lane] = state.o[r / 4][r % 4] + other;
        }
    if (threadIdx.x < HEADS) {
        int h = static_cast<int>(threadIdx.x);
        float top = -INFINITY, sum = 0.0f;
        for (int w = 0; w < WARPS; w++)
            top = fmaxf(top, room.max[w * HEADS + h]);
        for (int w = 0; w < WARPS; w++)
            sum = fmaf(softmax_exp(room.max[w * HEADS + h] - top), room.sum[w * HEADS + h], sum);
        room.max[h] = top; /* the others' columns are theirs alone */
        room.sum[h] = sum;
    }
    __syncthreads();
}

/* Element (head, d) of the block's sums. */
template <int HD>
__device__ __forceinline__ float merged(const decode_room<HD> &room, int head, int d) {
    int reg = 4 * (d / 64 * 8 + d % 8) + d / 8 % 2 + head / 8 * 2;
    int lane = head % 8 * 4 + d / 16 % 4;
    float part[WARPS / 2];
    for (int w = 0; w < WARPS / 2; w++)
        part[w] = room.red[(w * (HD / 2) + reg) * RED_STRIDE + lane];
    return (part[0] + part[1]) + (part[2] + part[3]);
}

/* The part of an output row that a tile writes. */
struct row_part {
    rows_out rows;
    size_t row;
    int first, cols;
    __device__ __forceinline__ void put(int i, float v) const {
        rows.put(row, first + i, cols, v);
    }
};

/* Sums over all splits of a (row, tile) in their order, by the block that finished last. partial:
 * [splits][tile_heads][head_dim + 2], the last two max and sum. */
template <int HD>
__device__ __forceinline__ void
merge_splits(const decode_args &args, const decode_room<HD> &room, gptr<const float> partial,
             int num_splits, int num_heads, const row_part &out, gptr<const float> qg) {
    int head_dim = args.shape.head_dim, row_len = head_dim + 2;
    size_t split_len = static_cast<size_t>(args.tile_heads) * static_cast<size_t>(row_len);
    int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
    for (int h = warp; h < num_heads; h += WARPS) {
        float max[MERGE_SPLITS / WARP], top = -INFINITY, sum = 0.0f;
#pragma unroll
        for (int i = 0; i < MERGE_SPLITS / WARP; i++) {
            int s = lane + i * WARP;
            max[i] = -INFINITY;
            if (s < num_splits)
                max[i] = partial[s * split_len + h * row_len + head_dim];
            top = fmaxf(top, max[i]);
        }
        top = warp_max(top);
#pragma unroll
        for (int i = 0; i < MERGE_SPLITS / WARP; i++) {
            int s = lane + i * WARP;
            float factor = softmax_exp(max[i] - top), added = 0.0f;
            if (s < num_splits)
                added = partial[s * split_len + h * row_len + head_dim + 1];
            sum = fmaf(factor, added, sum);
            room.factors[s * HEADS + h] = factor;
        }
        sum = warp_sum(sum);
        if (lane == 0)
            room.sum[h] = sum;
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < num_heads * head_dim; i += THREADS) {
        int h = i / head_dim, d = i % head_dim;
        float o = 0.0f;
#pragma unroll 4
        for (int s = 0; s < num_splits; s++) {
            float factor = room.factors[s * HEADS + h];
            o = fmaf(factor, partial[s * split_len + h * row_len + d], o);
        }
        float total = room.sum[h];
        out.put(i, o / total * qep_sigmoidf(qg[2 * h * head_dim + head_dim + d]));
    }
}

/* Leaves this split's sums for the merge and says whether this block is the last of its (row,
 * tile). */
template <int HD>
__device__ __forceinline__ bool leave_split(const decode_args &args, const decode_room<HD> &room,
                                            gptr<float> partial, int split, int num_splits,
                                            int num_heads, gptr<uint32_t> counter) {
    int head_dim = args.shape.head_dim, row_len = head_dim + 2;
    gptr<float> mine = partial + static_cast<size_t>(split) * args.tile_heads * row_len;
    for (int i = static_cast<int>(threadIdx.x); i < num_heads * row_len; i += THREADS) {
        int h = i / row_len, d = i % row_len;
        float v = 0.0f;
        if (d < head_dim)
            v = merged<HD>(room, h, d);
        else if (d == head_dim)
            v = room.max[h];
        else
            v = room.sum[h];
        mine[i] = v;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t before = atomicAdd(counter, 1u);
        room.last[0] = before + 1 == static_cast<uint32_t>(num_splits) ? 1u : 0u;
    }
    __syncthreads();
    __threadfence();
    return room.last[0] != 0u;
}

template <int TYPE, int HD>
__device__ __forceinline__ void attend(warp_state<HD> &state, sptr<uint16_t> q,
                                       const decode_split &part, int kv_head,
                                       const decode_args &args, gptr<void *const> slot_blocks) {
    int warp = static_cast<int>(threadIdx.x) / WARP;
    for (int r = 0; r < HD / 2; r++)
        state.o[r / 4][r % 4] = 0.0f;
    state.max[0] = state.max[1] = -INFINITY;
    state.sum[0] = state.sum[1] = 0.0f;
    for (int key = part.begin + warp * WARP_KEYS; key < part.until; key += CUDA_DECODE_PIECE) {
        float s[KEY_TILES][4];
        const void *block = slot_blocks[key / QEP_KV_BLOCK];
        score_keys<TYPE, HD>(s, q, block, key, part.until, kv_head, args);
        softmax_keys<HD>(s, state);
        add_values<TYPE, HD>(state, s, block, key, part.until, kv_head, args);
    }
}

/* Grid: splits, tiles, rows. */
template <int TYPE, int HD>
__global__ void __launch_bounds__(THREADS)
    attention_decode_kernel(decode_args args, cuda_rope rope, gptr<const qep_span> spans,
                            rows_out rows, gptr<const float> qg, gptr<const float> q_norm,
                            gptr<void *const> blocks, gptr<float> partial,
                            gptr<uint32_t> counters) {
    shared_arena arena;
    decode_room<HD> room;
    room.red = arena.take<float>(WARPS / 2 * (HD / 2) * RED_STRIDE);
    room.max = arena.take<float>(WARPS * HEADS);
    room.sum = arena.take<float>(WARPS * HEADS);
    room.factors = arena.take<float>(MERGE_SPLITS * HEADS);
    room.last = arena.take<uint32_t>(4);
    sptr<uint16_t> q = arena.take<uint16_t>(HEADS * (HD + 32));
    sptr<float> freq = arena.take<float>(CUDA_MAX_HEAD_DIM / 2);
    const cuda_attention_shape &shape = args.shape;
    qep_span span = spans[blockIdx.z];
    int tile = static_cast<int>(blockIdx.y), split = static_cast<int>(blockIdx.x);
    int ratio = shape.num_heads / shape.num_kv_heads, kv_head = tile / args.tiles_per_kv_head;
    int in_group = tile % args.tiles_per_kv_head * HEADS;
    int num_heads = min(ratio - in_group, static_cast<int>(HEADS));
    row_part out = {rows, blockIdx.z, (kv_head * ratio + in_group) * shape.head_dim,
                    shape.num_heads * shape.head_dim};
    size_t at = out.row * static_cast<size_t>(out.cols) + static_cast<size_t>(out.first);
    if (span.slot < 0) { /* padding */
        for (int i = static_cast<int>(threadIdx.x); split == 0 && i < num_heads * shape.head_dim;
             i += THREADS)
            out.put(i, 0.0f);
        return;
    }
    decode_split part = split_of(span.position, split);
    if (split >= part.num_splits)
        return;
    for (int j = static_cast<int>(threadIdx.x); j < shape.rotary_dim / 2; j += THREADS)
        freq[j] = rope.freq[j];
    __syncthreads();
    load_queries<HD>(q, freq, shape, qg + 2 * at, q_norm, num_heads, span.position);
    __syncthreads();
    warp_state<HD> state;
    attend<TYPE, HD>(state, q, part, kv_head, args,
                     blocks + static_cast<size_t>(span.slot) * shape.max_blocks);
    merge_warps<HD>(state, room);
    if (part.num_splits == 1) {
        for (int i = static_cast<int>(threadIdx.x); i < num_heads * shape.head_dim; i += THREADS) {
            int h = i / shape.head_dim, d = i % shape.head_dim;
            float total = room.sum[h], gate = qg[2 * at + (2 * h + 1) * shape.head_dim + d];
            out.put(i, merged<HD>(room, h, d) / total * qep_sigmoidf(gate));
        }
        return;
    }
    size_t item = static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y;
    partial = partial + item * CUDA_DECODE_MAX_SPLITS * args.tile_heads * (shape.head_dim + 2);
    if (!leave_split<HD>(args, room, partial, split, part.num_splits, num_heads, counters + item))
        return;
    merge_splits<HD>(args, room, partial, part.num_splits, num_heads, out, qg + 2 * at);
    if (threadIdx.x == 0)
        counters[item] = 0u;
}

/* What a launch passes on, whatever the instance. */
struct decode_call {
    cudaStream_t stream;
    decode_args args;
    const cuda_rope *rope;
    const qep_span *dev_spans;
    int32_t num_rows, max_end;
    rows_out out;
    const float *qg, *q_norm;
    void *const *blocks;
    float *partial;
    uint32_t *counters;
};

template <int TYPE, int HD> cudaError_t launch_decode(const decode_call &call) {
    const cuda_attention_shape &shape = call.args.shape;
    int32_t splits = (call.max_end + CUDA_DECODE_PIECE - 1) / CUDA_DECODE_PIECE;
    splits = splits < CUDA_DECODE_MAX_SPLITS ? splits : static_cast<int32_t>(MERGE_SPLITS);
    dim3 grid(static_cast<unsigned>(splits),
              static_cast<unsigned>(cuda_decode_tiles(shape.num_heads, shape.num_kv_heads)),
              static_cast<unsigned>(call.num_rows));
    size_t floats = WARPS / 2 * (HD / 2) * RED_STRIDE + 2 * WARPS * HEADS + MERGE_SPLITS * HEADS +
                    4 + CUDA_MAX_HEAD_DIM / 2;
    size_t shared = floats * sizeof(float) + HEADS * (HD + 32) * sizeof(uint16_t);
    return launch(attention_decode_kernel<TYPE, HD>, grid, dim3(THREADS), shared, call.stream,
                  call.args, *call.rope, call.dev_spans, call.out, call.qg, call.q_norm,
                  call.blocks, call.partial, call.counters);
}

template <int TYPE> cudaError_t launch_by_dim(const decode_call &call) {
    int32_t head_dim = call.args.shape.head_dim;
    return head_dim <= 64    ? launch_decode<TYPE, 64>(call)
           : head_dim <= 128 ? launch_decode<TYPE, 128>(call)
                             : launch_decode<TYPE, 256>(call);
}

} // namespace

extern "C" cudaError_t
cuda_launch_attention_decode(cudaStream_t stream, enum qep_kv_type type,
                             const struct cuda_attention_shape *shape, const struct cuda_rope *rope,
                             const struct qep_span *dev_spans, int32_t num_rows, int32_t max_end,
                             const struct qep_rows_out *out, const float *qg, const float *q_norm,
                             void *const *blocks, float *partial, uint32_t *counters) {
    decode_args args = {*shape, 1.0f / sqrtf(static_cast<float>(shape->head_dim)),
                        cuda_decode_tile_heads(shape->num_heads, shape->num_kv_heads),
                        cuda_decode_tiles(shape->num_heads, shape->num_kv_heads) /
                            shape->num_kv_heads};
    decode_call call = {stream, args,   rope,   dev_spans, num_rows, max_end, rows_out_of(*out),
                        qg,     q_norm, blocks, partial,   counters};
    return type == QEP_KV_F32    ? launch_by_dim<QEP_KV_F32>(call)
           : type == QEP_KV_BF16 ? launch_by_dim<QEP_KV_BF16>(call)
                                 : launch_by_dim<QEP_KV_INT8>(call);
}

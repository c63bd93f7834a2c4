/* Prefill attention: a block takes 64 consecutive positions of one sequence and one query head, and
 * walks the KV blocks up to its own diagonal with a running maximum; mma on bf16, fp32 sums. Spans
 * start at multiples of 64, so which keys share a tile never depends on how a prompt was cut. */
#include "kernels/cuda/attention_device.h"
#include "kernels/cuda/rows_out.cuh"

namespace {

enum { WARPS = 4, THREADS = WARPS * WARP, TILE = QEP_KV_BLOCK, SCORE_TILES = TILE / 8 };

/* Element index of 8 consecutive elements (chunk) of a row in a [64][HD] tile; the chunks of a row
 * are permuted so that ldmatrix meets no bank twice. */
template <int HD> __device__ __forceinline__ int tile_at(int row, int chunk) {
    return row * HD + ((chunk ^ (row & 7)) << 3);
}

struct prefill_args {
    cuda_attention_shape shape;
    float scale; /* 1 / sqrt(head_dim) */
};

/* The query tile, normalised and rotated; rows from num_rows on are zero. A warp per row. */
template <int HD>
__device__ __forceinline__ void
load_queries(sptr<uint16_t> q_tile, sptr<float> freq, const cuda_attention_shape &shape,
             gptr<const float> qg, gptr<const float> q_norm, int num_rows, int position) {
    int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
    size_t stride = 2 * static_cast<size_t>(shape.num_heads) * static_cast<size_t>(shape.head_dim);
    for (int r = warp; r < TILE; r += WARPS) {
        gptr<const float> x = qg + static_cast<size_t>(r < num_rows ? r : 0) * stride;
        float inv = inverse_rms(x, shape.head_dim, shape.eps);
        for (int d = lane; d < HD; d += WARP) {
            float v = 0.0f;
            if (r < num_rows && d < shape.head_dim)
                v = norm_and_rotate(x, q_norm, inv, d, shape.rotary_dim, freq, position + r);
            q_tile[tile_at<HD>(r, d / 8) + d % 8] = to_bf16(v);
        }
    }
}

/* K (which = 0) or V of one block and head; rows from `valid` on are zero. One group of copies. */
template <int TYPE, int HD>
__device__ __forceinline__ void load_tile(sptr<uint16_t> tile, sptr<float> scales,
                                          const void *block, int which, int kv_head, int valid,
                                          const cuda_attention_shape &shape) {
    for (int i = static_cast<int>(threadIdx.x); i < TILE * HD / 8; i += THREADS) {
        int r = i / (HD / 8), chunk = i % (HD / 8);
        int row = kv_row(which, r, kv_head, shape.num_kv_heads);
        sptr<uint16_t> dst = tile + tile_at<HD>(r, chunk);
        if (TYPE == QEP_KV_BF16 && shape.head_dim % 8 == 0) {
            bool there = r < valid && 8 * chunk < shape.head_dim;
            size_t at = there ? static_cast<size_t>(row) * shape.head_dim + 8 * chunk : 0;
            cp_async16(dst, gptr<const uint16_t>(static_cast<const uint16_t *>(block)) + at,
                       there ? 16 : 0);
        } else {
            store16(dst, r < valid ? kv_load8<TYPE>(block, row, shape.head_dim, 8 * chunk)
                                   : make_uint4(0u, 0u, 0u, 0u));
        }
    }
    cp_async_commit();
    if (TYPE == QEP_KV_INT8) {
        gptr<const float> from = kv_scales(block, shape.num_kv_heads, shape.head_dim);
        for (int r = static_cast<int>(threadIdx.x); r < TILE; r += THREADS) {
            float scale = 0.0f;
            if (r < valid)
                scale = from[kv_row(which, r, kv_head, shape.num_kv_heads)];
            scales[r] = scale;
        }
    }
}

/* s = Q K^T of the warp's 16 rows. */
template <int HD>
__device__ __forceinline__ void score_tile(float (&s)[SCORE_TILES][4], sptr<uint16_t> q_tile,
                                           sptr<uint16_t> k_tile) {
    int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
#pragma unroll
    for (int n = 0; n < SCORE_TILES; n++)
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll 4
    for (int kk = 0; kk < HD / 16; kk++) {
        uint32_t a[4];
        ldmatrix_x4(a, q_tile + tile_at<HD>(16 * warp + lane % 16, 2 * kk + lane / 16));
#pragma unroll
        for (int n = 0; n < SCORE_TILES; n += 2) {
            uint32_t b[4];
            int row = 8 * n + lane / 16 * 8 + lane % 8;
            ldmatrix_x4(b, k_tile + tile_at<HD>(row, 2 * kk + lane / 8 % 2));
            uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
            mma_bf16_16816(s[n], a, b0);
            mma_bf16_16816(s[n + 1], a, b1);
        }
    }
}

/* Scales the scores and hides what lies after a row's own position. */
template <int TYPE>
__device__ __forceinline__ void scale_and_mask(float (&s)[SCORE_TILES][4], float scale,
                                               sptr<float> k_scales, bool diagonal) {
    int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
#pragma unroll
    for (int n = 0; n < SCORE_TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = 16 * warp + lane / 4 + i / 2 * 8, key = 8 * n + lane % 4 * 2 + i % 2;
            float factor = TYPE == QEP_KV_INT8 ? scale * k_scales[key] : scale;
            s[n][i] = diagonal && key > row ? -INFINITY : s[n][i] * factor;
        }
}

/* Turns scores into exp(score - max), brings max and the lane's part of the sum up to date and
 * gives the factors for what was summed before; index 0: row g, 1: row g + 8. */
__device__ __forceinline__ void softmax_tile(float (&s)[SCORE_TILES][4], float (&max)[2],
                                             float (&sum)[2], float (&correction)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = max[half], added = 0.0f;
#pragma unroll
        for (int n = 0; n < SCORE_TILES; n++)
            top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        top = quad_max(top);
        correction[half] = softmax_exp(max[half] - top);
        max[half] = top;
#pragma unroll
        for (int n = 0; n < SCORE_TILES; n++) {
            s[n][2 * half] = softmax_exp(s[n][2 * half] - top);
            s[n][2 * half + 1] = softmax_exp(s[n][2 * half + 1] - top);
            added += s[n][2 * half] + s[n][2 * half + 1];
        }
        sum[half] = fmaf(sum[half], correction[half], added);
    }
}

/* The weights of 16 keys as the A operand; int8 V: times the scale of each position. */
template <int TYPE>
__device__ __forceinline__ void weight_fragment(uint32_t (&a)[4], const float (&s)[SCORE_TILES][4],
                                                int kk, sptr<float> v_scales) {
    int key = 16 * kk + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float lo = s[2 * kk + i / 2][i % 2 * 2], hi = s[2 * kk + i / 2][i % 2 * 2 + 1];
        if (TYPE == QEP_KV_INT8) {
            lo *= v_scales[key + i / 2 * 8];
            hi *= v_scales[key + i / 2 * 8 + 1];
        }
        a[i] = pack_bf16x2(lo, hi);
    }
}

/* o = o * correction + P V. */
template <int TYPE, int HD>
__device__ __forceinline__ void add_values(float (&o)[HD / 8][4], const float (&s)[SCORE_TILES][4],
                                           const float (&correction)[2], sptr<uint16_t> v_tile,
                                           sptr<float> v_scales) {
    int lane = static_cast<int>(threadIdx.x) % WARP;
#pragma unroll
    for (int n = 0; n < HD / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            o[n][i] *= correction[i / 2];
#pragma unroll
    for (int kk = 0; kk < TILE / 16; kk++) {
        uint32_t a[4];
        weight_fragment<TYPE>(a, s, kk, v_scales);
#pragma unroll
        for (int n = 0; n < HD / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, v_tile + tile_at<HD>(16 * kk + lane % 16, n + lane / 16));
            uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
            mma_bf16_16816(o[n], a, b0);
            mma_bf16_16816(o[n + 1], a, b1);
        }
    }
}

/* out = o / sum * sigmoid(gate); qg and out at the tile's first row and head. */
template <int HD>
__device__ __forceinline__ void write_tile(const rows_out &out, size_t first_row, int head,
                                           gptr<const float> qg, const float (&o)[HD / 8][4],
                                           const float (&sum)[2], const cuda_attention_shape &shape,
                                           int num_rows) {
    int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
    int cols = shape.num_heads * shape.head_dim;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = 16 * warp + lane / 4 + 8 * half;
        float total = quad_sum(sum[half]);
        if (row >= num_rows)
            continue;
        gptr<const float> gate =
            qg + 2 * static_cast<size_t>(row) * static_cast<size_t>(cols) + shape.head_dim;
#pragma unroll
        for (int n = 0; n < HD / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int d = 8 * n + lane % 4 * 2 + i;
                if (d < shape.head_dim)
                    out.put(first_row + row, head * shape.head_dim + d, cols,
                            o[n][2 * half + i] / total * qep_sigmoidf(gate[d]));
            }
    }
}

template <int TYPE, int HD>
__global__ void __launch_bounds__(THREADS)
    attention_prefill_kernel(prefill_args args, cuda_rope rope, gptr<const qep_span> spans,
                             rows_out out, gptr<const float> qg, gptr<const float> q_norm,
                             gptr<void *const> blocks) {
    shared_arena arena;
    sptr<uint16_t> q_tile = arena.take<uint16_t>(TILE * HD);
    sptr<uint16_t> k_tile = arena.take<uint16_t>(TILE * HD);
    sptr<uint16_t> v_tile = arena.take<uint16_t>(TILE * HD);
    sptr<float> k_scales = arena.take<float>(TILE), v_scales = arena.take<float>(TILE);
    sptr<float> freq = arena.take<float>(CUDA_MAX_HEAD_DIM / 2);
    const cuda_attention_shape &shape = args.shape;
    qep_span span = spans[blockIdx.z];
    /* The longest rows first. */
    int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x), head = static_cast<int>(blockIdx.y);
    int kv_head = head / (shape.num_heads / shape.num_kv_heads), first = tile * TILE;
    if (span.slot < 0 || first >= span.num_rows)
        return;
    int num_rows = min(span.num_rows - first, static_cast<int>(TILE));
    int position = span.position + first, num_blocks = position / TILE + 1;
    size_t row_len = static_cast<size_t>(shape.num_heads) * static_cast<size_t>(shape.head_dim);
    size_t table = static_cast<size_t>(span.slot) * static_cast<size_t>(shape.max_blocks);
    void *block = blocks[table];
    int valid = num_blocks == 1 ? num_rows : static_cast<int>(TILE);
    load_tile<TYPE, HD>(k_tile, k_scales, block, 0, kv_head, valid, shape);
    for (int j = static_cast<int>(threadIdx.x); j < shape.rotary_dim / 2; j += THREADS)
        freq[j] = rope.freq[j];
    __syncthreads();
    gptr<const float> query = qg + 2 * static_cast<size_t>(span.row0 + first) * row_len +
                              2 * static_cast<size_t>(head) * static_cast<size_t>(shape.head_dim);
    load_queries<HD>(q_tile, freq, shape, query, q_norm, num_rows, position);
    float o[HD / 8][4], s[SCORE_TILES][4], correction[2];
    float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < HD / 8; n++)
        o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
    for (int b = 0; b < num_blocks; b++) {
        load_tile<TYPE, HD>(v_tile, v_scales, block, 1, kv_head, valid, shape);
        cp_async_wait<1>();
        __syncthreads(); /* K is there */
        score_tile<HD>(s, q_tile, k_tile);
        scale_and_mask<TYPE>(s, args.scale, k_scales, b + 1 == num_blocks);
        __syncthreads(); /* K was read */
        if (b + 1 < num_blocks) {
            block = blocks[table + b + 1];
            valid = b + 2 == num_blocks ? num_rows : static_cast<int>(TILE);
            load_tile<TYPE, HD>(k_tile, k_scales, block, 0, kv_head, valid, shape);
        } else {
            cp_async_commit();
        }
        softmax_tile(s, max, sum, correction);
        cp_async_wait<1>();
        __syncthreads(); /* V is there */
        add_values<TYPE, HD>(o, s, correction, v_tile, v_scales);
        __syncthreads(); /* V was read */
    }
    write_tile<HD>(out, static_cast<size_t>(span.row0 + first), head, query, o, sum, shape,
                   num_rows);
}

template <int TYPE, int HD>
cudaError_t launch_prefill(cudaStream_t stream, const prefill_args &args, const cuda_rope &rope,
                           const qep_span *dev_spans, int32_t num_spans, int32_t max_rows,
                           const rows_out &out, const float *qg, const float *q_norm,
                           void *const *blocks) {
    dim3 grid(static_cast<unsigned>((max_rows + TILE - 1) / TILE),
              static_cast<unsigned>(args.shape.num_heads), static_cast<unsigned>(num_spans));
    size_t shared =
        3 * TILE * HD * sizeof(uint16_t) + (2 * TILE + CUDA_MAX_HEAD_DIM / 2) * sizeof(float);
    return launch(attention_prefill_kernel<TYPE, HD>, grid, dim3(THREADS), shared, stream, args,
                  rope, dev_spans, out, qg, q_norm, blocks);
}

template <int TYPE>
cudaError_t launch_by_dim(cudaStream_t stream, const prefill_args &args, const cuda_rope &rope,
                          const qep_span *dev_spans, int32_t num_spans, int32_t max_rows,
                          const rows_out &out, const float *qg, const float *q_norm,
                          void *const *blocks) {
    auto run = args.shape.head_dim <= 64    ? launch_prefill<TYPE, 64>
               : args.shape.head_dim <= 128 ? launch_prefill<TYPE, 128>
                                            : launch_prefill<TYPE, 256>;
    return run(stream, args, rope, dev_spans, num_spans, max_rows, out, qg, q_norm, blocks);
}

} // namespace

extern "C" cudaError_t
cuda_launch_attention_prefill(cudaStream_t stream, enum qep_kv_type type,
                              const struct cuda_attention_shape *shape,
                              const struct cuda_rope *rope, const struct qep_span *dev_spans,
                              int32_t num_spans, int32_t max_rows, const struct qep_rows_out *out,
                              const float *qg, const float *q_norm, void *const *blocks) {
    prefill_args args = {*shape, 1.0f / sqrtf(static_cast<float>(shape->head_dim))};
    auto run = type == QEP_KV_F32    ? launch_by_dim<QEP_KV_F32>
               : type == QEP_KV_BF16 ? launch_by_dim<QEP_KV_BF16>
                                     : launch_by_dim<QEP_KV_INT8>;
    return run(stream, args, *rope, dev_spans, num_spans, max_rows, rows_out_of(*out), qg, q_norm,
               blocks);
}

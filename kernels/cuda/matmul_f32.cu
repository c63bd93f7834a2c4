/* fp32 matmul for what must not be rounded to bf16 on its way (router, gates, decay inputs): plain
 * fma, a warp per tile and slice of K, all tiles of up to four matrices in one launch. Each lane
 * sums its columns in ascending order, then lanes, then slices. Prefill takes it for F32 weights
 * alone (else matmul_split.cu). */
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_args.cuh"

/* Activation rows of a thread block: two through the ring, eight from L1. */
template <int FEW> struct f32_cols {
    enum { N = FEW > 0 ? static_cast<int>(GEMV_FEW) : 8 };
};

/* Four consecutive columns (h, j) of each half, as fp32, from the lane's loads. */
template <int TYPE>
static __device__ __forceinline__ void f32_weights(float (&w)[2][4], sptr<const byte_t> stage,
                                                   int step) {
    enum { LOADS = packed_type<TYPE>::LOADS };
    sptr<const byte_t> at =
        stage + step * (LOADS / 4 * CUDA_LOAD_BYTES) + static_cast<int>(threadIdx.x) * 16;
    uint4 v = load16(at);
    if (TYPE == QEP_WEIGHT_BF16) {
        uint32_t pairs[2][2] = {{v.x, v.z}, {v.y, v.w}};
#pragma unroll
        for (int s = 0; s < 2; s++)
#pragma unroll
            for (int p = 0; p < 2; p++) {
                w[s][2 * p] = bf16x2_lo(pairs[s][p]);
                w[s][2 * p + 1] = bf16x2_hi(pairs[s][p]);
            }
        return;
    }
    uint4 second = load16(at + (TYPE == QEP_WEIGHT_F32 ? CUDA_LOAD_BYTES : 0));
#pragma unroll
    for (int q = 0; q < 4; q++) {
        w[0][q] = __uint_as_float(word_of(v, q));
        w[1][q] = __uint_as_float(word_of(second, q));
    }
}

/* Four consecutive activations of `size` bytes each. */
template <int SIZE, class Pointer>
static __device__ __forceinline__ void f32_acts(float (&x)[4], Pointer at) {
    if (SIZE == 4) {
        uint4 v = load16(at);
#pragma unroll
        for (int q = 0; q < 4; q++)
            x[q] = __uint_as_float(word_of(v, q));
    } else {
        uint2 v = load8(at);
        x[0] = bf16x2_lo(v.x), x[1] = bf16x2_hi(v.x);
        x[2] = bf16x2_lo(v.y), x[3] = bf16x2_hi(v.y);
    }
}

template <int TYPE, int SIZE, int FEW> struct f32_work {
    typedef gemv_ring<TYPE, FEW> ring;
    enum { COLS = f32_cols<FEW>::N };

    /* Block b of the slice, from its stage. */
    static __device__ __forceinline__ void block(const cuda_matrix &m, const gemv_lane<COLS> &from,
                                                 int b, sptr<const byte_t> stage,
                                                 float (&acc)[2][COLS]) {
        int t = threadIdx.x % 4;
#pragma unroll
        for (int step = 0; step < 4; step++) {
            float w[2][4], x[4];
            int in_block = 32 * (step / 2) + 8 * t + 4 * (step % 2);
            size_t col = static_cast<size_t>(b) * CUDA_BLOCK_COLS + in_block;
            bool inside = col < static_cast<size_t>(m.cols);
            f32_weights<TYPE>(w, stage, step);
#pragma unroll
            for (int c = 0; c < COLS; c++) {
                if (FEW > 0)
                    f32_acts<SIZE>(
                        x,
                        stage + ring::WEIGHTS +
                            ((c < from.num_columns ? c : 0) * CUDA_BLOCK_COLS + in_block) * SIZE);
                else
                    f32_acts<SIZE>(x, from.act[c] + (inside ? col * SIZE : 0));
#pragma unroll
                for (int q = 0; q < 4; q++) {
                    acc[0][c] = fmaf(w[0][q], inside ? x[q] : 0.0f, acc[0][c]);
                    acc[1][c] = fmaf(w[1][q], inside ? x[q] : 0.0f, acc[1][c]);
                }
            }
        }
    }

    static __device__ __forceinline__ void slice(const cuda_matrix &m, const gemv_lane<COLS> &from,
                                                 int begin, int end, sptr<byte_t> stages,
                                                 float (&acc)[2][COLS]) {
#pragma unroll 1
        for (int s = 0; s < ring::STAGES - 1; s++) {
            if (begin + s < end)
                gemv_copy<TYPE, COLS, FEW>(m, from, begin + s, stages + s * ring::STAGE);
            cp_async_commit();
        }
        for (int b = begin; b < end; b++) {
            int i = b - begin, next = i + ring::STAGES - 1;
            cp_async_wait<ring::STAGES - 2>();
            __syncwarp();
            if (begin + next < end)
                gemv_copy<TYPE, COLS, FEW>(m, from, begin + next,
                                           stages + next % ring::STAGES * ring::STAGE);
            cp_async_commit();
            block(m, from, b, stages + i % ring::STAGES * ring::STAGE, acc);
        }
    }
};

/* Over the four lanes that share rows; then partial[half][column][g]. */
template <int COLS>
static __device__ __forceinline__ void put_sums(const float (&acc)[2][COLS], sptr<float> partial) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int c = 0; c < COLS; c++) {
            float v = acc[s][c];
            v = v + __shfl_xor_sync(0xffffffffu, v, 1);
            v = v + __shfl_xor_sync(0xffffffffu, v, 2);
            if (c % 4 == t)
                partial[(s * COLS + c) * CUDA_TILE_UNITS + g] = v;
        }
}

template <int TYPE, int SIZE, int FEW>
static __global__ void __launch_bounds__(32 * GEMV_MAX_WARPS)
    matmul_f32_kernel(product_group group, gptr<const byte_t> act, size_t row_stride, int n) {
    typedef gemv_ring<TYPE, FEW> ring;
    enum { COLS = f32_cols<FEW>::N, SUMS = 2 * COLS * CUDA_TILE_UNITS };
    int slice = threadIdx.y, slices = blockDim.y, lane = threadIdx.x;
    int tile = static_cast<int>(blockIdx.y * blockDim.z + threadIdx.z);
    int first = static_cast<int>(blockIdx.x) * COLS, p = part_of(group, tile);
    cuda_matrix m = group.shape;
    m.num_tiles = group.parts[p].num_tiles;
    tile -= group.parts[p].first_tile;
    int warps = static_cast<int>(blockDim.z) * slices;
    shared_arena arena;
    sptr<byte_t> stages = arena.take<byte_t>(warps * ring::BYTES);
    sptr<float> partial =
        arena.take<float>(warps * SUMS) + static_cast<int>(threadIdx.z) * slices * SUMS;
    if (tile < m.num_tiles) {
        gemv_lane<COLS> from;
        float acc[2][COLS];
        from.data = group.parts[p].data + static_cast<size_t>(tile) * m.num_blocks * ring::WEIGHTS +
                    lane * 16;
        from.num_columns = min(n - first, static_cast<int>(COLS));
        from.chunks = (m.cols * SIZE + 15) / 16;
        int copied = min(FEW > 0 ? lane / (FEW > 0 ? ring::PIECES : 1) : 0, from.num_columns - 1);
        gemv_extra<TYPE, FEW>(from, m, group.parts[p].data,
                              act + static_cast<size_t>(first + copied) * row_stride);
#pragma unroll
        for (int c = 0; c < COLS; c++) {
            int column = min(c, from.num_columns - 1);
            if (FEW == 0)
                from.act[c] = act + static_cast<size_t>(first + column) * row_stride;
            acc[0][c] = acc[1][c] = 0.0f;
        }
        int begin = m.num_blocks * slice / slices;
        int end = m.num_blocks * (slice + 1) / slices;
        f32_work<TYPE, SIZE, FEW>::slice(
            m, from, begin, end,
            stages + (static_cast<int>(threadIdx.z) * slices + slice) * ring::BYTES, acc);
        put_sums(acc, partial + slice * SUMS);
    }
    __syncthreads();
    if (tile >= m.num_tiles)
        return;
    for (int i = slice * 32 + lane; i < SUMS; i += slices * 32) {
        int unit = tile * CUDA_TILE_UNITS + i % CUDA_TILE_UNITS;
        int column = first + i / CUDA_TILE_UNITS % COLS;
        int second = i / (CUDA_TILE_UNITS * COLS);
        float sum = partial[i];
        for (int s = 1; s < slices; s++)
            sum = sum + partial[s * SUMS + i];
        const product_store &store = group.parts[p].store;
        int row = store.row_of(unit, second);
        if (column < n && row < store.rows)
            store.put(row, column, store.factor(column), sum);
    }
}

template <int TYPE, int SIZE, int FEW>
static cudaError_t launch_columns(cudaStream_t stream, const struct cuda_matmul *job) {
    enum { COLS = f32_cols<FEW>::N, SUM_BYTES = 2 * COLS * CUDA_TILE_UNITS * sizeof(float) };
    product_group group;
    int all = group_of_products(job, &group);
    int slices = gemv_slices(group.shape.num_blocks, split_tiles(job));
    int tiles = slices >= 4 ? 1 : 4 / slices;
    dim3 grid((job->n + COLS - 1) / COLS, (all + tiles - 1) / tiles);
    return launch(matmul_f32_kernel<TYPE, SIZE, FEW>, grid, dim3(32, slices, tiles),
                  static_cast<size_t>(slices) * tiles * (gemv_ring<TYPE, FEW>::BYTES + SUM_BYTES),
                  stream, group, static_cast<const byte_t *>(job->act), job->row_stride, job->n);
}

template <int TYPE, int SIZE>
static cudaError_t launch_types(cudaStream_t stream, const struct cuda_matmul *job) {
    return job->n <= GEMV_FEW ? launch_columns<TYPE, SIZE, SIZE>(stream, job)
                              : launch_columns<TYPE, SIZE, 0>(stream, job);
}

extern "C" cudaError_t cuda_launch_matmul_f32(cudaStream_t stream, const struct cuda_matmul *job,
                                              enum qep_act_type act_type) {
    bool f32_act = act_type == QEP_ACT_F32;
    if (job->products[0].weight->shape.type == QEP_WEIGHT_BF16)
        return f32_act ? launch_types<QEP_WEIGHT_BF16, 4>(stream, job) : cudaErrorInvalidValue;
    if (job->products[0].weight->shape.type == QEP_WEIGHT_F32)
        return f32_act ? launch_types<QEP_WEIGHT_F32, 4>(stream, job)
                       : launch_types<QEP_WEIGHT_F32, 2>(stream, job);
    return cudaErrorInvalidValue;
}

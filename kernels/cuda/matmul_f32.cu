/* fp32 matmul for what must not be rounded to bf16 on its way (router, gates, decay inputs): plain
 * fma, a warp per tile and slice of K, 8 activation rows at a time. One arithmetic for both phases:
 * each lane sums its columns in ascending order, then lanes, then slices. */
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/matmul.h"

enum { F32_COLS = 8 };

/* Four consecutive columns of each half at (block, h, j), as fp32. */
template <int TYPE>
static __device__ __forceinline__ void load_weights(float (&w)[2][4], gptr<const byte_t> tile,
                                                    int block, int h, int j, int lane) {
    enum { LOADS = packed_type<TYPE>::LOADS };
    gptr<const byte_t> at = tile + static_cast<size_t>(block) * (LOADS * CUDA_LOAD_BYTES) +
                            (2 * h + j) * (LOADS / 4 * CUDA_LOAD_BYTES) + lane * 16;
    uint4 v = load16_stream(at);
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
    uint4 second = load16_stream(at + (TYPE == QEP_WEIGHT_F32 ? CUDA_LOAD_BYTES : 0));
#pragma unroll
    for (int q = 0; q < 4; q++) {
        w[0][q] = __uint_as_float(word_of(v, q));
        w[1][q] = __uint_as_float(word_of(second, q));
    }
}

/* Four consecutive activations; zero beyond the row. */
template <int ACT>
static __device__ __forceinline__ void load_acts(float (&x)[4], gptr<const byte_t> row, int col,
                                                 int cols) {
    if (col >= cols) {
        x[0] = x[1] = x[2] = x[3] = 0.0f;
    } else if (ACT == QEP_ACT_F32) {
        uint4 v = load16(row + static_cast<size_t>(col) * 4);
#pragma unroll
        for (int q = 0; q < 4; q++)
            x[q] = __uint_as_float(word_of(v, q));
    } else {
        uint2 v = load8(row + static_cast<size_t>(col) * 2);
        x[0] = bf16x2_lo(v.x), x[1] = bf16x2_hi(v.x);
        x[2] = bf16x2_lo(v.y), x[3] = bf16x2_hi(v.y);
    }
}

template <int TYPE, int ACT>
static __device__ __forceinline__ void sum_slice(const cuda_matrix &m, gptr<const byte_t> tile,
                                                 const gptr<const byte_t> (&rows)[F32_COLS],
                                                 int begin, int end, float (&acc)[2][F32_COLS]) {
    int lane = threadIdx.x, t = lane % 4;
    for (int block = begin; block < end; block++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float w[2][4], x[4];
            int col = block * CUDA_BLOCK_COLS + 32 * (i / 2) + 8 * t + 4 * (i % 2);
            load_weights<TYPE>(w, tile, block, i / 2, i % 2, lane);
#pragma unroll
            for (int c = 0; c < F32_COLS; c++) {
                load_acts<ACT>(x, rows[c], col, m.cols);
#pragma unroll
                for (int q = 0; q < 4; q++) {
                    acc[0][c] = fmaf(w[0][q], x[q], acc[0][c]);
                    acc[1][c] = fmaf(w[1][q], x[q], acc[1][c]);
                }
            }
        }
    }
}

/* Over the four lanes that share rows; then partial[half][column][g]. */
static __device__ __forceinline__ void put_sums(const float (&acc)[2][F32_COLS],
                                                sptr<float> partial) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int c = 0; c < F32_COLS; c++) {
            float v = acc[s][c];
            v = v + __shfl_xor_sync(0xffffffffu, v, 1);
            v = v + __shfl_xor_sync(0xffffffffu, v, 2);
            if (c % 4 == t)
                partial[(s * F32_COLS + c) * CUDA_TILE_UNITS + g] = v;
        }
}

template <int TYPE, int ACT>
static __global__ void __launch_bounds__(512)
    matmul_f32_kernel(cuda_matrix m, gptr<const byte_t> data, gptr<const byte_t> act,
                      size_t row_stride, int n, gptr<float> out) {
    enum { SUMS = 2 * F32_COLS * CUDA_TILE_UNITS };
    int slice = threadIdx.y, slices = blockDim.y, lane = threadIdx.x;
    int tile = static_cast<int>(blockIdx.y * blockDim.z + threadIdx.z);
    int first = static_cast<int>(blockIdx.x) * F32_COLS;
    shared_arena arena;
    sptr<float> partial = arena.take<float>(static_cast<int>(blockDim.z) * slices * SUMS) +
                          static_cast<int>(threadIdx.z) * slices * SUMS;
    if (tile < m.num_tiles) {
        gptr<const byte_t> rows[F32_COLS];
        float acc[2][F32_COLS];
#pragma unroll
        for (int c = 0; c < F32_COLS; c++) {
            rows[c] = act + static_cast<size_t>(min(first + c, n - 1)) * row_stride;
            acc[0][c] = acc[1][c] = 0.0f;
        }
        int begin = static_cast<int>(static_cast<int64_t>(m.num_blocks) * slice / slices);
        int end = static_cast<int>(static_cast<int64_t>(m.num_blocks) * (slice + 1) / slices);
        sum_slice<TYPE, ACT>(m,
                             data + static_cast<size_t>(tile) * m.num_blocks *
                                        (packed_type<TYPE>::LOADS * CUDA_LOAD_BYTES),
                             rows, begin, end, acc);
        put_sums(acc, partial + slice * SUMS);
    }
    __syncthreads();
    if (tile >= m.num_tiles)
        return;
    for (int i = slice * 32 + lane; i < SUMS; i += slices * 32) {
        int unit = tile * CUDA_TILE_UNITS + i % CUDA_TILE_UNITS;
        int column = first + i / CUDA_TILE_UNITS % F32_COLS;
        int second = i / (CUDA_TILE_UNITS * F32_COLS), row = unit + second * m.half;
        float sum = partial[i];
        for (int s = 1; s < slices; s++)
            sum = sum + partial[s * SUMS + i];
        if (column < n && unit < m.half && row < m.rows)
            out[static_cast<size_t>(column) * m.rows + row] = sum;
    }
}

template <int TYPE, int ACT>
static cudaError_t launch_types(cudaStream_t stream, const struct cuda_matmul *job) {
    const cuda_matrix &m = job->shape;
    int slices = gemv_slices(m, 1), tiles = gemv_tiles(slices, 1);
    dim3 grid((job->n + F32_COLS - 1) / F32_COLS, (m.num_tiles + tiles - 1) / tiles);
    return launch(matmul_f32_kernel<TYPE, ACT>, grid, dim3(32, slices, tiles),
                  gemv_shared(slices, tiles, 1), stream, m, static_cast<const byte_t *>(job->data),
                  static_cast<const byte_t *>(job->act), job->row_stride, job->n, job->out);
}

extern "C" cudaError_t cuda_launch_matmul_f32(cudaStream_t stream, const struct cuda_matmul *job,
                                              enum qep_act_type act_type) {
    bool f32_act = act_type == QEP_ACT_F32;
    if (job->shape.type == QEP_WEIGHT_BF16)
        return f32_act ? launch_types<QEP_WEIGHT_BF16, QEP_ACT_F32>(stream, job)
                       : cudaErrorInvalidValue;
    if (job->shape.type == QEP_WEIGHT_F32)
        return f32_act ? launch_types<QEP_WEIGHT_F32, QEP_ACT_F32>(stream, job)
                       : launch_types<QEP_WEIGHT_F32, QEP_ACT_BF16>(stream, job);
    return cudaErrorInvalidValue;
}

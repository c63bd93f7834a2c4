/* Decode matmul: the GEMV of gemv.cuh over column blocks of up to 32 rows of activations. Blocks of
 * one tile follow each other, so that its weights come from memory once. */
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_args.cuh"

template <int TYPE, int NT>
static __global__ void __launch_bounds__(512)
    matmul_decode_kernel(cuda_matrix m, gptr<const byte_t> data, gptr<const byte_t> scales,
                         gptr<const byte_t> act, size_t row_stride, int n, gptr<float> out) {
    shared_arena arena;
    sptr<float> shared = arena.take<float>(static_cast<int>(blockDim.y * blockDim.z) * NT * 128);
    int tile = static_cast<int>(blockIdx.y * blockDim.z + threadIdx.z);
    int first = static_cast<int>(blockIdx.x) * 8 * NT;
    plain_columns columns = {act + first * row_stride, row_stride};
    matmul_store store = {out + static_cast<size_t>(first) * m.rows, m.rows, m.half};
    gemv_tile<TYPE, NT>(m, data, scales, tile, columns, min(n - first, 8 * NT), shared, store);
}

template <int TYPE, int NT>
static cudaError_t launch_columns(cudaStream_t stream, const struct cuda_matmul *job) {
    const cuda_matrix &m = job->shape;
    int slices = gemv_slices(m, 1), tiles = gemv_tiles(slices, NT);
    dim3 grid((job->n + 8 * NT - 1) / (8 * NT), (m.num_tiles + tiles - 1) / tiles);
    dim3 block(32, slices, tiles);
    return launch(matmul_decode_kernel<TYPE, NT>, grid, block, gemv_shared(slices, tiles, NT),
                  stream, m, static_cast<const byte_t *>(job->data),
                  static_cast<const byte_t *>(job->scales), static_cast<const byte_t *>(job->act),
                  job->row_stride, job->n, job->out);
}

template <int TYPE>
static cudaError_t launch_type(cudaStream_t stream, const struct cuda_matmul *job) {
    if (job->n <= 8)
        return launch_columns<TYPE, 1>(stream, job);
    if (job->n <= 16)
        return launch_columns<TYPE, 2>(stream, job);
    return launch_columns<TYPE, 4>(stream, job);
}

extern "C" cudaError_t cuda_launch_matmul_decode(cudaStream_t stream,
                                                 const struct cuda_matmul *job) {
    switch (job->shape.type) {
    case QEP_WEIGHT_INT4:
        return launch_type<QEP_WEIGHT_INT4>(stream, job);
    case QEP_WEIGHT_INT8:
        return launch_type<QEP_WEIGHT_INT8>(stream, job);
    case QEP_WEIGHT_BF16:
        return launch_type<QEP_WEIGHT_BF16>(stream, job);
    case QEP_WEIGHT_F32:
        break;
    }
    return cudaErrorInvalidValue;
}

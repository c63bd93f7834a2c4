/* Decode matmul: the GEMV of gemv.cuh over column blocks of up to 32 rows of activations. Blocks of
 * one tile follow each other, so that its weights come from memory once. */
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_args.cuh"

template <int TYPE, int NT, int FEW>
static __global__ void __launch_bounds__(32 * GEMV_MAX_WARPS)
    matmul_decode_kernel(cuda_matrix m, gptr<const byte_t> data, gptr<const byte_t> scales,
                         gptr<const byte_t> act, size_t row_stride, int n, gptr<float> out) {
    gemv_room room = take_gemv_room<TYPE, NT, FEW>();
    int tile = static_cast<int>(blockIdx.y * blockDim.z + threadIdx.z);
    int first = static_cast<int>(blockIdx.x) * 8 * NT;
    plain_columns columns = {act + first * row_stride, row_stride};
    matmul_store store = {out + static_cast<size_t>(first) * m.rows, m.rows, m.half};
    gemv_tile<TYPE, NT, FEW>(m, data, scales, tile, columns, min(n - first, 8 * NT), room, store);
}

template <int TYPE, int NT, int FEW>
static cudaError_t launch_columns(cudaStream_t stream, const struct cuda_matmul *job) {
    const cuda_matrix &m = job->shape;
    int slices = gemv_slices(m, 1), tiles = gemv_tiles(slices, job->n);
    dim3 grid((job->n + 8 * NT - 1) / (8 * NT), (m.num_tiles + tiles - 1) / tiles);
    dim3 block(32, slices, tiles);
    return launch(matmul_decode_kernel<TYPE, NT, FEW>, grid, block,
                  gemv_shared<TYPE, NT, FEW>(slices, tiles), stream, m,
                  static_cast<const byte_t *>(job->data), static_cast<const byte_t *>(job->scales),
                  static_cast<const byte_t *>(job->act), job->row_stride, job->n, job->out);
}

template <int TYPE>
static cudaError_t launch_type(cudaStream_t stream, const struct cuda_matmul *job) {
    if (job->n <= GEMV_FEW)
        return launch_columns<TYPE, 1, 2>(stream, job);
    if (job->n <= 8)
        return launch_columns<TYPE, 1, 0>(stream, job);
    if (job->n <= 16)
        return launch_columns<TYPE, 2, 0>(stream, job);
    return launch_columns<TYPE, 4, 0>(stream, job);
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

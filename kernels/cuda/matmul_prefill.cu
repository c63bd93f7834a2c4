/* Prefill matmul: the tiles of gemm.cuh; neighbouring blocks share activations. */
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_args.cuh"

template <int TYPE, int COLS>
static __global__ void __launch_bounds__(GEMM_THREADS)
    matmul_prefill_kernel(cuda_matrix m, gptr<const byte_t> data, gptr<const byte_t> scales,
                          gptr<const byte_t> act, size_t row_stride, int n, gptr<float> out) {
    int first = static_cast<int>(blockIdx.y) * COLS;
    plain_columns columns = {act + first * row_stride, row_stride};
    matmul_store store = {out + static_cast<size_t>(first) * m.rows, m.rows, m.half};
    gemm_tile<TYPE, COLS>(m, data, scales, static_cast<int>(blockIdx.x) * GEMM_TILES, columns,
                          min(n - first, COLS), store);
}

template <int TYPE, int COLS>
static cudaError_t launch_columns(cudaStream_t stream, const struct cuda_matmul *job) {
    const cuda_matrix &m = job->shape;
    enum { MAX_GRID_Y = 65535 };
    for (int32_t first = 0; first < job->n; first += MAX_GRID_Y * COLS) {
        int32_t n = job->n - first < MAX_GRID_Y * COLS ? job->n - first : MAX_GRID_Y * COLS;
        dim3 grid((m.num_tiles + GEMM_TILES - 1) / GEMM_TILES, (n + COLS - 1) / COLS);
        cudaError_t e =
            launch(matmul_prefill_kernel<TYPE, COLS>, grid, dim3(GEMM_THREADS),
                   GEMM_STAGES * gemm_stage<TYPE, COLS>::BYTES, stream, m,
                   static_cast<const byte_t *>(job->data), static_cast<const byte_t *>(job->scales),
                   static_cast<const byte_t *>(job->act) + first * job->row_stride, job->row_stride,
                   n, job->out + static_cast<size_t>(first) * m.rows);
        if (e != cudaSuccess)
            return e;
    }
    return cudaSuccess;
}

template <int TYPE>
static cudaError_t launch_type(cudaStream_t stream, const struct cuda_matmul *job) {
    int cols = gemm_columns(job->n, job->shape.num_tiles, job->num_sms);
    return cols == 32   ? launch_columns<TYPE, 32>(stream, job)
           : cols == 64 ? launch_columns<TYPE, 64>(stream, job)
                        : launch_columns<TYPE, 128>(stream, job);
}

extern "C" cudaError_t cuda_launch_matmul_prefill(cudaStream_t stream,
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

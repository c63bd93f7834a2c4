/* Prefill matmul: the tiles of gemm.cuh; neighbouring blocks share activations. */
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_args.cuh"

template <int TYPE, int COLS>
static __global__ void __launch_bounds__(GEMM_THREADS)
    matmul_prefill_kernel(cuda_matrix m, gptr<const byte_t> data, gptr<const byte_t> scales,
                          gptr<const byte_t> act, size_t row_stride, int begin, int n,
                          product_store store) {
    int first = begin + static_cast<int>(blockIdx.y) * COLS;
    plain_columns columns = {act + first * row_stride, row_stride};
    gemm_tile<TYPE, COLS>(m, data, scales, static_cast<int>(blockIdx.x) * GEMM_TILES, columns,
                          min(n - first, COLS), store.from(first));
}

template <int TYPE, int COLS>
static cudaError_t launch_columns(cudaStream_t stream, const struct cuda_matmul *job,
                                  const struct qep_product *p) {
    const cuda_matrix &m = p->weight->shape;
    enum { MAX_GRID_Y = 65535 };
    for (int32_t begin = 0; begin < job->n; begin += MAX_GRID_Y * COLS) {
        int32_t n = job->n - begin < MAX_GRID_Y * COLS ? job->n - begin : MAX_GRID_Y * COLS;
        dim3 grid((m.num_tiles + GEMM_TILES - 1) / GEMM_TILES, (n + COLS - 1) / COLS);
        cudaError_t e = launch(matmul_prefill_kernel<TYPE, COLS>, grid, dim3(GEMM_THREADS),
                               GEMM_STAGES * gemm_stage<TYPE, COLS>::BYTES, stream, m,
                               static_cast<const byte_t *>(p->weight->data),
                               static_cast<const byte_t *>(p->weight->scales),
                               static_cast<const byte_t *>(job->act), job->row_stride, begin,
                               begin + n, store_of(p));
        if (e != cudaSuccess)
            return e;
    }
    return cudaSuccess;
}

template <int TYPE>
static cudaError_t launch_type(cudaStream_t stream, const struct cuda_matmul *job,
                               const struct qep_product *p) {
    int cols = gemm_columns(job->n, p->weight->shape.num_tiles, job->num_sms);
    return cols == 32   ? launch_columns<TYPE, 32>(stream, job, p)
           : cols == 64 ? launch_columns<TYPE, 64>(stream, job, p)
                        : launch_columns<TYPE, 128>(stream, job, p);
}

extern "C" cudaError_t cuda_launch_matmul_prefill(cudaStream_t stream,
                                                  const struct cuda_matmul *job) {
    cudaError_t e = cudaSuccess;
    for (int32_t i = 0; e == cudaSuccess && i < job->num; i++)
        e = dispatch_type(job->products[i].weight->shape.type, [&](auto type) {
            return launch_type<decltype(type)::VALUE>(stream, job, &job->products[i]);
        });
    return e;
}

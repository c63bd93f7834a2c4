/* Routed experts on many rows: blocks walk the list of tiles (up to COLS items of one expert),
 * gathering activation rows as they load. */
#include "kernels/cuda/experts_args.cuh"
#include "kernels/cuda/gemm.cuh"

template <int TYPE, int COLS> struct gemm_call {
    const cuda_matrix &m;
    int tile0, num_columns;
    template <class Columns, class Store>
    __device__ __forceinline__ void operator()(gptr<const byte_t> data, gptr<const byte_t> scales,
                                               const Columns &columns, const Store &store) const {
        gemm_tile<TYPE, COLS>(m, data, scales, tile0, columns, num_columns, store);
    }
};

template <int TYPE, int COLS, bool DOWN>
static __global__ void __launch_bounds__(GEMM_THREADS)
    experts_prefill_kernel(cuda_matrix m, expert_work work) {
    int num_tiles = work.counts[1];
    if (static_cast<int>(blockIdx.y) >= num_tiles)
        return;
    int expert = work.tile_expert[blockIdx.y], first = work.tile_begin[blockIdx.y];
    int end = work.item_begin[expert + 1];
    gemm_call<TYPE, COLS> call = {m, static_cast<int>(blockIdx.x) * GEMM_TILES,
                                  min(end - first, COLS)};
    with_items<DOWN>(m, work, expert, first, call);
}

template <int TYPE, int COLS, bool DOWN>
static cudaError_t launch_columns(cudaStream_t stream, const cuda_matrix &m,
                                  const struct cuda_expert_job *job) {
    dim3 grid((m.num_tiles + GEMM_TILES - 1) / GEMM_TILES, job->map.max_tiles);
    return launch(experts_prefill_kernel<TYPE, COLS, DOWN>, grid, dim3(GEMM_THREADS),
                  GEMM_STAGES * gemm_stage<TYPE, COLS>::BYTES, stream, m, work_of(job));
}

template <int TYPE, bool DOWN>
static cudaError_t launch_type(cudaStream_t stream, const cuda_matrix &m,
                               const struct cuda_expert_job *job) {
    switch (job->map.tile_cols) {
    case 32:
        return launch_columns<TYPE, 32, DOWN>(stream, m, job);
    case 64:
        return launch_columns<TYPE, 64, DOWN>(stream, m, job);
    case 128:
        return launch_columns<TYPE, 128, DOWN>(stream, m, job);
    }
    return cudaErrorInvalidValue;
}

template <bool DOWN>
static cudaError_t launch_matrix(cudaStream_t stream, const cuda_matrix &m,
                                 const struct cuda_expert_job *job) {
    return dispatch_type(m.type, [&](auto type) {
        return launch_type<decltype(type)::VALUE, DOWN>(stream, m, job);
    });
}

extern "C" cudaError_t cuda_launch_experts_prefill(cudaStream_t stream,
                                                   const struct cuda_expert_job *job) {
    cudaError_t e = launch_matrix<false>(stream, job->gate_up, job);
    return e == cudaSuccess ? launch_matrix<true>(stream, job->down, job) : e;
}

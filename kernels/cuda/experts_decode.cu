/* Routed experts on few rows: for every active expert the GEMV of gemv.cuh over its items. The grid
 * has room for as many active experts as the call may have; the rest return at once. */
#include "kernels/cuda/experts_args.cuh"
#include "kernels/cuda/gemv.cuh"

/* Experts at work at the same time, for the number of K slices: a fixed figure, since bits follow
 * from shapes alone. */
enum { USUAL_EXPERTS = 8 };

template <int TYPE, int NT, int FEW> struct gemv_call {
    const cuda_matrix &m;
    int tile, num_columns;
    gemv_room room;
    template <class Columns, class Store>
    __device__ __forceinline__ void operator()(gptr<const byte_t> data, gptr<const byte_t> scales,
                                               const Columns &columns, const Store &store) const {
        gemv_sums<TYPE, NT, FEW>(m, data, scales, tile, columns, num_columns, room);
        gemv_store<NT>(m, tile, num_columns, room, store);
    }
};

template <int TYPE, int NT, int FEW, bool DOWN>
static __global__ void __launch_bounds__(32 * GEMV_MAX_WARPS)
    experts_decode_kernel(cuda_matrix m, expert_work work) {
    gemv_room room = take_gemv_room<TYPE, NT, FEW>();
    int num_active = work.counts[0];
    if (static_cast<int>(blockIdx.y) >= num_active)
        return;
    int expert = work.active[blockIdx.y];
    int begin = work.item_begin[expert], end = work.item_begin[expert + 1];
    int tile = static_cast<int>(blockIdx.x * blockDim.z + threadIdx.z);
    for (int first = begin; first < end; first += 8 * NT) {
        gemv_call<TYPE, NT, FEW> call = {m, tile, min(end - first, 8 * NT), room};
        with_items<DOWN>(m, work, expert, first, call);
        __syncthreads();
    }
}

template <int TYPE, int NT, int FEW, bool DOWN>
static cudaError_t launch_columns(cudaStream_t stream, const cuda_matrix &m,
                                  const struct cuda_expert_job *job) {
    int slices = gemv_slices(m.num_blocks, static_cast<int64_t>(m.num_tiles) * USUAL_EXPERTS);
    int tiles = gemv_tiles(slices, job->num_rows);
    dim3 grid((m.num_tiles + tiles - 1) / tiles, job->map.max_active);
    return launch(experts_decode_kernel<TYPE, NT, FEW, DOWN>, grid, dim3(32, slices, tiles),
                  gemv_shared<TYPE, NT, FEW>(slices, tiles), stream, m, work_of(job));
}

template <int TYPE, bool DOWN>
static cudaError_t launch_type(cudaStream_t stream, const cuda_matrix &m,
                               const struct cuda_expert_job *job) {
    if (job->num_rows <= GEMV_FEW)
        return launch_columns<TYPE, 1, 2, DOWN>(stream, m, job);
    if (job->num_rows <= 8)
        return launch_columns<TYPE, 1, 0, DOWN>(stream, m, job);
    if (job->num_rows <= 64)
        return launch_columns<TYPE, 2, 0, DOWN>(stream, m, job);
    return launch_columns<TYPE, 4, 0, DOWN>(stream, m, job);
}

template <bool DOWN>
static cudaError_t launch_matrix(cudaStream_t stream, const cuda_matrix &m,
                                 const struct cuda_expert_job *job) {
    return dispatch_type(m.type, [&](auto type) {
        return launch_type<decltype(type)::VALUE, DOWN>(stream, m, job);
    });
}

extern "C" cudaError_t cuda_launch_experts_decode(cudaStream_t stream,
                                                  const struct cuda_expert_job *job) {
    cudaError_t e = launch_matrix<false>(stream, job->gate_up, job);
    return e == cudaSuccess ? launch_matrix<true>(stream, job->down, job) : e;
}

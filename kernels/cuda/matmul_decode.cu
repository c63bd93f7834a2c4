/* Decode matmul: the GEMV of gemv.cuh over column blocks of up to 32 rows of activations, for all
 * tiles of up to four matrices. Blocks of one tile follow each other, so that its weights come from
 * memory once. */
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_args.cuh"

template <int TYPE, int NT, int FEW>
static __global__ void __launch_bounds__(32 * GEMV_MAX_WARPS)
    matmul_decode_kernel(product_group group, gptr<const byte_t> act, size_t row_stride, int n) {
    gemv_room room = take_gemv_room<TYPE, NT, FEW>();
    int first = static_cast<int>(blockIdx.x) * 8 * NT;
    int tile = static_cast<int>(blockIdx.y * blockDim.z + threadIdx.z), p = part_of(group, tile);
    const product_group::part &part = group.parts[p];
    plain_columns columns = {act + first * row_stride, row_stride};
    cuda_matrix m = group.shape;
    m.num_tiles = part.num_tiles;
    tile -= part.first_tile;
    gemv_sums<TYPE, NT, FEW>(m, part.data, part.scales, tile, columns, min(n - first, 8 * NT),
                             room);
    gemv_store<NT>(m, tile, min(n - first, 8 * NT), room, part.store.from(first));
}

template <int TYPE, int NT, int FEW>
static cudaError_t launch_columns(cudaStream_t stream, const struct cuda_matmul *job) {
    product_group group;
    int all = group_of_products(job, &group);
    int slices = gemv_slices(group.shape.num_blocks, split_tiles(job));
    int tiles = gemv_tiles(slices, job->n);
    dim3 grid((job->n + 8 * NT - 1) / (8 * NT), (all + tiles - 1) / tiles);
    return launch(matmul_decode_kernel<TYPE, NT, FEW>, grid, dim3(32, slices, tiles),
                  gemv_shared<TYPE, NT, FEW>(slices, tiles), stream, group,
                  static_cast<const byte_t *>(job->act), job->row_stride, job->n);
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
    return dispatch_type(job->products[0].weight->shape.type, [&](auto type) {
        return launch_type<decltype(type)::VALUE>(stream, job);
    });
}

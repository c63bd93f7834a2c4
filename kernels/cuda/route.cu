/* From the router's choice to work lists, on the device: a stable counting sort of (row, expert)
 * pairs, lists of rows per rank, packets. No atomics: a thread owns an expert or a row. */
#include "kernels/cuda/experts.h"
#include "kernels/cuda/packed.cuh"

enum { ROUTE_THREADS = 256 };

/* qep_topk with addresses in bytes. */
struct topk_rows {
    gptr<const byte_t> idx, weights;
    size_t idx_stride, weights_stride;
    int top_k;
    __device__ __forceinline__ int id(size_t row, int j) const {
        return static_cast<int>(load4(idx + row * idx_stride + j * 4));
    }
    __device__ __forceinline__ uint32_t weight_bits(size_t row, int j) const {
        return load4(weights + row * weights_stride + j * 4);
    }
};

static topk_rows rows_of(const struct qep_topk *topk) {
    return {reinterpret_cast<const byte_t *>(topk->idx),
            reinterpret_cast<const byte_t *>(topk->weights), topk->idx_stride, topk->weights_stride,
            topk->top_k};
}

/* cuda_expert_map as kernels see it. */
struct expert_lists {
    gptr<int32_t> counts, item_begin, active, tile_expert, tile_begin, item_row, pair_item;
    gptr<int32_t> block_count;
    gptr<float> item_weight;
    int num_experts, tile_cols, first_expert;
};

static expert_lists lists_of(const struct cuda_expert_map *map, int first_expert) {
    return {map->counts,      map->item_begin,  map->active,    map->tile_expert,
            map->tile_begin,  map->item_row,    map->pair_item, map->block_count,
            map->item_weight, map->num_experts, map->tile_cols, first_expert};
}

/* Local expert of every pair of rows row0 .. row0 + num_rows, -1 where it is not here; filled up to
 * a multiple of 4. */
static __device__ __forceinline__ void load_ids(const topk_rows &topk, const expert_lists &lists,
                                                int row0, int num_rows, sptr<int32_t> ids) {
    int count = num_rows * topk.top_k;
    for (int i = threadIdx.x; i < (count + 3) / 4 * 4; i += ROUTE_THREADS) {
        int local = -1;
        if (i < count)
            local = topk.id(static_cast<size_t>(row0) + i / topk.top_k, i % topk.top_k) -
                    lists.first_expert;
        ids[i] = local >= 0 && local < lists.num_experts ? local : -1;
    }
}

static __device__ __forceinline__ int count_of(sptr<const int32_t> ids, int count, int expert) {
    int found = 0;
    for (int i = 0; i < count; i += 4) {
        uint4 four = load16(ids + i);
#pragma unroll
        for (int q = 0; q < 4; q++)
            found += static_cast<int>(word_of(four, q)) == expert;
    }
    return found;
}

/* The pairs of `expert` become items at, at + 1, ... */
static __device__ __forceinline__ void place(const topk_rows &topk, const expert_lists &lists,
                                             int row0, sptr<const int32_t> ids, int count,
                                             int expert, int at) {
    for (int i = 0; i < count; i += 4) {
        uint4 four = load16(ids + i);
#pragma unroll
        for (int q = 0; q < 4; q++) {
            if (static_cast<int>(word_of(four, q)) != expert)
                continue;
            size_t row = static_cast<size_t>(row0) + (i + q) / topk.top_k;
            lists.item_row[at] = static_cast<int32_t>(row);
            lists.item_weight[at] = __uint_as_float(topk.weight_bits(row, (i + q) % topk.top_k));
            lists.pair_item[static_cast<size_t>(row0) * topk.top_k + i + q] = at;
            at++;
        }
    }
}

/* Pairs that are not here. */
static __device__ __forceinline__ void place_none(const topk_rows &topk, const expert_lists &lists,
                                                  int row0, sptr<const int32_t> ids, int count) {
    for (int i = threadIdx.x; i < count; i += ROUTE_THREADS) {
        int id = ids[i];
        if (id < 0)
            lists.pair_item[static_cast<size_t>(row0) * topk.top_k + i] = -1;
    }
}

/* Sum over the lanes before this one, and over all. */
static __device__ __forceinline__ int exclusive_sum(int v, int *total) {
    int lane = threadIdx.x % 32, sum = v;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        int other = __shfl_up_sync(0xffffffffu, sum, d);
        sum += lane >= d ? other : 0;
    }
    *total = __shfl_sync(0xffffffffu, sum, 31);
    return sum - v;
}

/* totals[e] items of each expert to begin[e] (both shared), the list of active experts and the list
 * of tiles. By the whole block, after and before a barrier. */
static __device__ __forceinline__ void
scan_experts(const expert_lists &lists, sptr<const int32_t> totals, sptr<int32_t> begin) {
    int num = lists.num_experts;
    if (threadIdx.x < 32) {
        int items = 0, active = 0, tiles = 0, lane = threadIdx.x;
        for (int e0 = 0; e0 < num; e0 += 32) {
            int e = e0 + lane, count = 0, all_items, all_active, all_tiles;
            if (e < num)
                count = totals[e];
            int num_tiles = (count + lists.tile_cols - 1) / lists.tile_cols;
            int first = items + exclusive_sum(count, &all_items);
            int slot = active + exclusive_sum(count > 0, &all_active);
            int tile = tiles + exclusive_sum(num_tiles, &all_tiles);
            if (e < num) {
                begin[e] = first;
                lists.item_begin[e] = first;
            }
            if (count > 0)
                lists.active[slot] = e;
            for (int i = 0; i < num_tiles; i++) {
                lists.tile_expert[tile + i] = e;
                lists.tile_begin[tile + i] = first + i * lists.tile_cols;
            }
            items += all_items;
            active += all_active;
            tiles += all_tiles;
        }
        if (lane == 0) {
            lists.item_begin[num] = items;
            lists.counts[0] = active;
            lists.counts[1] = tiles;
        }
    }
}

/* All in one block: few rows. */
static __global__ void __launch_bounds__(ROUTE_THREADS)
    route_small_kernel(topk_rows topk, expert_lists lists, int num_rows) {
    shared_arena arena;
    int count = num_rows * topk.top_k, num = lists.num_experts;
    sptr<int32_t> ids = arena.take<int32_t>(count + 3);
    sptr<int32_t> totals = arena.take<int32_t>(num), begin = arena.take<int32_t>(num);
    load_ids(topk, lists, 0, num_rows, ids);
    __syncthreads();
    for (int e = threadIdx.x; e < num; e += ROUTE_THREADS)
        totals[e] = count_of(ids, count, e);
    __syncthreads();
    scan_experts(lists, totals, begin);
    __syncthreads();
    for (int e = threadIdx.x; e < num; e += ROUTE_THREADS) {
        int items = totals[e];
        if (items > 0)
            place(topk, lists, 0, ids, count, e, begin[e]);
    }
    place_none(topk, lists, 0, ids, count);
}

/* Many rows: counts of every block of rows, one scan, then the placing. */
static __global__ void __launch_bounds__(ROUTE_THREADS)
    route_count_kernel(topk_rows topk, expert_lists lists, int num_rows) {
    shared_arena arena;
    sptr<int32_t> ids = arena.take<int32_t>(CUDA_ROUTE_ROWS * topk.top_k + 3);
    int row0 = static_cast<int>(blockIdx.x) * CUDA_ROUTE_ROWS;
    int rows = min(num_rows - row0, static_cast<int>(CUDA_ROUTE_ROWS));
    load_ids(topk, lists, row0, rows, ids);
    __syncthreads();
    for (int e = threadIdx.x; e < lists.num_experts; e += ROUTE_THREADS)
        lists.block_count[static_cast<size_t>(blockIdx.x) * lists.num_experts + e] =
            count_of(ids, rows * topk.top_k, e);
}

/* block_count becomes the number of items of earlier blocks. */
static __global__ void __launch_bounds__(ROUTE_THREADS)
    route_scan_kernel(expert_lists lists, int num_blocks) {
    shared_arena arena;
    int num = lists.num_experts;
    sptr<int32_t> totals = arena.take<int32_t>(num), begin = arena.take<int32_t>(num);
    for (int e = threadIdx.x; e < num; e += ROUTE_THREADS) {
        int sum = 0;
        for (int b = 0; b < num_blocks; b++) {
            size_t at = static_cast<size_t>(b) * num + e;
            int count = lists.block_count[at];
            lists.block_count[at] = sum;
            sum += count;
        }
        totals[e] = sum;
    }
    __syncthreads();
    scan_experts(lists, totals, begin);
}

static __global__ void __launch_bounds__(ROUTE_THREADS)
    route_place_kernel(topk_rows topk, expert_lists lists, int num_rows) {
    shared_arena arena;
    sptr<int32_t> ids = arena.take<int32_t>(CUDA_ROUTE_ROWS * topk.top_k + 3);
    int row0 = static_cast<int>(blockIdx.x) * CUDA_ROUTE_ROWS;
    int rows = min(num_rows - row0, static_cast<int>(CUDA_ROUTE_ROWS));
    int count = rows * topk.top_k;
    load_ids(topk, lists, row0, rows, ids);
    __syncthreads();
    for (int e = threadIdx.x; e < lists.num_experts; e += ROUTE_THREADS) {
        int before = lists.block_count[static_cast<size_t>(blockIdx.x) * lists.num_experts + e];
        int begin = lists.item_begin[e];
        place(topk, lists, row0, ids, count, e, begin + before);
    }
    place_none(topk, lists, row0, ids, count);
}

extern "C" cudaError_t cuda_launch_route(cudaStream_t stream, const struct cuda_expert_map *map,
                                         const struct qep_topk *topk, int32_t num_rows,
                                         int32_t first_expert) {
    topk_rows rows = rows_of(topk);
    expert_lists lists = lists_of(map, first_expert);
    size_t experts = static_cast<size_t>(map->num_experts + 3) * sizeof(int32_t);
    size_t pairs = static_cast<size_t>(num_rows) * topk->top_k;
    if (pairs <= CUDA_ROUTE_PAIRS)
        return launch(route_small_kernel, dim3(1), dim3(ROUTE_THREADS),
                      (pairs + 7) * sizeof(int32_t) + 2 * experts, stream, rows, lists, num_rows);
    int blocks = (num_rows + CUDA_ROUTE_ROWS - 1) / CUDA_ROUTE_ROWS;
    size_t ids = (static_cast<size_t>(CUDA_ROUTE_ROWS) * topk->top_k + 7) * sizeof(int32_t);
    cudaError_t e = launch(route_count_kernel, dim3(blocks), dim3(ROUTE_THREADS), ids, stream, rows,
                           lists, num_rows);
    if (e == cudaSuccess)
        e = launch(route_scan_kernel, dim3(1), dim3(ROUTE_THREADS), 2 * experts, stream, lists,
                   blocks);
    if (e == cudaSuccess)
        e = launch(route_place_kernel, dim3(blocks), dim3(ROUTE_THREADS), ids, stream, rows, lists,
                   num_rows);
    return e;
}

/* ---- rows of ranks ---- */

static __device__ __forceinline__ bool row_meets(const topk_rows &topk, size_t row,
                                                 gptr<const int32_t> expert_rank, int rank) {
    for (int j = 0; j < topk.top_k; j++) {
        int id = topk.id(row, j);
        if (id >= 0 && expert_rank[id] == rank)
            return true;
    }
    return false;
}

/* One block per rank; rows in order, ROUTE_THREADS at a time. */
static __global__ void __launch_bounds__(ROUTE_THREADS)
    route_lists_kernel(topk_rows topk, int n, gptr<const int32_t> expert_rank, gptr<int32_t> rows,
                       gptr<int32_t> positions, gptr<int32_t> counts) {
    shared_arena arena;
    sptr<int32_t> warp_counts = arena.take<int32_t>(ROUTE_THREADS / 32);
    int rank = static_cast<int>(blockIdx.x), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    size_t first = static_cast<size_t>(rank) * n;
    int sum = 0;
    for (int row0 = 0; row0 < n; row0 += ROUTE_THREADS) {
        int row = row0 + static_cast<int>(threadIdx.x);
        bool meets = row < n && row_meets(topk, row, expert_rank, rank);
        uint32_t votes = __ballot_sync(0xffffffffu, meets);
        if (lane == 0)
            warp_counts[warp] = __popc(votes);
        __syncthreads();
        int at = sum + __popc(votes & ((1u << lane) - 1));
        for (int w = 0; w < ROUTE_THREADS / 32; w++) {
            int count = warp_counts[w];
            at += w < warp ? count : 0;
            sum += count;
        }
        __syncthreads();
        if (row < n)
            positions[first + row] = meets ? at : -1;
        if (meets)
            rows[first + at] = row;
    }
    if (threadIdx.x == 0)
        counts[rank] = sum;
}

extern "C" cudaError_t cuda_launch_route_lists(cudaStream_t stream, const struct qep_topk *topk,
                                               int32_t n, const int32_t *expert_rank,
                                               int32_t num_ranks, int32_t *rows, int32_t *positions,
                                               int32_t *counts) {
    return launch(route_lists_kernel, dim3(num_ranks), dim3(ROUTE_THREADS),
                  ROUTE_THREADS / 32 * sizeof(int32_t), stream, rows_of(topk), n, expert_rank, rows,
                  positions, counts);
}

/* ---- packets and rows ---- */

static __global__ void pack_kernel(gptr<byte_t> packets, gptr<const byte_t> act, size_t row_bytes,
                                   size_t packet_bytes, topk_rows topk, gptr<const int32_t> list) {
    size_t row = blockIdx.x;
    if (list)
        row = static_cast<size_t>(static_cast<int32_t>(list[blockIdx.x]));
    gptr<byte_t> packet = packets + blockIdx.x * packet_bytes;
    for (size_t at = threadIdx.x * 16; at < row_bytes; at += blockDim.x * 16)
        store16(packet + at, load16(act + row * row_bytes + at));
    int words = static_cast<int>((packet_bytes - row_bytes) / 4);
    for (int w = threadIdx.x; w < words; w += static_cast<int>(blockDim.x)) {
        uint32_t v = 0;
        if (w < topk.top_k)
            v = static_cast<uint32_t>(topk.id(row, w));
        else if (w < 2 * topk.top_k)
            v = topk.weight_bits(row, w - topk.top_k);
        store4(packet + row_bytes + w * 4, v);
    }
}

extern "C" cudaError_t cuda_launch_pack(cudaStream_t stream, void *packets, const void *act,
                                        size_t row_bytes, const struct qep_topk *topk,
                                        const int32_t *list, int32_t num) {
    return launch(pack_kernel, dim3(num), dim3(128), 0, stream, static_cast<byte_t *>(packets),
                  static_cast<const byte_t *>(act), row_bytes,
                  qep_packet_bytes(row_bytes, topk->top_k), rows_of(topk), list);
}

template <int WORDS>
static __global__ void gather_rows_kernel(gptr<byte_t> out, gptr<const byte_t> rows, size_t bytes,
                                          gptr<const int32_t> list) {
    int32_t row = list[blockIdx.x];
    gptr<const byte_t> from = rows + static_cast<size_t>(row) * bytes;
    gptr<byte_t> to = out + blockIdx.x * bytes;
    for (size_t at = threadIdx.x * (4 * WORDS); at < bytes; at += blockDim.x * (4 * WORDS)) {
        if (WORDS == 4)
            store16(to + at, load16(from + at));
        else
            store4(to + at, load4(from + at));
    }
}

extern "C" cudaError_t cuda_launch_gather_rows(cudaStream_t stream, void *out, const void *rows,
                                               size_t bytes, const int32_t *list, int32_t num) {
    bool wide = bytes % 16 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0 &&
                reinterpret_cast<uintptr_t>(rows) % 16 == 0;
    return launch(wide ? gather_rows_kernel<4> : gather_rows_kernel<1>, dim3(num), dim3(128), 0,
                  stream, static_cast<byte_t *>(out), static_cast<const byte_t *>(rows), bytes,
                  list);
}

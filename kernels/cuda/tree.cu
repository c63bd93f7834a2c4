/* Sums along the expert-id tree: one thread per column walks the leaves in ascending order. Before
 * a leaf that differs from its predecessor first at bit b, all subtrees that meet below b are
 * complete. The bits at which open subtrees meet their left neighbours fall from bottom to top, so
 * a mask of them is the whole bookkeeping. */
#include "kernels/cuda/experts.h"
#include "kernels/cuda/packed.cuh"

enum { TREE_THREADS = 128, TREE_DEPTH = 32, TREE_MAX_LEAVES = QEP_DEVICE_MAX_TOP_K };

/* One column's walk. stack: shared, [TREE_DEPTH][TREE_THREADS]. */
struct tree_walk {
    sptr<float> stack;
    float top;
    uint32_t open, previous; /* bits of open subtrees; id of the last leaf */
    int depth;

    __device__ __forceinline__ void merge() {
        float left = stack[--depth * TREE_THREADS + threadIdx.x];
        top = left + top;
    }
    __device__ __forceinline__ void first(float leaf, uint32_t id) {
        top = leaf;
        previous = id;
        open = 0;
        depth = 0;
    }
    __device__ __forceinline__ void next(float leaf, uint32_t id) {
        uint32_t bit = 0x80000000u >> __clz(static_cast<int>(id ^ previous));
        for (; open != 0 && (open & (0u - open)) < bit; open &= open - 1)
            merge();
        stack[depth++ * TREE_THREADS + threadIdx.x] = top;
        open |= bit;
        top = leaf;
        previous = id;
    }
};

/* The sum of leaves first .. last (at least one) at this thread's column; id(i) and value(i) of
 * leaf i. Values are read four at a time, so that their loads overlap. */
template <class Id, class Value>
static __device__ __forceinline__ float tree_column(int first, int last, const Id &id,
                                                    const Value &value, sptr<float> stack) {
    enum { AHEAD = 4 };
    tree_walk walk = {stack, 0.0f, 0, 0, 0};
    for (int i = first; i < last; i += AHEAD) {
        float leaf[AHEAD];
#pragma unroll
        for (int q = 0; q < AHEAD; q++)
            leaf[q] = value(min(i + q, last - 1));
#pragma unroll
        for (int q = 0; q < AHEAD; q++) {
            if (i + q == first)
                walk.first(leaf[q], id(i));
            else if (i + q < last)
                walk.next(leaf[q], id(i + q));
        }
    }
    while (walk.depth > 0)
        walk.merge();
    return walk.top;
}

static __device__ __forceinline__ int tree_col() {
    return static_cast<int>(blockIdx.y) * TREE_THREADS + static_cast<int>(threadIdx.x);
}

static dim3 tree_grid(int32_t num_out, int32_t cols) {
    return dim3(num_out, (cols + TREE_THREADS - 1) / TREE_THREADS);
}

enum { STACK_BYTES = TREE_DEPTH * TREE_THREADS * sizeof(float) };

/* ---- tree_sum ---- */

struct listed_id {
    gptr<const int32_t> id;
    __device__ __forceinline__ uint32_t operator()(int i) const {
        return static_cast<uint32_t>(static_cast<int32_t>(id[i]));
    }
};

struct listed_value {
    gptr<const float> src; /* at the column */
    gptr<const int32_t> row;
    int cols;
    __device__ __forceinline__ float operator()(int i) const {
        int32_t r = row[i];
        return src[static_cast<size_t>(r) * cols];
    }
};

static __global__ void __launch_bounds__(TREE_THREADS)
    tree_sum_kernel(gptr<const float> base, gptr<const float> src, int cols,
                    gptr<const int32_t> leaf_begin, gptr<const int32_t> leaf_row,
                    gptr<const int32_t> leaf_id, gptr<float> out) {
    shared_arena arena;
    sptr<float> stack = arena.take<float>(TREE_DEPTH * TREE_THREADS);
    int col = tree_col(), first = leaf_begin[blockIdx.x], last = leaf_begin[blockIdx.x + 1];
    if (col >= cols)
        return;
    size_t at = static_cast<size_t>(blockIdx.x) * cols + col;
    listed_id id = {leaf_id};
    listed_value value = {src + col, leaf_row, cols};
    float sum = 0.0f;
    if (first < last)
        sum = tree_column(first, last, id, value, stack);
    if (base) {
        float b = base[at];
        sum = first < last ? b + sum : b;
    }
    out[at] = sum;
}

extern "C" cudaError_t cuda_launch_tree_sum(cudaStream_t stream, const struct qep_tree_args *args,
                                            float *out) {
    return launch(tree_sum_kernel, tree_grid(args->num_out, args->cols), dim3(TREE_THREADS),
                  STACK_BYTES, stream, args->base, args->src, args->cols, args->leaf_begin,
                  args->leaf_row, args->leaf_id, out);
}

/* ---- leaves of one row, sorted by id ---- */

struct row_leaves {
    sptr<int32_t> id, row, range; /* [TREE_MAX_LEAVES] */
    sptr<int32_t> count;
};

static __device__ __forceinline__ row_leaves take_leaves(shared_arena &arena) {
    row_leaves leaves;
    leaves.id = arena.take<int32_t>(TREE_MAX_LEAVES);
    leaves.row = arena.take<int32_t>(TREE_MAX_LEAVES);
    leaves.range = arena.take<int32_t>(TREE_MAX_LEAVES);
    leaves.count = arena.take<int32_t>(4);
    return leaves;
}

enum { LEAF_BYTES = (3 * TREE_MAX_LEAVES + 4) * sizeof(int32_t) };

/* By the first warp: lane j's leaf, if it has one, goes to its place by id. */
static __device__ __forceinline__ void sort_leaves(const row_leaves &leaves, bool has, int id,
                                                   int row, int range) {
    uint32_t all = __ballot_sync(0xffffffffu, has);
    int place = 0;
    for (int j = 0; j < 32; j++) {
        int other = __shfl_sync(0xffffffffu, id, j);
        place += (all >> j & 1u) && other < id;
    }
    if (has) {
        leaves.id[place] = id;
        leaves.row[place] = row;
        leaves.range[place] = range;
    }
    if (threadIdx.x == 0)
        leaves.count[0] = __popc(all);
}

struct sorted_id {
    sptr<const int32_t> id;
    __device__ __forceinline__ uint32_t operator()(int i) const {
        return static_cast<uint32_t>(static_cast<int32_t>(id[i]));
    }
};

struct sorted_value {
    gptr<const float> src; /* at the column */
    sptr<const int32_t> row;
    int cols;
    __device__ __forceinline__ float operator()(int i) const {
        int32_t r = row[i];
        return src[static_cast<size_t>(r) * cols];
    }
};

/* ---- sums of a rank's items ---- */

/* The items of the rows of a launch. */
struct row_items {
    gptr<const byte_t> idx;
    size_t idx_stride;
    int top_k;
    gptr<const int32_t> pair_item;
    gptr<const float> out; /* [items, cols] */
    int cols;
};

/* The items of row blockIdx.x become leaves, with their ranges where expert_range is not NULL. By
 * the whole block. */
static __device__ __forceinline__ void leaves_of_row(const row_leaves &leaves,
                                                     const row_items &items,
                                                     gptr<const int32_t> expert_range,
                                                     int first_range) {
    if (threadIdx.x < 32) {
        size_t row = blockIdx.x;
        int j = threadIdx.x, item = -1, id = 0, range = 0;
        if (j < items.top_k)
            item = items.pair_item[row * items.top_k + j];
        if (item >= 0) {
            id = static_cast<int>(load4(items.idx + row * items.idx_stride + j * 4));
            if (expert_range)
                range = expert_range[id];
        }
        sort_leaves(leaves, item >= 0, id, item, range - first_range);
    }
    __syncthreads();
}

static __global__ void __launch_bounds__(TREE_THREADS)
    partials_kernel(row_items items, gptr<const int32_t> expert_range, int first_range,
                    int num_ranges, gptr<float> partials) {
    shared_arena arena;
    row_leaves leaves = take_leaves(arena);
    sptr<float> stack = arena.take<float>(TREE_DEPTH * TREE_THREADS);
    size_t row = blockIdx.x;
    leaves_of_row(leaves, items, expert_range, first_range);
    int col = tree_col(), cols = items.cols, count = leaves.count[0], last;
    if (col >= cols)
        return;
    sorted_id id = {leaves.id};
    sorted_value value = {items.out + col, leaves.row, cols};
    for (int first = 0; first < count; first = last) {
        int range = leaves.range[first];
        for (last = first + 1; last < count && leaves.range[last] == range; last++)
            ;
        float sum = tree_column(first, last, id, value, stack);
        partials[(row * num_ranges + range) * cols + col] = sum;
    }
}

/* base + tree of all items: what combine makes of the partials, as ranges are subtrees. */
static __global__ void __launch_bounds__(TREE_THREADS)
    row_sums_kernel(row_items items, gptr<const float> base, gptr<float> out) {
    shared_arena arena;
    row_leaves leaves = take_leaves(arena);
    sptr<float> stack = arena.take<float>(TREE_DEPTH * TREE_THREADS);
    leaves_of_row(leaves, items, gptr<const int32_t>(nullptr), 0);
    int col = tree_col(), cols = items.cols, count = leaves.count[0];
    if (col >= cols)
        return;
    size_t at = static_cast<size_t>(blockIdx.x) * cols + col;
    float sum = base[at];
    if (count > 0) {
        sorted_id id = {leaves.id};
        sorted_value value = {items.out + col, leaves.row, cols};
        sum = sum + tree_column(0, count, id, value, stack);
    }
    out[at] = sum;
}

/* Of rows row0 .. of a call. */
static row_items items_of(const struct qep_routed_args *args, size_t row0, const int32_t *pair_item,
                          const float *items) {
    return {reinterpret_cast<const byte_t *>(args->topk.idx) + row0 * args->topk.idx_stride,
            args->topk.idx_stride,
            args->topk.top_k,
            pair_item,
            items,
            args->hidden_size};
}

extern "C" cudaError_t cuda_launch_partials(cudaStream_t stream, const struct qep_routed_args *args,
                                            int32_t row0, int32_t num_rows,
                                            const int32_t *pair_item, const float *items,
                                            float *partials) {
    size_t first_row = static_cast<size_t>(row0);
    return launch(partials_kernel, tree_grid(num_rows, args->hidden_size), dim3(TREE_THREADS),
                  LEAF_BYTES + STACK_BYTES, stream, items_of(args, first_row, pair_item, items),
                  args->expert_range, args->first_range, args->num_ranges,
                  partials + first_row * args->num_ranges * args->hidden_size);
}

extern "C" cudaError_t cuda_launch_row_sums(cudaStream_t stream, const struct qep_routed_args *args,
                                            int32_t row0, int32_t num_rows,
                                            const int32_t *pair_item, const float *items,
                                            float *out) {
    size_t first = static_cast<size_t>(row0) * args->hidden_size;
    return launch(row_sums_kernel, tree_grid(num_rows, args->hidden_size), dim3(TREE_THREADS),
                  LEAF_BYTES + STACK_BYTES, stream,
                  items_of(args, static_cast<size_t>(row0), pair_item, items), args->base + first,
                  out + first);
}

/* ---- combine ---- */

static __global__ void __launch_bounds__(TREE_THREADS)
    combine_kernel(gptr<const byte_t> idx, size_t idx_stride, int top_k,
                   gptr<const int32_t> expert_range, gptr<const qep_expert_range> ranges,
                   gptr<const int32_t> positions, int num_rows, int cols, gptr<const float> base,
                   gptr<const float> partials, gptr<float> out) {
    shared_arena arena;
    row_leaves leaves = take_leaves(arena);
    sptr<float> stack = arena.take<float>(TREE_DEPTH * TREE_THREADS);
    int row = static_cast<int>(blockIdx.x);
    if (threadIdx.x < 32) {
        int j = threadIdx.x, id = -1, range = -1, leaf_id = 0, leaf_row = 0;
        if (j < top_k)
            id = static_cast<int>(load4(idx + row * idx_stride + j * 4));
        if (id >= 0)
            range = expert_range[id];
        bool has = range >= 0; /* each range once: by the first lane that names it */
        for (int i = 0; i < 32; i++) {
            int other = __shfl_sync(0xffffffffu, range, i);
            has = has && (i >= j || other != range);
        }
        if (has) {
            qep_expert_range r = ranges[range];
            int position = row;
            if (positions)
                position = positions[static_cast<size_t>(r.rank) * num_rows + row];
            leaf_id = r.index << r.level;
            leaf_row = r.first_row + position * r.row_step;
        }
        sort_leaves(leaves, has, leaf_id, leaf_row, 0);
    }
    __syncthreads();
    int col = tree_col(), count = leaves.count[0];
    if (col >= cols)
        return;
    size_t at = static_cast<size_t>(row) * cols + col;
    float sum = base[at];
    if (count > 0) {
        sorted_id id = {leaves.id};
        sorted_value value = {partials + col, leaves.row, cols};
        sum = sum + tree_column(0, count, id, value, stack);
    }
    out[at] = sum;
}

extern "C" cudaError_t cuda_launch_combine(cudaStream_t stream, const struct qep_combine_args *args,
                                           float *out) {
    return launch(combine_kernel, tree_grid(args->num_rows, args->hidden_size), dim3(TREE_THREADS),
                  LEAF_BYTES + STACK_BYTES, stream,
                  reinterpret_cast<const byte_t *>(args->topk.idx), args->topk.idx_stride,
                  args->topk.top_k, args->expert_range, args->ranges, args->positions,
                  args->num_rows, args->hidden_size, args->base, args->partials, out);
}

/* What the plain matmul kernels of both phases share. */
#ifndef QEP_KERNELS_CUDA_MATMUL_ARGS_CUH
#define QEP_KERNELS_CUDA_MATMUL_ARGS_CUH

#include "kernels/cuda/matmul.h"
#include "kernels/cuda/packed.cuh"
#include "kernels/mathfn.h"

/* Activation rows one after the other. */
struct plain_columns {
    gptr<const byte_t> act;
    size_t row_stride;
    __device__ __forceinline__ gptr<const byte_t> operator()(int column) const {
        return act + static_cast<size_t>(column) * row_stride;
    }
};

/* Where the sums of a product go. */
struct product_store {
    enum { ADDS = 1 };
    gptr<float> out;
    gptr<const float> gate;
    int rows, half;
    int epilogue;

    __device__ __forceinline__ bool adds() const {
        return epilogue != QEP_EPILOGUE_STORE;
    }
    __device__ __forceinline__ float factor(int column) const {
        if (epilogue != QEP_EPILOGUE_GATED_ADD)
            return 1.0f;
        return qep_sigmoidf(gate[column]);
    }
    /* What is stored of the sum of a row (beyond the matrix: of none): by the order of operations
     * the bits of a sum that was stored and added later. */
    __device__ __forceinline__ float added(int row, int column, float factor, float sum) const {
        if (!adds() || row >= rows)
            return sum;
        float base = out[static_cast<size_t>(column) * rows + row];
        return base + factor * sum;
    }
    __device__ __forceinline__ void put(int row, int column, float factor, float sum) const {
        out[static_cast<size_t>(column) * rows + row] = added(row, column, factor, sum);
    }
    /* The row of `unit` in the first or second half; `rows` where there is none. */
    __device__ __forceinline__ int row_of(int unit, int second) const {
        return unit < half ? min(second * half + unit, rows) : rows;
    }
    __device__ __forceinline__ void operator()(int unit, int column, float first,
                                               float second) const {
        size_t row = static_cast<size_t>(column) * rows;
        if (unit < half)
            out[row + unit] = first;
        if (unit < half && half + unit < rows)
            out[row + half + unit] = second;
    }
    /* The same from column `first` on. */
    __device__ __forceinline__ product_store from(int first) const {
        product_store moved = *this;
        moved.out = out + static_cast<size_t>(first) * rows;
        if (epilogue == QEP_EPILOGUE_GATED_ADD)
            moved.gate = gate + first;
        return moved;
    }
};

static inline product_store store_of(const struct qep_product *p) {
    const cuda_matrix &m = p->weight->shape;
    return {p->out, p->gate, m.rows, m.half, p->epilogue};
}

/* The products of one launch, their tiles one after the other. */
struct product_group {
    struct part {
        gptr<const byte_t> data, scales;
        product_store store;
        int first_tile, num_tiles;
    };
    cuda_matrix shape; /* of the first; type, columns and scale groups are those of all */
    part parts[QEP_MAX_PRODUCTS];
};

/* The part that tile `tile` of the group is in; the last one where there is no such tile. */
static __device__ __forceinline__ int part_of(const product_group &group, int tile) {
    int p = 0;
#pragma unroll
    for (int i = 1; i < QEP_MAX_PRODUCTS; i++)
        p += tile >= group.parts[i].first_tile;
    return p;
}

/* Tiles in all. */
static inline int group_of_products(const struct cuda_matmul *job, product_group *group) {
    int tiles = 0;
    group->shape = job->products[0].weight->shape;
    for (int i = 0; i < QEP_MAX_PRODUCTS; i++) {
        const struct qep_product *p = &job->products[i < job->num ? i : 0];
        const struct qep_weight *w = p->weight;
        int own = w->shape.num_tiles;
        group->parts[i] = {static_cast<const byte_t *>(w->data),
                           static_cast<const byte_t *>(w->scales), store_of(p),
                           i < job->num ? tiles : INT32_MAX, own};
        tiles += i < job->num ? own : 0;
    }
    return tiles;
}

/* Tiles that slices of K follow from: of whole matrices. */
static inline int64_t split_tiles(const struct cuda_matmul *job) {
    int64_t tiles = 0;
    for (int i = 0; i < job->num; i++) {
        const struct qep_product *p = &job->products[i];
        int64_t half = (static_cast<int64_t>(p->whole_rows) + 1) / 2;
        tiles += p->whole_rows > 0 ? (half + CUDA_TILE_UNITS - 1) / CUDA_TILE_UNITS
                                   : p->weight->shape.num_tiles;
    }
    return tiles;
}

#endif

/* What the expert kernels of both phases share: the work lists, where columns come from, where sums
 * go. gate+up: rows of the call to hidden rows of items. down: hidden rows to outputs of items,
 * times the routing weight. */
#ifndef QEP_KERNELS_CUDA_EXPERTS_ARGS_CUH
#define QEP_KERNELS_CUDA_EXPERTS_ARGS_CUH

#include "kernels/cuda/experts.h"
#include "kernels/cuda/matmul_args.cuh"
#include "kernels/mathfn.h"

struct expert_work {
    gptr<const cuda_expert> table;
    gptr<const int32_t> counts, item_begin, active, tile_expert, tile_begin, item_row;
    gptr<const float> item_weight;
    gptr<const byte_t> rows;
    size_t row_stride;
    gptr<byte_t> hidden;
    size_t hidden_stride;
    gptr<float> out;
};

static inline expert_work work_of(const struct cuda_expert_job *job) {
    const struct cuda_expert_map &map = job->map;
    return {job->table,
            map.counts,
            map.item_begin,
            map.active,
            map.tile_expert,
            map.tile_begin,
            map.item_row,
            map.item_weight,
            static_cast<const byte_t *>(job->rows),
            job->row_stride,
            static_cast<byte_t *>(job->hidden),
            job->hidden_stride,
            job->out};
}

/* Activation rows of items. */
struct item_columns {
    gptr<const byte_t> rows;
    size_t row_stride;
    gptr<const int32_t> item_row; /* at the first item */
    __device__ __forceinline__ gptr<const byte_t> operator()(int column) const {
        int32_t row = item_row[column];
        return rows + static_cast<size_t>(row) * row_stride;
    }
};

/* silu(gate) * up as a BF16 activation row, zeros up to its end included. */
struct hidden_store {
    enum { ADDS = 0 };
    gptr<byte_t> hidden; /* at the first item */
    size_t stride;
    int num_units;
    __device__ __forceinline__ void operator()(int unit, int column, float gate, float up) const {
        gptr<uint16_t> row = gptr<uint16_t>(hidden + static_cast<size_t>(column) * stride);
        row[unit] = unit < num_units ? to_bf16(qep_siluf(gate) * up) : static_cast<uint16_t>(0);
    }
};

struct weighted_store {
    enum { ADDS = 0 };
    gptr<float> out;          /* at the first item */
    gptr<const float> weight; /* likewise */
    int rows, half;
    __device__ __forceinline__ void operator()(int unit, int column, float first,
                                               float second) const {
        size_t row = static_cast<size_t>(column) * rows;
        float w = weight[column];
        if (unit < half)
            out[row + unit] = first * w;
        if (unit < half && half + unit < rows)
            out[row + half + unit] = second * w;
    }
};

/* One of the two matrices of an expert on items from `first` on: tile(data, scales, columns, store)
 * does the work. */
template <bool DOWN, class Tile>
static __device__ __forceinline__ void with_items(const cuda_matrix &m, const expert_work &work,
                                                  int expert, int first, const Tile &tile) {
    cuda_expert e = work.table[expert];
    gptr<byte_t> hidden = work.hidden + static_cast<size_t>(first) * work.hidden_stride;
    gptr<const byte_t> data(static_cast<const byte_t *>(DOWN ? e.down : e.gate_up));
    gptr<const byte_t> scales(static_cast<const byte_t *>(DOWN ? e.down_scales : e.gate_up_scales));
    if constexpr (DOWN) {
        plain_columns columns = {hidden, work.hidden_stride};
        weighted_store store = {work.out + static_cast<size_t>(first) * m.rows,
                                work.item_weight + first, m.rows, m.half};
        tile(data, scales, columns, store);
    } else {
        item_columns columns = {work.rows, work.row_stride, work.item_row + first};
        hidden_store store = {hidden, work.hidden_stride, m.half};
        tile(data, scales, columns, store);
    }
}

#endif

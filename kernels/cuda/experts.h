/* Launchers of routing, experts and sums along the tree. All pointers are device memory; the
 * structs are host memory. */
#ifndef QEP_KERNELS_CUDA_EXPERTS_H
#define QEP_KERNELS_CUDA_EXPERTS_H

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/weight.h"
#include "kernels/device_ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- routing ---- */

/* Where the work of one `routed` or `experts` call lies: items = (row, expert) pairs sorted by
 * expert, then row; `active` experts have items; prefill tiles are up to tile_cols items of one
 * expert. */
struct cuda_expert_map {
    int32_t *counts;      /* [2] active experts, tiles */
    int32_t *item_begin;  /* [num_experts + 1] */
    int32_t *active;      /* [max_active] expert */
    int32_t *tile_expert; /* [max_tiles] */
    int32_t *tile_begin;  /* [max_tiles] first item */
    int32_t *item_row;    /* [max_items] */
    float *item_weight;   /* [max_items] */
    int32_t *pair_item;   /* [num_rows * top_k] item of (row, j), -1: not on this rank; or NULL */
    int32_t *block_count; /* [row blocks, num_experts] scratch of the sort */
    int32_t num_experts, max_active, max_tiles, max_items, tile_cols;
};

/* Rows of one block of the sort; calls of at most CUDA_ROUTE_PAIRS pairs take one block for all. */
enum { CUDA_ROUTE_ROWS = 64, CUDA_ROUTE_PAIRS = 4096 };

cudaError_t cuda_launch_route(cudaStream_t stream, const struct cuda_expert_map *map,
                              const struct qep_topk *topk, int32_t num_rows, int32_t first_expert);

cudaError_t cuda_launch_route_lists(cudaStream_t stream, const struct qep_topk *topk, int32_t n,
                                    const int32_t *expert_rank, int32_t num_ranks, int32_t *rows,
                                    int32_t *positions, int32_t *counts);
cudaError_t cuda_launch_pack(cudaStream_t stream, void *packets, const void *act, size_t row_bytes,
                             const struct qep_topk *topk, const int32_t *list, int32_t num);
cudaError_t cuda_launch_gather_rows(cudaStream_t stream, void *out, const void *rows, size_t bytes,
                                    const int32_t *list, int32_t num);

/* ---- experts_decode.cu, experts_prefill.cu ---- */

/* Packed matrices of one expert, an element of the device table. */
struct cuda_expert {
    const void *gate_up, *gate_up_scales, *down, *down_scales;
};

struct cuda_expert_job {
    struct cuda_matrix gate_up, down; /* shapes, the same for all experts */
    const struct cuda_expert *table;  /* [num_experts] */
    struct cuda_expert_map map;
    const void *rows; /* BF16 activation rows */
    size_t row_stride;
    int32_t num_rows;     /* bounds the items of one expert */
    void *hidden;         /* [max_items] BF16 activation rows of I */
    size_t hidden_stride; /* qep_act_row_bytes(BF16, I) */
    float *out;           /* [max_items, H] */
};

cudaError_t cuda_launch_experts_decode(cudaStream_t stream, const struct cuda_expert_job *job);
cudaError_t cuda_launch_experts_prefill(cudaStream_t stream, const struct cuda_expert_job *job);

/* ---- tree.cu ---- */

/* qep_tree_args with all arrays on the device. */
cudaError_t cuda_launch_tree_sum(cudaStream_t stream, const struct qep_tree_args *args, float *out);
/* partials of rows row0 .. row0 + num_rows from their items' outputs; pair_item [num_rows, k]. */
cudaError_t cuda_launch_partials(cudaStream_t stream, const struct qep_routed_args *args,
                                 int32_t row0, int32_t num_rows, const int32_t *pair_item,
                                 const float *items, float *partials);
/* The same rows' base + tree of all their items. */
cudaError_t cuda_launch_row_sums(cudaStream_t stream, const struct qep_routed_args *args,
                                 int32_t row0, int32_t num_rows, const int32_t *pair_item,
                                 const float *items, float *out);
cudaError_t cuda_launch_combine(cudaStream_t stream, const struct qep_combine_args *args,
                                float *out);

#ifdef __cplusplus
}
#endif
#endif

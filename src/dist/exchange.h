/* The expert exchange of one MoE layer, host side: who sends which row where, and in which order
 * sums are taken. Pure bookkeeping and transport; the arithmetic is the backend's.
 *
 *   owner(l)  --dispatch-->  expert ranks  --combine-->  owner(l + 1)
 *      \______ base row + expert ids (when the owner changes) ______/
 *
 * dispatch packet of one row: activation row [row_bytes] | topk_idx i32 [k] | topk_weights f32 [k]
 * | row i32. Prefill sends a row once to every rank that holds one of its experts, after an
 * exchange of counts; decode sends every row to every rank that holds any expert, so all sizes
 * follow from the plan. combine: one f32 row for each (row, maximal dyadic range with a chosen
 * expert), ascending by row, then by range; the receiver derives the counts from the ids. */
#ifndef QEP_DIST_EXCHANGE_H
#define QEP_DIST_EXCHANGE_H

#include "dist/comm.h"
#include "dist/placement.h"

/* The rows of one phase, known to all ranks. */
struct qep_exchange_rows {
    int32_t num_rows;
    const int32_t *row_slot; /* [num_rows] */
    bool decode;
};

/* What an expert rank computes: items sorted by expert, then by row. */
struct qep_exchange_items {
    int32_t num_items;
    int32_t *item_expert; /* local expert index */
    int32_t *item_row;    /* received row */
    float *item_weight;
    /* The partial sums: output o takes items item[leaf_row[i]], i in [leaf_begin[o], leaf_begin[o +
     * 1]). */
    int32_t num_partials;
    int32_t *leaf_begin, *leaf_row, *leaf_id;
};

/* What owner(l + 1) sums: row o = base[o] + tree of the received partials. */
struct qep_exchange_sums {
    int32_t num_rows;
    int32_t num_partials; /* rows of `partials` */
    int32_t *leaf_begin, *leaf_row, *leaf_id;
    const float *partials; /* [num_partials, hidden_size], borrowed until the next call */
    const float *base;     /* [num_rows, hidden_size] likewise */
};

struct qep_exchange;

/* row_bytes: of one activation row, a multiple of 16. Borrows comm and placement. */
enum qep_status qep_exchange_create(struct qep_comm *comm, const struct qep_placement *placement,
                                    int32_t hidden_size, int32_t top_k, struct qep_exchange **out);
void qep_exchange_destroy(struct qep_exchange *ex); /* NULL is fine */

/* The rows this rank owns at `layer`, in order. */
int32_t qep_exchange_num_local(const struct qep_exchange *ex, const struct qep_exchange_rows *rows,
                               int32_t layer);

/* Collective. Sends this rank's rows of `layer` (act [n, row_bytes], topk_* [n, k], base [n,
 * hidden]) and receives those its experts serve: *recv_rows points at *num_recv packets of
 * *recv_stride bytes, each starting with the activation row. items lists the work. Borrowed until
 * the next dispatch. */
enum qep_status qep_exchange_dispatch(struct qep_exchange *ex, const struct qep_exchange_rows *rows,
                                      int32_t layer, const void *act, size_t row_bytes,
                                      const int32_t *topk_idx, const float *topk_weights,
                                      const float *base, const void **recv_rows,
                                      size_t *recv_stride, int32_t *num_recv,
                                      const struct qep_exchange_items **items);

/* Collective. partials [items->num_partials, hidden] as dispatch ordered them; *sums tells
 * owner(layer + 1) what to add up. */
enum qep_status qep_exchange_combine(struct qep_exchange *ex, const float *partials,
                                     const struct qep_exchange_sums **sums);

/* Collective. Moves f32 rows from owner(layer) to owner(layer + 1) (dense layers). rows_in [n,
 * hidden]; *rows_out is borrowed until the next call; *num_out rows. */
enum qep_status qep_exchange_move(struct qep_exchange *ex, const struct qep_exchange_rows *rows,
                                  int32_t layer, const float *rows_in, const float **rows_out,
                                  int32_t *num_out);

/* Bytes sent to other ranks and received from them since creation (for reports). */
void qep_exchange_bytes(const struct qep_exchange *ex, uint64_t *sent, uint64_t *received);

#endif

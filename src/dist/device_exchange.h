/* The expert exchange of one MoE layer whose rows lie in device memory: who sends how many rows to
 * whom, and the messages that follow. The routing itself happens on the devices (kernels); what the
 * host knows is the matrix of row counts, equal on all ranks.
 *
 *   dispatch   packets of the rows: decode to every rank with experts, prefill to those that hold
 *              one of a row's experts
 *   combine    for each row a rank received one f32 row per maximal dyadic range that it owns,
 *              [row, range], to owner(layer + 1) */
#ifndef QEP_DIST_DEVICE_EXCHANGE_H
#define QEP_DIST_DEVICE_EXCHANGE_H

#include "dist/device_comm.h"
#include "dist/placement.h"

struct qep_device_exchange {
    struct qep_comm *comm;      /* borrowed, like the next two */
    struct qep_device_comm *dc; /* NULL with one rank, where nothing is sent */
    const struct qep_placement *placement;
    int32_t *counts; /* [num_ranks, num_ranks] rows from (row) to (column) in this layer */
    int32_t *mine;   /* [num_ranks] rows to every rank, for share_counts */
    struct qep_messages messages;
};

enum qep_status qep_device_exchange_create(struct qep_comm *comm, struct qep_device_comm *dc,
                                           const struct qep_placement *placement,
                                           struct qep_device_exchange **out);
void qep_device_exchange_destroy(struct qep_device_exchange *ex); /* NULL is fine */

/* Decode: rank `from` sends its `rows` rows to every rank that holds experts. To be said of every
 * rank. */
void qep_device_exchange_count(struct qep_device_exchange *ex, int from, int32_t rows);

/* Prefill, collective: counts from every rank's `mine`. */
enum qep_status qep_device_exchange_share_counts(struct qep_device_exchange *ex);

/* Rows that `rank` gets in this layer, and that it sends (a row counts once for each receiver). */
int32_t qep_device_exchange_received(const struct qep_device_exchange *ex, int rank);
int32_t qep_device_exchange_sent(const struct qep_device_exchange *ex, int rank);

/* Collective. decode: `packets` are this rank's rows, once; else the rows of every receiver, one
 * list behind the other. recv [received rows, packet_bytes], in order of senders. */
enum qep_status qep_device_exchange_dispatch(struct qep_device_exchange *ex, bool decode,
                                             const void *packets, size_t packet_bytes, void *recv);

/* The bytes of partial sums that this rank gets as an owner of layer + 1; row_bytes: of one sum.
 * Makes the messages of the combine that must follow. */
size_t qep_device_exchange_combine_bytes(struct qep_device_exchange *ex, int32_t layer,
                                         size_t row_bytes);
enum qep_status qep_device_exchange_combine(struct qep_device_exchange *ex, bool decode,
                                            const void *partials, void *recv);

#endif

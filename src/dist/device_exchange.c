#include "dist/device_exchange.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum qep_status qep_device_exchange_create(struct qep_comm *comm, struct qep_device_comm *dc,
                                           const struct qep_placement *placement,
                                           struct qep_device_exchange **out) {
    size_t ranks = (size_t)placement->num_ranks;
    struct qep_device_exchange *ex = NULL;
    enum qep_status st = QEP_OK;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof *ex, "exchange", (void **)&ex));
    ex->comm = comm;
    ex->dc = dc;
    ex->placement = placement;
    QEP_TRY_GOTO(st, fail,
                 qep_calloc(ranks * ranks, sizeof *ex->counts, "row counts", (void **)&ex->counts));
    QEP_TRY_GOTO(st, fail, qep_calloc(ranks, sizeof *ex->mine, "row counts", (void **)&ex->mine));
    QEP_TRY_GOTO(st, fail, qep_messages_create(placement->num_ranks, &ex->messages));
    *out = ex;
    return QEP_OK;
fail:
    qep_device_exchange_destroy(ex);
    return st;
}

void qep_device_exchange_destroy(struct qep_device_exchange *ex) {
    if (ex == NULL)
        return;
    qep_messages_free(&ex->messages);
    free(ex->counts);
    free(ex->mine);
    free(ex);
}

static int32_t count_of(const struct qep_device_exchange *ex, int from, int to) {
    return ex->counts[(size_t)from * (size_t)ex->placement->num_ranks + (size_t)to];
}

static size_t num_ranges_of(const struct qep_device_exchange *ex, int rank) {
    return (size_t)(ex->placement->dyadic_begin[rank + 1] - ex->placement->dyadic_begin[rank]);
}

void qep_device_exchange_count(struct qep_device_exchange *ex, int from, int32_t rows) {
    int num_ranks = ex->placement->num_ranks;
    for (int p = 0; p < num_ranks; p++) {
        const struct qep_range *experts = &ex->placement->experts[p];
        ex->counts[from * num_ranks + p] = experts->end > experts->begin ? rows : 0;
    }
}

enum qep_status qep_device_exchange_share_counts(struct qep_device_exchange *ex) {
    size_t bytes = (size_t)ex->placement->num_ranks * sizeof *ex->mine;
    return ex->comm->ops->allgather(ex->comm, ex->mine, ex->counts, bytes);
}

int32_t qep_device_exchange_received(const struct qep_device_exchange *ex, int rank) {
    int32_t rows = 0;
    for (int p = 0; p < ex->placement->num_ranks; p++)
        rows += count_of(ex, p, rank);
    return rows;
}

int32_t qep_device_exchange_sent(const struct qep_device_exchange *ex, int rank) {
    int32_t rows = 0;
    for (int p = 0; p < ex->placement->num_ranks; p++)
        rows += count_of(ex, rank, p);
    return rows;
}

/* Every rank brings as many rows as the others, to every rank: one all-gather does. */
static bool is_gather(const struct qep_device_exchange *ex, bool decode) {
    int num_ranks = ex->placement->num_ranks;
    if (!decode || ex->placement->attention != QEP_ATTENTION_SEQUENCES)
        return false;
    for (int i = 0; i < num_ranks * num_ranks; i++)
        if (ex->counts[i] != ex->counts[0] || ex->counts[i] == 0)
            return false;
    return true;
}

enum qep_status qep_device_exchange_dispatch(struct qep_device_exchange *ex, bool decode,
                                             const void *packets, size_t packet_bytes, void *recv) {
    struct qep_messages *messages = &ex->messages;
    int num_ranks = ex->placement->num_ranks, me = ex->comm->rank;
    for (int p = 0; p < num_ranks; p++) {
        messages->send_bytes[p] = (size_t)count_of(ex, me, p) * packet_bytes;
        messages->recv_bytes[p] = (size_t)count_of(ex, p, me) * packet_bytes;
    }
    if (is_gather(ex, decode))
        return ex->dc->ops->allgather(ex->dc, packets, recv, messages->send_bytes[0]);
    qep_messages_lay_out(messages);
    if (decode) /* the same packets for everybody */
        memset(messages->send_offset, 0, (size_t)num_ranks * sizeof *messages->send_offset);
    return qep_device_send(ex->dc, messages, packets, recv);
}

/* Who gets the partial sums of the rows that came from `source`. */
static int next_owner(const struct qep_device_exchange *ex, int32_t layer, int source) {
    return ex->placement->attention == QEP_ATTENTION_SEQUENCES
               ? source
               : qep_owner(ex->placement, layer + 1, 0);
}

size_t qep_device_exchange_combine_bytes(struct qep_device_exchange *ex, int32_t layer,
                                         size_t row_bytes) {
    struct qep_messages *messages = &ex->messages;
    int num_ranks = ex->placement->num_ranks, me = ex->comm->rank;
    qep_messages_clear(messages);
    for (int q = 0; q < num_ranks; q++) { /* `layers`: one source has all rows */
        int to = next_owner(ex, layer, q);
        messages->send_bytes[to] += (size_t)count_of(ex, q, me) * num_ranges_of(ex, me) * row_bytes;
        for (int p = 0; to == me && p < num_ranks; p++)
            messages->recv_bytes[p] +=
                (size_t)count_of(ex, q, p) * num_ranges_of(ex, p) * row_bytes;
    }
    return qep_messages_lay_out(messages);
}

enum qep_status qep_device_exchange_combine(struct qep_device_exchange *ex, bool decode,
                                            const void *partials, void *recv) {
    if (is_gather(ex, decode) && qep_messages_are_equal(&ex->messages))
        return ex->dc->ops->alltoall(ex->dc, partials, recv, ex->messages.send_bytes[0]);
    return qep_device_send(ex->dc, &ex->messages, partials, recv);
}

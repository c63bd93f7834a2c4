#include "engine/wire.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { INLINE_BYTES = 1024 };

struct header {
    int64_t step;
    int32_t kind, num_spans, num_rows, unused;
    uint64_t extra_bytes;
};

struct first_message {
    struct header header;
    char payload[INLINE_BYTES];
};

static size_t payload_bytes(const struct header *h) {
    return (size_t)h->num_spans * sizeof(struct qep_plan_span) +
           (size_t)h->num_rows * sizeof(int32_t) + (size_t)h->extra_bytes;
}

static void pack(const struct qep_plan *plan, char *out) {
    size_t spans = (size_t)plan->num_spans * sizeof *plan->spans;
    size_t rows = (size_t)plan->num_rows * sizeof *plan->ids;
    if (spans > 0)
        memcpy(out, plan->spans, spans);
    if (rows > 0)
        memcpy(out + spans, plan->ids, rows);
    if (plan->extra_bytes > 0)
        memcpy(out + spans + rows, plan->extra, plan->extra_bytes);
}

static enum qep_status unpack(const struct header *h, const char *in, struct qep_plan *plan) {
    size_t spans = (size_t)h->num_spans, rows = (size_t)h->num_rows;
    QEP_TRY(
        qep_grow((void **)&plan->spans, &plan->span_cap, spans, sizeof *plan->spans, "step plan"));
    QEP_TRY(qep_grow((void **)&plan->ids, &plan->row_cap, rows, sizeof *plan->ids, "step plan"));
    plan->kind = h->kind;
    plan->step = h->step;
    plan->num_spans = h->num_spans;
    plan->num_rows = h->num_rows;
    if (spans > 0)
        memcpy(plan->spans, in, spans * sizeof *plan->spans);
    in += spans * sizeof *plan->spans;
    if (rows > 0)
        memcpy(plan->ids, in, rows * sizeof *plan->ids);
    QEP_TRY(qep_plan_extend(plan, (size_t)h->extra_bytes));
    if (h->extra_bytes > 0)
        memcpy(plan->extra, in + rows * sizeof *plan->ids, (size_t)h->extra_bytes);
    return QEP_OK;
}

enum qep_status qep_wire_broadcast(struct qep_comm *comm, struct qep_plan *plan) {
    struct first_message first;
    bool root = comm->rank == 0;
    if (comm->num_ranks == 1)
        return QEP_OK;
    memset(&first, 0, sizeof first);
    first.header = (struct header){.step = plan->step,
                                   .kind = plan->kind,
                                   .num_spans = plan->num_spans,
                                   .num_rows = plan->num_rows,
                                   .extra_bytes = plan->extra_bytes};
    if (root && payload_bytes(&first.header) <= INLINE_BYTES)
        pack(plan, first.payload);
    QEP_TRY(comm->ops->bcast(comm, &first, sizeof first, 0));
    size_t bytes = payload_bytes(&first.header);
    if (bytes <= INLINE_BYTES)
        return root ? QEP_OK : unpack(&first.header, first.payload, plan);
    void *more = NULL;
    QEP_TRY(qep_alloc(bytes, 1, "step plan", &more));
    if (root)
        pack(plan, more);
    enum qep_status st = comm->ops->bcast(comm, more, bytes, 0);
    if (st == QEP_OK && !root)
        st = unpack(&first.header, more, plan);
    free(more);
    return st;
}

#include "model/internal.h"

#include "base/mem.h"

#include <stdlib.h>

enum qep_status phase_build(struct phase *ph, const struct qep_plan *plan, int32_t decode) {
    size_t spans = (size_t)plan->num_spans, rows = (size_t)plan->num_rows;
    QEP_TRY(qep_grow((void **)&ph->spans, &ph->span_cap[0], spans, sizeof *ph->spans, "phase"));
    QEP_TRY(qep_grow((void **)&ph->local_spans, &ph->span_cap[1], spans, sizeof *ph->local_spans,
                     "phase"));
    QEP_TRY(qep_grow((void **)&ph->plan_row, &ph->row_cap[0], rows, sizeof(int32_t), "phase"));
    QEP_TRY(qep_grow((void **)&ph->row_slot, &ph->row_cap[1], rows, sizeof(int32_t), "phase"));
    QEP_TRY(qep_grow((void **)&ph->local_ids, &ph->row_cap[2], rows, sizeof(int32_t), "phase"));
    ph->num_spans = 0;
    ph->num_rows = 0;
    ph->spans_uploaded = false;
    ph->padded_rows = 0;
    ph->ranges = NULL;
    for (int32_t i = 0; i < plan->num_spans; i++) {
        const struct qep_plan_span *span = &plan->spans[i];
        if (span->decode != decode)
            continue;
        ph->spans[ph->num_spans] = *span;
        ph->spans[ph->num_spans++].row0 = ph->num_rows;
        for (int32_t r = 0; r < span->num_rows; r++) {
            ph->plan_row[ph->num_rows] = span->row0 + r;
            ph->row_slot[ph->num_rows++] = span->slot;
        }
    }
    ph->rows = (struct qep_exchange_rows){
        .num_rows = ph->num_rows, .row_slot = ph->row_slot, .decode = decode != 0};
    return QEP_OK;
}

enum qep_status phase_take_layer(struct phase *ph, const struct qep_placement *placement, int rank,
                                 int32_t layer, const struct qep_plan *plan) {
    int32_t spans = 0, rows = 0;
    for (int32_t i = 0; i < ph->num_spans; i++) {
        const struct qep_plan_span *span = &ph->spans[i];
        if (qep_owner(placement, layer, span->slot) != rank)
            continue;
        ph->local_spans[spans++] = (struct qep_span){.row0 = rows,
                                                     .num_rows = span->num_rows,
                                                     .slot = qep_local_slot(placement, span->slot),
                                                     .position = span->position,
                                                     .decode = span->decode};
        for (int32_t r = 0; r < span->num_rows; r++)
            ph->local_ids[rows++] = plan->ids[ph->plan_row[span->row0 + r]];
    }
    ph->local = qep_batch_of(rows, spans, ph->local_spans, NULL);
    return QEP_OK;
}

void phase_free(struct phase *ph) {
    free(ph->spans);
    free(ph->local_spans);
    free(ph->plan_row);
    free(ph->row_slot);
    free(ph->local_ids);
}

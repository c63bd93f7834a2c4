#include "model/plan.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

void qep_plan_init(struct qep_plan *plan) {
    memset(plan, 0, sizeof *plan);
}

void qep_plan_free(struct qep_plan *plan) {
    free(plan->spans);
    free(plan->ids);
    free(plan->extra);
    memset(plan, 0, sizeof *plan);
}

void qep_plan_clear(struct qep_plan *plan, enum qep_plan_kind kind, int64_t step) {
    plan->kind = (int32_t)kind;
    plan->step = step;
    plan->num_spans = 0;
    plan->num_rows = 0;
    plan->extra_bytes = 0;
}

enum qep_status qep_plan_add(struct qep_plan *plan, const struct qep_plan_span *span,
                             const int32_t *ids) {
    size_t spans = (size_t)plan->num_spans + 1,
           rows = (size_t)plan->num_rows + (size_t)span->num_rows;
    QEP_TRY(
        qep_grow((void **)&plan->spans, &plan->span_cap, spans, sizeof *plan->spans, "step plan"));
    QEP_TRY(qep_grow((void **)&plan->ids, &plan->row_cap, rows, sizeof *plan->ids, "step plan"));
    plan->spans[plan->num_spans] = *span;
    plan->spans[plan->num_spans].row0 = plan->num_rows;
    memcpy(plan->ids + plan->num_rows, ids, (size_t)span->num_rows * sizeof *ids);
    plan->num_spans++;
    plan->num_rows += span->num_rows;
    return QEP_OK;
}

enum qep_status qep_plan_extend(struct qep_plan *plan, size_t bytes) {
    QEP_TRY(qep_grow((void **)&plan->extra, &plan->extra_cap, bytes, 1, "step plan"));
    plan->extra_bytes = bytes;
    return QEP_OK;
}

int32_t qep_plan_num_logits(const struct qep_plan *plan) {
    int32_t n = 0;
    for (int32_t i = 0; i < plan->num_spans; i++) {
        const struct qep_plan_span *s = &plan->spans[i];
        n += s->logits == QEP_LOGITS_ALL ? s->num_rows : s->logits == QEP_LOGITS_LAST ? 1 : 0;
    }
    return n;
}

/* A step plan: what all ranks do next. Rank 0 makes it, every rank runs the same forward on it. */
#ifndef QEP_MODEL_PLAN_H
#define QEP_MODEL_PLAN_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

enum qep_plan_kind {
    QEP_PLAN_RUN,
    QEP_PLAN_IDLE,
    QEP_PLAN_STOP,
    QEP_PLAN_PROBE,         /* as RUN, without logits: qep_model_probe */
    QEP_PLAN_DECODE_BEGIN,  /* spans: the sequences, ids: their newest tokens; extra: model.h's
                               qep_decode_plan_begin */
    QEP_PLAN_DECODE_STEP,   /* one token for each of them */
    QEP_PLAN_DECODE_LOGITS, /* no spans; extra: qep_decode_plan_logits */
};

enum qep_plan_logits { QEP_LOGITS_NONE, QEP_LOGITS_LAST, QEP_LOGITS_ALL };

/* Consecutive rows of the sequence in `slot`. A prefill span starts at a multiple of 64 positions.
 */
struct qep_plan_span {
    int32_t slot;
    int32_t position; /* of the first row */
    int32_t num_rows;
    int32_t row0;   /* first row in plan->ids */
    int32_t decode; /* 1: one row, decode arithmetic */
    int32_t reset;  /* 1: the slot's state is cleared first */
    int32_t logits; /* enum qep_plan_logits */
};

struct qep_plan {
    int32_t kind; /* enum qep_plan_kind */
    int64_t step;
    int32_t num_spans, num_rows;
    struct qep_plan_span *spans; /* [num_spans], owned */
    int32_t *ids;                /* [num_rows], owned */
    char *extra;                 /* [extra_bytes] what the kind needs besides, owned */
    size_t extra_bytes;
    size_t span_cap, row_cap, extra_cap;
};

void qep_plan_init(struct qep_plan *plan);
void qep_plan_free(struct qep_plan *plan);

/* Empties the plan, keeping its memory. */
void qep_plan_clear(struct qep_plan *plan, enum qep_plan_kind kind, int64_t step);

/* Appends a span with its token ids; span->row0 is filled in. */
enum qep_status qep_plan_add(struct qep_plan *plan, const struct qep_plan_span *span,
                             const int32_t *ids);

/* Makes plan->extra `bytes` long, contents kept as far as they go. */
enum qep_status qep_plan_extend(struct qep_plan *plan, size_t bytes);

/* Rows whose logits are wanted. */
int32_t qep_plan_num_logits(const struct qep_plan *plan);

#endif

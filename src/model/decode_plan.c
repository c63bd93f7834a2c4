/* What the coordinator sends to begin a decode run and to see a row of logits, and how ranks read
 * it. plan->extra of BEGIN: begin_head | draws | allowed | seen; of LOGITS: logits_head. */
#include "model/decode.h"

#include <string.h>

struct begin_head {
    int32_t num_ids, num_allowed, num_seen, unused;
};

struct logits_head {
    int32_t sequence, step;
};

static size_t begin_bytes(const struct begin_head *head, int32_t num_spans) {
    return sizeof *head + (size_t)num_spans * sizeof(struct qep_device_draw) +
           (size_t)head->num_allowed + (size_t)head->num_seen * sizeof(struct decode_seen_id);
}

static bool has_penalty(const struct qep_device_draw *d) {
    return d->presence_penalty < 0 || d->presence_penalty > 0 || d->repetition_penalty < 1 ||
           d->repetition_penalty > 1;
}

static void append_seen(char **at, int32_t slot, const int32_t *ids, int32_t n, int32_t bits) {
    for (int32_t i = 0; i < n; i++) {
        const struct decode_seen_id seen = {slot, ids[i], bits};
        memcpy(*at, &seen, sizeof seen);
        *at += sizeof seen;
    }
}

enum qep_status qep_decode_plan_begin(struct qep_plan *plan,
                                      const struct qep_decode_options *options,
                                      struct qep_device_draw *draws,
                                      const struct qep_decode_history *history) {
    size_t n = (size_t)plan->num_spans;
    struct begin_head head = {.num_ids = options->num_ids,
                              .num_allowed = options->allowed != NULL ? options->num_ids : 0};
    for (int32_t i = 0; i < plan->num_spans; i++) {
        draws[i].slot = plan->spans[i].slot;
        draws[i].position = (uint64_t)plan->spans[i].position + 1;
        if (has_penalty(&draws[i]))
            head.num_seen += history[i].num_prompt + history[i].num_generated;
    }
    QEP_TRY(qep_plan_extend(plan, begin_bytes(&head, plan->num_spans)));
    char *at = plan->extra;
    memcpy(at, &head, sizeof head);
    memcpy(at + sizeof head, draws, n * sizeof *draws);
    at += sizeof head + n * sizeof *draws;
    if (head.num_allowed > 0)
        memcpy(at, options->allowed, (size_t)head.num_allowed);
    at += head.num_allowed;
    for (int32_t i = 0; i < plan->num_spans; i++) {
        if (!has_penalty(&draws[i]))
            continue;
        append_seen(&at, draws[i].slot, history[i].prompt_ids, history[i].num_prompt,
                    DECODE_SEEN_PROMPT);
        append_seen(&at, draws[i].slot, history[i].generated_ids, history[i].num_generated,
                    DECODE_SEEN_GENERATED);
    }
    return QEP_OK;
}

enum qep_status decode_plan_read_begin(const struct qep_plan *plan, struct decode_begin *out) {
    struct begin_head head;
    if (plan->extra_bytes < sizeof head)
        return qep_fail(QEP_ERR_BUG, "decode: BEGIN of %zu bytes", plan->extra_bytes);
    memcpy(&head, plan->extra, sizeof head);
    if (head.num_allowed < 0 || head.num_seen < 0 ||
        plan->extra_bytes != begin_bytes(&head, plan->num_spans))
        return qep_fail(QEP_ERR_BUG, "decode: BEGIN of %d sequences in %zu bytes", plan->num_spans,
                        plan->extra_bytes);
    const char *at = plan->extra + sizeof head;
    *out = (struct decode_begin){.num_ids = head.num_ids,
                                 .num_allowed = head.num_allowed,
                                 .num_seen = head.num_seen,
                                 .draws = at};
    at += (size_t)plan->num_spans * sizeof(struct qep_device_draw);
    out->allowed = (const uint8_t *)at;
    out->seen = at + head.num_allowed;
    return QEP_OK;
}

struct qep_device_draw decode_draw(const struct decode_begin *begin, int32_t i) {
    struct qep_device_draw draw;
    memcpy(&draw, begin->draws + (size_t)i * sizeof draw, sizeof draw);
    return draw;
}

struct decode_seen_id decode_seen(const struct decode_begin *begin, int32_t i) {
    struct decode_seen_id seen;
    memcpy(&seen, begin->seen + (size_t)i * sizeof seen, sizeof seen);
    return seen;
}

enum qep_status qep_decode_plan_logits(struct qep_plan *plan, int32_t sequence, int32_t step) {
    const struct logits_head head = {.sequence = sequence, .step = step};
    qep_plan_clear(plan, QEP_PLAN_DECODE_LOGITS, 0);
    QEP_TRY(qep_plan_extend(plan, sizeof head));
    memcpy(plan->extra, &head, sizeof head);
    return QEP_OK;
}

enum qep_status decode_plan_read_logits(const struct qep_plan *plan, int32_t *sequence,
                                        int32_t *step) {
    struct logits_head head;
    if (plan->extra_bytes != sizeof head)
        return qep_fail(QEP_ERR_BUG, "decode: LOGITS of %zu bytes", plan->extra_bytes);
    memcpy(&head, plan->extra, sizeof head);
    *sequence = head.sequence;
    *step = head.step;
    return QEP_OK;
}

#include "engine/finite.h"

#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 1024 };

/* Without an early exit, so that it vectorises. */
static bool block_is_finite(const float *x, int32_t n) {
    unsigned bad = 0;
    for (int32_t i = 0; i < n; i++)
        bad |= isfinite(x[i]) ? 0u : 1u;
    return bad == 0;
}

int32_t qep_logits_find_bad(const float *logits, int32_t num_ids, const uint8_t *allowed) {
    for (int32_t begin = 0; begin < num_ids; begin += BLOCK) {
        int32_t end = num_ids - begin < BLOCK ? num_ids : begin + BLOCK;
        if (block_is_finite(logits + begin, end - begin))
            continue;
        for (int32_t id = begin; id < end; id++)
            if (!isfinite(logits[id]) && (allowed == NULL || allowed[id]))
                return id;
    }
    return num_ids;
}

/* Chunk after chunk, until something is found. */
static enum qep_status probe(struct qep_engine *engine, const int32_t *ids, int32_t num_ids,
                             int32_t chunk, bool *found, struct qep_nonfinite *where) {
    struct qep_plan plan;
    enum qep_status st = QEP_OK;
    *found = false;
    qep_plan_init(&plan);
    for (int32_t at = 0; st == QEP_OK && !*found && at < num_ids; at += chunk) {
        const struct qep_plan_span span = {.position = at,
                                           .num_rows = num_ids - at < chunk ? num_ids - at : chunk,
                                           .reset = at == 0};
        qep_plan_clear(&plan, QEP_PLAN_PROBE, 0);
        st = qep_plan_add(&plan, &span, ids + at);
        if (st == QEP_OK)
            st = qep_engine_probe(engine, &plan, found, where);
    }
    qep_plan_free(&plan);
    return st;
}

static enum qep_status probe_sequence(struct qep_engine *engine, const struct qep_finite_trace *t,
                                      bool *found, struct qep_nonfinite *where) {
    size_t num_prompt = (size_t)t->num_prompt, num_generated = (size_t)t->num_generated;
    void *mem;
    QEP_TRY(qep_alloc(num_prompt + num_generated, sizeof(int32_t), "probe", &mem));
    int32_t *ids = mem;
    memcpy(ids, t->prompt_ids, num_prompt * sizeof *ids);
    if (num_generated > 0)
        memcpy(ids + num_prompt, t->generated_ids, num_generated * sizeof *ids);
    enum qep_status st =
        probe(engine, ids, t->num_prompt + t->num_generated, t->prefill_chunk, found, where);
    free(ids);
    return st;
}

static void describe(const struct qep_nonfinite *where, bool decoded, char *out, size_t size) {
    if (where == NULL)
        snprintf(out, size, "the final norm or lm_head%s", decoded ? ", or a decode step" : "");
    else if (where->layer < 0)
        snprintf(out, size, "%s, position %d", where->part, where->position);
    else
        snprintf(out, size, "layer %d, %s, position %d", where->layer, where->part,
                 where->position);
}

enum qep_status qep_refuse_logits(struct qep_engine *engine, float logit, int32_t id,
                                  int32_t position, const struct qep_finite_trace *trace) {
    const char *what = isnan(logit) ? "NaN" : "infinity";
    struct qep_nonfinite where = {0};
    char text[128];
    bool found = false;
    if (trace == NULL)
        return qep_fail(QEP_ERR_DATA,
                        "logits: %s at id %d after position %d (--verbose names the layer)", what,
                        id, position);
    QEP_TRY(probe_sequence(engine, trace, &found, &where));
    describe(found ? &where : NULL, trace->num_generated > 0, text, sizeof text);
    return qep_fail(QEP_ERR_DATA,
                    "logits: %s at id %d after position %d; the first value that is not finite "
                    "comes from: %s",
                    what, id, position, text);
}

/* Logits that are not finite: found, and traced to the layer they come from. Rank 0 only. */
#ifndef QEP_ENGINE_FINITE_H
#define QEP_ENGINE_FINITE_H

#include "engine/engine.h"

/* The first id below num_ids (and allowed, unless NULL: [num_ids]) whose logit is NaN or infinite;
 * num_ids: none. */
int32_t qep_logits_find_bad(const float *logits, int32_t num_ids, const uint8_t *allowed);

/* The sequence that led there. */
struct qep_finite_trace {
    const int32_t *prompt_ids, *generated_ids;
    int32_t num_prompt, num_generated, prefill_chunk;
};

/* QEP_ERR_DATA for `logit` at `id`, after the token at `position`. With a trace the sequence is
 * prefilled once more in slot 0 and the message names the first layer with such a value. */
enum qep_status qep_refuse_logits(struct qep_engine *engine, float logit, int32_t id,
                                  int32_t position, const struct qep_finite_trace *trace);

#endif

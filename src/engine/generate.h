/* One sequence: prefill in chunks, then token by token. Rank 0 only; the other ranks serve. */
#ifndef QEP_ENGINE_GENERATE_H
#define QEP_ENGINE_GENERATE_H

#include "engine/engine.h"
#include "engine/sampler.h"

/* Called for every generated id, the stop id included; not QEP_OK ends the generation with that
 * status. */
typedef enum qep_status qep_token_fn(void *ctx, int32_t id, bool is_stop);

/* Called for every row of logits when all are wanted, in order of position. */
typedef enum qep_status qep_row_fn(void *ctx, int32_t token_id, const float *logits);

struct qep_generate_request {
    const int32_t *prompt_ids; /* [num_prompt], num_prompt >= 1 */
    int32_t num_prompt;
    int32_t max_new_tokens;
    int32_t prefill_chunk; /* a multiple of 64 */
    struct qep_sampling sampling;
    const int32_t *stop_ids; /* [num_stop] */
    int32_t num_stop;
    bool ignore_eos;
    int32_t num_ids;        /* ids >= num_ids are never drawn */
    const uint8_t *allowed; /* [num_ids] or NULL */
    bool trace_nonfinite;   /* logits that are not finite: say where they come from */
    qep_token_fn *on_token; /* may be NULL */
    void *token_ctx;
    qep_row_fn *on_row; /* may be NULL */
    void *row_ctx;
};

enum qep_finish { QEP_FINISH_STOP, QEP_FINISH_LENGTH, QEP_FINISH_INTERRUPTED };

struct qep_generate_result {
    int32_t *token_ids; /* [num_tokens], generated ids, the stop id included; owned (free) */
    int32_t num_tokens;
    enum qep_finish finish;
    double prefill_s, decode_s, ttft_s; /* decode_s: all steps after the first token */
};

/* QEP_ERR_USAGE: the prompt does not fit --ctx, or an id is outside the vocabulary (nothing was
 * run). QEP_ERR_DATA: logits of ids that can be drawn are NaN or infinite. */
enum qep_status qep_generate(struct qep_engine *engine, const struct qep_generate_request *request,
                             struct qep_generate_result *result);

const char *qep_finish_text(enum qep_finish finish); /* stop, length, interrupted */

#endif

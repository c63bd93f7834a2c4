#include "engine/generate.h"

#include "base/clock.h"
#include "base/mem.h"
#include "dist/drain.h"
#include "engine/finite.h"

#include <stdlib.h>
#include <string.h>

struct generation {
    struct qep_engine *engine;
    const struct qep_generate_request *req;
    struct qep_generate_result *res;
    struct qep_sampler *sampler;
    struct qep_plan plan;
    float *logits; /* of the newest position */
    size_t token_cap;
    int32_t bad_id, bad_row; /* of the first logit that is not finite; bad_id < 0: none */
    float bad_logit;
};

/* Remembers the first logit that is not finite; false from then on. */
static bool look_at(struct generation *g, int32_t row) {
    int32_t id = qep_logits_find_bad(g->logits, g->req->num_ids, g->req->allowed);
    if (g->bad_id < 0 && id < g->req->num_ids) {
        g->bad_id = id;
        g->bad_row = row;
        g->bad_logit = g->logits[id];
    }
    return g->bad_id < 0;
}

/* After a step whose first row is at `position`. */
static enum qep_status refuse_bad(struct generation *g, int32_t position) {
    const struct qep_generate_request *r = g->req;
    const struct qep_finite_trace trace = {.prompt_ids = r->prompt_ids,
                                           .generated_ids = g->res->token_ids,
                                           .num_prompt = r->num_prompt,
                                           .num_generated = g->res->num_tokens,
                                           .prefill_chunk = r->prefill_chunk};
    return g->bad_id < 0
               ? QEP_OK
               : qep_refuse_logits(g->engine, g->bad_logit, g->bad_id, position + g->bad_row,
                                   r->trace_nonfinite ? &trace : NULL);
}

static enum qep_status keep_logits(void *ctx, int32_t row, const float *logits) {
    struct generation *g = ctx;
    size_t bytes = (size_t)qep_engine_config(g->engine)->vocab_size * sizeof *logits;
    memcpy(g->logits, logits, bytes);
    if (!look_at(g, row))
        return QEP_OK; /* peers are inside the step: refused after it */
    return g->req->on_row == NULL ? QEP_OK
                                  : g->req->on_row(g->req->row_ctx, g->plan.ids[row], logits);
}

static enum qep_status check(const struct qep_engine *engine,
                             const struct qep_generate_request *r) {
    int32_t vocab = qep_engine_config(engine)->vocab_size, ctx = qep_engine_get_facts(engine)->ctx;
    if (r->num_prompt < 1)
        return qep_fail(QEP_ERR_USAGE, "the prompt is empty, expected at least one token");
    if (r->num_prompt > ctx)
        return qep_fail(QEP_ERR_USAGE, "the prompt has %d tokens, the context (--ctx) holds %d",
                        r->num_prompt, ctx);
    for (int32_t i = 0; i < r->num_prompt; i++)
        if (r->prompt_ids[i] < 0 || r->prompt_ids[i] >= vocab)
            return qep_fail(QEP_ERR_USAGE, "prompt token %d: id %d is outside the vocabulary 0..%d",
                            i, r->prompt_ids[i], vocab - 1);
    return qep_sampling_check(&r->sampling);
}

static enum qep_status prefill(struct generation *g) {
    const struct qep_generate_request *r = g->req;
    for (int32_t pos = 0; pos < r->num_prompt;) {
        if (qep_drain_requested()) {
            g->res->finish = QEP_FINISH_INTERRUPTED;
            return QEP_OK;
        }
        int32_t left = r->num_prompt - pos, n = left < r->prefill_chunk ? left : r->prefill_chunk;
        const struct qep_plan_span span = {.position = pos,
                                           .num_rows = n,
                                           .reset = pos == 0,
                                           .logits = r->on_row != NULL ? QEP_LOGITS_ALL
                                                     : n == left       ? QEP_LOGITS_LAST
                                                                       : QEP_LOGITS_NONE};
        qep_plan_clear(&g->plan, QEP_PLAN_RUN, 0);
        QEP_TRY(qep_plan_add(&g->plan, &span, r->prompt_ids + pos));
        QEP_TRY(qep_engine_step(g->engine, &g->plan, keep_logits, g));
        QEP_TRY(refuse_bad(g, pos));
        pos += n;
    }
    return QEP_OK;
}

static enum qep_status decode_step(struct generation *g, int32_t id) {
    const struct qep_plan_span span = {.position = g->req->num_prompt + g->res->num_tokens - 1,
                                       .num_rows = 1,
                                       .decode = 1,
                                       .logits = QEP_LOGITS_LAST};
    qep_plan_clear(&g->plan, QEP_PLAN_RUN, 0);
    QEP_TRY(qep_plan_add(&g->plan, &span, &id));
    QEP_TRY(qep_engine_step(g->engine, &g->plan, keep_logits, g));
    return refuse_bad(g, span.position);
}

static enum qep_status draw(struct generation *g, int32_t *id) {
    const struct qep_generate_request *r = g->req;
    const struct qep_draw d = {.logits = g->logits,
                               .num_ids = r->num_ids,
                               .allowed = r->allowed,
                               .prompt_ids = r->prompt_ids,
                               .generated_ids = g->res->token_ids,
                               .num_prompt = (size_t)r->num_prompt,
                               .num_generated = (size_t)g->res->num_tokens,
                               .position = (uint64_t)(r->num_prompt + g->res->num_tokens)};
    return qep_sampler_draw(g->sampler, &r->sampling, &d, id);
}

static bool is_stop(const struct qep_generate_request *r, int32_t id) {
    for (int32_t i = 0; i < r->num_stop && !r->ignore_eos; i++)
        if (r->stop_ids[i] == id)
            return true;
    return false;
}

static enum qep_status accept(struct generation *g, int32_t id, bool stop) {
    struct qep_generate_result *res = g->res;
    QEP_TRY(qep_grow((void **)&res->token_ids, &g->token_cap, (size_t)res->num_tokens + 1,
                     sizeof *res->token_ids, "generated tokens"));
    res->token_ids[res->num_tokens++] = id;
    return g->req->on_token == NULL ? QEP_OK : g->req->on_token(g->req->token_ctx, id, stop);
}

/* How many more tokens may come after those there are. */
static int32_t tokens_left(const struct generation *g) {
    int32_t room = qep_engine_get_facts(g->engine)->ctx - g->req->num_prompt + 1;
    int32_t most = g->req->max_new_tokens < room ? g->req->max_new_tokens : room;
    return most - g->res->num_tokens;
}

/* Takes a token in; *more: another one is to follow. */
static enum qep_status take_in(struct generation *g, int32_t id, bool *more) {
    bool stop = is_stop(g->req, id);
    QEP_TRY(accept(g, id, stop));
    *more = !stop && tokens_left(g) > 0;
    if (stop)
        g->res->finish = QEP_FINISH_STOP;
    if (*more && qep_drain_requested()) {
        g->res->finish = QEP_FINISH_INTERRUPTED;
        *more = false;
    }
    return QEP_OK;
}

static enum qep_status decode_on_host(struct generation *g) {
    bool more = true;
    while (more) {
        int32_t id;
        QEP_TRY(decode_step(g, g->res->token_ids[g->res->num_tokens - 1]));
        QEP_TRY(draw(g, &id));
        QEP_TRY(take_in(g, id, &more));
    }
    return QEP_OK;
}

/* ---- decoding on a GPU: step t + 1 runs while the token of step t is read ---- */

static enum qep_status gpu_begin(struct generation *g) {
    const struct qep_generate_request *r = g->req;
    const struct qep_sampling *s = &r->sampling;
    const struct qep_plan_span span = {
        .position = r->num_prompt + g->res->num_tokens - 1, .num_rows = 1, .decode = 1};
    struct qep_device_draw d = {.seed = s->seed,
                                .temperature = s->temperature,
                                .top_p = s->top_p,
                                .min_p = s->min_p,
                                .presence_penalty = s->presence_penalty,
                                .repetition_penalty = s->repetition_penalty,
                                .top_k = s->top_k,
                                .greedy = qep_sampling_is_greedy(s)};
    const struct qep_decode_options options = {.num_ids = r->num_ids, .allowed = r->allowed};
    const struct qep_decode_history history = {.prompt_ids = r->prompt_ids,
                                               .generated_ids = g->res->token_ids,
                                               .num_prompt = r->num_prompt,
                                               .num_generated = g->res->num_tokens};
    qep_plan_clear(&g->plan, QEP_PLAN_DECODE_BEGIN, 0);
    QEP_TRY(qep_plan_add(&g->plan, &span, &g->res->token_ids[g->res->num_tokens - 1]));
    QEP_TRY(qep_decode_plan_begin(&g->plan, &options, &d, &history));
    return qep_engine_decode(g->engine, &g->plan, NULL);
}

static enum qep_status gpu_step(struct generation *g) {
    qep_plan_clear(&g->plan, QEP_PLAN_DECODE_STEP, 0);
    return qep_engine_decode(g->engine, &g->plan, NULL);
}

/* The candidates of step `number` did not decide the draw: the whole row comes to the host. */
static enum qep_status draw_from_row(struct generation *g, int32_t number, int32_t *id) {
    QEP_TRY(qep_decode_plan_logits(&g->plan, 0, number));
    QEP_TRY(qep_engine_decode(g->engine, &g->plan, g->logits));
    look_at(g, 0);
    QEP_TRY(refuse_bad(g, g->req->num_prompt + g->res->num_tokens - 1));
    return draw(g, id);
}

static enum qep_status decode_on_gpu(struct generation *g) {
    bool more = true;
    while (more) {
        int32_t id = 0, taken = 0;
        QEP_TRY(gpu_begin(g));
        QEP_TRY(gpu_step(g));
        while (more) {
            if (tokens_left(g) > 1)
                QEP_TRY(gpu_step(g));
            QEP_TRY(qep_engine_decode_take(g->engine, &id));
            if (id < 0)
                break;
            taken++;
            QEP_TRY(take_in(g, id, &more));
        }
        if (id >= 0)
            continue;
        if (id != QEP_TOKEN_FLAGGED)
            return qep_fail(QEP_ERR_BUG, "decode: step %d drew no token", taken);
        QEP_TRY(draw_from_row(g, taken, &id));
        QEP_TRY(take_in(g, id, &more));
    }
    return QEP_OK;
}

static enum qep_status decode(struct generation *g, double start) {
    int32_t id;
    bool more = false;
    g->res->finish = QEP_FINISH_LENGTH;
    if (tokens_left(g) <= 0)
        return QEP_OK;
    QEP_TRY(draw(g, &id));
    g->res->ttft_s = qep_now_s() - start;
    QEP_TRY(take_in(g, id, &more));
    if (!more)
        return QEP_OK;
    bool on_gpu = g->req->on_row == NULL && qep_engine_decode_capacity(g->engine) > 0;
    return on_gpu ? decode_on_gpu(g) : decode_on_host(g);
}

enum qep_status qep_generate(struct qep_engine *engine, const struct qep_generate_request *request,
                             struct qep_generate_result *result) {
    struct generation g = {.engine = engine, .req = request, .res = result, .bad_id = -1};
    void *mem = NULL;
    enum qep_status st = QEP_OK;
    int32_t vocab = qep_engine_config(engine)->vocab_size;
    memset(result, 0, sizeof *result);
    qep_plan_init(&g.plan);
    QEP_TRY(check(engine, request));
    QEP_TRY_GOTO(st, done, qep_alloc((size_t)vocab, sizeof(float), "logits", &mem));
    g.logits = mem;
    QEP_TRY_GOTO(st, done, qep_sampler_create(vocab, &g.sampler));
    double start = qep_now_s();
    QEP_TRY_GOTO(st, done, prefill(&g));
    double prefilled = qep_now_s();
    result->prefill_s = prefilled - start;
    if (result->finish != QEP_FINISH_INTERRUPTED)
        QEP_TRY_GOTO(st, done, decode(&g, start));
    result->decode_s = qep_now_s() - prefilled;
done:
    qep_sampler_destroy(g.sampler);
    qep_plan_free(&g.plan);
    free(g.logits);
    if (st != QEP_OK) {
        free(result->token_ids);
        memset(result, 0, sizeof *result);
    }
    return st;
}

const char *qep_finish_text(enum qep_finish finish) {
    static const char *const text[] = {"stop", "length", "interrupted"};
    return text[finish];
}

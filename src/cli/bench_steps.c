/* What `qwen-ep bench` times. Token ids are pseudo-random. */
#include "cli/bench_internal.h"

#include "base/clock.h"
#include "base/mem.h"
#include "dist/drain.h"
#include "engine/finite.h"

#include <math.h>
#include <stdlib.h>

static enum qep_status check_logits(void *ctx, int32_t row, const float *logits) {
    const struct bench *b = ctx;
    int32_t vocab = qep_engine_config(b->engine)->vocab_size;
    int32_t id = qep_logits_find_bad(logits, vocab, NULL);
    return id == vocab
               ? QEP_OK
               : qep_fail(QEP_ERR_DATA, "row %d: logits: %s at id %d: what is timed is no work",
                          row, isnan(logits[id]) ? "NaN" : "infinity", id);
}

static void random_ids(int32_t *ids, int32_t n, int32_t vocab, uint32_t seed) {
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (int32_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (int32_t)((state >> 33) % (uint64_t)vocab);
    }
}

static enum qep_status check_drain(void) {
    return qep_drain_requested() ? qep_fail(QEP_ERR_INTERRUPTED, "interrupted") : QEP_OK;
}

/* Prefills `n` tokens into one slot; logits of the last row when wanted. */
static enum qep_status prefill(struct bench *b, struct qep_plan *plan, int32_t slot, int32_t n,
                               bool logits) {
    int32_t chunk = (int32_t)b->common.engine.prefill_chunk;
    void *mem = NULL;
    QEP_TRY(qep_alloc((size_t)n + 1, sizeof(int32_t), "prompt", &mem));
    int32_t *ids = mem;
    enum qep_status st = QEP_OK;
    random_ids(ids, n, qep_engine_config(b->engine)->vocab_size, (uint32_t)slot);
    for (int32_t pos = 0; st == QEP_OK && pos < n; pos += chunk) {
        int32_t rows = n - pos < chunk ? n - pos : chunk;
        const struct qep_plan_span span = {.slot = slot,
                                           .position = pos,
                                           .num_rows = rows,
                                           .reset = pos == 0,
                                           .logits = logits && pos + rows == n ? QEP_LOGITS_LAST
                                                                               : QEP_LOGITS_NONE};
        qep_plan_clear(plan, QEP_PLAN_RUN, 0);
        st = check_drain();
        if (st == QEP_OK)
            st = qep_plan_add(plan, &span, ids + pos);
        if (st == QEP_OK)
            st = qep_engine_step(b->engine, plan, check_logits, b);
    }
    free(ids);
    return st;
}

enum qep_status bench_time_prefill(struct bench *b, struct qep_plan *plan, int32_t n,
                                   double *seconds) {
    double start = qep_now_s();
    QEP_TRY(prefill(b, plan, 0, n, true));
    *seconds = qep_now_s() - start;
    return QEP_OK;
}

/* One row for each of `batch` sequences at `position`. */
static enum qep_status decode_plan(const struct bench *b, struct qep_plan *plan,
                                   enum qep_plan_kind kind, int32_t batch, int32_t position,
                                   int64_t step) {
    int32_t vocab = qep_engine_config(b->engine)->vocab_size;
    qep_plan_clear(plan, kind, 0);
    for (int32_t s = 0; s < batch; s++) {
        int32_t id = (int32_t)((step * 7919 + s * 104729) % vocab);
        const struct qep_plan_span span = {.slot = s,
                                           .position = position,
                                           .num_rows = 1,
                                           .decode = 1,
                                           .reset = position == 0,
                                           .logits = QEP_LOGITS_LAST};
        QEP_TRY(qep_plan_add(plan, &span, &id));
    }
    return QEP_OK;
}

static enum qep_status decode_steps(struct bench *b, struct qep_plan *plan, int32_t batch,
                                    int32_t depth) {
    for (int32_t i = 0; i < b->num_new; i++) {
        QEP_TRY(check_drain());
        QEP_TRY(decode_plan(b, plan, QEP_PLAN_RUN, batch, depth + i, i));
        QEP_TRY(qep_engine_step(b->engine, plan, check_logits, b));
    }
    return QEP_OK;
}

/* On a GPU tokens are drawn there, and read one step late, as in `run`. */
static enum qep_status begin_on_gpu(struct bench *b, struct qep_plan *plan, int32_t batch,
                                    int32_t depth) {
    const struct qep_decode_options options = {.num_ids = qep_engine_config(b->engine)->vocab_size};
    struct qep_device_draw *draws = NULL;
    struct qep_decode_history *history = NULL;
    enum qep_status st = QEP_OK;
    QEP_TRY_GOTO(st, done, decode_plan(b, plan, QEP_PLAN_DECODE_BEGIN, batch, depth, 0));
    QEP_TRY_GOTO(st, done, qep_calloc((size_t)batch, sizeof *draws, "draws", (void **)&draws));
    QEP_TRY_GOTO(st, done, qep_calloc((size_t)batch, sizeof *history, "draws", (void **)&history));
    for (int32_t s = 0; s < batch; s++)
        draws[s] = (struct qep_device_draw){
            .seed = (uint64_t)s, .temperature = 1, .top_p = 1, .repetition_penalty = 1};
    QEP_TRY_GOTO(st, done, qep_decode_plan_begin(plan, &options, draws, history));
    st = qep_engine_decode(b->engine, plan, NULL);
done:
    free(draws);
    free(history);
    return st;
}

/* A row without a token would be padding from here on, and the rest timed without its weights. */
static enum qep_status take(struct bench *b, int32_t *tokens, int32_t batch, int32_t step) {
    QEP_TRY(qep_engine_decode_take(b->engine, tokens));
    for (int32_t s = 0; s < batch; s++)
        if (tokens[s] < 0)
            return qep_fail(QEP_ERR_DATA,
                            "sequence %d of %d has no token in step %d (%s): what follows would be "
                            "timed without it",
                            s, batch, step,
                            tokens[s] == QEP_TOKEN_FLAGGED ? "NaN or too close to call" : "ended");
    return QEP_OK;
}

static enum qep_status gpu_steps(struct bench *b, struct qep_plan *plan, int32_t batch,
                                 int32_t count) {
    void *tokens = NULL;
    enum qep_status st = qep_alloc((size_t)batch, sizeof(int32_t), "tokens", &tokens);
    for (int32_t i = 0; st == QEP_OK && i <= count; i++) {
        st = check_drain();
        qep_plan_clear(plan, QEP_PLAN_DECODE_STEP, 0);
        if (st == QEP_OK && i < count)
            st = qep_engine_decode(b->engine, plan, NULL);
        if (st == QEP_OK && i > 0)
            st = take(b, tokens, batch, i - 1);
    }
    free(tokens);
    return st;
}

static bool decodes_on_gpu(const struct bench *b, int32_t batch) {
    return batch <= qep_engine_decode_capacity(b->engine);
}

/* Positions are filled; on a GPU both sides have run op by op and are captured. */
static enum qep_status before_decode(struct bench *b, struct qep_plan *plan, int32_t batch,
                                     int32_t depth) {
    for (int32_t s = 0; s < batch; s++)
        QEP_TRY(prefill(b, plan, s, depth, false));
    if (!decodes_on_gpu(b, batch))
        return QEP_OK;
    QEP_TRY(begin_on_gpu(b, plan, batch, depth));
    return gpu_steps(b, plan, batch, BENCH_WARM_UP_STEPS);
}

enum qep_status bench_time_decode(struct bench *b, struct qep_plan *plan, int32_t batch,
                                  int32_t depth, double *seconds) {
    bool on_gpu = decodes_on_gpu(b, batch);
    QEP_TRY(before_decode(b, plan, batch, depth));
    double start = qep_now_s();
    QEP_TRY(on_gpu ? gpu_steps(b, plan, batch, (int32_t)b->num_new)
                   : decode_steps(b, plan, batch, depth));
    *seconds = qep_now_s() - start;
    return QEP_OK;
}

static enum qep_status one_more(struct bench *b, struct qep_plan *plan,
                                const struct bench_result *r, int32_t n) {
    return r->decode ? gpu_steps(b, plan, (int32_t)r->batch, 1) : prefill(b, plan, 0, n, true);
}

enum qep_status bench_time_launches(struct bench *b, struct qep_plan *plan,
                                    const struct bench_result *r, int32_t n) {
    struct qep_launch_time *times = NULL;
    size_t num = 0;
    if (r->decode && !decodes_on_gpu(b, (int32_t)r->batch))
        return QEP_OK;
    if (r->decode)
        QEP_TRY(before_decode(b, plan, (int32_t)r->batch, (int32_t)r->depth));
    QEP_TRY(qep_engine_profile_begin(b->engine));
    QEP_TRY(one_more(b, plan, r, n)); /* a profile left open ends with the engine */
    QEP_TRY(qep_engine_profile_end(b->engine, &times, &num));
    enum qep_status st = bench_print_launches(b, r, times, num);
    free(times);
    return st;
}

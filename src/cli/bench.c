/* qwen-ep bench: prefill (pp) and decode (tg) speed in tokens per second, in the manner of
 * llama-bench: every test runs once to warm up, then -r times; mean and standard deviation. Token
 * ids are pseudo-random. */
#include "cli/command.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "cli/common.h"
#include "dist/drain.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LIST = 16, MAX_REPEATS = 1000, WARM_UP_STEPS = 4 };

struct list {
    int64_t items[MAX_LIST];
    int count;
};

struct bench {
    struct qep_common common;
    const char *prompts, *depths, *batches, *format, *weights;
    int64_t num_new, repeats;
    struct list prompt_list, depth_list, batch_list;
    struct qep_engine *engine;
    int rows_printed;
};

struct result {
    char test[64];
    int64_t batch, depth;
    double mean, sd; /* tokens per second */
};

static enum qep_status parse_list(const char *name, const char *text, int64_t min,
                                  struct list *out) {
    out->count = 0;
    for (const char *p = text; *p != '\0';) {
        char *end = NULL;
        long value = strtol(p, &end, 10);
        if (end == p || (*end != ',' && *end != '\0') || value < min || value > 1 << 24 ||
            out->count == MAX_LIST)
            return qep_fail(QEP_ERR_USAGE,
                            "-%s: expected up to %d numbers >= %lld like 1,8,32, found '%s'", name,
                            MAX_LIST, (long long)min, text);
        out->items[out->count++] = value;
        p = end + (*end == ',');
    }
    return QEP_OK;
}

static int64_t largest(const struct list *l) {
    int64_t max = 0;
    for (int i = 0; i < l->count; i++)
        max = l->items[i] > max ? l->items[i] : max;
    return max;
}

static enum qep_status check_model(const struct bench *b) {
    const struct qep_engine_options *e = &b->common.engine;
    bool random = b->weights != NULL;
    if (random != (e->random.config != NULL))
        return qep_fail(QEP_ERR_USAGE, "--config FILE and --weights random go together");
    if (random == (e->model != NULL))
        return qep_fail(QEP_ERR_USAGE, random ? "--weights random: --model DIR is one too many"
                                              : "--model DIR is missing");
    if (!random && e->random.num_layers != 0)
        return qep_fail(QEP_ERR_USAGE, "--layers goes with --weights random");
    return QEP_OK;
}

static enum qep_status check(struct bench *b) {
    QEP_TRY(parse_list("p", b->prompts, 0, &b->prompt_list));
    QEP_TRY(parse_list("d", b->depths, 0, &b->depth_list));
    QEP_TRY(parse_list("b", b->batches, 1, &b->batch_list));
    QEP_TRY(check_model(b));
    if (b->common.engine.prefill_chunk % 64 != 0)
        return qep_fail(QEP_ERR_USAGE, "--prefill-chunk: expected a multiple of 64");
    int64_t longest = largest(&b->depth_list) + b->num_new + WARM_UP_STEPS,
            prompt = largest(&b->prompt_list);
    int64_t ctx = longest > prompt ? longest : prompt;
    b->common.engine.ctx = ctx > 0 ? ctx : 1;
    b->common.engine.num_slots = largest(&b->batch_list);
    if (b->batch_list.count == 0 || b->depth_list.count == 0)
        return qep_fail(QEP_ERR_USAGE, "-b and -d: expected at least one number each");
    return QEP_OK;
}

static enum qep_status drop_logits(void *ctx, int32_t row, const float *logits) {
    (void)ctx;
    (void)row;
    (void)logits;
    return QEP_OK;
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
            st = qep_engine_step(b->engine, plan, drop_logits, NULL);
    }
    free(ids);
    return st;
}

static enum qep_status time_prefill(struct bench *b, struct qep_plan *plan, int32_t n,
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
        QEP_TRY(qep_engine_step(b->engine, plan, drop_logits, NULL));
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

static enum qep_status gpu_steps(struct bench *b, struct qep_plan *plan, int32_t count) {
    for (int32_t i = 0; i <= count; i++) {
        QEP_TRY(check_drain());
        qep_plan_clear(plan, QEP_PLAN_DECODE_STEP, 0);
        if (i < count)
            QEP_TRY(qep_engine_decode(b->engine, plan, NULL));
        if (i > 0)
            QEP_TRY(qep_engine_decode_take(b->engine, NULL));
    }
    return QEP_OK;
}

static enum qep_status time_decode(struct bench *b, struct qep_plan *plan, int32_t batch,
                                   int32_t depth, double *seconds) {
    bool on_gpu = batch <= qep_engine_decode_capacity(b->engine);
    int32_t warm_up = on_gpu ? WARM_UP_STEPS : 0; /* both sides op by op, then captured */
    for (int32_t s = 0; s < batch; s++)
        QEP_TRY(prefill(b, plan, s, depth, false));
    if (on_gpu) {
        QEP_TRY(begin_on_gpu(b, plan, batch, depth));
        QEP_TRY(gpu_steps(b, plan, warm_up));
    }
    double start = qep_now_s();
    QEP_TRY(on_gpu ? gpu_steps(b, plan, (int32_t)b->num_new) : decode_steps(b, plan, batch, depth));
    *seconds = qep_now_s() - start;
    return QEP_OK;
}

static void statistics(const double *rates, int64_t n, struct result *r) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++)
        sum += rates[i];
    r->mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++)
        squares += (rates[i] - r->mean) * (rates[i] - r->mean);
    r->sd = n > 1 ? sqrt(squares / (double)(n - 1)) : 0;
}

static void print_result(struct bench *b, const struct result *r) {
    const struct qep_engine_facts *f = qep_engine_get_facts(b->engine);
    int ranks = qep_engine_comm(b->engine)->num_ranks;
    bool first = b->rows_printed++ == 0;
    if (strcmp(b->format, "md") == 0) {
        if (first)
            puts("| recipe | backend | ranks | threads | test | batch | depth | tok/s |\n"
                 "| --- | --- | --: | --: | --- | --: | --: | --: |");
        printf("| %s | %s %s | %d | %d | %s | %lld | %lld | %.2f ± %.2f |\n", f->recipe, f->backend,
               f->isa, ranks, f->num_threads, r->test, (long long)r->batch, (long long)r->depth,
               r->mean, r->sd);
    } else if (strcmp(b->format, "csv") == 0) {
        if (first)
            puts("recipe,backend,isa,activations,transport,attention,ranks,threads,test,batch,"
                 "depth,tok_s,sd,repeats");
        printf("%s,%s,%s,%s,%s,%s,%d,%d,%s,%lld,%lld,%.4f,%.4f,%lld\n", f->recipe, f->backend,
               f->isa, f->activations, f->transport, f->attention, ranks, f->num_threads, r->test,
               (long long)r->batch, (long long)r->depth, r->mean, r->sd, (long long)b->repeats);
    } else {
        printf(
            "{\"recipe\": \"%s\", \"backend\": \"%s\", \"isa\": \"%s\", \"activations\": \"%s\", "
            "\"transport\": \"%s\", \"attention\": \"%s\", \"ranks\": %d, \"threads\": %d, "
            "\"test\": \"%s\", "
            "\"batch\": %lld, \"depth\": %lld, \"tok_s\": %.4f, \"sd\": %.4f, \"repeats\": %lld, "
            "\"load_s\": %.4f, \"load_gb_s\": %.4f}\n",
            f->recipe, f->backend, f->isa, f->activations, f->transport, f->attention, ranks,
            f->num_threads, r->test, (long long)r->batch, (long long)r->depth, r->mean, r->sd,
            (long long)b->repeats, f->load_s,
            f->load_s > 0 ? 1e-9 * (double)f->tensor_bytes / f->load_s : 0.0);
    }
    fflush(stdout);
}

static enum qep_status run_prefill(struct bench *b, struct qep_plan *plan, int32_t n) {
    double rates[MAX_REPEATS], seconds;
    struct result r = {.batch = 1};
    for (int64_t i = -1; i < b->repeats; i++) {
        QEP_TRY(time_prefill(b, plan, n, &seconds));
        if (i >= 0)
            rates[i] = n / seconds;
    }
    snprintf(r.test, sizeof r.test, "pp%d", n);
    statistics(rates, b->repeats, &r);
    print_result(b, &r);
    return QEP_OK;
}

static enum qep_status run_decode(struct bench *b, struct qep_plan *plan, int32_t batch,
                                  int32_t depth) {
    double rates[MAX_REPEATS], seconds;
    struct result r = {.batch = batch, .depth = depth};
    for (int64_t i = -1; i < b->repeats; i++) {
        QEP_TRY(time_decode(b, plan, batch, depth, &seconds));
        if (i >= 0)
            rates[i] = (double)batch * (double)b->num_new / seconds;
    }
    snprintf(r.test, sizeof r.test, "tg%lld", (long long)b->num_new);
    statistics(rates, b->repeats, &r);
    print_result(b, &r);
    return QEP_OK;
}

static enum qep_status run_tests(struct bench *b) {
    struct qep_plan plan;
    enum qep_status st = QEP_OK;
    qep_plan_init(&plan);
    for (int i = 0; st == QEP_OK && i < b->prompt_list.count; i++)
        if (b->prompt_list.items[i] > 0)
            st = run_prefill(b, &plan, (int32_t)b->prompt_list.items[i]);
    for (int d = 0; st == QEP_OK && b->num_new > 0 && d < b->depth_list.count; d++)
        for (int i = 0; st == QEP_OK && i < b->batch_list.count; i++)
            st = run_decode(b, &plan, (int32_t)b->batch_list.items[i],
                            (int32_t)b->depth_list.items[d]);
    qep_plan_free(&plan);
    return st;
}

/* Interrupted between steps, the ranks still leave together. */
static enum qep_status coordinate(struct bench *b) {
    enum qep_status st = run_tests(b);
    if (qep_engine_is_broken(b->engine))
        return st;
    QEP_TRY(qep_engine_stop(b->engine));
    return st;
}

static enum qep_status bench_rank(struct qep_comm *comm, void *arg) {
    struct bench b = *(const struct bench *)arg;
    QEP_TRY(qep_engine_create(comm, &b.common.engine, &b.engine));
    qep_common_report(b.engine);
    enum qep_status st = comm->rank == 0 ? coordinate(&b) : qep_engine_serve(b.engine);
    if (!qep_engine_is_broken(b.engine))
        st = qep_comm_agree(comm, st);
    qep_engine_destroy(b.engine);
    return st;
}

static void print_help(const struct qep_option_table *own) {
    puts("usage: [mpirun -np P] qwen-ep bench --model DIR [OPTIONS]\n"
         "       [mpirun -np P] qwen-ep bench --config FILE.json --weights random [OPTIONS]\n");
    qep_options_help(own);
    puts("\nThe compute and rank options of `run` work here too (qwen-ep run --help).");
}

enum qep_status qep_cmd_bench(struct qep_job *job, int argc, char **argv) {
    struct bench b = {.prompts = "512",
                      .depths = "0",
                      .batches = "1",
                      .format = "md",
                      .num_new = 128,
                      .repeats = 5};
    struct qep_option shared[QEP_NUM_COMMON_OPTIONS];
    struct qep_random_model *random = &b.common.engine.random;
    const struct qep_option own[] = {
        {"config", 0, QEP_OPTION_STRING, &random->config, "FILE",
         "config.json of a model without files (see configs/)", 0, 0, NULL, NULL},
        {"weights", 0, QEP_OPTION_CHOICE, &b.weights, NULL, "random: made up while loading", 0, 0,
         "random", NULL},
        {"recipe", 0, QEP_OPTION_STRING, &random->recipe, "R",
         "with --weights random: see convert (default q4)", 0, 0, NULL, NULL},
        {"layers", 0, QEP_OPTION_INT, &random->num_layers, "N",
         "with --weights random: the first N layers only", 1, QEP_MAX_LAYERS, NULL, NULL},
        {"n-prompt", 'p', QEP_OPTION_STRING, &b.prompts, "LIST",
         "prompt lengths to prefill (default 512)", 0, 0, NULL, NULL},
        {"n-gen", 'n', QEP_OPTION_INT, &b.num_new, "N", "tokens to decode (default 128)", 0,
         1 << 24, NULL, NULL},
        {"batch", 'b', QEP_OPTION_STRING, &b.batches, "LIST",
         "sequences decoded together (default 1)", 0, 0, NULL, NULL},
        {"depth", 'd', QEP_OPTION_STRING, &b.depths, "LIST",
         "positions filled before decoding (default 0)", 0, 0, NULL, NULL},
        {"repeat", 'r', QEP_OPTION_INT, &b.repeats, "N", "timed runs of each test (default 5)", 1,
         MAX_REPEATS, NULL, NULL},
        {"output", 'o', QEP_OPTION_CHOICE, &b.format, "FORM", "md, json (an object a line), csv", 0,
         0, "md|json|csv", NULL},
        {"prefill-chunk", 0, QEP_OPTION_INT, &b.common.engine.prefill_chunk, "N",
         "rows per prefill step (default 512)", 64, 1 << 20, NULL, NULL}};
    const struct qep_option_table own_rows = {own, sizeof own / sizeof own[0]};
    const struct qep_option_table shared_rows = {shared, QEP_NUM_COMMON_OPTIONS};
    qep_common_init(&b.common, shared);
    QEP_TRY(qep_common_parse(job->comm, &b.common, &own_rows, &shared_rows, argc, argv));
    if (b.common.help) {
        if (job->comm->rank == 0)
            print_help(&own_rows);
        return QEP_OK;
    }
    QEP_TRY(qep_comm_agree(job->comm, check(&b)));
    return qep_common_launch(job->comm, &b.common, bench_rank, &b);
}

/* qwen-ep bench: prefill (pp) and decode (tg) speed in tokens per second, in the manner of
 * llama-bench: every test runs once to warm up, then -r times; mean and standard deviation. */
#include "cli/command.h"

#include "base/number.h"
#include "cli/bench_internal.h"
#include "cli/inputs.h"
#include "cli/spare.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum qep_status parse_list(const char *name, const char *text, int64_t min,
                                  struct bench_list *out) {
    out->count = 0;
    for (const char *p = text; p != NULL;) {
        int64_t value = 0;
        if (out->count == BENCH_MAX_LIST || !qep_parse_next(&p, min, 1 << 24, &value))
            return qep_fail(
                QEP_ERR_USAGE,
                "-%s: expected up to %d whole numbers in %lld..%d like 1,8,32, found '%s'", name,
                BENCH_MAX_LIST, (long long)min, 1 << 24, text);
        out->items[out->count++] = value;
    }
    return QEP_OK;
}

static int64_t largest(const struct bench_list *l) {
    int64_t max = 0;
    for (int i = 0; i < l->count; i++)
        max = l->items[i] > max ? l->items[i] : max;
    return max;
}

static enum qep_status check_model(const struct bench *b) {
    const struct qep_engine_options *e = &b->common.engine;
    bool random = b->weights != NULL;
    if (random != (b->config != NULL))
        return qep_fail(QEP_ERR_USAGE, "--config FILE and --weights random go together");
    if (random == (e->model != NULL))
        return qep_fail(QEP_ERR_USAGE, random ? "--weights random: --model DIR is one too many"
                                              : "--model DIR is missing");
    if (!random && b->num_layers != 0)
        return qep_fail(QEP_ERR_USAGE, "--layers goes with --weights random");
    return QEP_OK;
}

/* Once a process, however many ranks it plays: a file may be a pipe. */
static enum qep_status read_random(struct qep_comm *comm, struct bench *b) {
    struct qep_model_config *config = &b->random_config;
    char *text = NULL;
    size_t len = 0;
    if (b->config == NULL)
        return QEP_OK;
    enum qep_status st = qep_input_config(comm, b->config, &text, &len, config);
    free(text);
    QEP_TRY(st);
    if (b->num_layers > config->num_hidden_layers)
        return qep_fail(QEP_ERR_USAGE, "--layers %lld: %s has %d", (long long)b->num_layers,
                        b->config, (int)config->num_hidden_layers);
    if (b->num_layers > 0)
        config->num_hidden_layers = (int32_t)b->num_layers;
    b->common.engine.random = (struct qep_random_model){config, &b->random_recipe};
    return qep_input_recipe(comm, b->recipe, &b->random_recipe);
}

static enum qep_status check(struct bench *b) {
    QEP_TRY(parse_list("p", b->prompts, 0, &b->prompt_list));
    QEP_TRY(parse_list("d", b->depths, 0, &b->depth_list));
    QEP_TRY(parse_list("b", b->batches, 1, &b->batch_list));
    QEP_TRY(check_model(b));
    if (largest(&b->prompt_list) == 0 && b->num_new == 0)
        return qep_fail(QEP_ERR_USAGE, "-p 0 and -n 0: nothing is left to measure");
    if (b->common.engine.prefill_chunk % 64 != 0)
        return qep_fail(QEP_ERR_USAGE, "--prefill-chunk: expected a multiple of 64");
    int64_t longest = largest(&b->depth_list) + b->num_new + BENCH_WARM_UP_STEPS,
            prompt = largest(&b->prompt_list);
    int64_t ctx = longest > prompt ? longest : prompt;
    b->common.engine.ctx = ctx > 0 ? ctx : 1;
    b->common.engine.num_slots = largest(&b->batch_list);
    if (b->launch_times != NULL && strcmp(b->common.engine.cuda_graphs, "off") != 0)
        return qep_fail(QEP_ERR_USAGE, "--launch-times: a graph has no launches of its own; add "
                                       "--cuda-graphs off");
    return QEP_OK;
}

static enum qep_status run_prefill(struct bench *b, struct qep_plan *plan, int32_t n) {
    double rates[BENCH_MAX_REPEATS], seconds;
    struct bench_result r = {.batch = 1};
    for (int64_t i = -1; i < b->repeats; i++) {
        QEP_TRY(bench_time_prefill(b, plan, n, &seconds));
        if (i >= 0)
            rates[i] = n / seconds;
    }
    snprintf(r.test, sizeof r.test, "pp%d", n);
    bench_statistics(rates, b->repeats, &r);
    QEP_TRY(bench_print(b, &r));
    return b->launches == NULL ? QEP_OK : bench_time_launches(b, plan, &r, n);
}

static enum qep_status run_decode(struct bench *b, struct qep_plan *plan, int32_t batch,
                                  int32_t depth) {
    double rates[BENCH_MAX_REPEATS], seconds;
    struct bench_result r = {.decode = true, .batch = batch, .depth = depth};
    for (int64_t i = -1; i < b->repeats; i++) {
        QEP_TRY(bench_time_decode(b, plan, batch, depth, &seconds));
        if (i >= 0)
            rates[i] = (double)batch * (double)b->num_new / seconds;
    }
    snprintf(r.test, sizeof r.test, "tg%lld", (long long)b->num_new);
    bench_statistics(rates, b->repeats, &r);
    QEP_TRY(bench_print(b, &r));
    return b->launches == NULL ? QEP_OK : bench_time_launches(b, plan, &r, 0);
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

/* Before anything is measured. */
static enum qep_status check_launches(const struct qep_comm *comm, const struct bench *b) {
    const char *backend = qep_engine_get_facts(b->engine)->backend;
    if (comm->rank != 0 || b->launches == NULL || strcmp(backend, "cuda") == 0)
        return QEP_OK;
    return qep_fail(QEP_ERR_USAGE, "--launch-times: the %s backend has no launches", backend);
}

static enum qep_status bench_rank(struct qep_comm *comm, void *arg) {
    struct bench b = *(const struct bench *)arg;
    enum qep_status st = QEP_OK;
    QEP_TRY(qep_engine_create(comm, &b.common.engine, &b.engine));
    QEP_TRY_GOTO(st, done, qep_comm_agree(comm, check_launches(comm, &b)));
    qep_common_report(b.engine);
    st = comm->rank == 0 ? coordinate(&b) : qep_engine_serve(b.engine);
    if (!qep_engine_is_broken(b.engine))
        st = qep_comm_agree(comm, st);
done:
    qep_engine_destroy(b.engine);
    return st;
}

static void print_help(const struct qep_option_table *own) {
    puts("usage: [mpirun -np P] qwen-ep bench --model DIR [OPTIONS]\n"
         "       [mpirun -np P] qwen-ep bench --config FILE.json --weights random [OPTIONS]\n");
    qep_options_help(own);
    puts("\nThe compute and rank options of `run` work here too (qwen-ep run --help).");
}

static enum qep_status open_launches(struct bench *b) {
    if (b->launch_times == NULL)
        return QEP_OK;
    QEP_TRY(qep_spare_file("--launch-times", b->launch_times, b->config));
    QEP_TRY(qep_spare_file("--launch-times", b->launch_times, b->common.config_file));
    QEP_TRY(qep_spare_model("--launch-times", b->launch_times, b->common.engine.model));
    return qep_output_create(b->launch_times, "--launch-times", QEP_OUTPUT_STREAM, &b->launches);
}

enum qep_status qep_cmd_bench(struct qep_job *job, int argc, char **argv) {
    struct bench b = {.prompts = "512",
                      .depths = "0",
                      .batches = "1",
                      .format = "md",
                      .recipe = "q4",
                      .num_new = 128,
                      .repeats = 5};
    struct qep_option shared[QEP_NUM_COMMON_OPTIONS];
    const struct qep_option own[] = {
        {"config", 0, QEP_OPTION_PATH, &b.config, "FILE",
         "config.json of a model without files (see configs/)", 0, 0, NULL, NULL, false},
        {"weights", 0, QEP_OPTION_CHOICE, &b.weights, NULL, "random: made up while loading", 0, 0,
         "random", NULL, false},
        {"recipe", 0, QEP_OPTION_PATH, &b.recipe, "R",
         "with --weights random: see convert (default q4)", 0, 0, NULL, NULL, false},
        {"layers", 0, QEP_OPTION_INT, &b.num_layers, "N",
         "with --weights random: the first N layers only", 1, QEP_MAX_LAYERS, NULL, NULL, false},
        {"n-prompt", 'p', QEP_OPTION_STRING, &b.prompts, "LIST",
         "prompt lengths to prefill (default 512)", 0, 0, NULL, NULL, false},
        {"n-gen", 'n', QEP_OPTION_INT, &b.num_new, "N", "tokens to decode (default 128)", 0,
         1 << 24, NULL, NULL, false},
        {"batch", 'b', QEP_OPTION_STRING, &b.batches, "LIST",
         "sequences decoded together (default 1)", 0, 0, NULL, NULL, false},
        {"depth", 'd', QEP_OPTION_STRING, &b.depths, "LIST",
         "positions filled before decoding (default 0)", 0, 0, NULL, NULL, false},
        {"repeat", 'r', QEP_OPTION_INT, &b.repeats, "N", "timed runs of each test (default 5)", 1,
         BENCH_MAX_REPEATS, NULL, NULL, false},
        {"output", 'o', QEP_OPTION_CHOICE, &b.format, "FORM", "md, json (an object a line), csv", 0,
         0, "md|json|csv", NULL, false},
        {"launch-times", 0, QEP_OPTION_PATH, &b.launch_times, "FILE",
         "GPU: each launch of one more run, timed (--cuda-graphs off)", 0, 0, NULL, NULL, false},
        {"prefill-chunk", 0, QEP_OPTION_INT, &b.common.engine.prefill_chunk, "N",
         "rows per prefill step (default 512)", 64, 1 << 20, NULL, NULL, false}};
    const struct qep_option_table own_rows = {own, sizeof own / sizeof own[0]};
    const struct qep_option_table shared_rows = {shared, QEP_NUM_COMMON_OPTIONS};
    qep_common_init(&b.common, shared);
    QEP_TRY(
        qep_common_parse(job->comm, &b.common, &own_rows, &shared_rows, print_help, argc, argv));
    if (b.common.answered)
        return QEP_OK;
    QEP_TRY(qep_comm_agree(job->comm, check(&b)));
    QEP_TRY(qep_comm_agree(job->comm, read_random(job->comm, &b)));
    enum qep_status st = job->comm->rank == 0 ? open_launches(&b) : QEP_OK;
    st = qep_comm_agree(job->comm, st);
    if (st == QEP_OK)
        st = qep_common_launch(job->comm, &b.common, bench_rank, &b);
    if (b.launches != NULL && st == QEP_OK)
        st = qep_output_finish(b.launches);
    qep_output_destroy(b.launches);
    qep_recipe_free(&b.random_recipe);
    return st;
}

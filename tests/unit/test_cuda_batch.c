/* Several sequences decode together on CUDA devices: every one gets the tokens it gets alone, for
 * any company, capacity (with padding rows), slot order, placement and transport, also in slots
 * that others have used before. */
#include "cli/common.h"
#include "engine/generate.h"
#include "tests/unit/device_support.h"
#include "tests/support/golden.h"
#include "tests/support/run_model.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef QEP_CUDA_EMU
#include "cuda_emu/runtime.h"
#endif

enum { NUM_SEQUENCES = 5, NUM_TOKENS = 5 };

static const int lengths[NUM_SEQUENCES] = {5, 1, 65, 5, 1}; /* of golden prompts */

struct company {
    int num, slots[NUM_SEQUENCES], sequence[NUM_SEQUENCES];
};

struct job {
    struct qep_engine_options options;
    const struct golden *golden;
    const struct company *companies;
    int num_companies;
    int32_t tokens[NUM_SEQUENCES][NUM_TOKENS]; /* of the company at hand */
    int32_t want[NUM_SEQUENCES][NUM_TOKENS];
};

/* Sequences that share a prompt differ in their seeds. */
static struct qep_device_draw settings(int sequence) {
    return (struct qep_device_draw){.seed = (uint64_t)sequence,
                                    .temperature = sequence == 1 ? 0 : 1.2,
                                    .top_p = 1,
                                    .repetition_penalty = sequence == 3 ? 1.3 : 1,
                                    .top_k = sequence == 4 ? 20 : 0,
                                    .greedy = sequence == 1};
}

static const int32_t *prompt_of(const struct golden *g, int sequence, size_t *n) {
    char name[64];
    snprintf(name, sizeof name, "p%d.token_ids", lengths[sequence]);
    return golden_find(g, name, n);
}

static enum qep_status ignore_logits(void *ctx, int32_t row, const float *logits) {
    (void)ctx;
    (void)row;
    (void)logits;
    return QEP_OK;
}

/* The prompt but for its last token, which is the first input of decoding. */
static enum qep_status prefill(struct qep_engine *engine, struct qep_plan *plan, int slot,
                               const int32_t *ids, size_t n) {
    const struct qep_plan_span span = {.slot = slot, .num_rows = (int32_t)n - 1, .reset = 1};
    if (n < 2)
        return QEP_OK;
    qep_plan_clear(plan, QEP_PLAN_RUN, 0);
    QEP_TRY(qep_plan_add(plan, &span, ids));
    return qep_engine_step(engine, plan, ignore_logits, NULL);
}

static enum qep_status decode(struct job *job, struct qep_engine *engine, struct qep_plan *plan,
                              const struct company *c) {
    struct qep_device_draw draws[NUM_SEQUENCES];
    struct qep_decode_history history[NUM_SEQUENCES];
    const struct qep_decode_options options = {.num_ids = qep_engine_config(engine)->vocab_size};
    int32_t tokens[NUM_SEQUENCES];
    for (int i = 0; i < c->num; i++) {
        size_t n;
        const int32_t *ids = prompt_of(job->golden, c->sequence[i], &n);
        QEP_TRY(prefill(engine, plan, c->slots[i], ids, n));
    }
    qep_plan_clear(plan, QEP_PLAN_DECODE_BEGIN, 0);
    for (int i = 0; i < c->num; i++) {
        size_t n;
        const int32_t *ids = prompt_of(job->golden, c->sequence[i], &n);
        const struct qep_plan_span span = {.slot = c->slots[i],
                                           .position = (int32_t)n - 1,
                                           .num_rows = 1,
                                           .decode = 1,
                                           .reset = n == 1};
        QEP_TRY(qep_plan_add(plan, &span, &ids[n - 1]));
        draws[i] = settings(c->sequence[i]);
        history[i] = (struct qep_decode_history){.prompt_ids = ids, .num_prompt = (int32_t)n};
    }
    QEP_TRY(qep_decode_plan_begin(plan, &options, draws, history));
    QEP_TRY(qep_engine_decode(engine, plan, NULL));
    qep_plan_clear(plan, QEP_PLAN_DECODE_STEP, 0);
    for (int t = 0; t <= NUM_TOKENS; t++) {
        if (t < NUM_TOKENS)
            QEP_TRY(qep_engine_decode(engine, plan, NULL));
        if (t == 0)
            continue;
        QEP_TRY(qep_engine_decode_take(engine, tokens));
        for (int i = 0; i < c->num; i++)
            job->tokens[c->sequence[i]][t - 1] = tokens[i];
    }
    return QEP_OK;
}

static enum qep_status coordinate(struct job *job, struct qep_engine *engine) {
    struct qep_plan plan;
    qep_plan_init(&plan);
    enum qep_status st = QEP_OK;
    for (int c = 0; st == QEP_OK && c < job->num_companies; c++) {
        st = decode(job, engine, &plan, &job->companies[c]);
        for (int i = 0; st == QEP_OK && i < job->companies[c].num; i++) {
            int s = job->companies[c].sequence[i];
            for (int t = 0; t < NUM_TOKENS; t++)
                ck_assert_msg(job->want[s][t] == job->tokens[s][t],
                              "company %d, sequence %d, token %d is %d, alone it is %d", c, s, t,
                              job->tokens[s][t], job->want[s][t]);
        }
    }
    qep_plan_free(&plan);
    return st == QEP_OK ? qep_engine_stop(engine) : st;
}

static enum qep_status rank_main(struct qep_comm *comm, void *arg) {
    struct job *job = arg;
    struct qep_engine *engine = NULL;
    QEP_TRY(qep_engine_create(comm, &job->options, &engine));
    enum qep_status st = comm->rank == 0 ? coordinate(job, engine) : qep_engine_serve(engine);
    qep_engine_destroy(engine);
    return st;
}

static void run(struct job *job, int ranks) {
    struct qep_common common = {.transport = "threads", .ranks = ranks};
    struct qep_comm *self = NULL;
    ck_assert_int_eq(qep_comm_self_create(&self), QEP_OK);
    enum qep_status st = qep_common_launch(self, &common, rank_main, job);
    ck_assert_msg(st == QEP_OK, "%d ranks: %s", ranks, qep_last_error());
    qep_comm_destroy(self);
}

static const struct company together[] = {
    {3, {0, 2, 1}, {0, 1, 2}},
    {5, {4, 3, 2, 1, 0}, {0, 1, 2, 3, 4}}, /* slots others have used */
    {1, {2}, {3}},
    {2, {3, 1}, {4, 2}},
};

static const struct {
    int ranks;
    const char *attention, *transport, *graphs;
} ways[] = {
    {1, "layers", "auto", "on"},      {1, "layers", "auto", "off"},
    {2, "sequences", "staged", "on"}, {3, "layers", "staged", "on"},
#ifdef QEP_CUDA_EMU
    {3, "sequences", "nccl", "on"},   {2, "layers", "nccl", "on"},
#endif
};

START_TEST(company_does_not_matter) {
    struct golden g;
    char *tmp = temp_dir(), *dir = model_convert("tests/data/golden/moe-ratio3", tmp, "q4", 0);
    struct job job = {.options = QEP_ENGINE_OPTIONS_DEFAULT, .golden = &g};
    golden_open("tests/data/golden/moe-ratio3/goldens.safetensors.zst", &g);
    job.options.model = dir;
    job.options.backend = "cuda";
    job.options.bind = "keep";
    job.options.threads = 1;
    job.options.ctx = 128;
    job.options.timeout_s = 0;
    job.options.num_slots = NUM_SEQUENCES;
    job.options.attention = "layers";
    /* Alone: a slot of its own, nobody else there, op by op. */
    for (int s = 0; s < NUM_SEQUENCES; s++) {
        const struct company alone = {1, {s}, {s}};
        struct job one = job;
        one.companies = &alone;
        one.options.cuda_graphs = "off";
        memset(one.want, 0, sizeof one.want);
        one.num_companies = 0;
        struct qep_comm *self = NULL;
        struct qep_engine *engine = NULL;
        struct qep_plan plan;
        qep_plan_init(&plan);
        ck_assert_int_eq(qep_comm_self_create(&self), QEP_OK);
        ck_assert_msg(qep_engine_create(self, &one.options, &engine) == QEP_OK, "%s",
                      qep_last_error());
        ck_assert_int_eq(decode(&one, engine, &plan, &alone), QEP_OK);
        memcpy(job.want[s], one.tokens[s], sizeof job.want[s]);
        qep_plan_free(&plan);
        qep_engine_destroy(engine);
        qep_comm_destroy(self);
    }
    ck_assert_msg(memcmp(job.want[0], job.want[3], sizeof job.want[0]) != 0,
                  "sequences of one prompt and two seeds are alike");
    job.companies = together;
    job.num_companies = sizeof together / sizeof together[0];
    job.options.attention = ways[_i].attention;
    job.options.device_transport = ways[_i].transport;
    job.options.cuda_graphs = ways[_i].graphs;
    run(&job, ways[_i].ranks);
    golden_close(&g);
    remove_tree(tmp);
    free(dir);
    free(tmp);
#ifdef QEP_CUDA_EMU
    ck_assert_int_eq(emu_errors(), 0);
#endif
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda_batch");
    TCase *tc = device_case(suite, "cuda_batch", 900);
    setenv("QEP_EMU_DEVICES", "4", 0);
    tcase_add_loop_test(tc, company_does_not_matter, 0, (int)(sizeof ways / sizeof ways[0]));
    return run_device_suite(suite);
}

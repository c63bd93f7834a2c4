/* The memory that start-up says a model will take on a GPU is enough for it, and not much more than
 * it takes: a prefill chunk of the full size, then decode, with memory of just that size. */
#include "cli/common.h"
#include "engine/generate.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/unit/device_support.h"
#include "tests/support/golden.h"
#include "tests/support/run_model.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANKS = 4, VOCAB_IDS = 50, SLACK = 96 << 10 };

struct way {
    const char *model, *recipe, *attention, *transport;
    int ranks, slots, chunk, ctx;
    bool rows; /* all logits, so decode goes through the host */
    bool penalty;
};

static const struct way ways[] = {
    {"moe-ratio3", "q4", "layers", "auto", 1, 1, 256, 320, false, false},
    {"moe-ratio3", "bf16", "layers", "auto", 1, 1, 64, 128, false, true},
    {"moe-ratio3", "q8", "layers", "auto", 1, 8, 64, 72, false, true},
    {"moe-ratio3", "q4", "layers", "auto", 1, 1, 128, 128, true, false},
    {"moe-ratio3", "q4", "layers", "staged", 2, 1, 192, 256, false, false},
    {"moe-ratio3", "q4", "sequences", "staged", 2, 5, 128, 128, false, true},
    {"moe-ratio3", "q4", "layers", "nccl", 3, 1, 320, 320, false, false},
    {"moe-ratio3", "bf16", "sequences", "nccl", 3, 3, 192, 192, false, false},
    {"dense-tied", "q4", "layers", "auto", 1, 1, 256, 320, false, false},
    {"dense-tied", "q8", "layers", "staged", 2, 2, 256, 256, true, false},
};

struct job {
    const struct way *way;
    struct qep_engine_options options;
    uint64_t need[MAX_RANKS];
    enum qep_status status;
};

static enum qep_status ignore_row(void *ctx, int32_t token_id, const float *logits) {
    (void)ctx;
    (void)token_id;
    (void)logits;
    return QEP_OK;
}

/* What a run does: a prompt in chunks, then some tokens, with logits or drawn on the GPU. */
static enum qep_status generate(struct job *job, struct qep_engine *engine) {
    const struct way *w = job->way;
    int32_t num = w->ctx - 8, *prompt = NULL;
    struct qep_generate_result res;
    prompt = malloc((size_t)num * sizeof *prompt);
    ck_assert_ptr_nonnull(prompt);
    for (int32_t i = 0; i < num; i++)
        prompt[i] = (i * 7 + i / 9) % VOCAB_IDS;
    const struct qep_generate_request request = {
        .prompt_ids = prompt,
        .num_prompt = num,
        .max_new_tokens = 6,
        .prefill_chunk = w->chunk,
        .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = w->penalty ? 1.5 : 1},
        .ignore_eos = true,
        .num_ids = qep_engine_config(engine)->vocab_size,
        .on_row = w->rows ? ignore_row : NULL,
    };
    enum qep_status st = qep_generate(engine, &request, &res);
    free(prompt);
    QEP_TRY(st);
    free(res.token_ids);
    return QEP_OK;
}

/* As many tokens as fit in every slot, one after the other, so that all KV blocks are there. */
static enum qep_status fill_slots(struct job *job, struct qep_engine *engine) {
    const struct way *w = job->way;
    int32_t ids[512] = {0};
    struct qep_plan plan;
    enum qep_status st = QEP_OK;
    qep_plan_init(&plan);
    for (int32_t slot = 0; st == QEP_OK && slot < w->slots; slot++)
        for (int32_t at = 0; st == QEP_OK && at < w->ctx; at += w->chunk) {
            int32_t left = w->ctx - at;
            const struct qep_plan_span span = {.slot = slot,
                                               .position = at,
                                               .num_rows = left < w->chunk ? left : w->chunk,
                                               .reset = at == 0};
            qep_plan_clear(&plan, QEP_PLAN_RUN, 0);
            st = qep_plan_add(&plan, &span, ids);
            if (st == QEP_OK)
                st = qep_engine_step(engine, &plan, NULL, NULL);
        }
    qep_plan_free(&plan);
    return st;
}

/* All sequences together: decode steps of the largest capacity. */
static enum qep_status decode_all(struct job *job, struct qep_engine *engine) {
    const struct way *w = job->way;
    struct qep_device_draw draws[8];
    struct qep_decode_history history[8];
    const struct qep_decode_options options = {.num_ids = qep_engine_config(engine)->vocab_size};
    struct qep_plan plan;
    const int32_t id = 1;
    enum qep_status st = QEP_OK;
    qep_plan_init(&plan);
    qep_plan_clear(&plan, QEP_PLAN_DECODE_BEGIN, 0);
    memset(history, 0, sizeof history);
    for (int32_t s = 0; st == QEP_OK && s < w->slots; s++) {
        const struct qep_plan_span span = {
            .slot = s, .position = w->ctx - 4, .num_rows = 1, .decode = 1};
        draws[s] = (struct qep_device_draw){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
        st = qep_plan_add(&plan, &span, &id);
    }
    QEP_TRY_GOTO(st, done, qep_decode_plan_begin(&plan, &options, draws, history));
    QEP_TRY_GOTO(st, done, qep_engine_decode(engine, &plan, NULL));
    qep_plan_clear(&plan, QEP_PLAN_DECODE_STEP, 0);
    for (int i = 0; st == QEP_OK && i < 4; i++) {
        st = qep_engine_decode(engine, &plan, NULL);
        if (st == QEP_OK)
            st = qep_engine_decode_take(engine, NULL);
    }
done:
    qep_plan_free(&plan);
    return st;
}

static enum qep_status coordinate(struct job *job, struct qep_engine *engine) {
    QEP_TRY(fill_slots(job, engine));
    QEP_TRY(decode_all(job, engine));
    QEP_TRY(generate(job, engine));
    return qep_engine_stop(engine);
}

static enum qep_status rank_main(struct qep_comm *comm, void *arg) {
    struct job *job = arg;
    struct qep_engine *engine = NULL;
    QEP_TRY(qep_engine_create(comm, &job->options, &engine));
    job->need[comm->rank] = qep_engine_get_facts(engine)->gpu_need;
    enum qep_status st = comm->rank == 0 ? coordinate(job, engine) : qep_engine_serve(engine);
    qep_engine_destroy(engine);
    return st;
}

static enum qep_status run(struct job *job) {
    struct qep_common common = {.transport = "threads", .ranks = job->way->ranks};
    struct qep_comm *self = NULL;
    ck_assert_int_eq(qep_comm_self_create(&self), QEP_OK);
    enum qep_status st = qep_common_launch(self, &common, rank_main, job);
    qep_comm_destroy(self);
    return st;
}

static void set_memory(uint64_t bytes) {
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)bytes);
    setenv("QEP_EMU_MEMORY", text, 1);
}

START_TEST(estimate_holds) {
    const struct way *w = &ways[_i];
    char *tmp = temp_dir(), hf[128];
    snprintf(hf, sizeof hf, "tests/data/golden/%s", w->model);
    char *dir = model_convert(hf, tmp, w->recipe, 0);
    struct job job = {.way = w, .options = QEP_ENGINE_OPTIONS_DEFAULT};
    uint64_t most = 0;
    job.options.model = dir;
    job.options.backend = "cuda";
    job.options.bind = "keep";
    job.options.threads = 1;
    job.options.timeout_s = 0;
    job.options.ctx = w->ctx;
    job.options.num_slots = w->slots;
    job.options.prefill_chunk = w->chunk;
    job.options.attention = w->attention;
    job.options.device_transport = w->transport;
    ck_assert_msg(run(&job) == QEP_OK, "%s", qep_last_error());
    for (int r = 0; r < w->ranks; r++) {
        uint64_t peak = emu_most_used(r),
                 warm_up = w->ranks > 1 ? (uint64_t)w->ranks * QEP_DEVICE_WARM_UP_BYTES : 0;
        most = job.need[r] > most ? job.need[r] : most;
        if (peak == warm_up) /* of the transport, before all else */
            continue;
        ck_assert_msg(peak <= job.need[r], "rank %d took %llu bytes, estimated were %llu", r,
                      (unsigned long long)peak, (unsigned long long)job.need[r]);
        ck_assert_msg(job.need[r] <= peak + peak / 2 + SLACK,
                      "rank %d took %llu bytes, estimated were %llu", r, (unsigned long long)peak,
                      (unsigned long long)job.need[r]);
    }
    ck_assert_uint_gt(most, 0);
    set_memory(most);
    ck_assert_msg(run(&job) == QEP_OK, "with the memory estimated: %s", qep_last_error());
    set_memory(most - 1);
    ck_assert_int_eq(run(&job), QEP_ERR_UNAVAILABLE);
    ck_assert_msg(strstr(qep_last_error(), "too little GPU memory") != NULL, "%s",
                  qep_last_error());
    ck_assert_int_eq(emu_errors(), 0);
    remove_tree(tmp);
    free(dir);
    free(tmp);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda_memory");
    TCase *tc = device_case(suite, "cuda_memory", 600);
    setenv("QEP_EMU_DEVICES", "4", 0);
    tcase_add_loop_test(tc, estimate_holds, 0, (int)(sizeof ways / sizeof ways[0]));
    return run_device_suite(suite);
}

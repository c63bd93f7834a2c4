/* Launches of a decode step on one rank: what its graph holds, layer by layer. A launch has its
 * price in time whatever it does, so the numbers are bounds that a change has to hold. Counted over
 * the emulator, whose graphs are lists of operations. */
#include "checkpoint/config.h"
#include "cuda_emu/runtime.h"
#include "device_support.h"
#include "model/model.h"
#include "quant/quantize.h"
#include "shard/random.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { DELTANET_MOE, ATTENTION_MOE, DELTANET_DENSE, ATTENTION_DENSE, NUM_KINDS };

/* Launches of a layer, and of what a step has besides its layers: embedding, head, draw. */
static const struct {
    const char *name;
    size_t most;
} bounds[NUM_KINDS] = {{"DeltaNet + MoE", 15},
                       {"attention + MoE", 15},
                       {"DeltaNet + dense", 9},
                       {"attention + dense", 9}};
enum { MOST_BESIDES = 7 };

struct job {
    struct qep_model_config config;
    struct qep_recipe recipe;
    struct qep_backend *be;
    struct qep_comm *comm;
    struct qep_shard_dir *dir;
    struct qep_placement *placement;
    struct qep_model *model;
};

static void load(struct job *job, enum kind kind, const char *recipe, int32_t layers) {
    const struct qep_model_options options = {
        .kv_type = QEP_KV_BF16, .num_slots = 4, .ctx = 128, .device_graphs = true};
    struct qep_weights *weights = NULL;
    bool full = kind == ATTENTION_MOE || kind == ATTENTION_DENSE;
    ok(qep_config_read("configs/tiny-random.json", &job->config));
    job->config.num_hidden_layers = layers;
    for (int32_t l = 0; l < layers; l++)
        job->config.layer_types[l] = full ? QEP_LAYER_FULL_ATTENTION : QEP_LAYER_LINEAR_ATTENTION;
    if (kind >= DELTANET_DENSE) {
        snprintf(job->config.model_type, sizeof job->config.model_type, "qwen3_5");
        job->config.num_experts = job->config.num_experts_per_tok = 0;
        job->config.moe_intermediate_size = job->config.shared_expert_intermediate_size = 0;
        job->config.intermediate_size = 64;
    }
    ok(qep_recipe_builtin(recipe, &job->recipe));
    ok(qep_shard_dir_random(&job->config, &job->recipe, 3, &job->dir));
    ok(qep_comm_self_create(&job->comm));
    ok(qep_placement_create(&job->config, 1, QEP_ATTENTION_LAYERS, &job->placement));
    job->be = open_cuda();
    ok(qep_weights_load(job->be, NULL, job->dir, job->placement, 0, QEP_ACTIVATIONS_AUTO,
                        &weights));
    ok(qep_model_create(job->comm, job->be, &job->config, job->placement, weights, &options,
                        &job->model));
}

static void unload(struct job *job) {
    qep_model_destroy(job->model);
    job->be->ops->destroy(job->be);
    qep_placement_destroy(job->placement);
    qep_shard_dir_close(job->dir);
    qep_comm_destroy(job->comm);
    qep_recipe_free(&job->recipe);
}

/* The graph of a decode step of `rows` sequences. */
static size_t step_nodes(struct job *job, int32_t rows) {
    const struct qep_decode_options options = {.num_ids = job->config.vocab_size};
    struct qep_device_draw draws[4];
    struct qep_decode_history history[4] = {{0}};
    struct qep_plan plan;
    qep_plan_init(&plan);
    qep_plan_clear(&plan, QEP_PLAN_DECODE_BEGIN, 0);
    for (int32_t i = 0; i < rows; i++) {
        const struct qep_plan_span span = {.slot = i, .num_rows = 1, .decode = 1, .reset = 1};
        draws[i] = (struct qep_device_draw){.greedy = 1, .repetition_penalty = 1};
        ok(qep_plan_add(&plan, &span, &i));
    }
    ok(qep_decode_plan_begin(&plan, &options, draws, history));
    ok(qep_model_decode(job->model, &plan, NULL));
    qep_plan_clear(&plan, QEP_PLAN_DECODE_STEP, 0);
    for (int step = 0; step < 6; step++) { /* each side: op by op, captured, launched */
        ok(qep_model_decode(job->model, &plan, NULL));
        ok(qep_model_decode_take(job->model, NULL));
    }
    qep_plan_free(&plan);
    return emu_captured_nodes();
}

static size_t count(enum kind kind, const char *recipe, int32_t layers, int32_t rows) {
    struct job job = {.model = NULL};
    load(&job, kind, recipe, layers);
    size_t nodes = step_nodes(&job, rows);
    unload(&job);
    return nodes;
}

START_TEST(launches_of_a_layer) {
    static const char *const recipes[] = {"bf16", "q4"};
    for (size_t r = 0; r < sizeof recipes / sizeof recipes[0]; r++) {
        size_t one = count((enum kind)_i, recipes[r], 1, 1);
        size_t three = count((enum kind)_i, recipes[r], 3, 1);
        size_t layer = (three - one) / 2, besides = one - layer;
        printf("%s, %s: %zu launches a layer, %zu besides\n", bounds[_i].name, recipes[r], layer,
               besides);
        ck_assert_uint_eq(three, one + 2 * layer);
        ck_assert_msg(layer > 0 && layer <= bounds[_i].most, "%s, %s: %zu launches, at most %zu",
                      bounds[_i].name, recipes[r], layer, bounds[_i].most);
        ck_assert_msg(besides <= MOST_BESIDES, "%zu launches besides the layers, at most %d",
                      besides, MOST_BESIDES);
        ck_assert_uint_eq(count((enum kind)_i, recipes[r], 1, 3), one); /* padded to 4 */
    }
    ck_assert_int_eq(emu_errors(), 0);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda_launches");
    TCase *tc = device_case(suite, "cuda_launches", 300);
    tcase_add_loop_test(tc, launches_of_a_layer, 0, NUM_KINDS);
    return run_device_suite(suite);
}

/* A number that is not finite, or is about to be, in one weight or scale of a model: every type of
 * activations must come to the verdict of fp32. Plants go in as tensors are loaded. */
#include "tests/support/run_model.h"

#include "shard/shard.h"

#include <check.h>
#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    float value;
} plants[] = {{"NaN", NAN}, {"inf", INFINITY}, {"-inf", -INFINITY}, {"3.4e38", 3.39e38f}};

enum { NUM_PLANTS = 4, FIRST_TOKEN = 5 };

enum { MOE, DENSE, NUM_MODELS };
enum { BF16, Q8, NUM_RECIPES };

/* The last layer of each kind, so that little comes after the plant. Quantised tensors are hit in a
 * scale. */
static const struct {
    int model;
    const char *pattern;
    bool saturates; /* infinity gives a decay of 0 or 1: nothing to be seen */
} tensors[] = {
    {MOE, "embed_tokens.weight", false},
    {MOE, "norm.weight", false},
    {MOE, "lm_head.weight.block.1", false},
    {MOE, "layers.3.input_layernorm.weight", false},
    {MOE, "layers.3.post_attention_layernorm.weight", false},
    {MOE, "layers.3.self_attn.q_proj.weight", false},
    {MOE, "layers.3.self_attn.k_proj.weight", false},
    {MOE, "layers.3.self_attn.v_proj.weight", false},
    {MOE, "layers.3.self_attn.o_proj.weight", false},
    {MOE, "layers.3.self_attn.q_norm.weight", false},
    {MOE, "layers.3.self_attn.k_norm.weight", false},
    {MOE, "layers.2.linear_attn.in_proj_qkv.weight", false},
    {MOE, "layers.2.linear_attn.in_proj_z.weight", false},
    {MOE, "layers.2.linear_attn.in_proj_a.weight", false},
    {MOE, "layers.2.linear_attn.in_proj_b.weight", false},
    {MOE, "layers.2.linear_attn.conv1d.weight", false},
    {MOE, "layers.2.linear_attn.norm.weight", false},
    {MOE, "layers.2.linear_attn.out_proj.weight", false},
    {MOE, "layers.2.linear_attn.A_log", true},
    {MOE, "layers.2.linear_attn.dt_bias", false},
    {MOE, "layers.3.mlp.gate.weight", false},
    {MOE, "layers.3.mlp.shared_expert_gate.weight", false},
    {MOE, "layers.3.mlp.shared_expert.gate_proj.weight", false},
    {MOE, "layers.3.mlp.shared_expert.up_proj.weight", false},
    {MOE, "layers.3.mlp.shared_expert.down_proj.weight", false},
    {MOE, "layers.3.mlp.experts.*.gate_up_proj", false},
    {MOE, "layers.3.mlp.experts.*.down_proj", false},
    {DENSE, "layers.3.mlp.gate_proj.weight", false},
    {DENSE, "layers.3.mlp.up_proj.weight", false},
    {DENSE, "layers.3.mlp.down_proj.weight", false},
};

enum { NUM_TENSORS = sizeof tensors / sizeof tensors[0] };

static char *tmp, *dirs[NUM_MODELS][NUM_RECIPES];

static void setup(void) {
    static const char *const from[] = {"tests/data/golden/moe-ratio3",
                                       "tests/data/golden/dense-tied"};
    tmp = temp_dir();
    for (int m = 0; m < NUM_MODELS; m++) {
        dirs[m][BF16] = model_convert(from[m], tmp, "bf16", 1);
        dirs[m][Q8] = model_convert(from[m], tmp, "q8", 1);
    }
}

static void teardown(void) {
    remove_tree(tmp);
    for (int m = 0; m < NUM_MODELS; m++)
        for (int r = 0; r < NUM_RECIPES; r++)
            free(dirs[m][r]);
    free(tmp);
}

static struct {
    const char *pattern;
    float value;
    int hits;
} planted;

enum qep_status __real_qep_shard_load(const struct qep_shard_dir *dir, const char *name,
                                      struct qep_host_weight *out, uint64_t *stored_bytes);
enum qep_status __wrap_qep_shard_load(const struct qep_shard_dir *dir, const char *name,
                                      struct qep_host_weight *out, uint64_t *stored_bytes);

/* Loading is by several threads, a tensor each. */
enum qep_status __wrap_qep_shard_load(const struct qep_shard_dir *dir, const char *name,
                                      struct qep_host_weight *out, uint64_t *stored_bytes) {
    enum qep_status st = __real_qep_shard_load(dir, name, out, stored_bytes);
    if (st != QEP_OK || planted.pattern == NULL || fnmatch(planted.pattern, name, 0) != 0)
        return st;
    /* The first row, or the prompt's first token's. */
    size_t row = strcmp(name, "embed_tokens.weight") == 0 ? FIRST_TOKEN : 0;
    size_t at = row * (size_t)out->cols + (size_t)out->cols / 2;
    if (out->scales != NULL)
        out->scales[row * qep_weight_num_scales(1, out->cols, out->group_size)] =
            qep_f32_to_bf16(planted.value);
    else if (out->type == QEP_WEIGHT_BF16)
        ((uint16_t *)out->data)[at] = qep_f32_to_bf16(planted.value);
    else
        ((float *)out->data)[at] = planted.value;
    __atomic_add_fetch(&planted.hits, 1, __ATOMIC_RELAXED);
    return st;
}

/* Did a run meet logits that are not finite, and say so? */
static bool judge(const char *dir, const char *activations, const char *kv_type) {
    static const int32_t prompt[] = {FIRST_TOKEN, 17, 40, 3, 28};
    const struct model_run run = {.dir = dir,
                                  .backend = "cpu",
                                  .activations = activations,
                                  .kv_type = kv_type,
                                  .prompt = prompt,
                                  .num_prompt = 5,
                                  .max_new = 2};
    struct model_output out;
    planted.hits = 0;
    enum qep_status st = model_try(&run, &out);
    for (size_t i = 0; i < out.num_rows * out.vocab_size; i++)
        ck_assert(isfinite(out.logits[i]));
    model_output_free(&out);
    ck_assert_msg(st == QEP_OK || (st == QEP_ERR_DATA && strstr(qep_last_error(), "logits: ")),
                  "%s: %s", planted.pattern, qep_last_error());
    ck_assert_int_gt(planted.hits, 0);
    return st != QEP_OK;
}

static void check_plant(int tensor, int plant, int recipe) {
    const char *const kinds[][2] = {{"fp32", "f32"}, {"bf16", "bf16"}, {"auto", "int8"}};
    bool seen[3];
    planted.pattern = tensors[tensor].pattern;
    planted.value = plants[plant].value;
    for (int k = 0; k < 3; k++) {
        seen[k] = judge(dirs[tensors[tensor].model][recipe], kinds[k][0], kinds[k][1]);
        bool must = isnan(planted.value) || (isinf(planted.value) && !tensors[tensor].saturates);
        ck_assert_msg(seen[k] || (!must && !seen[0]), "%s in %s, activations %s: exit 0",
                      plants[plant].name, planted.pattern, kinds[k][0]);
    }
}

START_TEST(what_is_not_finite_reaches_the_logits) {
    for (int plant = 0; plant < NUM_PLANTS; plant++)
        for (int recipe = 0; recipe < NUM_RECIPES; recipe++)
            check_plant(_i, plant, recipe);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("nonfinite_model");
    TCase *tc = tcase_create("nonfinite_model");
    tcase_set_timeout(tc, 300);
    tcase_add_unchecked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, what_is_not_finite_reaches_the_logits, 0, NUM_TENSORS);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

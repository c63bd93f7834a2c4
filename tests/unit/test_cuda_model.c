/* Whole models on the CUDA backend (the emulator's devices, or real ones): the reference's greedy
 * tokens, the same bits for any split over ranks, placement, transport and chunk, and the host
 * sampler's tokens from steps that never leave the device. How close the logits are:
 * test_cuda_golden.
 */
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

enum { MAX_NEW = 6 };

static void check_emulator(void) {
#ifdef QEP_CUDA_EMU
    ck_assert_int_eq((int)emu_errors(), 0);
#endif
}

static void open_model(const char *model, char *hf, size_t size, struct golden *g) {
    char path[256];
    snprintf(hf, size, "tests/data/golden/%s", model);
    snprintf(path, sizeof path, "%s/goldens.safetensors.zst", hf);
    golden_open(path, g);
}

static const int32_t *find_ids(const struct golden *g, int length, size_t *n) {
    char name[64];
    snprintf(name, sizeof name, "p%d.token_ids", length);
    return golden_find(g, name, n);
}

/* ---- the reference's tokens ---- */

static void assert_tokens(const struct model_output *a, const struct model_output *b,
                          const char *what) {
    ck_assert_msg(a->num_tokens == b->num_tokens, "%s: %d tokens, %d", what, a->num_tokens,
                  b->num_tokens);
    for (int32_t i = 0; i < a->num_tokens; i++)
        ck_assert_msg(a->token_ids[i] == b->token_ids[i], "%s: token %d is %d, expected %d", what,
                      i, b->token_ids[i], a->token_ids[i]);
}

START_TEST(greedy_tokens_are_the_references) {
    /* "What is 15% of 80?" in the chat template of tests/data/tiny-chat. */
    static const int32_t prompt[] = {417, 275, 198, 265, 257, 220, 16,  20,  4,   259, 220, 23,
                                     15,  30,  418, 198, 417, 280, 198, 423, 260, 424, 260};
    struct model_output want, got;
    char *tmp = temp_dir();
    char *dir = model_convert("tests/data/tiny-chat", tmp, "bf16", 0);
    struct model_run run = {.dir = dir,
                            .backend = "reference",
                            .prompt = prompt,
                            .num_prompt = sizeof prompt / sizeof prompt[0],
                            .max_new = 8,
                            .no_rows = true};
    model_run(&run, &want);
    run.backend = "cuda";
    for (int seed = 0; seed < 3; seed++) {
#ifdef QEP_CUDA_EMU
        emu_set_seed((uint64_t)seed * 7919 + 1);
#endif
        run.cuda_graphs = seed == 0 ? "off" : "on";
        model_run(&run, &got);
        assert_tokens(&want, &got, "tiny-chat");
        model_output_free(&got);
    }
    model_output_free(&want);
    remove_tree(tmp);
    free(dir);
    free(tmp);
    check_emulator();
}
END_TEST

/* ---- splits ---- */

static const struct model_run variants[] = {
    {.ranks = 2, .attention = "layers"},
    {.ranks = 2, .attention = "sequences", .prefill_chunk = 64},
    {.ranks = 3, .attention = "layers"},
    {.ranks = 3, .attention = "sequences"},
    {.ranks = 4, .attention = "layers"},
    {.ranks = 1, .prefill_chunk = 64},
#ifdef QEP_CUDA_EMU /* as many devices as ranks */
    {.ranks = 1, .device_transport = "nccl"},
    {.ranks = 2, .attention = "layers", .device_transport = "nccl"},
    {.ranks = 2, .attention = "sequences", .device_transport = "nccl"},
    {.ranks = 4, .attention = "layers", .device_transport = "nccl", .prefill_chunk = 64},
    {.ranks = 4, .attention = "sequences", .device_transport = "nccl"},
#endif
};
enum { NUM_VARIANTS = sizeof variants / sizeof variants[0] };

static void assert_same(const struct model_output *a, const struct model_output *b,
                        const char *what) {
    ck_assert_uint_eq(a->num_rows, b->num_rows);
    for (size_t r = 0; r < a->num_rows; r++)
        ck_assert_msg(memcmp(a->logits + r * a->vocab_size, b->logits + r * b->vocab_size,
                             a->vocab_size * 4) == 0,
                      "%s: row %zu of %zu differs", what, r, a->num_rows);
    assert_tokens(a, b, what);
}

START_TEST(bits_do_not_depend_on_the_split) {
    static const char *const split_models[] = {"moe-ratio3", "moe-irregular", "dense-tied"};
    const char *recipe = _i == 0 ? "bf16" : "q4", *model = split_models[_i];
    char hf[128], what[256];
    struct golden g;
    size_t n;
    struct model_output base, other;
    char *tmp = temp_dir();
    open_model(model, hf, sizeof hf, &g);
    const int32_t *ids = find_ids(&g, 65, &n);
    char *dir = model_convert(hf, tmp, recipe, 0);
    struct model_run run = {
        .dir = dir, .backend = "cuda", .prompt = ids, .num_prompt = (int32_t)n, .max_new = MAX_NEW};
    model_run(&run, &base);
    for (int v = 0; v < NUM_VARIANTS; v++) {
        run = variants[v];
        run.dir = dir;
        run.backend = "cuda";
        run.prompt = ids;
        run.num_prompt = (int32_t)n;
        run.max_new = MAX_NEW;
        snprintf(what, sizeof what, "%s %s, variant %d", model, recipe, v);
        model_run(&run, &other);
        assert_same(&base, &other, what);
        model_output_free(&other);
        if (run.ranks == 1 || _i == 1)
            continue;
        run.no_rows = true; /* and the steps on the device draw the same tokens */
        model_run(&run, &other);
        assert_tokens(&base, &other, what);
        model_output_free(&other);
    }
    model_output_free(&base);
    golden_close(&g);
    remove_tree(tmp);
    free(dir);
    free(tmp);
    check_emulator();
}
END_TEST

/* ---- draws ---- */

static const struct qep_sampling settings[] = {
    {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 1},
    {.temperature = 0.7, .top_p = 0.8, .top_k = 20, .repetition_penalty = 1, .seed = 2},
    {.temperature = 1.5,
     .top_p = 0.95,
     .repetition_penalty = 1.1,
     .presence_penalty = 1.5,
     .seed = 3},
    /* so flat that 64 candidates do not decide it */
    {.temperature = 30, .top_p = 0.99, .repetition_penalty = 1, .seed = 4},
    {.temperature = 1, .top_p = 1, .min_p = 0.05, .repetition_penalty = 1.3, .seed = 5},
};

START_TEST(draws_are_the_host_samplers) {
    char hf[128];
    struct golden g;
    size_t n;
    struct model_output host, device;
    char *tmp = temp_dir();
    open_model("moe-ratio3", hf, sizeof hf, &g);
    const int32_t *ids = find_ids(&g, 5, &n);
    char *dir = model_convert(hf, tmp, "q8", 0);
    struct model_run run = {.dir = dir,
                            .backend = "cuda",
                            .prompt = ids,
                            .num_prompt = (int32_t)n,
                            .max_new = 14,
                            .sampling = &settings[_i]};
    model_run(&run, &host);
    run.no_rows = true;
    for (int v = 0; v < 3; v++) {
        run.ranks = v == 2 ? 2 : 1;
        run.attention = v == 2 ? "sequences" : "layers";
        run.cuda_graphs = v == 0 ? "off" : "on";
        model_run(&run, &device);
        assert_tokens(&host, &device, "draws");
        model_output_free(&device);
    }
    model_output_free(&host);
    golden_close(&g);
    remove_tree(tmp);
    free(dir);
    free(tmp);
    check_emulator();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda_model");
    TCase *some = device_case(suite, "some", 900),
          *more = device_case(suite, "more", 900); /* CK_RUN_CASE */
    setenv("QEP_EMU_DEVICES", "4", 0);
    tcase_add_test(some, greedy_tokens_are_the_references);
    tcase_add_loop_test(some, draws_are_the_host_samplers, 2, 3);
    tcase_add_loop_test(more, bits_do_not_depend_on_the_split, 0, 3);
    tcase_add_loop_test(more, draws_are_the_host_samplers, 0, 2);
    tcase_add_loop_test(more, draws_are_the_host_samplers, 3,
                        (int)(sizeof settings / sizeof settings[0]));
    return run_device_suite(suite);
}

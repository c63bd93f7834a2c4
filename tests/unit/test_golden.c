/* Every golden model and prompt against Hugging Face's float32 logits: the reference backend to
 * rounding, the CPU backend within what its activations allow. A table of the figures is printed.
 */
#include "tests/support/golden.h"
#include "tests/support/run_model.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const models[] = {"moe-ratio3", "moe-irregular", "moe-one",     "moe-all",
                                     "dense-tied", "dense-untied",  "next-packed", "moe-35b-shape"};
static const int prompts[] = {1, 5, 63, 64, 65, 130, 257};
enum { NUM_MODELS = 8, NUM_PROMPTS = 7, NUM_GREEDY = 24 };

/* Sums over all prompts of a model. */
struct totals {
    size_t rows, same_top, clear_rows;
    double kld, clear_kld, hf_kld, hf_clear_kld, worst_relative;
};

static void add_prompt(const struct golden *g, int length, const char *dir, const char *backend,
                       const char *activations, int max_new, struct totals *t) {
    char name[64];
    size_t n, count;
    struct model_output out;
#define FIND(field)                                                                                \
    (snprintf(name, sizeof name, "p%d." field, length), golden_find(g, name, &count))
    const int32_t *ids = FIND("token_ids");
    n = count;
    const struct model_run run = {.dir = dir,
                                  .backend = backend,
                                  .activations = activations,
                                  .prompt = ids,
                                  .num_prompt = (int32_t)n,
                                  .max_new = max_new,
                                  .threads = 2};
    model_run(&run, &out);
    const float *logits = FIND("logits");
    const float *hf_kld = FIND("bf16_kld"), *margin = FIND("router_margin");
    ck_assert_uint_eq(out.num_rows, n + (size_t)(max_new > 0 ? max_new - 1 : 0));
    for (size_t i = 0; i < n; i++) {
        struct row_difference d = compare_rows(logits + i * out.vocab_size,
                                               out.logits + i * out.vocab_size, out.vocab_size);
        t->rows++;
        t->kld += d.kld;
        t->hf_kld += (double)hf_kld[i];
        t->same_top += (size_t)d.same_top;
        t->worst_relative = fmax(t->worst_relative, d.max_difference / d.max_logit);
        if (margin[i] >= 0.02f) {
            t->clear_rows++;
            t->clear_kld += d.kld;
            t->hf_clear_kld += (double)hf_kld[i];
        }
    }
    if (max_new == NUM_GREEDY) {
        const int32_t *greedy = FIND("greedy");
        ck_assert_int_eq(out.num_tokens, NUM_GREEDY);
        ck_assert_msg(memcmp(greedy, out.token_ids, NUM_GREEDY * 4) == 0,
                      "%s, prompt %d: greedy tokens differ", dir, length);
    }
#undef FIND
    model_output_free(&out);
}

static struct totals run_all(int model, const char *backend, const char *activations, int max_new) {
    char path[256], hf[128];
    struct golden g;
    struct totals t = {0};
    char *tmp = temp_dir();
    snprintf(hf, sizeof hf, "tests/data/golden/%s", models[model]);
    snprintf(path, sizeof path, "%s/goldens.safetensors.zst", hf);
    golden_open(path, &g);
    char *dir = model_convert(hf, tmp, "bf16", 0);
    for (int p = 0; p < NUM_PROMPTS; p++)
        add_prompt(&g, prompts[p], dir, backend, activations, max_new, &t);
    golden_close(&g);
    remove_tree(tmp);
    free(dir);
    free(tmp);
    printf("golden %-14s %-9s %-4s: mean KLD %.3g, worst difference %.3g of the largest logit, "
           "top-1 %zu/%zu\n",
           models[model], backend, activations, t.kld / (double)t.rows, t.worst_relative,
           t.same_top, t.rows);
    return t;
}

START_TEST(reference_matches_float32) {
    struct totals t = run_all(_i, "reference", "auto", NUM_GREEDY);
    ck_assert_double_le(t.kld / (double)t.rows, 1e-6);
    ck_assert_double_le(t.worst_relative, 7e-4);
    ck_assert_uint_eq(t.same_top, t.rows);
}
END_TEST

START_TEST(cpu_fp32_matches_float32) {
    struct totals t = run_all(_i, "cpu", "fp32", NUM_GREEDY);
    ck_assert_double_le(t.kld / (double)t.rows, 1e-5);
}
END_TEST

START_TEST(cpu_bf16_is_as_close_as_hf_bf16) {
    struct totals t = run_all(_i, "cpu", "bf16", 0);
    double n = (double)t.rows, clear = (double)t.clear_rows;
    printf("golden %-14s cpu bf16: KLD %.3g, HF's own bf16 %.3g, ratio %.2f\n", models[_i],
           t.kld / n, t.hf_kld / n, t.kld / t.hf_kld);
    if (t.clear_rows > 0)
        printf("golden %-14s cpu bf16, the %zu rows whose router margin is at least 0.02: %.3g, "
               "%.3g, ratio %.2f\n",
               models[_i], t.clear_rows, t.clear_kld / clear, t.hf_clear_kld / clear,
               t.clear_kld / t.hf_clear_kld);
    ck_assert_double_le(t.kld, 1.5 * t.hf_kld);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("golden");
    TCase *tc = tcase_create("golden");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, reference_matches_float32, 0, NUM_MODELS);
    tcase_add_loop_test(tc, cpu_fp32_matches_float32, 0, NUM_MODELS);
    tcase_add_loop_test(tc, cpu_bf16_is_as_close_as_hf_bf16, 0, NUM_MODELS);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

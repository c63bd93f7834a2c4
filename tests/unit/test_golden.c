/* Every golden model and prompt against Hugging Face's float32 logits: the reference backend to
 * rounding, the CPU backend within what its activations allow. A table of the figures is printed.
 */
#include "tests/support/golden_run.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

static const int prompts[] = {1, 5, 63, 64, 65, 130, 257, 0};

static struct golden_totals run_all(int model, const char *backend, const char *activations,
                                    int max_new) {
    const struct golden_run run = {.model = golden_models[model],
                                   .prompts = prompts,
                                   .backend = backend,
                                   .activations = activations,
                                   .max_new = max_new};
    return golden_run_all(&run);
}

START_TEST(reference_matches_float32) {
    struct golden_totals t = run_all(_i, "reference", "auto", GOLDEN_NUM_GREEDY);
    ck_assert_double_le(t.kld / (double)t.rows, 1e-6);
    ck_assert_double_le(t.worst_relative, 7e-4);
    ck_assert_uint_eq(t.same_top, t.rows);
}
END_TEST

START_TEST(cpu_fp32_matches_float32) {
    struct golden_totals t = run_all(_i, "cpu", "fp32", GOLDEN_NUM_GREEDY);
    ck_assert_double_le(t.kld / (double)t.rows, 1e-5);
}
END_TEST

START_TEST(cpu_bf16_is_as_close_as_hf_bf16) {
    struct golden_totals t = run_all(_i, "cpu", "bf16", 0);
    double n = (double)t.rows, clear = (double)t.clear_rows;
    printf("golden %-14s cpu bf16: KLD %.3g, HF's own bf16 %.3g, ratio %.2f\n", golden_models[_i],
           t.kld / n, t.hf_kld / n, t.kld / t.hf_kld);
    if (t.clear_rows > 0)
        printf("golden %-14s cpu bf16, the %zu rows whose router margin is at least 0.02: %.3g, "
               "%.3g, ratio %.2f\n",
               golden_models[_i], t.clear_rows, t.clear_kld / clear, t.hf_clear_kld / clear,
               t.clear_kld / t.hf_clear_kld);
    ck_assert_double_le(t.kld, 1.5 * t.hf_kld);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("golden");
    TCase *tc = tcase_create("golden");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, reference_matches_float32, 0, GOLDEN_NUM_MODELS);
    tcase_add_loop_test(tc, cpu_fp32_matches_float32, 0, GOLDEN_NUM_MODELS);
    tcase_add_loop_test(tc, cpu_bf16_is_as_close_as_hf_bf16, 0, GOLDEN_NUM_MODELS);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

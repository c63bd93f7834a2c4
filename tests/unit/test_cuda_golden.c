/* Golden models on the CUDA backend: as close to Hugging Face's float32 logits as its own bf16 run
 * is. */
#include "tests/unit/device_support.h"
#include "tests/support/golden_run.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef QEP_CUDA_EMU
static const int prompts[] = {5, 65, 0}; /* the emulator is slow */
#else
static const int prompts[] = {1, 5, 63, 64, 65, 130, 257, 0};
#endif

START_TEST(is_as_close_as_hf_bf16) {
    const struct golden_run run = {.model = golden_models[_i],
                                   .prompts = prompts,
                                   .backend = "cuda",
                                   .activations = "auto",
                                   .max_new = 3};
    struct golden_totals t = golden_run_all(&run);
    double n = (double)t.rows;
    printf("golden %-14s cuda: KLD %.3g, HF's own bf16 %.3g, ratio %.2f\n", golden_models[_i],
           t.kld / n, t.hf_kld / n, t.kld / t.hf_kld);
    ck_assert_double_le(t.kld, 1.5 * t.hf_kld);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda_golden");
    TCase *tc = device_case(suite, "cuda_golden", 900);
    tcase_add_loop_test(tc, is_as_close_as_hf_bf16, 0, GOLDEN_NUM_MODELS);
    return run_device_suite(suite);
}

/* Runs a golden model's prompts on a backend and compares the logits with Hugging Face's. */
#ifndef QEP_TESTS_GOLDEN_RUN_H
#define QEP_TESTS_GOLDEN_RUN_H

#include <stddef.h>

enum { GOLDEN_NUM_MODELS = 8, GOLDEN_NUM_GREEDY = 24 };
extern const char *const golden_models[GOLDEN_NUM_MODELS]; /* directories of tests/data/golden */

/* Sums over all prompts of a model. hf_: of Hugging Face's own bf16 run; clear: rows whose router
 * margin is at least 0.02. */
struct golden_totals {
    size_t rows, same_top, clear_rows;
    double kld, clear_kld, hf_kld, hf_clear_kld, worst_relative;
};

struct golden_run {
    const char *model;
    const int *prompts; /* lengths that the goldens have; ends with 0 */
    const char *backend, *activations;
    int max_new; /* GOLDEN_NUM_GREEDY: the greedy tokens are compared too */
};

/* Converts to bf16, runs, prints one line of figures. Fails the running test where a run does. */
struct golden_totals golden_run_all(const struct golden_run *run);

#endif

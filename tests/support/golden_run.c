#include "tests/support/golden_run.h"

#include "tests/support/golden.h"
#include "tests/support/run_model.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const golden_models[GOLDEN_NUM_MODELS] = {
    "moe-ratio3", "moe-irregular", "moe-one",     "moe-all",
    "dense-tied", "dense-untied",  "next-packed", "moe-35b-shape"};

static void add_prompt(const struct golden *g, int length, const char *dir,
                       const struct golden_run *r, struct golden_totals *t) {
    char name[64];
    size_t n, count;
    struct model_output out;
#define FIND(field)                                                                                \
    (snprintf(name, sizeof name, "p%d." field, length), golden_find(g, name, &count))
    const int32_t *ids = FIND("token_ids");
    n = count;
    const struct model_run run = {.dir = dir,
                                  .backend = r->backend,
                                  .activations = r->activations,
                                  .prompt = ids,
                                  .num_prompt = (int32_t)n,
                                  .max_new = r->max_new,
                                  .threads = 2};
    model_run(&run, &out);
    const float *logits = FIND("logits");
    const float *hf_kld = FIND("bf16_kld"), *margin = FIND("router_margin");
    ck_assert_uint_eq(out.num_rows, n + (size_t)(r->max_new > 0 ? r->max_new - 1 : 0));
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
    if (r->max_new == GOLDEN_NUM_GREEDY) {
        const int32_t *greedy = FIND("greedy");
        ck_assert_int_eq(out.num_tokens, GOLDEN_NUM_GREEDY);
        ck_assert_msg(memcmp(greedy, out.token_ids, GOLDEN_NUM_GREEDY * 4) == 0,
                      "%s, prompt %d: greedy tokens differ", dir, length);
    }
#undef FIND
    model_output_free(&out);
}

struct golden_totals golden_run_all(const struct golden_run *run) {
    char path[256], hf[128];
    struct golden g;
    struct golden_totals t = {0};
    char *tmp = temp_dir();
    snprintf(hf, sizeof hf, "tests/data/golden/%s", run->model);
    snprintf(path, sizeof path, "%s/goldens.safetensors.zst", hf);
    golden_open(path, &g);
    char *dir = model_convert(hf, tmp, "bf16", 0);
    for (const int *length = run->prompts; *length != 0; length++)
        add_prompt(&g, *length, dir, run, &t);
    golden_close(&g);
    remove_tree(tmp);
    free(dir);
    free(tmp);
    printf("golden %-14s %-9s %-4s: mean KLD %.3g, worst difference %.3g of the largest logit, "
           "top-1 %zu/%zu\n",
           run->model, run->backend, run->activations, t.kld / (double)t.rows, t.worst_relative,
           t.same_top, t.rows);
    return t;
}

/* The same bits for every number of ranks, placement, number of threads, prefill chunk and number
 * of shard files, in every recipe and both backends. */
#include "engine/engine.h"
#include "tests/support/golden.h"
#include "tests/support/run_model.h"

#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const recipes[] = {"bf16", "q8", "q4", "q4-all"};
static const char *const backends[] = {"reference", "cpu"};
static const char *const models[] = {"moe-ratio3", "moe-irregular", "dense-tied", "next-packed"};
static const struct model_run variants[] = {
    {.ranks = 2, .attention = "layers"},
    {.ranks = 2, .attention = "sequences", .threads = 2},
    {.ranks = 3, .attention = "layers", .prefill_chunk = 64},
    {.ranks = 3, .attention = "sequences", .prefill_chunk = 128},
    {.ranks = 8, .attention = "layers", .prefill_chunk = 192},
    {.ranks = 8, .attention = "sequences"},
    {.ranks = 40, .attention = "layers"}, /* more ranks than experts */
    {.ranks = 1, .threads = 2, .prefill_chunk = 64},
    {.ranks = 1, .threads = 3},
};
enum { NUM_RECIPES = 4, NUM_BACKENDS = 2, NUM_MODELS = 4, NUM_VARIANTS = 9, MAX_NEW = 8 };

static void assert_same(const struct model_output *a, const struct model_output *b,
                        const char *what) {
    ck_assert_uint_eq(a->num_rows, b->num_rows);
    for (size_t r = 0; r < a->num_rows; r++)
        ck_assert_msg(memcmp(a->logits + r * a->vocab_size, b->logits + r * b->vocab_size,
                             a->vocab_size * 4) == 0,
                      "%s: row %zu of %zu differs", what, r, a->num_rows);
    ck_assert_int_eq(a->num_tokens, b->num_tokens);
    ck_assert_mem_eq(a->token_ids, b->token_ids, (size_t)a->num_tokens * 4);
}

/* _i: model, recipe and backend in one number. */
START_TEST(bits_do_not_depend_on_the_split) {
    const char *model = models[_i % NUM_MODELS], *recipe = recipes[_i / NUM_MODELS % NUM_RECIPES];
    const char *backend = backends[_i / NUM_MODELS / NUM_RECIPES];
    char hf[128], path[256], what[256];
    struct golden g;
    size_t n;
    struct model_output base, other;
    char *tmp = temp_dir();
    snprintf(hf, sizeof hf, "tests/data/golden/%s", model);
    snprintf(path, sizeof path, "%s/goldens.safetensors.zst", hf);
    golden_open(path, &g);
    const int32_t *ids = golden_find(&g, "p257.token_ids", &n);
    char *dirs[3] = {model_convert(hf, tmp, recipe, 8), model_convert(hf, tmp, recipe, 1),
                     model_convert(hf, tmp, recipe, 16)};
    struct model_run run = {.dir = dirs[0],
                            .backend = backend,
                            .prompt = ids,
                            .num_prompt = (int32_t)n,
                            .max_new = MAX_NEW};
    model_run(&run, &base);
    for (int v = 0; v < NUM_VARIANTS; v++) {
        run = variants[v];
        run.dir = dirs[v % 3];
        run.backend = backend;
        run.prompt = ids;
        run.num_prompt = (int32_t)n;
        run.max_new = MAX_NEW;
        snprintf(what, sizeof what, "%s %s %s, variant %d", model, recipe, backend, v);
        model_run(&run, &other);
        assert_same(&base, &other, what);
        model_output_free(&other);
    }
    model_output_free(&base);
    golden_close(&g);
    remove_tree(tmp);
    for (int i = 0; i < 3; i++)
        free(dirs[i]);
    free(tmp);
}
END_TEST

struct starter {
    struct qep_comm *comm;
    struct qep_engine_options options;
    enum qep_status st;
    char error[QEP_ERROR_MAX];
};

static void *start_engine(void *arg) {
    struct starter *s = arg;
    struct qep_engine *engine = NULL;
    s->st = qep_engine_create(s->comm, &s->options, &engine);
    snprintf(s->error, sizeof s->error, "%s", qep_last_error());
    qep_comm_destroy(s->comm);
    return NULL;
}

/* Before anything that follows from an option, such as the vote on attention that several slots
 * take and one does not. */
START_TEST(engines_with_other_options_part) {
    struct qep_comm *comms[2];
    struct starter starters[2];
    pthread_t threads[2];
    char *tmp = temp_dir(), *dir = model_convert("tests/data/tiny-chat", tmp, "q4", 1);
    ck_assert_int_eq(qep_comm_threads_create(2, comms), QEP_OK);
    for (int r = 0; r < 2; r++) {
        starters[r] = (struct starter){.comm = comms[r], .options = QEP_ENGINE_OPTIONS_DEFAULT};
        starters[r].options.model = dir;
        starters[r].options.num_slots = r + 1;
        ck_assert_int_eq(pthread_create(&threads[r], NULL, start_engine, &starters[r]), 0);
    }
    for (int r = 0; r < 2; r++) {
        pthread_join(threads[r], NULL);
        ck_assert_int_eq(starters[r].st, QEP_ERR_USAGE);
        ck_assert_msg(strstr(starters[r].error, "rank 1: the set of options differs: ") != NULL &&
                          strstr(starters[r].error, " slots 2 ") != NULL,
                      "%s", starters[r].error);
    }
    remove_tree(tmp);
    free(dir);
    free(tmp);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("ranks");
    TCase *tc = tcase_create("all"), *some = tcase_create("some");
    tcase_set_timeout(tc, 900);
    tcase_set_timeout(some, 900);
    tcase_add_test(tc, engines_with_other_options_part);
    /* q4 of two models on both backends: what the thread sanitizer runs */
    for (int backend = 0; backend < NUM_BACKENDS; backend++)
        tcase_add_loop_test(some, bits_do_not_depend_on_the_split,
                            (backend * NUM_RECIPES + 2) * NUM_MODELS,
                            (backend * NUM_RECIPES + 2) * NUM_MODELS + 2);
    suite_add_tcase(suite, some);
    tcase_add_loop_test(tc, bits_do_not_depend_on_the_split, 0,
                        NUM_MODELS * NUM_RECIPES * NUM_BACKENDS);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

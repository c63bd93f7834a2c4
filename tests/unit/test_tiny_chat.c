/* The trained tiny model through the whole path: chat template, tokenizer, conversion, forward,
 * sampling. Accuracy over its grid of questions per recipe, and the quantisers' divergence from
 * bf16 beside plain round-to-nearest. */
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "engine/generate.h"
#include "engine/generation_config.h"
#include "tests/support/golden.h"
#include "tests/support/run_model.h"
#include "text/text.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char hf_dir[] = "tests/data/tiny-chat";

struct chat_model {
    struct qep_comm *comm;
    struct qep_engine *engine;
    struct qep_text text;
    struct qep_generation_config config;
};

static void chat_open(struct chat_model *m, const char *dir, const char *backend) {
    struct qep_engine_options options = QEP_ENGINE_OPTIONS_DEFAULT;
    options.model = dir;
    options.backend = backend;
    options.bind = "keep";
    options.threads = 1;
    ck_assert_int_eq(qep_comm_self_create(&m->comm), QEP_OK);
    ck_assert_msg(qep_engine_create(m->comm, &options, &m->engine) == QEP_OK, "%s",
                  qep_last_error());
    const struct qep_model_config *config = qep_engine_config(m->engine);
    ck_assert_msg(qep_text_open(dir, NULL, config->vocab_size, &m->text) == QEP_OK, "%s",
                  qep_last_error());
    ck_assert_int_eq(qep_generation_config_read(dir, config, &m->config), QEP_OK);
}

static void chat_close(struct chat_model *m) {
    qep_text_close(&m->text);
    qep_engine_destroy(m->engine);
    qep_comm_destroy(m->comm);
}

static void encode_question(const struct chat_model *m, const char *question, struct qep_ids *ids) {
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    struct qep_chat_request request;
    struct qep_chat_text chat = {0};
    char json[512];
    int n = snprintf(json, sizeof json, "[{\"role\": \"user\", \"content\": \"%s\"}]", question);
    ck_assert_int_eq(qep_value_parse(json, (size_t)n, NULL, &doc, &root), QEP_OK);
    ck_assert_int_eq(qep_chat_request_read(root, true, &request), QEP_OK);
    ck_assert_msg(qep_text_encode_chat(&m->text, &request, false, &chat, ids) == QEP_OK, "%s",
                  qep_last_error());
    qep_chat_text_free(&chat);
    qep_value_doc_destroy(doc);
}

static int answers_right(const struct chat_model *m, const char *question, const char *answer) {
    struct qep_ids ids = {0};
    struct qep_generate_result res;
    struct qep_bytes reply = {0};
    encode_question(m, question, &ids);
    const struct qep_generate_request request = {.prompt_ids = ids.items,
                                                 .num_prompt = (int32_t)ids.count,
                                                 .max_new_tokens = 48,
                                                 .prefill_chunk = 64,
                                                 .sampling = m->config.sampling,
                                                 .stop_ids = m->config.eos_token_id,
                                                 .num_stop = m->config.num_eos,
                                                 .num_ids = qep_tokenizer_num_ids(m->text.tok)};
    ck_assert_msg(qep_generate(m->engine, &request, &res) == QEP_OK, "%s", qep_last_error());
    ck_assert_int_eq(
        qep_tokenizer_decode(m->text.tok, res.token_ids, (size_t)res.num_tokens, true, &reply),
        QEP_OK);
    int right = res.finish == QEP_FINISH_STOP && reply.len == strlen(answer) &&
                memcmp(reply.data, answer, reply.len) == 0;
    free(res.token_ids);
    qep_bytes_free(&reply);
    qep_ids_free(&ids);
    return right;
}

/* Every question; under sanitizers, which look for other things and take minutes, every fourth. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { QUESTION_STEP = 4 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
enum { QUESTION_STEP = 4 };
#else
enum { QUESTION_STEP = 1 };
#endif
#else
enum { QUESTION_STEP = 1 };
#endif

static void accuracy(const char *recipe, const char *backend, int *right, int *total) {
    char *tmp = temp_dir(), *dir = model_convert(hf_dir, tmp, recipe, 0), *text = NULL,
         *rest = NULL;
    struct chat_model m;
    size_t len, num_lines = 0;
    *right = *total = 0;
    chat_open(&m, dir, backend);
    ck_assert_int_eq(qep_file_read("tests/data/tiny-chat/grid.jsonl", 1 << 24, &text, &len),
                     QEP_OK);
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        if (num_lines++ % QUESTION_STEP != 0)
            continue;
        cJSON *tree = cJSON_Parse(line);
        const char *question = NULL, *answer = NULL;
        ck_assert_int_eq(qep_json_string(tree, "question", "grid", &question), QEP_OK);
        ck_assert_int_eq(qep_json_string(tree, "answer", "grid", &answer), QEP_OK);
        *right += answers_right(&m, question, answer);
        (*total)++;
        cJSON_Delete(tree);
    }
    printf("tiny-chat %-6s %-9s: %d of %d answers right\n", recipe, backend, *right, *total);
    free(text);
    chat_close(&m);
    remove_tree(tmp);
    free(dir);
    free(tmp);
}

static const struct {
    const char *recipe, *backend;
    double least;
} grids[] = {{"bf16", "reference", 1.0}, {"bf16", "cpu", 1.0},      {"q8", "cpu", 0.99},
             {"q4", "cpu", 0.95},        {"q4", "reference", 0.95}, {"q4-all", "cpu", 0.90}};

START_TEST(grid_accuracy) {
    int right, total;
    accuracy(grids[_i].recipe, grids[_i].backend, &right, &total);
    ck_assert_int_ge(total, 400 / QUESTION_STEP);
    ck_assert_double_ge((double)right / total, grids[_i].least);
}
END_TEST

START_TEST(reference_logits) {
    struct golden g;
    char *tmp = temp_dir(), *dir = model_convert(hf_dir, tmp, "bf16", 0), name[64];
    golden_open("tests/data/tiny-chat/reference.safetensors.zst", &g);
    for (int q = 0; q < 5; q++) {
        size_t n, count;
        struct model_output out;
        snprintf(name, sizeof name, "q%d.token_ids", q);
        const int32_t *ids = golden_find(&g, name, &n);
        const struct model_run run = {.dir = dir, .prompt = ids, .num_prompt = (int32_t)n};
        model_run(&run, &out);
        snprintf(name, sizeof name, "q%d.logits", q);
        const float *logits = golden_find(&g, name, &count);
        ck_assert_uint_eq(count, n * out.vocab_size);
        for (size_t i = 0; i < n; i++) {
            struct row_difference d = compare_rows(logits + i * out.vocab_size,
                                                   out.logits + i * out.vocab_size, out.vocab_size);
            ck_assert_double_le(d.max_difference, 7e-4 * d.max_logit);
            ck_assert_double_le(d.kld, 1e-5);
        }
        model_output_free(&out);
    }
    golden_close(&g);
    remove_tree(tmp);
    free(dir);
    free(tmp);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("tiny_chat");
    TCase *tc = tcase_create("tiny_chat");
    qep_log_set_level(QEP_LOG_QUIET);
    tcase_set_timeout(tc, 600);
    tcase_add_test(tc, reference_logits);
    tcase_add_loop_test(tc, grid_accuracy, 0, (int)(sizeof grids / sizeof grids[0]));
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

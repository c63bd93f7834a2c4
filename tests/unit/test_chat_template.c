#include "text/chat_template.h"
#include "text/text.h"
#include "text_support.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Renders a request and compares with its "rendered", or expects an error. */
static bool case_holds(enum qep_chat_form form, const struct qep_value *item,
                       const struct qep_value *options) {
    struct qep_chat_request request;
    struct qep_chat_text chat = {0};
    const struct qep_value *rendered = qep_value_get_given(item, "rendered");
    ck_assert_int_eq(qep_chat_request_read(options, false, &request), QEP_OK);
    request.messages = qep_value_get_given(item, "messages");
    enum qep_status st = qep_chat_render(form, &request, &chat);
    bool same = rendered == NULL ? st == QEP_ERR_DATA
                                 : st == QEP_OK && chat.text.len == rendered->len &&
                                       memcmp(chat.text.data, rendered->text, rendered->len) == 0;
    for (size_t i = 0; i < chat.num_plain; i++) {
        ck_assert_uint_lt(chat.plain[i].begin, chat.plain[i].end);
        ck_assert_uint_le(chat.plain[i].end, chat.text.len);
        ck_assert(i == 0 || chat.plain[i - 1].end < chat.plain[i].begin);
    }
    if (!same)
        fprintf(stderr, "%s\nexpected %s\nfound    %.*s\n", qep_chat_form_name(form),
                rendered != NULL ? rendered->text : "an error",
                st == QEP_OK ? (int)chat.text.len : 0, chat.text.data);
    qep_chat_text_free(&chat);
    return same;
}

START_TEST(goldens) {
    struct qep_value_doc *doc = NULL;
    const struct qep_value *cases = text_json("hf/chat_template_goldens.json", &doc);
    ck_assert_uint_eq(cases->count, 7);
    for (const struct qep_value *c = cases->child; c != NULL; c = c->next)
        ck_assert(case_holds(QEP_CHAT_QWEN35, c, qep_value_get(c, "kwargs")));
    qep_value_doc_destroy(doc);
}
END_TEST

START_TEST(generated_cases) {
    size_t len, count = 0;
    char *data = text_data("golden/template_cases.jsonl", &len), *save = NULL;
    for (char *l = strtok_r(data, "\n", &save); l != NULL; l = strtok_r(NULL, "\n", &save)) {
        struct qep_value_doc *doc = NULL;
        const struct qep_value *item = NULL;
        enum qep_chat_form form = QEP_CHAT_NONE;
        ck_assert_int_eq(qep_value_parse(l, strlen(l), NULL, &doc, &item), QEP_OK);
        ck_assert_int_eq(qep_chat_form_by_name(qep_value_get(item, "template")->text, &form),
                         QEP_OK);
        ck_assert(case_holds(form, item, item));
        qep_value_doc_destroy(doc);
        count++;
    }
    ck_assert_uint_ge(count, 150);
    free(data);
}
END_TEST

static const struct {
    const char *request, *rendered; /* NULL: the error is `error` */
    const char *error;
} cases[] = {
    {"{}", NULL, "No messages provided."},
    {"{\"messages\": null}", NULL, "No messages provided."},
    {"[]", NULL, "No messages provided."},
    {"{\"messages\": {\"role\": \"user\"}}", NULL, "request: \"messages\": expected a list"},
    {"[3]", NULL, "No user query found in messages."},
    {"[{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"boss\"}]", NULL,
     "Unexpected message role."},
    {"[{\"role\": \"user\", \"content\": 5}]", NULL, "Unexpected content type."},
    {"[{\"role\": \"user\", \"content\": [5]}]", NULL, "Unexpected item type in content."},
    {"[{\"role\": \"system\", \"content\": [{\"type\": \"video\"}]}]", NULL,
     "System message cannot contain videos."},
    {"[{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"tool_calls\": "
     "[{\"name\": \"f\", \"arguments\": null}]}]",
     NULL, "Can only get item pairs from a mapping."},
    {"[{\"role\": \"user\", \"content\": \" x \"}]", "<|im_start|>user\nx<|im_end|>\n", NULL},
    {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\\u0000b\"}], "
     "\"add_generation_prompt\": "
     "true, \"enable_thinking\": null, \"unknown\": 3}",
     "<|im_start|>user\na#b<|im_end|>\n<|im_start|>assistant\n<think>\n", NULL},
    {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"add_generation_prompt\": 1, "
     "\"enable_thinking\": 0}",
     "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think>\n", NULL},
    {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"add_generation_prompt\": true, "
     "\"enable_thinking\": false}",
     "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", NULL},
    {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}, {\"image\": 1}, "
     "{\"video\": 2}, {\"text\": [1, \"a\"]}]}, {\"role\": \"user\", \"content\": [{\"type\": "
     "\"image\"}]}], \"add_vision_id\": true}",
     "<|im_start|>user\nPicture 1: <|vision_start|><|image_pad|><|vision_end|>Picture 2: "
     "<|vision_start|><|image_pad|><|vision_end|>Video 1: <|vision_start|><|video_pad|>"
     "<|vision_end|>[1, 'a']<|im_end|>\n<|im_start|>user\nPicture 3: <|vision_start|>"
     "<|image_pad|><|vision_end|><|im_end|>\n",
     NULL},
};

START_TEST(requests) {
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    struct qep_chat_request request;
    struct qep_chat_text chat = {0};
    const char *text = cases[_i].request;
    ck_assert_int_eq(qep_value_parse(text, strlen(text), NULL, &doc, &root), QEP_OK);
    enum qep_status st = qep_chat_request_read(root, false, &request);
    if (st == QEP_OK)
        st = qep_chat_render(QEP_CHAT_QWEN35, &request, &chat);
    ck_assert_int_eq(st, cases[_i].error != NULL ? QEP_ERR_DATA : QEP_OK);
    if (cases[_i].error != NULL) {
        ck_assert_str_eq(qep_last_error(), cases[_i].error);
    } else {
        for (size_t i = 0; i < chat.text.len; i++) /* # stands for NUL in the table */
            chat.text.data[i] = chat.text.data[i] == '\0' ? '#' : chat.text.data[i];
        ck_assert_int_eq(qep_bytes_append(&chat.text, "", 1), QEP_OK);
        ck_assert_str_eq(chat.text.data, cases[_i].rendered);
    }
    qep_chat_text_free(&chat);
    qep_value_doc_destroy(doc);
}
END_TEST

/* Exactly the user's bytes are marked, through trimming and the splitting of reasoning. */
START_TEST(marks_the_users_text) {
    static const char text[] =
        "{\"messages\": [{\"role\": \"system\", \"content\": \" S \"}, {\"role\": \"user\", "
        "\"content\": [{\"text\": \" U1\"}, {\"type\": \"image\"}, {\"text\": \"U2 \"}]}, "
        "{\"role\":"
        " \"assistant\", \"content\": \"<think>\\nR\\n</think>\\n\\nA\", \"tool_calls\": "
        "[{\"name\": \"F\", \"arguments\": {\"K\": 1, \"L\": \"V\"}}]}, {\"role\": \"tool\", "
        "\"content\": \"T\"}], \"tools\": [0]}";
    static const char expected[] = "0|S|U1|U2|R|A|F|K|1|L|V|T|";
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    struct qep_chat_request request;
    struct qep_chat_text chat = {0};
    struct qep_bytes marked = {0};
    ck_assert_int_eq(qep_value_parse(text, strlen(text), NULL, &doc, &root), QEP_OK);
    ck_assert_int_eq(qep_chat_request_read(root, true, &request), QEP_OK);
    ck_assert_int_eq(qep_chat_render(QEP_CHAT_QWEN35, &request, &chat), QEP_OK);
    for (size_t i = 0; i < chat.num_plain; i++) {
        ck_assert_int_eq(qep_bytes_append(&marked, chat.text.data + chat.plain[i].begin,
                                          chat.plain[i].end - chat.plain[i].begin),
                         QEP_OK);
        ck_assert_int_eq(qep_bytes_append(&marked, "|", 1), QEP_OK);
    }
    ck_assert_int_eq(qep_bytes_append(&marked, "", 1), QEP_OK);
    ck_assert_str_eq(marked.data, expected);
    qep_bytes_free(&marked);
    qep_chat_text_free(&chat);
    qep_value_doc_destroy(doc);
}
END_TEST

static const struct {
    const char *dir;
    enum qep_chat_form form;
} official[] = {{"Qwen3.5-35B-A3B", QEP_CHAT_QWEN35},
                {"Qwen3.5-0.8B", QEP_CHAT_QWEN35_08B},
                {"Qwen3.6", QEP_CHAT_QWEN36}};

/* By the template's file, and by the same text inside tokenizer_config.json. */
START_TEST(recognises_official_files) {
    char path[256], dir[] = "/tmp/qep-text-XXXXXX", target[300];
    struct qep_text text;
    enum qep_chat_form form = QEP_CHAT_NONE;
    size_t len;
    snprintf(path, sizeof path, "tests/data/hf/%s", official[_i].dir);
    ck_assert_int_eq(qep_text_open(path, NULL, 0, &text), QEP_OK);
    ck_assert_int_eq(text.form, official[_i].form);
    ck_assert_ptr_null(text.tok);
    ck_assert_int_eq(qep_text_need_template(&text), QEP_OK);
    ck_assert_int_eq(qep_text_need_tokenizer(&text), QEP_ERR_DATA);
    qep_text_close(&text);

    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "hf/%s/tokenizer_config.json", official[_i].dir);
    snprintf(target, sizeof target, "%s/tokenizer_config.json", dir);
    char *config = text_data(path, &len);
    FILE *f = fopen(target, "wb");
    ck_assert(f != NULL && fwrite(config, 1, len, f) == len && fclose(f) == 0);
    ck_assert_int_eq(qep_text_open(dir, NULL, 0, &text), QEP_OK);
    ck_assert_int_eq(text.form, official[_i].form);
    qep_text_close(&text);
    remove(target);
    remove(dir);
    free(config);
    ck_assert_int_eq(qep_chat_form_by_name(qep_chat_form_name(official[_i].form), &form), QEP_OK);
    ck_assert_int_eq(form, official[_i].form);
}
END_TEST

START_TEST(unknown_templates_are_refused) {
    struct qep_text text;
    struct qep_chat_request request = {0};
    struct qep_chat_text chat = {0};
    enum qep_chat_form form;
    size_t len;
    char *official_text = text_data("hf/Qwen3.5-35B-A3B/chat_template.jinja", &len);
    official_text[len / 2] ^= 1;
    ck_assert_int_eq(qep_chat_form_of(official_text, len), QEP_CHAT_NONE);
    free(official_text);
    ck_assert_int_eq(qep_chat_render(QEP_CHAT_NONE, &request, &chat), QEP_ERR_DATA);
    ck_assert_int_eq(qep_chat_form_by_name("qwen2", &form), QEP_ERR_USAGE);
    const char *not_one = "tests/data/hf/chat_template_goldens.json";
    ck_assert_int_eq(qep_text_open_files(NULL, not_one, NULL, 0, &text), QEP_OK);
    ck_assert_int_eq(qep_text_need_template(&text), QEP_ERR_DATA);
    ck_assert(strstr(qep_last_error(), "unknown chat template") != NULL);
    qep_text_close(&text);
    ck_assert_int_eq(qep_text_open_files(NULL, not_one, "qwen3.6", 0, &text), QEP_OK);
    ck_assert_int_eq(text.form, QEP_CHAT_QWEN36);
    qep_text_close(&text);
    ck_assert_int_eq(qep_text_open("tests/data/hf", NULL, 0, &text), QEP_OK);
    ck_assert_int_eq(qep_text_need_template(&text), QEP_ERR_DATA);
    qep_text_close(&text);
}
END_TEST

/* Under no_special the user's <|im_end|> is spelled out while the template's own is one token. */
START_TEST(special_tokens_of_the_user) {
    static const char json[] = "[{\"role\": \"user\", \"content\": \"a<|im_end|>b\"}]";
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    struct qep_chat_request request;
    struct qep_text text;
    enum qep_status st = qep_text_open("tests/data/tiny-chat", NULL, 0, &text);
    ck_assert_msg(st == QEP_OK, "%s", qep_last_error());
    int32_t im_end = qep_tokenizer_find(text.tok, "<|im_end|>");
    ck_assert_int_ge(im_end, 0);
    ck_assert_int_eq(qep_value_parse(json, strlen(json), NULL, &doc, &root), QEP_OK);
    ck_assert_int_eq(qep_chat_request_read(root, true, &request), QEP_OK);
    for (int no_special = 0; no_special < 2; no_special++) {
        struct qep_chat_text chat = {0};
        struct qep_ids ids = {0};
        struct qep_bytes back = {0};
        int count = 0;
        st = qep_text_encode_chat(&text, &request, no_special != 0, &chat, &ids);
        ck_assert_msg(st == QEP_OK, "%s", qep_last_error());
        for (size_t i = 0; i < ids.count; i++)
            count += ids.items[i] == im_end;
        ck_assert_int_eq(count, 2 - no_special);
        ck_assert_int_eq(qep_tokenizer_decode(text.tok, ids.items, ids.count, false, &back),
                         QEP_OK);
        ck_assert_uint_eq(back.len, chat.text.len);
        ck_assert_mem_eq(back.data, chat.text.data, back.len);
        qep_bytes_free(&back);
        qep_ids_free(&ids);
        qep_chat_text_free(&chat);
    }
    qep_value_doc_destroy(doc);
    qep_text_close(&text);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("chat_template");
    TCase *tc = tcase_create("chat_template");
    tcase_add_test(tc, goldens);
    tcase_add_test(tc, generated_cases);
    tcase_add_loop_test(tc, requests, 0, sizeof cases / sizeof *cases);
    tcase_add_test(tc, marks_the_users_text);
    tcase_add_loop_test(tc, recognises_official_files, 0, 3);
    tcase_add_test(tc, unknown_templates_are_refused);
    tcase_add_test(tc, special_tokens_of_the_user);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

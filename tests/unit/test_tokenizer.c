#include "base/clock.h"
#include "text/tokenizer.h"
#include "text_support.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct qep_tokenizer *parse(const struct qep_bytes *json, int64_t vocab_size) {
    struct qep_tokenizer *tok = NULL;
    enum qep_status st = qep_tokenizer_parse(json->data, json->len, "t.json", vocab_size, &tok);
    ck_assert_msg(st == QEP_OK, "%s", qep_last_error());
    return tok;
}

static struct qep_tokenizer *qwen2(bool pairs) {
    struct qep_bytes json = {0};
    text_qwen2_json(pairs, &json);
    struct qep_tokenizer *tok = parse(&json, 151936);
    qep_bytes_free(&json);
    return tok;
}

/* Encodes the "text" of a case, compares with its "ids", and decodes back when that is exact. */
static bool case_holds(const struct qep_tokenizer *tok, const struct qep_value *item) {
    const struct qep_value *text = qep_value_get(item, "text");
    struct qep_ids ids = {0};
    struct qep_bytes back = {0};
    ck_assert_int_eq(qep_tokenizer_encode(tok, text->text, text->len, NULL, 0, &ids), QEP_OK);
    bool same = text_same_ids(qep_value_get(item, "ids"), &ids);
    ck_assert_int_eq(qep_tokenizer_decode(tok, ids.items, ids.count, false, &back), QEP_OK);
    ck_assert_uint_eq(qep_utf8_valid_prefix(back.data, back.len), back.len);
    if (!same)
        fprintf(stderr, "text: %s\n", text->text);
    qep_bytes_free(&back);
    qep_ids_free(&ids);
    return same;
}

START_TEST(qwen2_goldens) {
    struct qep_value_doc *doc = NULL;
    const struct qep_value *cases = text_json("tokenizer/qwen2/goldens_llama_cpp.json", &doc);
    struct qep_tokenizer *tok = qwen2(_i == 1);
    size_t good = 0;
    for (const struct qep_value *c = cases->child; c != NULL; c = c->next)
        good += case_holds(tok, c);
    ck_assert_uint_eq(cases->count, 47);
    ck_assert_uint_eq(good, 47);
    ck_assert_int_eq(qep_tokenizer_num_ids(tok), 151644);
    qep_tokenizer_destroy(tok);
    qep_value_doc_destroy(doc);
}
END_TEST

START_TEST(trained_tiny_cases) {
    struct qep_tokenizer *tok = NULL;
    size_t len, count = 0;
    char *data = text_data("golden/tokenizer_cases.jsonl", &len), *save = NULL;
    enum qep_status st = qep_tokenizer_load("tests/data/tiny-chat/tokenizer.json", 0, &tok);
    ck_assert_msg(st == QEP_OK, "%s", qep_last_error());
    for (char *l = strtok_r(data, "\n", &save); l != NULL; l = strtok_r(NULL, "\n", &save)) {
        struct qep_value_doc *doc = NULL;
        const struct qep_value *item = NULL;
        ck_assert_int_eq(qep_value_parse(l, strlen(l), NULL, &doc, &item), QEP_OK);
        ck_assert(case_holds(tok, item));
        qep_value_doc_destroy(doc);
        count++;
    }
    ck_assert_uint_ge(count, 100);
    qep_tokenizer_destroy(tok);
    free(data);
}
END_TEST

#define SPECIAL(id, text) "{\"id\": " #id ", \"content\": \"" text "\", \"special\": true}"
#define ORDINARY(id, text) "{\"id\": " #id ", \"content\": \"" text "\", \"special\": false}"

/* 400 comes from no merge; e + U+0301 composes before it is split; 500 is a hole's neighbour. */
static struct qep_tokenizer *small(void) {
    struct qep_bytes json = {0};
    text_small_json(", \"ab\": 300, \"abc\": 302, \"bc\": 301, \"xyz\": 400, \"\u0120a\": 303, "
                    "\"\u00c3\u00a9\": 304, \"\u00cc\u0123\": 305, \"\u00cc\u0123\u00cc\u0123\": "
                    "306, \"a\u00cc\u0123\": 307",
                    "\"b c\", [\"a\", \"b\"], \"ab c\", [\"\u0120\", \"a\"], \"\u00c3 \u00a9\", "
                    "\"\u00cc \u0123\", \"\u00cc\u0123 \u00cc\u0123\", \"a \u00cc\u0123\"",
                    SPECIAL(500, "<|s|>") "," ORDINARY(502, "<t>") "," ORDINARY(
                        503, "<t>><t>") "," SPECIAL(504, "<|s|><t>") ","
                                                                     "{\"id\": 505, \"content\": "
                                                                     "\"\u00e9!\", \"normalized\": "
                                                                     "true}",
                    &json);
    struct qep_tokenizer *tok = parse(&json, 506);
    qep_bytes_free(&json);
    return tok;
}

static const struct {
    const char *text;
    bool plain;
    const char *ids;
} small_cases[] = {
    {"", false, ""},
    {"ab", false, "300"},
    {"abc", false, "97 301"}, /* b c has the lower rank */
    {"xyz", false, "120 121 122"},
    {"a ab", false, "97 32 300"},
    {"e\u0301", false, "304"},                       /* NFC */
    {"\u0301", false, "305"},                        /* a mark alone is a word */
    {"z\u0323\u0323", false, "225 186 147 204 163"}, /* U+1E93 exists, the second mark stays */
    {"a\u0301", false, "195 161"},
    {"q\u0301\u0301", false, "113 306"}, /* marks belong to the word */
    {"<|s|>", false, "500"},
    {"<|s|>", true, "60 124 115 124 62"},
    {"<|s|><t>", false, "504"},                  /* the longest at a place */
    {"<|s|><t>", true, "60 124 115 124 62 502"}, /* not special: an added token all the same */
    {"<t>><t><t>", false, "503 502"},
    {"a<t>b", false, "97 502 98"},
    {"<|s", false, "60 124 115"},
    {"e\u0301!", false, "505"}, /* normalized: found behind NFC */
    {"\u00e9 !", false, "304 32 33"},
    {"12", false, "49 50"},
    {"a\x80z", false, "97 239 191 189 122"},
    {"\xf0\x9f\xa6", false, "239 191 189"},
};

START_TEST(small_form) {
    struct qep_tokenizer *tok = small();
    const char *text = small_cases[_i].text;
    ck_assert_str_eq(text_ids(tok, text, strlen(text), small_cases[_i].plain), small_cases[_i].ids);
    qep_tokenizer_destroy(tok);
}
END_TEST

START_TEST(lookups) {
    struct qep_tokenizer *tok = small();
    struct qep_bytes text = {0};
    const int32_t ids[] = {500, 97, 400, 502, 204}, bad = 501;
    ck_assert_int_eq(qep_tokenizer_num_ids(tok), 506);
    ck_assert_int_eq(qep_tokenizer_find(tok, "<|s|>"), 500);
    ck_assert_int_eq(qep_tokenizer_find(tok, "abc"), 302);
    ck_assert_int_eq(qep_tokenizer_find(tok, "<|im_end|>"), -1);
    ck_assert(qep_tokenizer_has_id(tok, 400) && !qep_tokenizer_has_id(tok, 501));
    ck_assert(!qep_tokenizer_has_id(tok, -1) && !qep_tokenizer_has_id(tok, 506));
    ck_assert_int_eq(qep_tokenizer_decode(tok, ids, 5, false, &text), QEP_OK);
    ck_assert_int_eq(qep_bytes_append(&text, "|", 1), QEP_OK);
    ck_assert_int_eq(qep_tokenizer_decode(tok, ids, 5, true, &text), QEP_OK);
    ck_assert_int_eq(qep_bytes_append(&text, "", 1), QEP_OK);
    ck_assert_str_eq(text.data, "<|s|>axyz<t>\ufffd|axyz<t>\ufffd");
    ck_assert_int_eq(qep_tokenizer_decode(tok, &bad, 1, false, &text), QEP_ERR_DATA);
    ck_assert_str_eq(text_ids(tok, "a\0b", 3, false), "97 0 98");
    qep_bytes_free(&text);
    qep_tokenizer_destroy(tok);
}
END_TEST

/* "xx<|s|>yy<|s|>zz" with the first special token in a plain range, or only touched by one. */
START_TEST(plain_ranges) {
    struct qep_tokenizer *tok = small();
    static const char text[] = "x<|s|>y<|s|>z";
    const struct qep_text_span spans[] = {{0, 0}, {2, 3}, {6, 7}, {11, 12}};
    static const char *const expected[] = {
        "120 60 124 115 124 62 121 500 122",
        "120 500 121 500 122",
        "120 500 121 60 124 115 124 62 122",
    };
    for (int i = 0; i < 3; i++) {
        struct qep_ids ids = {0};
        char found[128] = "";
        ck_assert_int_eq(qep_tokenizer_encode(tok, text, strlen(text), spans + 1 + i, 1, &ids),
                         QEP_OK);
        for (size_t k = 0; k < ids.count; k++)
            snprintf(found + strlen(found), sizeof found - strlen(found), k > 0 ? " %d" : "%d",
                     ids.items[k]);
        ck_assert_str_eq(found, expected[i]);
        qep_ids_free(&ids);
    }
    qep_tokenizer_destroy(tok);
}
END_TEST

static double seconds_to_encode(const struct qep_tokenizer *tok, const char *unit, size_t bytes) {
    size_t n = strlen(unit);
    char *text = malloc(bytes);
    struct qep_ids ids = {0};
    ck_assert_ptr_nonnull(text);
    for (size_t i = 0; i < bytes; i++)
        text[i] = unit[i % n];
    double start = qep_now_s();
    ck_assert_int_eq(qep_tokenizer_encode(tok, text, bytes, NULL, 0, &ids), QEP_OK);
    double spent = qep_now_s() - start;
    qep_ids_free(&ids);
    free(text);
    return spent;
}

/* Generous limits, for slow machines and sanitizers; anything quadratic takes minutes. */
START_TEST(long_texts_take_linear_time) {
    static const char *const units[] = {"The quick brown fox, aged 12, jumps over the lazy dog.\n",
                                        "a",
                                        " ",
                                        "\n",
                                        " \n",
                                        "<",
                                        "<|endoftext|",
                                        "\u0323\u0307",
                                        "\u4f60\u597d",
                                        "\xff",
                                        "supercalifragilistic"};
    struct qep_tokenizer *tok = qwen2(false);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        double spent = seconds_to_encode(tok, units[i], i < 2 ? 1000000 : 300000);
        ck_assert_msg(spent < 30, "unit %zu: %.1f s", i, spent);
    }
    double word = seconds_to_encode(tok, "qwxzjvk", 100000);
    ck_assert_msg(word < 10, "a word of 100 KB: %.1f s", word);
    qep_tokenizer_destroy(tok);
}
END_TEST

START_TEST(vocab_size_is_checked) {
    struct qep_bytes json = {0};
    struct qep_tokenizer *tok = NULL;
    text_small_json("", "", SPECIAL(500, "<|s|>"), &json);
    ck_assert_int_eq(qep_tokenizer_parse(json.data, json.len, "t.json", 501, &tok), QEP_OK);
    qep_tokenizer_destroy(tok);
    ck_assert_int_eq(qep_tokenizer_parse(json.data, json.len, "t.json", 500, &tok), QEP_ERR_DATA);
    ck_assert_str_eq(qep_last_error(), "t.json: token \"<|s|>\": expected an id below the model's "
                                       "vocab_size 500, found 500");
    ck_assert_int_eq(qep_tokenizer_parse(json.data, json.len, "t.json", 100, &tok), QEP_ERR_DATA);
    for (size_t cut = 0; cut < json.len; cut += 7)
        ck_assert_int_eq(qep_tokenizer_parse(json.data, cut, "t.json", 0, &tok), QEP_ERR_DATA);
    qep_bytes_free(&json);
}
END_TEST

/* A good file with one thing replaced: what, by what, and a part of the message. */
static const struct {
    const char *from, *to, *message;
} bad_files[] = {
    {"\"BPE\"", "\"Unigram\"", "expected BPE, found Unigram"},
    {"\"BPE\"", "3", "\"type\""},
    {"\"dropout\": null", "\"dropout\": 0.1", "dropout"},
    {"\"dropout\": null", "\"byte_fallback\": true", "byte_fallback"},
    {"\"dropout\": null", "\"end_of_word_suffix\": \"</w>\"", "</w>"},
    {"\"dropout\": null", "\"continuing_subword_prefix\": \"##\"", "##"},
    {"\"NFC\"", "\"NFKC\"", "normalizer: expected NFC or null, found NFKC"},
    {"\"Isolated\"", "\"Removed\"", "expected Isolated"},
    {"\"invert\": false", "\"invert\": true", "invert"},
    {"\"invert\": false", "\"invert\": 0", "invert"},
    {"\"Regex\"", "\"String\"", "Regex"},
    {"(?i:", "(?i", "split regex"},
    {"\"use_regex\": false", "\"use_regex\": true", "use_regex"},
    {"\"add_prefix_space\": false", "\"x\": 0", "add_prefix_space"},
    {"\"Sequence\"", "\"ByteLevel\"", "found ByteLevel"},
    {"\"Split\"", "\"Digits\"", "expected Split first, found Digits"},
    {"\"post_processor\": null", "\"post_processor\": {\"type\": \"TemplateProcessing\"}",
     "TemplateProcessing"},
    {"\"decoder\": {\"type\": \"ByteLevel\"}", "\"decoder\": null", "decoder"},
    {"\"vocab\": {", "\"vocab\": [], \"v\": {", "\"vocab\""},
    {"\"merges\": [", "\"merges\": {}, \"m\": [", "\"merges\""},
    {"\"merges\": [", "\"merges\": [\"a nosuch\", ", "merge 0: \"nosuch\""},
    {"\"merges\": [", "\"merges\": [\"nosuch a\", ", "merge 0: \"nosuch\""},
    {"\"merges\": [", "\"merges\": [\"a b\", \"b d\", ", "merge 1: \"bd\""},
    {"\"merges\": [", "\"merges\": [\"ab\", ", "merge 0: expected"},
    {"\"merges\": [", "\"merges\": [\"a b c\", ", "merge 0: expected"},
    {"\"merges\": [", "\"merges\": [[\"a\"], ", "merge 0: expected"},
    {"\"merges\": [", "\"merges\": [[\"a\", 3], ", "merge 0: expected"},
    {"\"merges\": [", "\"merges\": [7, ", "merge 0: expected"},
    {"\"ab\": 300", "\"ab\": 97", "id 97 is both \"a\" and \"ab\""},
    {"\"ab\": 300", "\"ab\": -1", "expected an id in 0.."},
    {"\"ab\": 300", "\"ab\": 2097152", "expected an id in 0.."},
    {"\"ab\": 300", "\"ab\": 1e15", "whole id"},
    {"\"ab\": 300", "\"ab\": 300.5", "whole id"},
    {"\"ab\": 300", "\"ab\": \"300\"", "whole id"},
    {"\"ab\": 300", "\"ab\": 300, \"ab\": 301", "two ids, 300 and 301"},
    {"\"id\": 500", "\"id\": 300", "id 300 is both"},
    {"\"id\": 500", "\"id\": \"500\"", "\"id\""},
    {"\"id\": 500", "\"id\": 1e30", "\"id\""},
    {"\"<|s|>\"", "\"ab\"", "two ids, 300 and 500"},
    {"\"<|s|>\"", "null", "\"content\""},
    {"\"special\": true", "\"lstrip\": true", "lstrip"},
    {"\"special\": true", "\"rstrip\": true", "rstrip"},
    {"\"special\": true", "\"single_word\": true", "single_word"},
    {"\"special\": true", "\"special\": \"yes\"", "special"},
    {"\"added_tokens\": [", "\"added_tokens\": {}, \"a\": [", "added_tokens"},
    {"\"model\"", "\"modell\"", "\"model\""},
};

START_TEST(bad_files_are_refused) {
    struct qep_bytes good = {0}, bad = {0};
    struct qep_tokenizer *tok = NULL;
    text_small_json(", \"ab\": 300", "\"a b\"", SPECIAL(500, "<|s|>"), &good);
    ck_assert_int_eq(qep_tokenizer_parse(good.data, good.len, "t.json", 0, &tok), QEP_OK);
    qep_tokenizer_destroy(tok);
    ck_assert_int_eq(qep_bytes_append(&good, "", 1), QEP_OK);
    const char *from = bad_files[_i].from, *at = strstr(good.data, from);
    ck_assert_msg(at != NULL, "no %s", from);
    ck_assert_int_eq(qep_bytes_append(&bad, good.data, (size_t)(at - good.data)), QEP_OK);
    ck_assert_int_eq(qep_bytes_append_str(&bad, bad_files[_i].to), QEP_OK);
    ck_assert_int_eq(qep_bytes_append_str(&bad, at + strlen(from)), QEP_OK);
    ck_assert_int_eq(qep_tokenizer_parse(bad.data, bad.len, "t.json", 0, &tok), QEP_ERR_DATA);
    ck_assert_ptr_null(tok);
    ck_assert_msg(strncmp(qep_last_error(), "t.json: ", 8) == 0, "%s", qep_last_error());
    ck_assert_msg(strstr(qep_last_error(), bad_files[_i].message) != NULL, "%s", qep_last_error());
    qep_bytes_free(&good);
    qep_bytes_free(&bad);
}
END_TEST

START_TEST(not_a_tokenizer_at_all) {
    static const char *const texts[] = {
        "", "null", "[]", "3", "\"x\"", "{}", "{\"model\": 1}", "{\"model\": {}} x"};
    struct qep_tokenizer *tok = NULL;
    char deep[4000];
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        ck_assert_int_eq(qep_tokenizer_parse(texts[i], strlen(texts[i]), "t", 0, &tok),
                         QEP_ERR_DATA);
    memset(deep, '[', sizeof deep);
    ck_assert_int_eq(qep_tokenizer_parse(deep, sizeof deep, "t", 0, &tok), QEP_ERR_DATA);
    ck_assert_int_eq(qep_tokenizer_load("tests/data/no-such-file", 0, &tok), QEP_ERR_NOINPUT);
}
END_TEST

START_TEST(missing_byte_is_an_error) {
    struct qep_bytes json = {0};
    struct qep_tokenizer *tok = NULL;
    struct qep_ids ids = {0};
    text_small_json("", "", "", &json);
    ck_assert_int_eq(qep_bytes_append(&json, "", 1), QEP_OK);
    memcpy(strstr(json.data, "\"q\": 113"), "\"qq\":113", 8);
    ck_assert_int_eq(qep_tokenizer_parse(json.data, json.len - 1, "t", 0, &tok), QEP_OK);
    ck_assert_int_eq(qep_tokenizer_encode(tok, "aqa", 3, NULL, 0, &ids), QEP_ERR_DATA);
    ck_assert(strstr(qep_last_error(), "0x71") != NULL);
    qep_ids_free(&ids);
    qep_tokenizer_destroy(tok);
    qep_bytes_free(&json);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("tokenizer");
    TCase *tc = tcase_create("tokenizer");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, qwen2_goldens, 0, 2);
    tcase_add_test(tc, trained_tiny_cases);
    tcase_add_loop_test(tc, small_form, 0, sizeof small_cases / sizeof *small_cases);
    tcase_add_test(tc, lookups);
    tcase_add_test(tc, plain_ranges);
    tcase_add_test(tc, long_texts_take_linear_time);
    tcase_add_test(tc, vocab_size_is_checked);
    tcase_add_loop_test(tc, bad_files_are_refused, 0, sizeof bad_files / sizeof *bad_files);
    tcase_add_test(tc, not_a_tokenizer_at_all);
    tcase_add_test(tc, missing_byte_is_an_error);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

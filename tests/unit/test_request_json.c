#include "text/python_text.h"
#include "text/request_json.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What json.dumps(json.loads(text), ensure_ascii=False) and str(json.loads(text)) give. */
static const struct {
    const char *text, *dumps, *str;
} good[] = {
    {"null", "null", "None"},
    {" true\r\n", "true", "True"},
    {"false", "false", "False"},
    {"0", "0", "0"},
    {"-0", "0", "0"},
    {"123456789012345678901234567890", "123456789012345678901234567890",
     "123456789012345678901234567890"},
    {"1.0", "1.0", "1.0"},
    {"-0.0", "-0.0", "-0.0"},
    {"1e20", "1e+20", "1e+20"},
    {"1E5", "100000.0", "100000.0"},
    {"1e15", "1000000000000000.0", "1000000000000000.0"},
    {"1e16", "1e+16", "1e+16"},
    {"1e-7", "1e-07", "1e-07"},
    {"0.0001", "0.0001", "0.0001"},
    {"0.00001", "1e-05", "1e-05"},
    {"0.1", "0.1", "0.1"},
    {"0.30000000000000004", "0.30000000000000004", "0.30000000000000004"},
    {"123456789.1250", "123456789.125", "123456789.125"},
    {"5e-324", "5e-324", "5e-324"},
    {"1.7976931348623157e308", "1.7976931348623157e+308", "1.7976931348623157e+308"},
    {"5.684341886080802e-14", "5.684341886080802e-14", "5.684341886080802e-14"},
    {"9007199254740993.0", "9007199254740992.0", "9007199254740992.0"},
    {"1e400", "Infinity", "inf"},
    {"-1e400", "-Infinity", "-inf"},
    {"\"\"", "\"\"", ""},
    {"\"a\\u00e9\\ud83d\\ude00\\/\"", "\"a\u00e9\U0001f600/\"", "a\u00e9\U0001f600/"},
    {"\"\\\"\\\\\\b\\f\\n\\r\\t\\u001f\\u007f\\u2028\"",
     "\"\\\"\\\\\\b\\f\\n\\r\\t\\u001f\x7f\u2028\"", "\"\\\b\f\n\r\t\x1f\x7f\u2028"},
    {"\"\\ud800\"", "\"\ufffd\"", "\ufffd"},
    {"\"\\ud800\\u0041\\udc00\\ud800\\ud83d\\ude00\"", "\"\ufffdA\ufffd\ufffd\U0001f600\"",
     "\ufffdA\ufffd\ufffd\U0001f600"},
    {"[]", "[]", "[]"},
    {"{}", "{}", "{}"},
    {"[1,[2 , {\"a\":null}],\"x\"]", "[1, [2, {\"a\": null}], \"x\"]",
     "[1, [2, {'a': None}], 'x']"},
    {"{\"b\":1,\"a\":2,\"b\":3}", "{\"b\": 3, \"a\": 2}", "{'b': 3, 'a': 2}"},
    {"[\"it's\",\"\\\"q\\\"\",\"'\\\"\","
     "\"\\n\\\\\\u0000\\u00ad\\u2028\\ue000\\u00a0\\ud83d\\ude00\"]",
     "[\"it's\", \"\\\"q\\\"\", \"'\\\"\", \"\\n\\\\\\u0000\u00ad\u2028\ue000\u00a0\U0001f600\"]",
     "[\"it's\", '\"q\"', '\\'\"', '\\n\\\\\\x00\\xad\\u2028\\ue000\\xa0\U0001f600']"},
};

START_TEST(prints_as_python) {
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    struct qep_bytes out = {0};
    const char *text = good[_i].text;
    ck_assert_msg(qep_value_parse(text, strlen(text), NULL, &doc, &root) == QEP_OK, "%s",
                  qep_last_error());
    ck_assert_int_eq(qep_python_dumps(&out, root), QEP_OK);
    ck_assert_int_eq(qep_bytes_append(&out, "", 1), QEP_OK);
    ck_assert_str_eq(out.data, good[_i].dumps);
    out.len = 0;
    ck_assert_int_eq(qep_python_str(&out, root), QEP_OK);
    ck_assert_int_eq(qep_bytes_append(&out, "", 1), QEP_OK);
    ck_assert_str_eq(out.data, good[_i].str);
    qep_bytes_free(&out);
    qep_value_doc_destroy(doc);
}
END_TEST

static const struct {
    const char *text;
    size_t at; /* the byte the message names */
} bad[] = {
    {"", 0},
    {"  ", 2},
    {"nul", 0},
    {"True", 0},
    {"NaN", 0},
    {"Infinity", 0},
    {"-Infinity", 0},
    {"+1", 0},
    {"01", 1},
    {"1.", 2},
    {".5", 0},
    {"1e", 2},
    {"1e+", 3},
    {"--1", 0},
    {"0x1", 1},
    {"\"", 0},
    {"\"a", 0},
    {"\"\\x\"", 2},
    {"\"\\u12g4\"", 3},
    {"\"\\u123", 3},
    {"\"\\", 2},
    {"\"a\nb\"", 2},
    {"'a'", 0},
    {"[", 1},
    {"[1", 2},
    {"[1,]", 3},
    {"[,1]", 1},
    {"[1 2]", 3},
    {"{", 1},
    {"{\"a\"}", 4},
    {"{\"a\":}", 5},
    {"{\"a\":1,}", 7},
    {"{a:1}", 1},
    {"{1:2}", 1},
    {"{\"a\":1]", 6},
    {"[1}", 2},
    {"1 2", 2},
    {"{} x", 3},
    {"[] //c", 3},
    {"\"\xff\"", 1},
    {"\"\xed\xa0\x80\"", 1},
    {"\"\xe4\xbd\"", 1},
};

START_TEST(bad_text_is_refused) {
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    char expected[64];
    ck_assert_int_eq(qep_value_parse(bad[_i].text, strlen(bad[_i].text), "req", &doc, &root),
                     QEP_ERR_DATA);
    ck_assert_ptr_null(doc);
    snprintf(expected, sizeof expected, "req: invalid JSON at byte %zu: ", bad[_i].at);
    ck_assert_msg(strncmp(qep_last_error(), expected, strlen(expected)) == 0, "'%s': %s",
                  bad[_i].text, qep_last_error());
}
END_TEST

START_TEST(keeps_length_order_and_source) {
    static const char text[] =
        "{\"z\\u0000y\": \"a\\u0000b\", \"n\": 1.50, \"z\": null, \"n2\": 1}";
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    ck_assert_int_eq(qep_value_parse(text, strlen(text), NULL, &doc, &root), QEP_OK);
    ck_assert_uint_eq(root->count, 4);
    ck_assert_uint_eq(root->child->key_len, 3);
    ck_assert_mem_eq(root->child->key, "z\0y", 3);
    ck_assert_uint_eq(root->child->len, 3);
    ck_assert_mem_eq(root->child->text, "a\0b", 3);
    ck_assert_str_eq(qep_value_get(root, "n")->text, "1.50");
    ck_assert_int_eq(qep_value_get(root, "z")->kind, QEP_VALUE_NULL);
    ck_assert_ptr_null(qep_value_get_given(root, "z"));
    ck_assert_ptr_null(qep_value_get(root, "Z"));
    ck_assert_ptr_null(qep_value_get(root->child, "a"));
    ck_assert_ptr_null(qep_value_get(NULL, "a"));
    qep_value_doc_destroy(doc);
    ck_assert_int_eq(qep_value_parse("\"a\0b\"", 5, NULL, &doc, &root), QEP_ERR_DATA);
}
END_TEST

START_TEST(depth_is_limited) {
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    size_t depth = QEP_VALUE_MAX_DEPTH + (size_t)_i;
    char *text = malloc(2 * depth);
    ck_assert_ptr_nonnull(text);
    memset(text, '[', depth);
    memset(text + depth, ']', depth);
    ck_assert_int_eq(qep_value_parse(text, 2 * depth, NULL, &doc, &root),
                     _i == 0 ? QEP_OK : QEP_ERR_DATA);
    qep_value_doc_destroy(doc);
    free(text);
}
END_TEST

/* 100,000 keys, each twice: the last values at the first places, in well under a minute. */
START_TEST(number_of_values_is_limited) {
    size_t len = 2 * (size_t)(QEP_VALUE_MAX_COUNT + 1) + 1;
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    char *text = malloc(len);
    ck_assert_ptr_nonnull(text);
    for (size_t i = 0; i < len; i++)
        text[i] = i % 2 == 0 ? ',' : '0';
    text[0] = '[';
    text[len - 1] = ']';
    ck_assert_int_eq(qep_value_parse(text, len, "c.json", &doc, &root), QEP_ERR_DATA);
    ck_assert(strstr(qep_last_error(), "more values than are accepted") != NULL);
    text[len - 2] = text[len - 3] = ' ';
    ck_assert_int_eq(qep_value_parse(text, len, "c.json", &doc, &root), QEP_OK);
    ck_assert_uint_eq(root->count, QEP_VALUE_MAX_COUNT);
    qep_value_doc_destroy(doc);
    free(text);
}
END_TEST

START_TEST(many_duplicate_keys) {
    struct qep_bytes text = {0};
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    char item[64];
    for (int i = 0; i < 200000; i++) {
        snprintf(item, sizeof item, "%s\"k%d\":%d", i > 0 ? "," : "{", i % 100000, i);
        ck_assert_int_eq(qep_bytes_append_str(&text, item), QEP_OK);
    }
    ck_assert_int_eq(qep_bytes_append_str(&text, "}"), QEP_OK);
    ck_assert_int_eq(qep_value_parse(text.data, text.len, NULL, &doc, &root), QEP_OK);
    ck_assert_uint_eq(root->count, 100000);
    int i = 0;
    for (const struct qep_value *v = root->child; v != NULL; v = v->next, i++) {
        ck_assert_int_eq(atoi(v->key + 1), i);
        ck_assert_int_eq(atoi(v->text), 100000 + i);
        ck_assert(v->repeated);
    }
    qep_value_doc_destroy(doc);
    qep_bytes_free(&text);
}
END_TEST

START_TEST(nothing_is_an_empty_string) {
    struct qep_bytes out = {0}, nothing = {0};
    ck_assert_int_eq(qep_json_append_string(&out, nothing.data, nothing.len), QEP_OK);
    ck_assert(out.len == 2 && memcmp(out.data, "\"\"", 2) == 0);
    qep_bytes_free(&out);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("request_json");
    TCase *tc = tcase_create("request_json");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, prints_as_python, 0, sizeof good / sizeof *good);
    tcase_add_loop_test(tc, bad_text_is_refused, 0, sizeof bad / sizeof *bad);
    tcase_add_test(tc, keeps_length_order_and_source);
    tcase_add_loop_test(tc, depth_is_limited, 0, 2);
    tcase_add_test(tc, number_of_values_is_limited);
    tcase_add_test(tc, many_duplicate_keys);
    tcase_add_test(tc, nothing_is_an_empty_string); /* what sanitizers see */
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

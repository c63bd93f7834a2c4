#include "text/detokenizer.h"
#include "text_support.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

/* A tokenizer whose id b is byte b; 300 is special, 301 holds a and the start of a character. */
static struct qep_tokenizer *bytes_tokenizer(void) {
    struct qep_bytes json = {0};
    struct qep_tokenizer *tok = NULL;
    text_small_json(", \"a\u00e4\u00bd\": 301", "",
                    "{\"id\": 300, \"content\": \"<|end|>\", \"special\": true}", &json);
    ck_assert_int_eq(qep_tokenizer_parse(json.data, json.len, "t", 0, &tok), QEP_OK);
    qep_bytes_free(&json);
    return tok;
}

/* Ids pushed one by one; after each a | marks what came out; then the flush. */
static const struct {
    int32_t ids[8];
    int count;
    const char *out;
} cases[] = {
    {{'h', 'i'}, 2, "h|i||"},
    {{0xE4, 0xBD, 0xA0}, 3, "||\u4f60||"},
    {{0xF0, 0x9F, 0xA6, 0x99, 'x'}, 5, "|||\U0001f999|x||"},
    {{0xE4, 0xBD}, 2, "||\ufffd|"}, /* dangling: one replacement */
    {{0xF0, 0x9F, 0xA6}, 3, "|||\ufffd|"},
    {{0xE4, 'a'}, 2, "|\ufffda||"}, /* broken off */
    {{0xE4, 0xBD, 0xE4, 0xBD, 0xA0}, 5, "||\ufffd||\u4f60||"},
    {{0xFF, 0xC0, 0x80}, 3, "\ufffd|\ufffd|\ufffd||"},
    {{0xED, 0xA0, 0x80}, 3, "|\ufffd\ufffd|\ufffd||"}, /* a surrogate has no UTF-8 */
    {{0xE0, 0x80}, 2, "|\ufffd\ufffd||"},              /* overlong */
    {{0xF4, 0x90}, 2, "|\ufffd\ufffd||"},              /* above U+10FFFF */
    {{301, 0xA0, 300, 'b'}, 4, "a|\u4f60||b||"},       /* 300 skipped */
    {{301, 300, 0xA0}, 3, "a||\u4f60||"},              /* a skipped token breaks nothing */
};

START_TEST(streams_complete_characters) {
    struct qep_tokenizer *tok = bytes_tokenizer();
    struct qep_detokenizer detok;
    struct qep_bytes out = {0}, whole = {0}, joined = {0};
    qep_detokenizer_init(&detok, tok, true);
    for (int i = 0; i < cases[_i].count; i++) {
        ck_assert_int_eq(qep_detokenizer_push(&detok, cases[_i].ids[i], &out), QEP_OK);
        ck_assert_uint_eq(qep_utf8_valid_prefix(out.data, out.len), out.len);
        ck_assert_int_eq(qep_bytes_append(&out, "|", 1), QEP_OK);
    }
    ck_assert_int_eq(qep_detokenizer_flush(&detok, &out), QEP_OK);
    ck_assert_int_eq(qep_bytes_append(&out, "|", 2), QEP_OK);
    ck_assert_str_eq(out.data, cases[_i].out);

    ck_assert_int_eq(
        qep_tokenizer_decode(tok, cases[_i].ids, (size_t)cases[_i].count, true, &whole), QEP_OK);
    for (const char *p = out.data; *p != '\0'; p++)
        if (*p != '|')
            ck_assert_int_eq(qep_bytes_append(&joined, p, 1), QEP_OK);
    ck_assert_uint_eq(joined.len, whole.len);
    ck_assert_mem_eq(joined.data, whole.data, whole.len);
    qep_bytes_free(&out);
    qep_bytes_free(&whole);
    qep_bytes_free(&joined);
    qep_tokenizer_destroy(tok);
}
END_TEST

START_TEST(special_tokens_show_on_demand) {
    struct qep_tokenizer *tok = bytes_tokenizer();
    struct qep_detokenizer detok;
    struct qep_bytes out = {0};
    qep_detokenizer_init(&detok, tok, false);
    ck_assert_int_eq(qep_detokenizer_push(&detok, 300, &out), QEP_OK);
    ck_assert_int_eq(qep_detokenizer_push(&detok, 302, &out), QEP_ERR_DATA);
    ck_assert_int_eq(qep_detokenizer_push(&detok, -1, &out), QEP_ERR_DATA);
    ck_assert_int_eq(qep_bytes_append(&out, "", 1), QEP_OK);
    ck_assert_str_eq(out.data, "<|end|>");
    qep_bytes_free(&out);
    qep_tokenizer_destroy(tok);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("detokenizer");
    TCase *tc = tcase_create("detokenizer");
    tcase_add_loop_test(tc, streams_complete_characters, 0, sizeof cases / sizeof *cases);
    tcase_add_test(tc, special_tokens_show_on_demand);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

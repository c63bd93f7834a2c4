#include "text/nfc.h"
#include "text/pretokenize.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static const char qwen35[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| "
    "?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

static const struct {
    const char *text, *pieces; /* pieces joined by | */
} cases[] = {
    {"", ""},
    {"Hello world", "Hello| world"},
    {"I'm you'LL 'tis", "I|'m| you|'LL| '|tis"},
    {"'\u017f'S", "'\u017f|'S"},
    {"abc123", "abc|1|2|3"},
    {"  x", " | x"},
    {"a  \n  b", "a|  \n| | b"},
    {"a \n\n \n b", "a| \n\n \n| b"},
    {"x\r\ny", "x|\r\n|y"},
    {"!!!\n\nfoo", "!!!\n\n|foo"},
    {" !\n", " !\n"},
    {"(foo)", "(foo|)"},
    {"e\u0301a\u0302", "e\u0301a\u0302"}, /* marks stay in the word */
    {"\u0301abc", "\u0301abc"},           /* a mark may begin it */
    {"!\u0301?", "!\u0301|?"},
    {" \u0301 x", " \u0301| x"},
    {"\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u094d\u0926\u0940"},
    {"a\u00a0b", "a|\u00a0b"},
    {"a\u3000\u3000d", "a|\u3000|\u3000d"},
    {"a\u180e\u180eb", "a|\u180e\u180e|b"}, /* U+180E is no white space */
    {"a \u180e", "a| \u180e"},
    {"a\x1c\x1c", "a|\x1c\x1c"}, /* nor is U+001C */
    {"\xc2\x85\xc2\x85x", "\xc2\x85|\xc2\x85x"},
    {"   ", "   "},
    {"\u4f60\u597d\u3002", "\u4f60\u597d|\u3002"},
};

static void split_all(const char *regex, const char *text, struct qep_bytes *joined) {
    struct qep_splitter *splitter = NULL;
    struct qep_split split;
    struct qep_text_span piece;
    size_t at = 0;
    ck_assert_msg(qep_splitter_create(regex, "t", &splitter) == QEP_OK, "%s", qep_last_error());
    ck_assert_int_eq(qep_split_begin(&split, splitter), QEP_OK);
    qep_split_reset(&split, text, strlen(text));
    for (;;) {
        ck_assert_int_eq(qep_split_next(&split, &piece), QEP_OK);
        ck_assert_uint_eq(piece.begin, at); /* nothing is lost between pieces */
        if (piece.begin == piece.end)
            break;
        ck_assert_int_eq(qep_bytes_append(joined, "|", at > 0 ? 1 : 0), QEP_OK);
        ck_assert_int_eq(qep_bytes_append(joined, text + piece.begin, piece.end - piece.begin),
                         QEP_OK);
        at = piece.end;
    }
    ck_assert_uint_eq(at, strlen(text));
    ck_assert_int_eq(qep_bytes_append(joined, "", 1), QEP_OK);
    qep_split_end(&split);
    qep_splitter_destroy(splitter);
}

START_TEST(qwen35_split) {
    struct qep_bytes joined = {0};
    split_all(qwen35, cases[_i].text, &joined);
    ck_assert_str_eq(joined.data, cases[_i].pieces);
    qep_bytes_free(&joined);
}
END_TEST

START_TEST(gaps_are_pieces) {
    struct qep_bytes joined = {0};
    split_all("\\d+|x*", "ab12cd3", &joined);
    ck_assert_str_eq(joined.data, "ab|12|cd|3");
    joined.len = 0;
    split_all("[]\\s]", "a] b", &joined);
    ck_assert_str_eq(joined.data, "a|]| |b");
    qep_bytes_free(&joined);
}
END_TEST

START_TEST(bad_regexes) {
    static const char *const bad[] = {"(", "[a", "(?<", "\\", "a{2,1}", "[\\S]", "\\p{Xyz}", "\\C"};
    struct qep_splitter *splitter = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_msg(qep_splitter_create(bad[i], "t", &splitter) == QEP_ERR_DATA, "%s", bad[i]);
        ck_assert_ptr_null(splitter);
    }
}
END_TEST

/* A regex that backtracks without end must fail, not quietly find nothing. */
START_TEST(match_limit_is_an_error) {
    struct qep_splitter *splitter = NULL;
    struct qep_split split;
    struct qep_text_span piece;
    char text[65];
    memset(text, 'a', sizeof text);
    ck_assert_int_eq(qep_splitter_create("(?:a+)+[bc]", "t", &splitter), QEP_OK);
    ck_assert_int_eq(qep_split_begin(&split, splitter), QEP_OK);
    qep_split_reset(&split, text, sizeof text);
    ck_assert_int_eq(qep_split_next(&split, &piece), QEP_ERR_DATA);
    ck_assert(strstr(qep_last_error(), "split regex") != NULL);
    qep_split_end(&split);
    qep_splitter_destroy(splitter);
}
END_TEST

static const struct {
    const char *text, *nfc;
} nfc_cases[] = {
    {"", ""},
    {"caf\u00e9", "caf\u00e9"},
    {"cafe\u0301", "caf\u00e9"},
    {"q\u0307\u0323", "q\u0323\u0307"},
    {"\u212b \u2126", "\u00c5 \u03a9"},
    {"\u1112\u1161\u11ab", "\ud55c"},
    {"\uac00\u11a7\u11a8", "\uac00\u11a7\u11a8"}, /* U+11A7 does not compose */
    {"\u0958 \u2adc", "\u0915\u093c \u2add\u0338"},
    {"\u0344", "\u0308\u0301"},
    {"a\u11a7\u0323\u0307\u0323", "a\u11a7\u0323\u0323\u0307"},
};

START_TEST(nfc_forms) {
    struct qep_bytes out = {0};
    ck_assert_int_eq(qep_nfc_append(&out, nfc_cases[_i].text, strlen(nfc_cases[_i].text)), QEP_OK);
    ck_assert_int_eq(qep_bytes_append(&out, "", 1), QEP_OK);
    ck_assert_str_eq(out.data, nfc_cases[_i].nfc);
    qep_bytes_free(&out);
}
END_TEST

/* Long runs of marks take the sorting path: e with 40 x (above, below) is e-below + 39 + 40. */
START_TEST(nfc_of_long_runs) {
    struct qep_bytes in = {0}, out = {0}, expected = {0};
    ck_assert_int_eq(qep_bytes_append_str(&in, "e"), QEP_OK);
    ck_assert_int_eq(qep_bytes_append_str(&expected, "\u1eb9"), QEP_OK);
    for (int i = 0; i < 40; i++)
        ck_assert_int_eq(qep_bytes_append_str(&in, "\u0301\u0323"), QEP_OK);
    for (int i = 0; i < 39; i++)
        ck_assert_int_eq(qep_bytes_append_str(&expected, "\u0323"), QEP_OK);
    for (int i = 0; i < 40; i++)
        ck_assert_int_eq(qep_bytes_append_str(&expected, "\u0301"), QEP_OK);
    ck_assert_int_eq(qep_nfc_append(&out, in.data, in.len), QEP_OK);
    ck_assert_uint_eq(out.len, expected.len);
    ck_assert_mem_eq(out.data, expected.data, out.len);
    qep_bytes_free(&in);
    qep_bytes_free(&out);
    qep_bytes_free(&expected);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("pretokenize");
    TCase *tc = tcase_create("pretokenize");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, qwen35_split, 0, sizeof cases / sizeof *cases);
    tcase_add_test(tc, gaps_are_pieces);
    tcase_add_test(tc, bad_regexes);
    tcase_add_test(tc, match_limit_is_an_error);
    tcase_add_loop_test(tc, nfc_forms, 0, sizeof nfc_cases / sizeof *nfc_cases);
    tcase_add_test(tc, nfc_of_long_runs);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

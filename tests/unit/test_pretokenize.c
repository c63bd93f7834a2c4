#define PCRE2_CODE_UNIT_WIDTH 8
#include "base/clock.h"
#include "base/temporary.h"
#include "text/nfc.h"
#include "text/pretokenize.h"

#include <check.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Linked with --wrap: PCRE2 with its compiler to machine code, or, as on some machines, without. */
static bool without_jit;
int __real_pcre2_jit_compile_8(pcre2_code *code, uint32_t options);
int __wrap_pcre2_jit_compile_8(pcre2_code *code, uint32_t options);

int __wrap_pcre2_jit_compile_8(pcre2_code *code, uint32_t options) {
    return without_jit ? PCRE2_ERROR_JIT_BADOPTION : __real_pcre2_jit_compile_8(code, options);
}

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
    static const char *const bad[] = {"(",          "[a",        "(?<",      "\\",
                                      "a{2,1}",     "[\\S]",     "\\p{Xyz}", "\\C",
                                      "(*NO_JIT)a", "a(*SKIP)b", "\\Ga",     "\\Qa"};
    struct qep_splitter *splitter = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_msg(qep_splitter_create(bad[i], "t", &splitter) == QEP_ERR_DATA, "%s", bad[i]);
        ck_assert_ptr_null(splitter);
    }
}
END_TEST

/* Splits n bytes of `unit`, again and again; *spent is the share of its budget that the regex took.
 */
static enum qep_status split_units(const char *regex, const char *unit, size_t n, double *spent) {
    struct qep_splitter *splitter = NULL;
    struct qep_split split;
    struct qep_text_span piece = {0, 1};
    struct qep_bytes text = {0};
    ck_assert_msg(qep_splitter_create(regex, "dir/t.json", &splitter) == QEP_OK, "%s",
                  qep_last_error());
    enum qep_status st = QEP_OK;
    while (text.len < n && st == QEP_OK) /* a check for each would take seconds */
        st = qep_bytes_append_str(&text, unit);
    ck_assert_int_eq(st, QEP_OK);
    ck_assert_int_eq(qep_split_begin(&split, splitter), QEP_OK);
    qep_split_reset(&split, text.data, text.len);
    double budget = (double)split.units;
    while (st == QEP_OK && piece.begin < piece.end)
        st = qep_split_next(&split, &piece);
    *spent = 1 - (double)split.units / budget;
    qep_split_end(&split);
    qep_splitter_destroy(splitter);
    qep_bytes_free(&text);
    return st;
}

static const char *const endless[] = {
    "(?:a+)+[bc]",
    "(a+)+[bc]",
    "(a|a)*b",
    "(?:.*)*x",
    "(?:(?:a*?)+?)+?x",
    ".*.*.*x",
    ".*?.*?.*?.*?x",
    "(((a*)*)*)*b",
    "(?!(a+)+b)c|a(?=(a+)+b)",
    "(?:a(?=(?:a+)+b)|a)+c",
    "(a+)\\1+b",
    "(a*)(?:a(?!\\1b))*c",
    "(?:\\p{L}+)+\\d",
    "(?i)(?:\u017f|a|A)+b",
    "(?:(?:a(?!a{60000}))+)+[bc]",
    "(a(?1)?a|b)c",
    "(?(?=(?:a+)+b)x|a+c)",
    "\\X+\\X+\\X+x",
    "(?:a{1,100}){1,100}b",
};

enum { NUM_ENDLESS = sizeof endless / sizeof *endless };

/* Each of these would take the age of the universe for its first match, or a second for each byte.
 */
START_TEST(endless_regexes_are_errors) {
    const char *regex = endless[_i % NUM_ENDLESS];
    double spent = 0, start = qep_now_s();
    without_jit = _i >= NUM_ENDLESS;
    ck_assert_int_eq(split_units(regex, "a", 900, &spent), QEP_ERR_DATA);
    ck_assert_msg(strstr(qep_last_error(), "dir/t.json: split regex") != NULL &&
                      strstr(qep_last_error(), regex) != NULL &&
                      strstr(qep_last_error(), "too many steps") != NULL,
                  "%s", qep_last_error());
    ck_assert_msg(qep_now_s() - start < 5, "%s: %g s", regex, qep_now_s() - start);
}
END_TEST

/* Cheap at every place, but not in the sum. */
START_TEST(quadratic_regexes_are_errors) {
    static const char *const quadratic[] = {"a*b", "a{1,65535}b", "(?:a(?=a*b)|a)+", "(?>a+)b",
                                            "(?<=a{60000})b|a*c"};
    double spent = 0;
    for (size_t i = 0; i < sizeof quadratic / sizeof *quadratic; i++)
        ck_assert_msg(split_units(quadratic[i], "a", 20000, &spent) == QEP_ERR_DATA, "%s",
                      quadratic[i]);
}
END_TEST

/* Looking back far at every byte is linear, and is counted. */
START_TEST(looking_back_is_counted) {
    double spent = 0;
    ck_assert_int_eq(split_units("(?<=a{60000})b", "a", 100000, &spent), QEP_ERR_DATA);
}
END_TEST

static const char *const real[] = {
    qwen35,
    /* GPT-2, cl100k and llama-3, o200k */
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'"
    "s|'t|"
    "'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}"
    "\\p{"
    "Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
};

/* Of what a text may cost, real regexes take a small part whatever the text. */
START_TEST(real_regexes_are_far_from_the_bound) {
    static const char *const units[] = {" ",
                                        "a",
                                        "7",
                                        "\n",
                                        "\u4f60",
                                        "\U0001f600",
                                        "A",
                                        "!",
                                        "\u0301",
                                        " \n",
                                        "'s",
                                        "\t \r\n",
                                        "x                      y",
                                        "'l",
                                        "\u3000a\u0301",
                                        "The fox's 12 jumps.\n",
                                        "A\u4f60b"};
    without_jit = _i % 2 == 1;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        double spent = 0;
        enum qep_status st = split_units(real[_i / 2], units[i], 100000, &spent);
        ck_assert_msg(st == QEP_OK && spent < 0.1, "unit %zu: %g of its budget %s", i, spent,
                      st == QEP_OK ? "" : qep_last_error());
    }
}
END_TEST

/* In a process of its own: being asked to stop is for good. */
START_TEST(stops_when_asked) {
    double spent = 0;
    int how = 0;
    pid_t child = fork();
    if (child == 0) {
        qep_temporaries_remove();
        _exit((int)split_units(endless[0], "a", 900, &spent));
    }
    ck_assert_int_eq(waitpid(child, &how, 0), child);
    ck_assert(WIFEXITED(how));
    ck_assert_int_eq(WEXITSTATUS(how), QEP_ERR_INTERRUPTED);
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
    tcase_add_loop_test(tc, endless_regexes_are_errors, 0, 2 * NUM_ENDLESS);
    tcase_add_test(tc, quadratic_regexes_are_errors);
    tcase_add_test(tc, looking_back_is_counted);
    tcase_add_loop_test(tc, real_regexes_are_far_from_the_bound, 0, 2 * sizeof real / sizeof *real);
    tcase_add_test(tc, stops_when_asked);
    tcase_add_loop_test(tc, nfc_forms, 0, sizeof nfc_cases / sizeof *nfc_cases);
    tcase_add_test(tc, nfc_of_long_runs);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

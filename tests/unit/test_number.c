/* Strict numbers: what is taken, exactly, and what is refused. */
#include "base/number.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define MAX_SEED 9000000000000000000

/* No way to write a number takes these. */
static const char *const never[] = {"",     " 5",   "5 ",  "\t5", "5\n", "+5",  "-0",   "-0.0",
                                    "--5",  "0x10", "0b1", "1_0", "5,",  "5a",  "inf",  "nan",
                                    "NaN",  "-inf", "1e",  "1e+", "1e-", "e5",  ".5e+", "1e1.5",
                                    "1.2.", "..1",  "-",   ".",   "-.",  "- 5", "1 e5", "infinity"};

START_TEST(refused_by_all) {
    size_t len = strlen(never[_i]);
    int64_t whole = 77;
    double number = 77;
    ck_assert(!qep_parse_int(never[_i], len, INT64_MIN, INT64_MAX, &whole));
    ck_assert(!qep_parse_whole(never[_i], len, INT64_MIN, INT64_MAX, &whole));
    ck_assert(!qep_parse_double(never[_i], len, -1e300, 1e300, &number));
    ck_assert(whole == 77 && number >= 77 && number <= 77);
}
END_TEST

static const struct {
    const char *text;
    int64_t min, max;
    bool is_int, is_whole; /* as digits; however written */
    int64_t value;
} wholes[] = {
    {"0", 0, 5, true, true, 0},
    {"007", 0, 9, true, true, 7},
    {"5", 5, 5, true, true, 5},
    {"-5", -5, 5, true, true, -5},
    {"6", 0, 5, false, false, 0},
    {"-1", 0, 5, false, false, 0},
    {"9000000000000000000", 0, MAX_SEED, true, true, MAX_SEED},
    {"9000000000000000001", 0, MAX_SEED, false, false, 0},
    {"8999999999999999999", 0, MAX_SEED, true, true, 8999999999999999999},
    {"9223372036854775807", INT64_MIN, INT64_MAX, true, true, INT64_MAX},
    {"9223372036854775808", INT64_MIN, INT64_MAX, false, false, 0},
    {"-9223372036854775808", INT64_MIN, INT64_MAX, true, true, INT64_MIN},
    {"-9223372036854775809", INT64_MIN, INT64_MAX, false, false, 0},
    {"99999999999999999999999999", INT64_MIN, INT64_MAX, false, false, 0},
    {"5.0", 0, 9, false, true, 5},
    {"0.5", 0, 9, false, false, 0},
    {"0.5e1", 0, 9, false, true, 5},
    {"12e2", 0, 9999, false, true, 1200},
    {"1200E-2", 0, 9999, false, true, 12},
    {"1250e-2", 0, 9999, false, false, 0},
    {"9007199254740993e0", 0, INT64_MAX, false, true, 9007199254740993},
    {"9007199254740992.5", 0, INT64_MAX, false, false, 0},
    {"9e18", 0, MAX_SEED, false, true, MAX_SEED},
    {"1e300", 0, INT64_MAX, false, false, 0},
    {"0e300", 0, 9, false, true, 0},
    {"0e99999999999999999999", 0, 9, false, true, 0},
    {"1e99999999999999999999", 0, 9, false, false, 0},
    {"1e-99999999999999999999", 0, 9, false, false, 0},
    {"-0e1", -9, 9, false, false, 0},
    {"-3.0", -9, 9, false, true, -3},
};

START_TEST(whole_numbers) {
    const char *text = wholes[_i].text;
    int64_t value = 77, from_json = 77, min = wholes[_i].min, max = wholes[_i].max;
    size_t len = strlen(text);
    ck_assert_int_eq(qep_parse_int(text, len, min, max, &value), wholes[_i].is_int);
    ck_assert_int_eq(value, wholes[_i].is_int ? wholes[_i].value : 77);
    ck_assert_int_eq(qep_parse_whole(text, len, min, max, &from_json), wholes[_i].is_whole);
    ck_assert_int_eq(from_json, wholes[_i].is_whole ? wholes[_i].value : 77);
}
END_TEST

static const struct {
    const char *text;
    bool ok;
    double value;
} doubles[] = {
    {"0", true, 0},        {"0.95", true, 0.95},  {".5", true, 0.5},    {"5.", true, 5},
    {"1e-3", true, 1e-3},  {"1E+2", true, 100},   {"-2.5", true, -2.5}, {"1e6", true, 1e6},
    {"1000001", false, 0}, {"1e300", false, 0},   {"1e999", false, 0},  {"-1e999", false, 0},
    {"-1e-999", false, 0}, {"0.1e1e1", false, 0}, {"0x1p3", false, 0},  {"1d", false, 0},
    {"1,5", false, 0},
};

START_TEST(doubles_in_range) {
    double value = 77, wanted = doubles[_i].ok ? doubles[_i].value : 77;
    bool ok = qep_parse_double(doubles[_i].text, strlen(doubles[_i].text), -1e6, 1e6, &value);
    ck_assert_int_eq(ok, doubles[_i].ok);
    ck_assert(value >= wanted && value <= wanted);
}
END_TEST

START_TEST(only_the_text_given) {
    int64_t whole = 0;
    double number = 0;
    ck_assert(qep_parse_int("123", 2, 0, 99, &whole) && whole == 12);
    ck_assert(qep_parse_whole("1e12", 3, 0, 99, &whole) && whole == 10);
    ck_assert(!qep_parse_double("1.25", 3, 0, 99, &number)); /* strtod would go on */
    ck_assert(!qep_parse_int("1\0002", 3, 0, 99, &whole));
}
END_TEST

static const struct {
    const char *text;
    int count; /* numbers before the end, or before the first bad one */
    bool ok;
} lists[] = {{"1", 1, true},       {"1,2,30", 3, true}, {"", 0, false},    {",", 0, false},
             {"1,", 1, false},     {"1,,2", 1, false},  {",1", 0, false},  {"1, 2", 1, false},
             {"1,2,31", 2, false}, {"1;2", 0, false},   {"1,-1", 1, false}};

START_TEST(lists_have_no_empty_elements) {
    static const int64_t expected[] = {1, 2, 30};
    const char *at = lists[_i].text;
    bool ok = true;
    int count = 0;
    for (int64_t value = 0; at != NULL; count++) {
        ok = qep_parse_next(&at, 0, 30, &value);
        if (!ok)
            break;
        ck_assert_int_eq(value, expected[count]);
    }
    ck_assert_int_eq(ok, lists[_i].ok);
    ck_assert_int_eq(count, lists[_i].count);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("number");
    TCase *tc = tcase_create("number");
    tcase_add_loop_test(tc, refused_by_all, 0, COUNT_OF(never));
    tcase_add_loop_test(tc, whole_numbers, 0, COUNT_OF(wholes));
    tcase_add_loop_test(tc, doubles_in_range, 0, COUNT_OF(doubles));
    tcase_add_test(tc, only_the_text_given);
    tcase_add_loop_test(tc, lists_have_no_empty_elements, 0, COUNT_OF(lists));
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* Option tables: what a command line gives, and what a file of options adds to it. */
#include "cli/options.h"
#include "cli/options_file.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static struct {
    bool flag, number_given;
    int64_t whole;
    double number;
    const char *text, *path, *config, *choice;
} got;

static const struct qep_option first_rows[] = {
    {.name = "flag", .short_name = 'f', .kind = QEP_OPTION_FLAG, .target = &got.flag},
    {.name = "whole",
     .short_name = 'w',
     .kind = QEP_OPTION_INT,
     .target = &got.whole,
     .min = -5,
     .max = 9e18},
    {.name = "text", .kind = QEP_OPTION_STRING, .target = &got.text}};
static const struct qep_option second_rows[] = {
    {.name = "number",
     .kind = QEP_OPTION_DOUBLE,
     .target = &got.number,
     .given = &got.number_given,
     .max = 1},
    {.name = "path", .short_name = 'p', .kind = QEP_OPTION_PATH, .target = &got.path},
    {.name = "config", .kind = QEP_OPTION_CONFIG_FILE, .target = &got.config},
    {.name = "choice", .kind = QEP_OPTION_CHOICE, .target = &got.choice, .choices = "one|two"}};
static const struct qep_option_table tables[] = {{first_rows, COUNT_OF(first_rows)},
                                                 {second_rows, COUNT_OF(second_rows)}};

/* Words of a command line, separated by '|'. */
static enum qep_status parse(const char *line, char *buf, char **argv,
                             struct qep_options_found *found) {
    int argc = 1;
    memset(&got, 0, sizeof got);
    argv[0] = buf;
    strcpy(buf, line);
    for (char *p = buf; *line != '\0' && p != NULL;) {
        argv[argc++] = p;
        p = strchr(p, '|');
        if (p != NULL)
            *p++ = '\0';
    }
    argv[argc] = NULL;
    return qep_options_parse(tables, 2, argc, argv, found);
}

static const struct {
    const char *line, *error; /* NULL: fine */
} lines[] = {
    {"", NULL},
    {"-f|-w|3|x|--text||--path|p", NULL},
    {"-fw-5", NULL},
    {"--whole=9000000000000000000", NULL},
    {"--config|a", NULL},
    {"--choice|two|--choice|one", NULL},
    {"--text|--flag", NULL},
    {"--whole|9000000000000000001",
     "--whole: expected a whole number in -5..9000000000000000000, found '9000000000000000001'"},
    {"-w| 3", "--whole: expected a whole number in -5..9000000000000000000, found ' 3'"},
    {"--number|nan", "--number: expected a number in 0..1, found 'nan'"},
    {"--path|", "--path: expected a path, found ''"},
    {"--config|", "--config: expected a path, found ''"},
    {"--choice|one|--choice|three", "--choice: expected one of one|two, found 'three'"},
    {"--choice|", "--choice: expected one of one|two, found ''"},
    {"--config|a|--conf=a", "--config: expected once, found again with 'a'"},
    {"--flag=1", "--flag: does not take a value"},
    {"--whole", "--whole: needs a value"},
    {"-fp", "--path: needs a value"},
    {"-fz", "unknown option '-z' (see --help)"},
    {"--c|a", "unknown or ambiguous option '--c' (see --help)"},
    {"--none", "unknown or ambiguous option '--none' (see --help)"},
};

START_TEST(command_lines) {
    char buf[200], *argv[20];
    struct qep_options_found found;
    enum qep_status st = parse(lines[_i].line, buf, argv, &found);
    ck_assert_int_eq(st, lines[_i].error == NULL ? QEP_OK : QEP_ERR_USAGE);
    if (lines[_i].error != NULL)
        ck_assert_str_eq(qep_last_error(), lines[_i].error);
}
END_TEST

START_TEST(what_a_command_line_gives) {
    static const bool given[] = {true, true, true, true, true, true, false, false};
    char buf[200], *argv[20];
    struct qep_options_found found;
    ck_assert_int_eq(parse("x|-fw7|--text|--version|y|--number|.5|-p|a b|--config=--help|--|--flag",
                           buf, argv, &found),
                     QEP_OK);
    ck_assert(got.flag && got.whole == 7 && got.number > 0.4 && got.number < 0.6);
    ck_assert(got.number_given && got.choice == NULL);
    ck_assert_str_eq(got.text, "--version");
    ck_assert_str_eq(got.path, "a b");
    ck_assert_str_eq(got.config, "--help");
    ck_assert(!found.help && !found.version);
    ck_assert_mem_eq(found.given, given, sizeof given);
    ck_assert_str_eq(found.positional[0], "x");
    ck_assert_str_eq(found.positional[2], "--flag");
    ck_assert_int_eq(parse("--text|-h|--vers", buf, argv, &found), QEP_OK);
    ck_assert(!found.help && found.version);
    ck_assert_int_eq(parse("-fh", buf, argv, &found), QEP_OK);
    ck_assert(found.help && !found.version && got.flag);
}
END_TEST

static enum qep_status from_json(const struct qep_options_found *found, const char *json) {
    return qep_options_from_json(tables, 2, found, "F", json, strlen(json));
}

START_TEST(a_file_gives_what_the_command_line_does_not) {
    char buf[200], *argv[20];
    struct qep_options_found found;
    ck_assert_int_eq(parse("--whole|1|--path|mine", buf, argv, &found), QEP_OK);
    ck_assert_int_eq(from_json(&found, "{\"whole\": 2, \"path\": \"its\", \"flag\": true, "
                                       "\"text\": \"a\\u00e9\", \"choice\": \"two\"}"),
                     QEP_OK);
    ck_assert(got.flag && got.whole == 1 && !got.number_given);
    ck_assert_str_eq(got.path, "mine");
    ck_assert_str_eq(got.text, "a\xc3\xa9");
    ck_assert_str_eq(got.choice, "two");
    ck_assert_int_eq(parse("", buf, argv, &found), QEP_OK);
    ck_assert_int_eq(from_json(&found, "{\"whole\": 8999999999999999999, \"number\": 1e-1, "
                                       "\"flag\": false, \"text\": null, \"path\": null}"),
                     QEP_OK);
    ck_assert(!got.flag && got.text == NULL && got.path == NULL && got.number_given);
    ck_assert_int_eq(got.whole, 8999999999999999999);
    ck_assert(got.number > 0.09 && got.number < 0.11);
    ck_assert_int_eq(from_json(&found, "{}"), QEP_OK);
}
END_TEST

static const struct {
    const char *json, *error;
} files[] = {
    {"[]", "F: expected a JSON object, found a list"},
    {"", "F: invalid JSON at byte 0: unexpected end"},
    {"{\"none\": null}", "F: \"none\": not an option that a file can give"},
    {"{\"w\": 1}", "F: \"w\": not an option that a file can give"},
    {"{\"whol\": 1}", "F: \"whol\": not an option that a file can give"},
    {"{\"help\": false}", "F: \"help\": not an option that a file can give"},
    {"{\"version\": true}", "F: \"version\": not an option that a file can give"},
    {"{\"config\": null}", "F: \"config\": not an option that a file can give"},
    {"{\"flag\\u0000\": true}", "F: \"flag\" and a NUL: not an option that a file can give"},
    {"{\"flag\": true, \"flag\": true}", "F: \"flag\": expected once, found again"},
    {"{\"text\": null, \"whole\": 1, \"text\": null}", "F: \"text\": expected once, found again"},
    {"{\"flag\": \"yes\"}", "F: \"flag\": expected true or false, found \"yes\""},
    {"{\"flag\": 1}", "F: \"flag\": expected true or false, found 1"},
    {"{\"whole\": 1.5}",
     "F: \"whole\": expected a whole number in -5..9000000000000000000, found 1.5"},
    {"{\"whole\": -6}",
     "F: \"whole\": expected a whole number in -5..9000000000000000000, found -6"},
    {"{\"whole\": \"1\"}",
     "F: \"whole\": expected a whole number in -5..9000000000000000000, found \"1\""},
    {"{\"number\": true}", "F: \"number\": expected a number in 0..1, found true"},
    {"{\"number\": -0}", "F: \"number\": expected a number in 0..1, found -0"},
    {"{\"number\": 1e300}", "F: \"number\": expected a number in 0..1, found 1e300"},
    {"{\"text\": false}", "F: \"text\": expected a string, found false"},
    {"{\"text\": 5}", "F: \"text\": expected a string, found 5"},
    {"{\"text\": []}", "F: \"text\": expected a string, found a list"},
    {"{\"text\": \"a\\u0000b\"}", "F: \"text\": expected a string, found \"a\" and a NUL"},
    {"{\"path\": \"\"}", "F: \"path\": expected a path, found \"\""},
    {"{\"path\": {}}", "F: \"path\": expected a path, found an object"},
    {"{\"choice\": \"three\"}", "F: \"choice\": expected one of one|two, found \"three\""},
    {"{\"choice\": 1}", "F: \"choice\": expected one of one|two, found 1"},
};

/* Whether the command line gives the option or not. */
START_TEST(files_that_are_refused) {
    char buf[200], *argv[20];
    struct qep_options_found found;
    const char *line = "-f|-w1|--text|a|--number|0|--path|p|--choice|one";
    for (int overridden = 0; overridden < 2; overridden++) {
        ck_assert_int_eq(parse(overridden ? line : "", buf, argv, &found), QEP_OK);
        ck_assert_int_eq(from_json(&found, files[_i].json), QEP_ERR_DATA);
        ck_assert_str_eq(qep_last_error(), files[_i].error);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("options");
    TCase *tc = tcase_create("options");
    tcase_add_loop_test(tc, command_lines, 0, COUNT_OF(lines));
    tcase_add_test(tc, what_a_command_line_gives);
    tcase_add_test(tc, a_file_gives_what_the_command_line_does_not);
    tcase_add_loop_test(tc, files_that_are_refused, 0, COUNT_OF(files));
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

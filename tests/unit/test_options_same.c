/* Ranks compare their command lines, over the threads transport: what is told apart, what is named,
 * and that a rank with an error, one that asks for help and a good one meet in the same place. */
#include "cli/options_same.h"

#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

enum { NUM_RANKS = 3, NUM_ROWS = 7 };

struct rank {
    struct qep_comm *comm;
    bool flag, sharp_given;
    int64_t whole, mine;
    double sharp;
    const char *text, *file, *choice;
    struct qep_option rows[NUM_ROWS];
    struct qep_option_table tables[2];
    char words[300], *argv[20];
    struct qep_options_found found;
    enum qep_options_scope scope;
    enum qep_status st;
    char error[QEP_ERROR_MAX];
};

static void set_up(struct rank *r) {
    const struct qep_option rows[NUM_ROWS] = {
        {.name = "flag", .short_name = 'f', .kind = QEP_OPTION_FLAG, .target = &r->flag},
        {.name = "whole", .kind = QEP_OPTION_INT, .target = &r->whole, .max = 1e16},
        {.name = "text", .kind = QEP_OPTION_STRING, .target = &r->text},
        {.name = "mine", .kind = QEP_OPTION_INT, .target = &r->mine, .max = 9, .per_rank = true},
        {.name = "sharp",
         .kind = QEP_OPTION_DOUBLE,
         .target = &r->sharp,
         .max = 9,
         .given = &r->sharp_given},
        {.name = "file", .kind = QEP_OPTION_CONFIG_FILE, .target = &r->file},
        {.name = "choice", .kind = QEP_OPTION_CHOICE, .target = &r->choice, .choices = "a|b"}};
    memset(r, 0, sizeof *r);
    r->whole = 5;
    r->choice = "a";
    memcpy(r->rows, rows, sizeof rows);
    r->tables[0] = (struct qep_option_table){r->rows, 3};
    r->tables[1] = (struct qep_option_table){r->rows + 3, NUM_ROWS - 3};
}

/* Words of a command line, separated by '|'. */
static void parse(struct rank *r, const char *line) {
    int argc = 1;
    r->argv[0] = r->words;
    strcpy(r->words, line);
    for (char *p = r->words; *line != '\0' && p != NULL;) {
        r->argv[argc++] = p;
        p = strchr(p, '|');
        if (p != NULL)
            *p++ = '\0';
    }
    ck_assert_int_eq(qep_options_parse(r->tables, 2, argc, r->argv, &r->found), QEP_OK);
}

static void *compare(void *p) {
    struct rank *r = p;
    r->st = qep_options_same(r->comm, r->tables, 2, &r->found, r->scope);
    snprintf(r->error, sizeof r->error, "%s", r->st == QEP_OK ? "" : qep_last_error());
    qep_comm_destroy(r->comm);
    return NULL;
}

/* Every rank ends alike; rank `odd` has line `b`, the others `a`. */
static void run(int odd, enum qep_options_scope scope, const char *a, const char *b,
                const char *error) {
    static struct rank ranks[NUM_RANKS];
    struct qep_comm *comms[NUM_RANKS];
    pthread_t threads[NUM_RANKS];
    ck_assert_int_eq(qep_comm_threads_create(NUM_RANKS, comms), QEP_OK);
    for (int i = 0; i < NUM_RANKS; i++) {
        set_up(&ranks[i]);
        parse(&ranks[i], i == odd ? b : a);
        ranks[i].comm = comms[i];
        ranks[i].scope = scope;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, compare, &ranks[i]), 0);
    }
    for (int i = 0; i < NUM_RANKS; i++) {
        pthread_join(threads[i], NULL);
        ck_assert_msg(ranks[i].st == (error == NULL ? QEP_OK : QEP_ERR_USAGE), "%s", b);
        ck_assert_str_eq(ranks[i].error, error == NULL ? "" : error);
    }
}

/* What rank 2 is told to have when ranks 0 and 1 have `a`; NULL: nothing differs. */
static const struct {
    const char *a, *b, *error;
} lines[] = {
    {"", "", NULL},
    {"--whole|5|--choice|a|--mine|1", "--mine|2", NULL},
    {"-f|--text|x|--whole=07", "--whole|7|--te=x|--fl", NULL},
    {"--sharp|0.5", "--sharp=5e-1", NULL},
    {"", "--whole|6", "rank 2: --whole differs: '6', rank 0 has '5'"},
    {"--whole|9007199254740992", "--whole|9007199254740993",
     "rank 2: --whole differs: '9007199254740993', rank 0 has '9007199254740992'"},
    {"-f", "", "rank 2: --flag differs: not given, rank 0 has given"},
    {"", "--sharp|0", "rank 2: --sharp differs: '0', rank 0 has not given"},
    {"--sharp|0.1", "--sharp|0.10000000000000002",
     "rank 2: --sharp differs: '0.10000000000000002', rank 0 has '0.1'"},
    {"--text|", "", "rank 2: --text differs: not given, rank 0 has ''"},
    {"", "--text|not given", "rank 2: --text differs: 'not given', rank 0 has not given"},
    {"--choice|b", "", "rank 2: --choice differs: 'a', rank 0 has 'b'"},
    {"--choice|b", "--text|x", "rank 2: --text differs: 'x', rank 0 has not given"},
    {"--file|F", "--whole|7", "rank 2: --whole differs: '7', rank 0 has '5'"},
    {"x|y", "x", "rank 2: argument differs: 'x', rank 0 has 'x y'"},
    {"x|y", "xy", "rank 2: argument differs: 'xy', rank 0 has 'x y'"},
    {"x y", "x|y", "rank 2: argument differs: 'x y', rank 0 has 'x y'"},
    {"--help", "", "rank 2: --help differs: not given, rank 0 has given"},
    {"", "-f|--version", "rank 2: --version differs: given, rank 0 has not given"},
    {"", "--text|123456789012345678901234567890123456789012345678\xc3\xa9",
     "rank 2: --text differs: '123456789012345678901234567890123456789012345678'... (50 bytes), "
     "rank 0 has not given"},
    {"", "--text|12345678901234567890123456789012345678901234567\xc3\xa9",
     "rank 2: --text differs: '12345678901234567890123456789012345678901234567'... (49 bytes), "
     "rank 0 has not given"},
};

START_TEST(all_is_compared) {
    run(2, QEP_OPTIONS_ALL, lines[_i].a, lines[_i].b, lines[_i].error);
}
END_TEST

START_TEST(any_rank_may_be_the_odd_one) {
    run(0, QEP_OPTIONS_ALL, "", "--whole|6", "rank 1: --whole differs: '5', rank 0 has '6'");
    run(1, QEP_OPTIONS_ALL, "", "--whole|6", "rank 1: --whole differs: '6', rank 0 has '5'");
}
END_TEST

/* Before a file of options is read only what leads to it counts. */
START_TEST(the_leading_ones_come_first) {
    run(1, QEP_OPTIONS_LEADING, "-f", "--whole|6|--text|x|y", NULL);
    run(1, QEP_OPTIONS_LEADING, "--file|F", "--file|G",
        "rank 1: --file differs: 'G', rank 0 has 'F'");
    run(1, QEP_OPTIONS_LEADING, "", "-f|--file|G",
        "rank 1: --file differs: 'G', rank 0 has not given");
    run(2, QEP_OPTIONS_LEADING, "-f", "-h", "rank 2: --help differs: given, rank 0 has not given");
}
END_TEST

int main(void) {
    Suite *suite = suite_create("options_same");
    TCase *tc = tcase_create("options_same");
    tcase_add_loop_test(tc, all_is_compared, 0, COUNT_OF(lines));
    tcase_add_test(tc, any_rank_may_be_the_odd_one);
    tcase_add_test(tc, the_leading_ones_come_first);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

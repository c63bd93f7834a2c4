#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/printable.h"
#include "base/temporary.h"
#include "base/team.h"

#include <check.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

START_TEST(status_keeps_message_on_one_line) {
    ck_assert_int_eq(qep_fail(QEP_ERR_DATA, "a\nb %d", 3), QEP_ERR_DATA);
    ck_assert_str_eq(qep_last_error(), "a b 3");
    ck_assert_int_eq(qep_fail(QEP_ERR_IO, "rank 1: %s", qep_last_error()), QEP_ERR_IO);
    ck_assert_str_eq(qep_last_error(), "rank 1: a b 3");
}
END_TEST

static const struct {
    const char *text, *shown;
} printable_cases[] = {
    {"", ""},
    {"caf\xc3\xa9 \xe4\xbd\xa0 \xf0\x9f\x98\x80 ~", "caf\xc3\xa9 \xe4\xbd\xa0 \xf0\x9f\x98\x80 ~"},
    {"a\x1b[31m\x07\x7f", "a?[31m??"},
    {"\xc2\x80\xc2\x9b\xc2\x9f\xc2\xa0", "???\xc2\xa0"},
    {"\x9b"
     "31m\xff\xc3",
     "?31m??"},
    {"\xc3(\xe4\xbd\xf0\x9f\x98", "?(?????"},
    {"\xc1\x9b\xe0\x80\x9b\xed\xa0\x80\xf4\x90\x80\x80\xf8\x88\x80\x80\x80", "?????????????????"},
    {"\xe2\x80\xaa\xe2\x80\xae\xe2\x80\xaf", "??\xe2\x80\xaf"},
    {"\xe2\x81\xa5\xe2\x81\xa6\xe2\x81\xa9\xe2\x81\xaa", "\xe2\x81\xa5??\xe2\x81\xaa"},
};

START_TEST(printable_stops_what_terminals_obey) {
    char text[64];
    snprintf(text, sizeof text, "%s", printable_cases[_i].text);
    ck_assert_int_eq(qep_text_is_printable(text), strcmp(text, printable_cases[_i].shown) == 0);
    qep_text_printable(text);
    ck_assert_str_eq(text, printable_cases[_i].shown);
    ck_assert(qep_text_is_printable(text));
}
END_TEST

static const char *const words[] = {"",         "plain/dir-1.0_x", "with space", "it's",  "'",
                                    "''",       "a\"b$c`d\\e",     "-dash",      "*?[x]", "a;b|c&d",
                                    "\n tab\t", "\303\244"};

/* What a shell makes of the printed word is the text again. */
START_TEST(shell_words_come_back) {
    char word[64], command[96], back[64] = "";
    qep_text_shell_word(words[_i], word, sizeof word);
    snprintf(command, sizeof command, "printf %%s %s", word);
    FILE *shell = popen(command, "r");
    ck_assert_ptr_nonnull(shell);
    size_t n = fread(back, 1, sizeof back - 1, shell);
    ck_assert_int_eq(pclose(shell), 0);
    ck_assert_uint_eq(n, strlen(words[_i]));
    ck_assert_str_eq(back, words[_i]);
}
END_TEST

START_TEST(messages_are_printable) {
    char dir[] = "/tmp/qep-base-XXXXXX", path[64], *data = NULL;
    size_t len = 0;
    qep_fail(QEP_ERR_DATA, "x\r\n\ty \x1b]0;title\x07 \xc2\x9b%s", "\xe2\x80\xae");
    ck_assert_str_eq(qep_last_error(), "x   y ?]0;title? ??");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/err", dir);
    int saved = dup(STDERR_FILENO), fd = open(path, O_WRONLY | O_CREAT, 0600);
    ck_assert(saved >= 0 && fd >= 0);
    dup2(fd, STDERR_FILENO);
    qep_info("recipe %s", "\x1b[2Jq4\n\xff");
    qep_error_line("%s", "\xc2\x9b"
                         "A");
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(fd);
    ck_assert_int_eq(qep_file_read(path, 1000, &data, &len), QEP_OK);
    ck_assert_str_eq(data, "recipe ?[2Jq4??\nqwen-ep: ?A\n");
    free(data);
    remove(path);
    remove(dir);
}
END_TEST

START_TEST(alloc_refuses_overflow) {
    void *p = NULL;
    ck_assert_int_eq(qep_alloc(SIZE_MAX / 2, 4, "thing", &p), QEP_ERR_SYSTEM);
    ck_assert_ptr_null(p);
    ck_assert_int_eq(qep_calloc(3, 5, "thing", &p), QEP_OK);
    ck_assert_uint_eq((uintptr_t)p % 64, 0);
    free(p);
}
END_TEST

START_TEST(json_getters_check_kind_and_range) {
    static const char text[] =
        "{\"n\": 3, \"f\": 2.5, \"s\": \"x\", \"big\": 2147483648, \"nul\": null}";
    cJSON *tree = NULL;
    int64_t n = 0;
    ck_assert_int_eq(qep_json_parse(text, strlen(text), "t", &tree), QEP_OK);
    ck_assert_int_eq(qep_json_int(tree, "n", "t", 1, 10, &n), QEP_OK);
    ck_assert_int_eq(n, 3);
    ck_assert_int_eq(qep_json_int(tree, "N", "t", 1, 10, &n), QEP_ERR_DATA);
    ck_assert_int_eq(qep_json_int(tree, "f", "t", 1, 10, &n), QEP_ERR_DATA);
    ck_assert_int_eq(qep_json_int(tree, "s", "t", 1, 10, &n), QEP_ERR_DATA);
    ck_assert_int_eq(qep_json_int(tree, "big", "t", 1, 10, &n), QEP_ERR_DATA);
    ck_assert_int_eq(qep_json_int_opt(tree, "nul", "t", 1, 10, &n), QEP_OK);
    cJSON_Delete(tree);
    ck_assert_int_eq(qep_json_parse("{} x", 4, "t", &tree), QEP_ERR_DATA);
    ck_assert_int_eq(qep_json_parse("", 0, "t", &tree), QEP_ERR_DATA);
    ck_assert_int_eq(qep_json_parse("{\"a\":", 5, "t", &tree), QEP_ERR_DATA);
}
END_TEST

START_TEST(json_root_is_an_object) {
    static const struct {
        const char *text, *kind;
    } roots[] = {{"[]", "a list"},      {"[{}]", "a list"}, {"5", "a number"},
                 {"true", "a boolean"}, {"null", "null"},   {" \"{}\" ", "a string"}};
    for (size_t i = 0; i < sizeof roots / sizeof *roots; i++) {
        char message[80];
        cJSON *tree = NULL;
        snprintf(message, sizeof message, "t: expected a JSON object, found %s", roots[i].kind);
        ck_assert_int_eq(qep_json_parse(roots[i].text, strlen(roots[i].text), "t", &tree),
                         QEP_ERR_DATA);
        ck_assert_ptr_null(tree);
        ck_assert_str_eq(qep_last_error(), message);
    }
}
END_TEST

/* {"x": [FILL,FILL,...0]} with `count` values in all. */
static char *many_values(const char *fill, size_t count, size_t *len) {
    size_t n = strlen(fill), at = 6;
    char *text = malloc(count * (n + 1) + 16);
    ck_assert_ptr_nonnull(text);
    memcpy(text, "{\"x\":[", at);
    for (size_t i = 0; i < count - 3; i++) {
        memcpy(text + at, fill, n);
        at += n;
        text[at++] = ',';
    }
    memcpy(text + at, "0]}", 4);
    *len = at + 3;
    return text;
}

/* Two bytes of text are a value of a hundred bytes: the number of values is bounded, not the size.
 * Commas and brackets of strings count for nothing. */
START_TEST(json_with_too_many_values_is_refused) {
    cJSON *tree = NULL;
    size_t len = 0;
    char *text = many_values("0", QEP_JSON_MAX_VALUES + 1, &len);
    ck_assert_int_eq(qep_json_parse(text, len, "m.json", &tree), QEP_ERR_DATA);
    ck_assert_str_eq(qep_last_error(), "m.json: expected at most 4194304 values, found 4194305");
    free(text);
    text = many_values("\",[{\\\",\"", 1000000, &len);
    ck_assert_msg(qep_json_parse(text, len, "m.json", &tree) == QEP_OK, "%s", qep_last_error());
    cJSON_Delete(tree);
    free(text);
}
END_TEST

START_TEST(file_atomic_write_and_read) {
    char dir[] = "/tmp/qep-base-XXXXXX", *path = NULL, *data = NULL;
    size_t len = 0;
    ck_assert_ptr_nonnull(mkdtemp(dir));
    ck_assert_int_eq(qep_path_join(dir, "a", &path), QEP_OK);
    ck_assert_int_eq(qep_file_write_atomic(path, "hello", 5), QEP_OK);
    ck_assert_int_eq(qep_file_read(path, 100, &data, &len), QEP_OK);
    ck_assert_uint_eq(len, 5);
    ck_assert_str_eq(data, "hello");
    free(data);
    ck_assert_int_eq(qep_file_read(path, 4, &data, &len), QEP_ERR_DATA);
    ck_assert_int_eq(qep_file_read(dir, 100, &data, &len), QEP_ERR_DATA);
    ck_assert_int_eq(qep_file_write_atomic("/no/such/dir/x", "a", 1), QEP_ERR_CANTCREATE);
    remove(path);
    remove(dir);
    free(path);
}
END_TEST

enum { NUM_KINDS = 5 };
static const char *const kind_messages[NUM_KINDS] = {
    "is a FIFO, expected a regular file", "is a socket, expected a regular file",
    "is a directory, expected a regular file", "is a dangling link to no-such-file",
    "is a dangling link to x"};

static void make_kind(int kind, const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = -1;
    switch (kind) {
    case 0:
        ck_assert_int_eq(mkfifo(path, 0600), 0);
        break;
    case 1:
        snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
        close(fd);
        break;
    case 2:
        ck_assert_int_eq(mkdir(path, 0700), 0);
        break;
    default: /* nowhere, and to itself */
        ck_assert_int_eq(symlink(kind == 3 ? "no-such-file" : "x", path), 0);
    }
}

/* The test's own time limit finds an open that waits. */
START_TEST(strict_open_wants_a_regular_file) {
    char dir[] = "/tmp/qep-base-XXXXXX", path[64], message[160], *data = NULL;
    uint64_t bytes = 0;
    size_t len = 0;
    int fd = 0;
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/x", dir);
    ck_assert(!qep_path_exists(path));
    ck_assert_int_eq(qep_file_open(path, &fd, &bytes), QEP_ERR_NOINPUT);
    make_kind(_i, path);
    ck_assert(qep_path_exists(path));
    ck_assert_int_eq(qep_file_open(path, &fd, &bytes), QEP_ERR_DATA);
    ck_assert_int_eq(fd, -1);
    snprintf(message, sizeof message, "%s: %s", path, kind_messages[_i]);
    ck_assert_msg(strncmp(qep_last_error(), message, strlen(message)) == 0, "%s", qep_last_error());
    ck_assert_int_eq(qep_file_read(path, 100, &data, &len), QEP_ERR_DATA);
    ck_assert_ptr_null(data);
    if (_i > 0) /* a FIFO is waited for */
        ck_assert_int_eq(qep_input_read(path, 100, &data, &len), QEP_ERR_NOINPUT);
    ck_assert_int_eq(qep_path_check_dir(path), _i == 2 ? QEP_OK : QEP_ERR_NOINPUT);
    if (_i != 2)
        ck_assert_ptr_nonnull(strstr(qep_last_error(), "is not a directory"));
    remove(path);
    ck_assert_int_eq(qep_path_check_dir(path), QEP_ERR_NOINPUT);
    ck_assert_ptr_nonnull(strstr(qep_last_error(), "no such directory"));
    remove(dir);
}
END_TEST

START_TEST(links_are_followed) {
    char dir[] = "/tmp/qep-base-XXXXXX", path[64], link[64], *data = NULL;
    size_t len = 0;
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/x", dir);
    snprintf(link, sizeof link, "%s/link", dir);
    ck_assert_int_eq(qep_file_write_atomic(path, "hello", 5), QEP_OK);
    ck_assert_int_eq(symlink("x", link), 0);
    ck_assert_int_eq(qep_file_read(link, 100, &data, &len), QEP_OK);
    ck_assert_str_eq(data, "hello");
    free(data);
    ck_assert_int_eq(qep_input_read(link, 5, &data, &len), QEP_OK);
    ck_assert_str_eq(data, "hello");
    free(data);
    remove(link);
    remove(path);
    remove(dir);
}
END_TEST

static void *feed_fifo(void *path) {
    int fd = open(path, O_WRONLY);
    ck_assert_int_eq(qep_file_write_all(fd, path, "he", 2), QEP_OK);
    usleep(20000);
    ck_assert_int_eq(qep_file_write_all(fd, path, "llo", 3), QEP_OK);
    close(fd);
    return NULL;
}

/* max_bytes holds although a pipe has no size. */
START_TEST(inputs_may_be_pipes) {
    char dir[] = "/tmp/qep-base-XXXXXX", path[64], *data = NULL;
    size_t len = 0, max = _i == 0 ? 5 : 4;
    pthread_t thread;
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/x", dir);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    ck_assert_int_eq(pthread_create(&thread, NULL, feed_fifo, path), 0);
    ck_assert_int_eq(qep_input_read(path, max, &data, &len), _i == 0 ? QEP_OK : QEP_ERR_DATA);
    pthread_join(thread, NULL);
    if (_i == 0)
        ck_assert_str_eq(data, "hello");
    else
        ck_assert_ptr_null(data);
    free(data);
    remove(path);
    remove(dir);
}
END_TEST

static int alarms;

static void on_alarm(int number) {
    (void)number;
    if (++alarms == 2) /* one signal that does not ask to stop, then one that does */
        qep_temporaries_remove();
}

/* Nobody writes: being asked to stop ends the wait, also when that came before it. */
START_TEST(being_asked_to_stop_ends_the_wait_for_a_pipe) {
    char dir[] = "/tmp/qep-base-XXXXXX", path[64], *data = NULL;
    const struct itimerval soon = {.it_interval = {0, 100000}, .it_value = {0, 100000}};
    struct sigaction action = {.sa_handler = on_alarm};
    size_t len = 0;
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/x", dir);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    int keeper = _i == 0 ? -1 : open(path, O_RDWR); /* a writer that is silent */
    sigaction(SIGALRM, &action, NULL);
    if (_i == 2)
        qep_temporaries_remove();
    else
        setitimer(ITIMER_REAL, &soon, NULL);
    ck_assert_int_eq(qep_input_read(path, 100, &data, &len), QEP_ERR_INTERRUPTED);
    ck_assert_ptr_nonnull(strstr(qep_last_error(), "interrupted"));
    ck_assert_int_eq(alarms, _i == 2 ? 0 : 2);
    ck_assert_int_eq(qep_input_read("README.md", 1 << 20, &data, &len), QEP_OK); /* no wait */
    free(data);
    if (keeper >= 0)
        close(keeper);
    remove(path);
    remove(dir);
}
END_TEST

struct count_arg {
    size_t hits[1000];
};

static void count_items(void *p, int thread_idx, int num_threads) {
    struct count_arg *arg = p;
    size_t begin, end;
    qep_team_split(1000, 7, thread_idx, num_threads, &begin, &end);
    for (size_t i = begin; i < end; i++)
        arg->hits[i]++;
}

START_TEST(team_covers_every_item_once) {
    struct qep_team *team = NULL;
    struct count_arg arg = {{0}};
    ck_assert_int_eq(qep_team_create(_i + 1, &team), QEP_OK);
    for (int run = 0; run < 200; run++)
        qep_team_run(team, count_items, &arg);
    for (int i = 0; i < 1000; i++)
        ck_assert_uint_eq(arg.hits[i], 200);
    qep_team_destroy(team);
}
END_TEST

struct nested_arg {
    struct qep_team *team;
    struct count_arg counts[4];
};

static void run_nested(void *p, int thread_idx, int num_threads) {
    struct nested_arg *arg = p;
    (void)num_threads;
    qep_team_run(arg->team, count_items, &arg->counts[thread_idx]);
}

START_TEST(team_runs_nested_jobs_in_place) {
    struct nested_arg arg = {.team = NULL};
    ck_assert_int_eq(qep_team_create(4, &arg.team), QEP_OK);
    qep_team_run(arg.team, run_nested, &arg);
    for (int t = 0; t < 4; t++)
        for (int i = 0; i < 1000; i++)
            ck_assert_uint_eq(arg.counts[t].hits[i], 1);
    qep_team_destroy(arg.team);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("base");
    TCase *tc = tcase_create("base");
    tcase_add_test(tc, status_keeps_message_on_one_line);
    tcase_add_loop_test(tc, shell_words_come_back, 0, sizeof words / sizeof *words);
    tcase_add_loop_test(tc, printable_stops_what_terminals_obey, 0,
                        (int)(sizeof printable_cases / sizeof *printable_cases));
    tcase_add_test(tc, messages_are_printable);
    tcase_add_test(tc, alloc_refuses_overflow);
    tcase_add_test(tc, json_getters_check_kind_and_range);
    tcase_add_test(tc, json_root_is_an_object);
    tcase_add_test(tc, json_with_too_many_values_is_refused);
    tcase_add_test(tc, file_atomic_write_and_read);
    tcase_add_loop_test(tc, strict_open_wants_a_regular_file, 0, NUM_KINDS);
    tcase_add_test(tc, links_are_followed);
    tcase_add_loop_test(tc, inputs_may_be_pipes, 0, 2);
    tcase_add_loop_test(tc, being_asked_to_stop_ends_the_wait_for_a_pipe, 0, 3);
    tcase_add_loop_test(tc, team_covers_every_item_once, 0, 5);
    tcase_add_test(tc, team_runs_nested_jobs_in_place);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

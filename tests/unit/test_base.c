#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/team.h"

#include <check.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

START_TEST(status_keeps_message_on_one_line) {
    ck_assert_int_eq(qep_fail(QEP_ERR_DATA, "a\nb %d", 3), QEP_ERR_DATA);
    ck_assert_str_eq(qep_last_error(), "a b 3");
    ck_assert_int_eq(qep_fail(QEP_ERR_IO, "rank 1: %s", qep_last_error()), QEP_ERR_IO);
    ck_assert_str_eq(qep_last_error(), "rank 1: a b 3");
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
    ck_assert_int_eq(qep_file_read(dir, 100, &data, &len), QEP_ERR_NOINPUT);
    ck_assert_int_eq(qep_file_write_atomic("/no/such/dir/x", "a", 1), QEP_ERR_CANTCREATE);
    remove(path);
    remove(dir);
    free(path);
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
    tcase_add_test(tc, alloc_refuses_overflow);
    tcase_add_test(tc, json_getters_check_kind_and_range);
    tcase_add_test(tc, file_atomic_write_and_read);
    tcase_add_loop_test(tc, team_covers_every_item_once, 0, 5);
    tcase_add_test(tc, team_runs_nested_jobs_in_place);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

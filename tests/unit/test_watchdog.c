#include "base/clock.h"
#include "base/output.h"
#include "dist/drain.h"
#include "dist/watchdog.h"

#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs body in a child whose stderr comes back in text; returns its exit code, -1 for a signal. */
static int run_child(void (*body)(void), char *text, size_t cap) {
    int ends[2], status = 0;
    ck_assert_int_eq(pipe(ends), 0);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        body();
        _exit(0);
    }
    close(ends[1]);
    size_t len = 0;
    for (ssize_t n; len < cap - 1 && (n = read(ends[0], text + len, cap - 1 - len)) > 0;)
        len += (size_t)n;
    text[len] = '\0';
    close(ends[0]);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static struct qep_watchdog *start(double timeout_s, struct qep_comm **comm) {
    struct qep_watchdog *dog = NULL;
    if (qep_comm_self_create(comm) != QEP_OK ||
        qep_watchdog_create(*comm, timeout_s, &dog) != QEP_OK)
        _exit(99);
    return dog;
}

static void stall(void) {
    struct qep_comm *comm;
    struct qep_watchdog *dog = start(0.4, &comm);
    qep_watchdog_stamp(dog, "dispatch", 7, 12);
    printf("before"); /* what stdout holds is not lost */
    qep_sleep_us(10000000);
}

START_TEST(a_stall_ends_the_job) {
    char text[1000];
    double start_s = qep_now_s();
    ck_assert_int_eq(run_child(stall, text, sizeof text), 75);
    ck_assert_str_eq(text,
                     "qwen-ep: rank 0: no progress for 0.4 s in dispatch, layer 7, step 12\n");
    ck_assert(qep_now_s() - start_s < 5.0);
}
END_TEST

static void stall_waiting(void) {
    struct qep_comm *comm;
    struct qep_watchdog *dog = start(0.2, &comm);
    comm->waiting_for = 3;
    qep_watchdog_stamp(dog, "load", -1, -1);
    qep_sleep_us(10000000);
}

START_TEST(the_line_names_whom_we_wait_for) {
    char text[1000];
    ck_assert_int_eq(run_child(stall_waiting, text, sizeof text), 75);
    ck_assert_str_eq(text, "qwen-ep: rank 0: no progress for 0.2 s in load, waiting for rank 3\n");
}
END_TEST

static void move_and_rest(void) {
    struct qep_comm *comm;
    struct qep_watchdog *dog = start(0.4, &comm);
    for (int i = 0; i < 10; i++) {
        qep_watchdog_stamp(dog, "decode", 0, i);
        qep_sleep_us(100000);
    }
    qep_watchdog_rest(dog);
    qep_sleep_us(1000000);
    qep_watchdog_stamp(dog, "decode", 0, 11);
    qep_sleep_us(100000);
    qep_watchdog_destroy(dog);
    qep_sleep_us(600000);
    qep_comm_destroy(comm);
}

START_TEST(progress_and_rest_keep_it_quiet) {
    char text[1000];
    ck_assert_int_eq(run_child(move_and_rest, text, sizeof text), 0);
    ck_assert_str_eq(text, "");
}
END_TEST

static void stopped_for_long(void) {
    struct qep_comm *comm;
    pid_t me = getpid(), helper = fork();
    if (helper == 0) {
        qep_sleep_us(200000);
        kill(me, SIGSTOP);
        qep_sleep_us(2000000);
        kill(me, SIGCONT);
        _exit(0);
    }
    struct qep_watchdog *dog = start(1.0, &comm);
    qep_watchdog_stamp(dog, "decode", 0, 0);
    qep_sleep_us(500000); /* continues 2.2 s after the stamp */
    waitpid(helper, NULL, 0);
    qep_watchdog_destroy(dog);
    qep_comm_destroy(comm);
}

START_TEST(time_stopped_does_not_count) {
    char text[1000];
    ck_assert_int_eq(run_child(stopped_for_long, text, sizeof text), 0);
    ck_assert_str_eq(text, "");
}
END_TEST

static void *stalled_rank(void *comm) {
    struct qep_watchdog *dog = NULL;
    if (qep_watchdog_create(comm, 0.3, &dog) != QEP_OK)
        _exit(99);
    qep_watchdog_stamp(dog, "combine", 1, 2);
    qep_sleep_us(10000000);
    return NULL;
}

static void stall_all(void) {
    struct qep_comm *comms[3];
    pthread_t threads[3];
    if (qep_comm_threads_create(3, comms) != QEP_OK)
        _exit(99);
    for (int r = 0; r < 3; r++)
        pthread_create(&threads[r], NULL, stalled_rank, comms[r]);
    for (int r = 0; r < 3; r++)
        pthread_join(threads[r], NULL);
}

START_TEST(only_the_lowest_rank_speaks) {
    char text[1000];
    int code = run_child(stall_all, text, sizeof text);
    ck_assert_msg(code == 75, "exit code %d: %s", code, text);
    ck_assert_str_eq(text, "qwen-ep: rank 0: no progress for 0.3 s in combine, layer 1, step 2\n");
}
END_TEST

START_TEST(without_timeout_there_is_no_dog) {
    struct qep_comm *comm = NULL;
    struct qep_watchdog *dog = (void *)&comm;
    ck_assert_int_eq(qep_comm_self_create(&comm), QEP_OK);
    ck_assert_int_eq(qep_watchdog_create(comm, 0.0, &dog), QEP_OK);
    ck_assert_ptr_null(dog);
    qep_watchdog_stamp(dog, "x", 1, 1);
    qep_watchdog_rest(dog);
    qep_watchdog_destroy(dog);
    qep_comm_destroy(comm);
}
END_TEST

START_TEST(drain_is_a_flag) {
    int ends[2];
    char byte;
    ck_assert_int_eq(qep_drain_install(), QEP_OK);
    ck_assert(!qep_drain_requested());
    raise(_i);
    ck_assert(qep_drain_requested());
    /* a blocking read ends when the signal comes */
    ck_assert_int_eq(pipe(ends), 0);
    pid_t me = getpid(), helper = fork();
    if (helper == 0) {
        qep_sleep_us(200000);
        kill(me, SIGUSR1);
        _exit(0);
    }
    ck_assert_int_eq(read(ends[0], &byte, 1), -1);
    ck_assert_int_eq(errno, EINTR);
    waitpid(helper, NULL, 0);
}
END_TEST

/* An output that the process has open when it is asked to stop, or gives up. */
static char out_dir[] = "/tmp/qep-watchdog-XXXXXX", out_path[64];

static struct qep_output *open_output(void) {
    struct qep_output *out = NULL;
    ck_assert_ptr_nonnull(mkdtemp(out_dir));
    snprintf(out_path, sizeof out_path, "%s/out", out_dir);
    ck_assert_int_eq(qep_output_create(out_path, "--out", QEP_OUTPUT_SEEKS, &out), QEP_OK);
    ck_assert_int_eq(rmdir(out_dir), -1);
    return out;
}

START_TEST(a_drain_removes_outputs_at_once) {
    struct qep_output *out = open_output();
    ck_assert_int_eq(qep_drain_install(), QEP_OK);
    errno = 0;
    raise(_i);
    ck_assert_int_eq(errno, 0);
    ck_assert_int_eq(rmdir(out_dir), 0);
    ck_assert_int_eq(qep_output_finish(out), QEP_ERR_INTERRUPTED);
    qep_output_destroy(out);
}
END_TEST

static void give_up_with_output(void) {
    struct qep_comm *comm = NULL;
    struct qep_output *out = NULL;
    if (qep_comm_self_create(&comm) != QEP_OK ||
        qep_output_create(out_path, "--out", QEP_OUTPUT_SEEKS, &out) != QEP_OK)
        _exit(99);
    qep_comm_give_up(comm, QEP_ERR_DATA, "no more");
}

START_TEST(giving_up_removes_outputs) {
    char text[1000];
    ck_assert_ptr_nonnull(mkdtemp(out_dir));
    snprintf(out_path, sizeof out_path, "%s/out", out_dir);
    ck_assert_int_eq(run_child(give_up_with_output, text, sizeof text), QEP_ERR_DATA);
    ck_assert_str_eq(text, "qwen-ep: rank 0: no more\n");
    ck_assert_int_eq(rmdir(out_dir), 0);
}
END_TEST

START_TEST(an_ignored_hangup_stays_ignored) {
    struct sigaction now;
    signal(SIGHUP, SIG_IGN);
    ck_assert_int_eq(qep_drain_install(), QEP_OK);
    raise(SIGHUP);
    ck_assert(!qep_drain_requested());
    qep_drain_uninstall();
    ck_assert(sigaction(SIGHUP, NULL, &now) == 0 && now.sa_handler == SIG_IGN);
    signal(SIGHUP, SIG_DFL);
    ck_assert_int_eq(qep_drain_install(), QEP_OK);
    qep_drain_uninstall();
    ck_assert(sigaction(SIGHUP, NULL, &now) == 0 && now.sa_handler == SIG_DFL);
}
END_TEST

static void interrupt_twice(void) {
    if (qep_drain_install() != QEP_OK)
        _exit(99);
    raise(SIGINT);
    raise(SIGINT);
}

START_TEST(a_second_interrupt_ends_the_process) {
    char text[1000];
    ck_assert_int_eq(run_child(interrupt_twice, text, sizeof text), -1);
}
END_TEST

int main(void) {
    static const int signals[] = {SIGUSR1, SIGTERM, SIGINT, SIGHUP};
    Suite *suite = suite_create("watchdog");
    TCase *tcase = tcase_create("watchdog");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_stall_ends_the_job);
    tcase_add_test(tcase, the_line_names_whom_we_wait_for);
    tcase_add_test(tcase, progress_and_rest_keep_it_quiet);
    tcase_add_test(tcase, time_stopped_does_not_count);
    tcase_add_test(tcase, only_the_lowest_rank_speaks);
    tcase_add_test(tcase, without_timeout_there_is_no_dog);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        tcase_add_loop_test(tcase, drain_is_a_flag, signals[i], signals[i] + 1);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        tcase_add_loop_test(tcase, a_drain_removes_outputs_at_once, signals[i], signals[i] + 1);
    tcase_add_test(tcase, giving_up_removes_outputs);
    tcase_add_test(tcase, an_ignored_hangup_stays_ignored);
    tcase_add_test(tcase, a_second_interrupt_ends_the_process);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

#include "base/clock.h"
#include "base/log.h"
#include "base/output.h"
#include "base/progress.h"
#include "dist/drain.h"
#include "dist/watchdog_internal.h"

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
    ck_assert_str_eq(text,
                     "qwen-ep: rank 0: no progress for 0.2 s in load: all ranks wait, this one for "
                     "rank 3\n");
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

/* ---- ranks that are threads; what each does is its own ---- */

enum { NUM_PLAYERS = 4 };
struct player {
    struct qep_comm *comm;
    void (*act)(struct qep_comm *comm, struct qep_watchdog *dog);
};

/* All ranks meet in the end, so those that do nothing wait for the others. */
static void *play(void *arg) {
    struct player *player = arg;
    struct qep_watchdog *dog = NULL;
    if (qep_watchdog_create(player->comm, 0.6, &dog) != QEP_OK)
        _exit(99);
    qep_watchdog_stamp(dog, "start", -1, -1);
    player->act(player->comm, dog);
    if (qep_comm_barrier(player->comm) != QEP_OK)
        _exit(98);
    qep_watchdog_destroy(dog);
    qep_comm_destroy(player->comm);
    return NULL;
}

static void play_all(void (*act)(struct qep_comm *comm, struct qep_watchdog *dog)) {
    struct qep_comm *comms[NUM_PLAYERS];
    struct player players[NUM_PLAYERS];
    pthread_t threads[NUM_PLAYERS];
    if (qep_comm_threads_create(NUM_PLAYERS, comms) != QEP_OK)
        _exit(99);
    for (int r = 0; r < NUM_PLAYERS; r++) {
        players[r] = (struct player){comms[r], act};
        pthread_create(&threads[r], NULL, play, &players[r]);
    }
    for (int r = 0; r < NUM_PLAYERS; r++)
        pthread_join(threads[r], NULL);
}

static void two_is_stuck(struct qep_comm *comm, struct qep_watchdog *dog) {
    if (comm->rank == 2) {
        qep_watchdog_stamp(dog, "experts", 5, 6);
        qep_sleep_us(10000000);
    }
}

static void play_stuck(void) {
    play_all(two_is_stuck);
}

/* It waits for its receiver, who never comes. */
static void sender_waits(struct qep_comm *comm, struct qep_watchdog *dog) {
    size_t none[NUM_PLAYERS] = {0}, sent[NUM_PLAYERS] = {0}, offset[NUM_PLAYERS] = {0};
    char byte = 0;
    sent[3] = 1;
    if (comm->rank == 0)
        comm->ops->alltoallv(comm, &byte, sent, offset, NULL, none, offset);
    if (comm->rank != 3)
        return;
    qep_watchdog_stamp(dog, "loading", -1, -1);
    qep_sleep_us(10000000);
}

static void play_sender(void) {
    play_all(sender_waits);
}

START_TEST(the_rank_that_is_stuck_is_named) {
    static void (*const plays[])(void) = {play_stuck, play_sender};
    static const char *const ends[] = {"rank 2 is stuck in experts, layer 5, step 6\n",
                                       "rank 3 is stuck in loading\n"};
    char text[1000];
    ck_assert_int_eq(run_child(plays[_i], text, sizeof text), 75);
    ck_assert_ptr_eq(strstr(text, "qwen-ep: rank 0: no progress for 0.6 s in start: "), text);
    ck_assert_str_eq(strstr(text, "start: ") + 7, ends[_i]);
}
END_TEST

/* Four times the limit, in pieces; rank 1 stamps, rank 2 counts, rank 3 waits for a person. */
static void one_works(struct qep_comm *comm, struct qep_watchdog *dog) {
    if (comm->rank == 0)
        return;
    if (comm->rank == 3)
        qep_outside_begin();
    for (int i = 0; i < 8; i++) {
        qep_sleep_us(100000);
        if (comm->rank == 1)
            qep_watchdog_stamp(dog, "decode", -1, i);
    }
    if (comm->rank == 3)
        qep_outside_end();
    for (int i = 0; comm->rank == 2 && i < 16; i++) {
        qep_sleep_us(100000);
        qep_progress(1);
    }
}

static void play_working(void) {
    play_all(one_works);
}

START_TEST(a_peer_that_works_is_waited_for) {
    char text[1000];
    ck_assert_int_eq(run_child(play_working, text, sizeof text), 0);
    ck_assert_str_eq(text, "");
}
END_TEST

static void limit_changes(void) {
    struct qep_comm *comm;
    struct qep_watchdog *dog = start(0.5, &comm);
    qep_watchdog_set_limit(dog, 0.0);
    qep_sleep_us(1200000);
    qep_error_line("none so far");
    qep_watchdog_set_limit(dog, 0.5);
    qep_sleep_us(10000000);
}

START_TEST(a_limit_of_none_never_fires) {
    char text[1000];
    ck_assert_int_eq(run_child(limit_changes, text, sizeof text), 75);
    ck_assert_str_eq(text,
                     "qwen-ep: none so far\nqwen-ep: rank 0: no progress for 0.5 s in start\n");
    qep_watchdog_stamp(NULL, "x", 1, 1);
    qep_watchdog_set_limit(NULL, 1.0);
    qep_watchdog_rest(NULL);
    qep_watchdog_destroy(NULL);
}
END_TEST

/* ---- whose fault it is, as rank 0 sees it with a limit of 10 s and a grace of 2 s ---- */

enum { NONE = QEP_NOT_WAITING, SOME = QEP_WAITING_OTHERS };
static const struct {
    const char *what;
    struct {
        double age_s, silent_s; /* silent_s < 0: has answered */
        int waiting_for;
    } peers[3];
    enum dog_verdict verdict;
    int culprit;
} cases[] = {
    {"one has time left", {{10, -1, 1}, {10, -1, 2}, {0, 1.5, NONE}}, DOG_UNKNOWN, -1},
    {"silent, all else still", {{10, -1, 1}, {9.5, -1, 2}, {0, 2, NONE}}, DOG_SILENT, 2},
    {"two silent", {{10, -1, 1}, {0, 3, NONE}, {0, 2, NONE}}, DOG_SILENT, 1},
    {"silent for a moment, one moves", {{10, -1, 1}, {3, -1, NONE}, {0, 3, NONE}}, DOG_MOVING, -1},
    {"silent for long, one moves", {{20, -1, 1}, {3, -1, NONE}, {0, 10, NONE}}, DOG_SILENT, 2},
    {"the end of the chain", {{10, -1, 2}, {10, -1, NONE}, {10, -1, NONE}}, DOG_STUCK, 2},
    {"a chain of two", {{10, -1, 2}, {10, -1, NONE}, {10, -1, 1}}, DOG_STUCK, 1},
    {"this one itself", {{10, -1, NONE}, {10, -1, 0}, {1, -1, NONE}}, DOG_STUCK, 0},
    {"one is stuck, the other moves", {{10, -1, 1}, {1, -1, NONE}, {12, -1, NONE}}, DOG_STUCK, 2},
    {"not late yet", {{10, -1, 1}, {8, -1, NONE}, {10, -1, 1}}, DOG_MOVING, -1},
    {"in a circle", {{10, -1, 1}, {10, -1, 2}, {10, -1, 0}}, DOG_CIRCLE, -1},
    {"for nobody known", {{10, -1, SOME}, {10, -1, SOME}, {10, -1, SOME}}, DOG_CIRCLE, -1},
};

START_TEST(judgement) {
    struct dog_limits limits = qep_dog_limits(10.0);
    struct dog_peer peers[3] = {0};
    struct dog_finding finding;
    for (int p = 0; p < 3; p++) {
        peers[p].fresh = cases[_i].peers[p].silent_s < 0.0;
        peers[p].silent_s = peers[p].fresh ? 0.0 : cases[_i].peers[p].silent_s;
        peers[p].state.age_s = cases[_i].peers[p].age_s;
        peers[p].state.waiting_for = cases[_i].peers[p].waiting_for;
    }
    qep_dog_judge(peers, 3, 0, &limits, &finding);
    ck_assert_msg(finding.verdict == cases[_i].verdict && finding.culprit == cases[_i].culprit,
                  "%s: verdict %d, culprit %d", cases[_i].what, (int)finding.verdict,
                  finding.culprit);
    if (finding.verdict == DOG_MOVING) {
        double least_s = cases[_i].peers[1].age_s;
        ck_assert(finding.again_s == 10.0 - least_s);
    }
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

static void terminate_twice(void) {
    if (qep_drain_install() != QEP_OK)
        _exit(99);
    raise(SIGUSR1); /* announces an end */
    qep_drain_from_peer();
    qep_sleep_us(550000);
    raise(SIGTERM);
    raise(SIGTERM); /* the same one, told twice */
    qep_error_line("still here");
    qep_sleep_us(550000);
    raise(SIGTERM);
    qep_error_line("here too");
}

START_TEST(a_second_terminate_ends_the_process) {
    char text[1000];
    ck_assert_int_eq(run_child(terminate_twice, text, sizeof text), -1);
    ck_assert_str_eq(text, "qwen-ep: still here\n");
}
END_TEST

START_TEST(a_peer_that_was_asked_asks_this_process) {
    ck_assert_int_eq(qep_drain_install(), QEP_OK);
    ck_assert(!qep_drain_was_heard());
    qep_drain_from_peer();
    ck_assert(qep_drain_requested() && qep_drain_was_heard());
    qep_drain_from_peer();
    qep_sleep_us(550000);
    raise(SIGTERM); /* the first of its own */
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
    tcase_add_loop_test(tcase, the_rank_that_is_stuck_is_named, 0, 2);
    tcase_add_test(tcase, a_peer_that_works_is_waited_for);
    tcase_add_test(tcase, a_limit_of_none_never_fires);
    tcase_add_loop_test(tcase, judgement, 0, sizeof cases / sizeof cases[0]);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        tcase_add_loop_test(tcase, drain_is_a_flag, signals[i], signals[i] + 1);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        tcase_add_loop_test(tcase, a_drain_removes_outputs_at_once, signals[i], signals[i] + 1);
    tcase_add_test(tcase, giving_up_removes_outputs);
    tcase_add_test(tcase, an_ignored_hangup_stays_ignored);
    tcase_add_test(tcase, a_second_interrupt_ends_the_process);
    tcase_add_test(tcase, a_second_terminate_ends_the_process);
    tcase_add_test(tcase, a_peer_that_was_asked_asks_this_process);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

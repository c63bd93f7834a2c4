/* The transport table over the threads transport: P ranks are P threads of this process. */
#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "dist/comm.h"
#include "dist/comm_input.h"

#include <check.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_TEST_RANKS = 8 };

struct rank_arg {
    struct qep_comm *comm;
    int round; /* free for the test */
    void (*body)(struct rank_arg *arg);
    const char *failure; /* NULL: fine */
};

#define RANK_CHECK(cond)                                                                           \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            arg->failure = #cond;                                                                  \
            return;                                                                                \
        }                                                                                          \
    } while (0)

static void *rank_main(void *p) {
    struct rank_arg *arg = p;
    arg->body(arg);
    if (arg->failure != NULL) { /* the others wait for us: end here, with the reason */
        fprintf(stderr, "rank %d of %d: %s (%s)\n", arg->comm->rank, arg->comm->num_ranks,
                arg->failure, qep_last_error());
        abort();
    }
    qep_comm_destroy(arg->comm);
    return NULL;
}

static void run_ranks(int num_ranks, int round, void (*body)(struct rank_arg *arg)) {
    struct qep_comm *comms[MAX_TEST_RANKS];
    struct rank_arg args[MAX_TEST_RANKS];
    pthread_t threads[MAX_TEST_RANKS];
    ck_assert_int_eq(qep_comm_threads_create(num_ranks, comms), QEP_OK);
    for (int r = 0; r < num_ranks; r++) {
        args[r] = (struct rank_arg){.comm = comms[r], .round = round, .body = body};
        ck_assert_int_eq(pthread_create(&threads[r], NULL, rank_main, &args[r]), 0);
    }
    for (int r = 0; r < num_ranks; r++)
        pthread_join(threads[r], NULL);
}

/* Bytes that rank `from` sends to rank `to` in a round: often none, sometimes a lot. */
static size_t pair_bytes(int from, int to, int round) {
    unsigned mix = (unsigned)from * 7919u + (unsigned)to * 104729u + (unsigned)round * 1299709u;
    mix ^= mix >> 7;
    switch (mix % 5) {
    case 0:
        return 0;
    case 1:
        return 1;
    case 2:
        return mix % 97;
    case 3:
        return 4096 + mix % 1000;
    default:
        return round % 16 == 0 ? 1000003 : 300;
    }
}

static unsigned char stamp(int from, int to, int round, size_t i) {
    return (unsigned char)(from * 31 + to * 17 + round * 7 + (int)(i % 251));
}

struct exchange_buffers {
    size_t send_bytes[MAX_TEST_RANKS], send_offset[MAX_TEST_RANKS];
    size_t recv_bytes[MAX_TEST_RANKS], recv_offset[MAX_TEST_RANKS];
    unsigned char *send, *recv;
};

static enum qep_status fill_buffers(struct exchange_buffers *x, int me, int num_ranks, int round) {
    size_t num_send = 0, num_recv = 0;
    for (int p = 0; p < num_ranks; p++) {
        x->send_bytes[p] = pair_bytes(me, p, round);
        x->recv_bytes[p] = pair_bytes(p, me, round);
        x->send_offset[p] = num_send;
        x->recv_offset[p] = num_recv + 3;
        num_send += x->send_bytes[p];
        num_recv += x->recv_bytes[p] + 3;
    }
    QEP_TRY(qep_alloc(num_send, 1, "test", (void **)&x->send));
    QEP_TRY(qep_calloc(num_recv + 3, 1, "test", (void **)&x->recv));
    for (int p = 0; p < num_ranks; p++)
        for (size_t i = 0; i < x->send_bytes[p]; i++)
            x->send[x->send_offset[p] + i] = stamp(me, p, round, i);
    return QEP_OK;
}

static bool received_stamps(const struct exchange_buffers *x, int me, int num_ranks, int round) {
    for (int p = 0; p < num_ranks; p++) {
        const unsigned char *from = x->recv + x->recv_offset[p];
        for (size_t i = 0; i < x->recv_bytes[p]; i++)
            if (from[i] != stamp(p, me, round, i))
                return false;
        if (from[x->recv_bytes[p]] != 0) /* the gap behind */
            return false;
    }
    return true;
}

static void alltoallv_body(struct rank_arg *arg) {
    struct qep_comm *comm = arg->comm;
    for (int round = 0; round < 40; round++) {
        struct exchange_buffers x;
        RANK_CHECK(fill_buffers(&x, comm->rank, comm->num_ranks, round) == QEP_OK);
        RANK_CHECK(comm->ops->alltoallv(comm, x.send, x.send_bytes, x.send_offset, x.recv,
                                        x.recv_bytes, x.recv_offset) == QEP_OK);
        RANK_CHECK(received_stamps(&x, comm->rank, comm->num_ranks, round));
        free(x.send);
        free(x.recv);
    }
}

START_TEST(alltoallv_delivers_stamped_bytes) {
    run_ranks(_i, 0, alltoallv_body);
}
END_TEST

static void nothing_body(struct rank_arg *arg) {
    size_t zero[MAX_TEST_RANKS] = {0};
    for (int i = 0; i < 100; i++)
        RANK_CHECK(arg->comm->ops->alltoallv(arg->comm, NULL, zero, zero, NULL, zero, zero) ==
                   QEP_OK);
}

START_TEST(alltoallv_of_nothing_takes_null) {
    run_ranks(_i, 0, nothing_body);
}
END_TEST

static void bcast_body(struct rank_arg *arg) {
    struct qep_comm *comm = arg->comm;
    for (int i = 0; i < 200; i++) {
        int root = i % comm->num_ranks;
        long data[3] = {comm->rank == root ? i : -1, 5, comm->rank == root ? 2 * i : -1};
        RANK_CHECK(comm->ops->bcast(comm, data, sizeof data, root) == QEP_OK);
        RANK_CHECK(data[0] == i && data[1] == 5 && data[2] == 2 * i);
        RANK_CHECK(comm->ops->bcast(comm, NULL, 0, root) == QEP_OK);
    }
}

START_TEST(bcast_from_every_root) {
    run_ranks(_i, 0, bcast_body);
}
END_TEST

static void allgather_body(struct rank_arg *arg) {
    struct qep_comm *comm = arg->comm;
    int all[2 * MAX_TEST_RANKS];
    for (int i = 0; i < 200; i++) {
        int mine[2] = {comm->rank * 1000 + i, i};
        int *own = &all[2 * comm->rank];
        memcpy(own, mine, sizeof mine);
        RANK_CHECK(comm->ops->allgather(comm, i % 2 ? own : mine, all, sizeof mine) == QEP_OK);
        for (int r = 0; r < comm->num_ranks; r++)
            RANK_CHECK(all[2 * r] == r * 1000 + i && all[2 * r + 1] == i);
        RANK_CHECK(qep_comm_barrier(comm) == QEP_OK);
    }
}

START_TEST(allgather_in_rank_order) {
    run_ranks(_i, 0, allgather_body);
}
END_TEST

/* arg->round is a bit mask of the ranks that fail. */
static void agree_body(struct rank_arg *arg) {
    struct qep_comm *comm = arg->comm;
    char expected[64];
    int first = 0;
    enum qep_status st = QEP_OK;
    if ((arg->round >> comm->rank & 1) != 0)
        st = qep_fail(comm->rank % 2 ? QEP_ERR_IO : QEP_ERR_DATA, "bad thing %d", comm->rank);
    st = qep_comm_agree(comm, st);
    RANK_CHECK(comm->failure_shared == (arg->round != 0));
    if (arg->round == 0) {
        RANK_CHECK(st == QEP_OK);
        return;
    }
    while ((arg->round >> first & 1) == 0)
        first++;
    RANK_CHECK(st == (first % 2 ? QEP_ERR_IO : QEP_ERR_DATA));
    if (comm->num_ranks > 1)
        snprintf(expected, sizeof expected, "rank %d: bad thing %d", first, first);
    else
        snprintf(expected, sizeof expected, "bad thing 0");
    RANK_CHECK(strcmp(qep_last_error(), expected) == 0);
}

START_TEST(agree_names_the_lowest_failing_rank) {
    for (int mask = 0; mask < 1 << _i && mask < 64; mask++)
        run_ranks(_i, mask, agree_body);
}
END_TEST

/* Only rank 0's file is there; round 0: some bytes, 1: none, 2: not there either. */
static void input_body(struct rank_arg *arg) {
    static const char *const paths[] = {"configs/q4.json", "/dev/null", "/no/such/file"};
    const char *path = arg->comm->rank == 0 ? paths[arg->round] : "/not/for/this/rank";
    enum qep_status expected = arg->round == 2 ? QEP_ERR_NOINPUT : QEP_OK;
    char *data = NULL, *same = NULL;
    size_t len = 0, same_len = 0;
    RANK_CHECK(qep_comm_input(arg->comm, path, 1 << 20, &data, &len) == expected);
    RANK_CHECK((data != NULL) == (expected == QEP_OK));
    if (arg->round == 0) {
        RANK_CHECK(qep_file_read(paths[0], 1 << 20, &same, &same_len) == QEP_OK);
        RANK_CHECK(len > 100 && len == same_len && memcmp(data, same, len + 1) == 0);
        free(same);
    } else if (expected == QEP_OK) {
        RANK_CHECK(len == 0 && *data == '\0');
    } else {
        RANK_CHECK(strstr(qep_last_error(), "/no/such/file: cannot open") != NULL);
    }
    free(data);
}

START_TEST(inputs_are_rank_0s) {
    for (int round = 0; round < 3; round++)
        run_ranks(_i, round, input_body);
}
END_TEST

static void alike_body(struct rank_arg *arg) {
    enum qep_status st = qep_fail(QEP_ERR_USAGE, "no such option");
    RANK_CHECK(qep_comm_agree(arg->comm, st) == QEP_ERR_USAGE);
    RANK_CHECK(strcmp(qep_last_error(), "no such option") == 0);
    RANK_CHECK(arg->comm->failure_shared);
}

START_TEST(agree_on_one_failure_names_no_rank) {
    run_ranks(_i, 0, alike_body);
}
END_TEST

/* arg->round is the rank that differs, or -1. */
static void same_body(struct rank_arg *arg) {
    struct qep_comm *comm = arg->comm;
    bool odd = comm->rank == arg->round;
    enum qep_status st = qep_comm_same(comm, "recipe", odd ? "q8" : "q4");
    if (arg->round < 0 || comm->num_ranks == 1) {
        RANK_CHECK(st == QEP_OK && !comm->failure_shared);
        return;
    }
    RANK_CHECK(st == QEP_ERR_USAGE && comm->failure_shared);
    RANK_CHECK(strstr(qep_last_error(), "recipe differs: ") != NULL);
    RANK_CHECK(strstr(qep_last_error(), "'q8'") != NULL && strstr(qep_last_error(), "'q4'"));
    char rank_text[32];
    snprintf(rank_text, sizeof rank_text, "rank %d: ", arg->round == 0 ? 1 : arg->round);
    RANK_CHECK(strncmp(qep_last_error(), rank_text, strlen(rank_text)) == 0);
}

START_TEST(same_names_rank_and_texts) {
    for (int odd = -1; odd < _i; odd++)
        run_ranks(_i, odd, same_body);
}
END_TEST

static void long_text_body(struct rank_arg *arg) {
    char text[300];
    memset(text, 'x', sizeof text);
    text[255] = '\0';
    RANK_CHECK(qep_comm_same(arg->comm, "text", text) == QEP_OK);
    text[255] = 'x';
    text[299] = '\0';
    RANK_CHECK(qep_comm_same(arg->comm, "text", text) == QEP_ERR_BUG);
}

START_TEST(same_takes_255_bytes) {
    run_ranks(_i, 0, long_text_body);
}
END_TEST

static void mismatch_body(struct rank_arg *arg) {
    struct qep_comm *comm = arg->comm;
    char send[16] = {0}, recv[16];
    size_t zero[2] = {0, 0}, sent[2] = {0, 8}, expected[2] = {4, 0};
    if (comm->rank == 0)
        RANK_CHECK(comm->ops->alltoallv(comm, send, sent, zero, NULL, zero, zero) == QEP_OK);
    else
        RANK_CHECK(
            comm->ops->alltoallv(comm, NULL, zero, zero, recv, expected, zero) == QEP_ERR_BUG &&
            strcmp(qep_last_error(), "rank 0 sent 8 bytes to rank 1, which expected 4") == 0);
}

START_TEST(alltoallv_finds_sizes_that_differ) {
    run_ranks(2, 0, mismatch_body);
}
END_TEST

/* Rank 1 is in another operation than rank 0, with a message of the same size. */
static void other_operation_body(struct rank_arg *arg) {
    struct qep_comm *comm = arg->comm;
    const size_t four[2] = {4, 4}, offset[2] = {0, 4};
    char send[8] = "fourfour", recv[8] = "";
    enum qep_status st = comm->rank == 0
                             ? comm->ops->alltoallv(comm, send, four, offset, recv, four, offset)
                             : comm->ops->allgather(comm, send, recv, 4);
    RANK_CHECK(st == QEP_ERR_BUG);
    RANK_CHECK(strcmp(qep_last_error(),
                      comm->rank == 0
                          ? "rank 1 is in another operation (allgather 1) than rank 0 (alltoallv 1)"
                          : "rank 0 is in another operation (alltoallv 1) than rank 1 (allgather "
                            "1)") == 0);
}

START_TEST(an_operation_takes_no_message_of_another) {
    run_ranks(2, 0, other_operation_body);
}
END_TEST

static void gather_body(struct rank_arg *arg) {
    int mine = arg->comm->rank * 3, *all = NULL;
    RANK_CHECK(qep_comm_gather(arg->comm, &mine, sizeof mine, "test", (void **)&all) == QEP_OK);
    for (int r = 0; r < arg->comm->num_ranks; r++)
        RANK_CHECK(all[r] == r * 3);
    free(all);
    /* No memory for it: on all ranks, and told as such. */
    RANK_CHECK(qep_comm_gather(arg->comm, &mine, SIZE_MAX / 2, "test", (void **)&all) ==
               QEP_ERR_SYSTEM);
    RANK_CHECK(all == NULL && arg->comm->failure_shared);
}

START_TEST(gather_in_rank_order) {
    run_ranks(_i, 0, gather_body);
}
END_TEST

/* Rank 0 thinks for 2 s; the others wait in bcast and must leave the CPU alone. */
static void idle_body(struct rank_arg *arg) {
    struct qep_comm *comm = arg->comm;
    int word = 0;
    struct rusage use;
    if (comm->rank == 0)
        qep_sleep_us(2000000);
    RANK_CHECK(comm->ops->bcast(comm, &word, sizeof word, 0) == QEP_OK);
    getrusage(RUSAGE_THREAD, &use);
    double cpu_s = (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
                   1e-6 * (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
    if (comm->rank == 1)
        fprintf(stderr, "idle rank: %.2f %% of a CPU\n", cpu_s / 2.0 * 100.0);
    RANK_CHECK(cpu_s < 0.1);
}

START_TEST(waiting_leaves_the_cpu) {
    run_ranks(4, 0, idle_body);
}
END_TEST

START_TEST(self_copies) {
    struct qep_comm *comm = NULL;
    char send[8] = "abcdefg", recv[8] = "";
    size_t bytes = 3, from = 2, to = 1, wrong = 4;
    ck_assert_int_eq(qep_comm_self_create(&comm), QEP_OK);
    ck_assert_int_eq(comm->ops->alltoallv(comm, send, &bytes, &from, recv, &bytes, &to), QEP_OK);
    ck_assert_int_eq(memcmp(recv, "\0cde", 5), 0);
    ck_assert_int_eq(comm->ops->alltoallv(comm, send, &bytes, &from, recv, &wrong, &to),
                     QEP_ERR_BUG);
    ck_assert_int_eq(comm->ops->allgather(comm, send, recv, 8), QEP_OK);
    ck_assert_str_eq(recv, "abcdefg");
    ck_assert_int_eq(comm->ops->bcast(comm, recv, 8, 0), QEP_OK);
    ck_assert_int_eq(qep_comm_barrier(comm), QEP_OK);
    ck_assert_int_eq(qep_comm_same(comm, "x", "y"), QEP_OK);
    ck_assert_int_eq(qep_comm_agree(comm, QEP_OK), QEP_OK);
    ck_assert(!comm->failure_shared);
    ck_assert_int_eq(qep_comm_agree(comm, qep_fail(QEP_ERR_IO, "disk")), QEP_ERR_IO);
    ck_assert_str_eq(qep_last_error(), "disk");
    ck_assert(comm->failure_shared);
    qep_comm_destroy(comm);
    qep_comm_destroy(NULL);
}
END_TEST

START_TEST(launcher_is_told_by_the_environment) {
    static const char *const names[] = {
        "OMPI_COMM_WORLD_SIZE", "PMIX_RANK",           "PMI_RANK", "PMI_ID",
        "MPI_LOCALNRANKS",      "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        unsetenv(names[i]);
    ck_assert(!qep_comm_launched_by_mpi());
    setenv("SLURM_STEP_NUM_TASKS", "1", 1);
    ck_assert(!qep_comm_launched_by_mpi());
    setenv("SLURM_STEP_NUM_TASKS", "4", 1);
    ck_assert(qep_comm_launched_by_mpi());
    unsetenv("SLURM_STEP_NUM_TASKS");
    setenv("PMIX_RANK", "0", 1);
    ck_assert(qep_comm_launched_by_mpi());
}
END_TEST

static void abort_body(struct rank_arg *arg) {
    if (arg->comm->rank == 1)
        arg->comm->ops->abort(arg->comm, 74);
    int word = 0;
    arg->comm->ops->bcast(arg->comm, &word, sizeof word, 1);
}

START_TEST(abort_ends_the_process_with_its_code) {
    run_ranks(3, 0, abort_body);
}
END_TEST

static void give_up_body(struct rank_arg *arg) {
    qep_comm_barrier(arg->comm);
    qep_comm_give_up(arg->comm, QEP_ERR_UNAVAILABLE, "the same %s everywhere", "cause");
}

/* All ranks of a process fail at the same moment, each by itself: one line, whole. */
START_TEST(ranks_of_a_process_give_up_with_one_line) {
    char text[4096] = "";
    FILE *err = tmpfile();
    int status = 0;
    ck_assert_ptr_nonnull(err);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        dup2(fileno(err), STDERR_FILENO);
        run_ranks(MAX_TEST_RANKS, 0, give_up_body);
        _exit(0);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    ck_assert_int_eq(WEXITSTATUS(status), QEP_ERR_UNAVAILABLE);
    rewind(err);
    text[fread(text, 1, sizeof text - 1, err)] = '\0';
    fclose(err);
    ck_assert_msg(strncmp(text, "qwen-ep: rank ", 14) == 0, "%s", text);
    ck_assert_ptr_nonnull(strstr(text, ": the same cause everywhere\n"));
    ck_assert_msg(strchr(text, '\n')[1] == '\0', "%s", text);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("comm");
    TCase *each = tcase_create("each P");
    TCase *once = tcase_create("once");
    tcase_set_timeout(each, 120);
    tcase_set_timeout(once, 120);
    tcase_add_loop_test(each, alltoallv_delivers_stamped_bytes, 1, MAX_TEST_RANKS + 1);
    tcase_add_loop_test(each, alltoallv_of_nothing_takes_null, 1, MAX_TEST_RANKS + 1);
    tcase_add_loop_test(each, bcast_from_every_root, 1, MAX_TEST_RANKS + 1);
    tcase_add_loop_test(each, allgather_in_rank_order, 1, MAX_TEST_RANKS + 1);
    tcase_add_loop_test(each, inputs_are_rank_0s, 1, MAX_TEST_RANKS + 1);
    tcase_add_loop_test(each, agree_names_the_lowest_failing_rank, 1, MAX_TEST_RANKS + 1);
    tcase_add_loop_test(each, agree_on_one_failure_names_no_rank, 1, MAX_TEST_RANKS + 1);
    tcase_add_loop_test(each, same_names_rank_and_texts, 1, MAX_TEST_RANKS + 1);
    tcase_add_loop_test(each, same_takes_255_bytes, 1, MAX_TEST_RANKS + 1);
    tcase_add_test(once, alltoallv_finds_sizes_that_differ);
    tcase_add_test(once, an_operation_takes_no_message_of_another);
    tcase_add_loop_test(each, gather_in_rank_order, 1, MAX_TEST_RANKS + 1);
    tcase_add_test(once, waiting_leaves_the_cpu);
    tcase_add_test(once, self_copies);
    tcase_add_test(once, launcher_is_told_by_the_environment);
    tcase_add_loop_test(once, ranks_of_a_process_give_up_with_one_line, 0, 20);
    tcase_add_exit_test(once, abort_ends_the_process_with_its_code, 74);
    suite_add_tcase(suite, each);
    suite_add_tcase(suite, once);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

/* A rank that behaves in the way its first argument says: for faults.sh, and to measure.
 *   fail R    rank R fails at start-up        alike     all ranks fail with the same message
 *   hang R    rank R stops for ever           abort R   rank R ends the job with code 74
 *   kill R    rank R dies of SIGKILL          drain     runs until SIGUSR1
 *   mixed M   rank 1 is in another operation, M: of another kind, one ahead, with more bytes
 *   idle      waits 2 s in bcast, judges its use of the CPU
 *   cpus B    prints its share of the CPUs, B: 1 bind, 0 keep
 *   latency   prints alltoallv times */
#include "base/clock.h"
#include "base/log.h"
#include "dist/comm.h"
#include "dist/cpus.h"
#include "dist/drain.h"
#include "dist/watchdog.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { MAX_TEST_RANKS = 64 };

struct mode {
    const char *name;
    enum qep_status (*run)(struct qep_comm *comm, int arg);
};

/* One small message between all pairs. */
static enum qep_status exchange(struct qep_comm *comm, size_t bytes) {
    static char send[MAX_TEST_RANKS << 16], recv[MAX_TEST_RANKS << 16];
    size_t sizes[MAX_TEST_RANKS], offsets[MAX_TEST_RANKS];
    for (int p = 0; p < comm->num_ranks; p++) {
        sizes[p] = bytes;
        offsets[p] = (size_t)p * bytes;
    }
    return comm->ops->alltoallv(comm, send, sizes, offsets, recv, sizes, offsets);
}

static enum qep_status run_fail(struct qep_comm *comm, int who) {
    enum qep_status st = QEP_OK;
    if (comm->rank == who)
        st = qep_fail(QEP_ERR_NOINPUT, "cannot open x.safetensors");
    return qep_comm_agree(comm, st);
}

static enum qep_status run_alike(struct qep_comm *comm, int who) {
    (void)who;
    return qep_comm_agree(comm, qep_fail(QEP_ERR_USAGE, "unknown option --frob"));
}

/* Exchanges 40 times with a watchdog of 1 s; rank `who` does something in the middle. */
static enum qep_status run_steps(struct qep_comm *comm, int who, int signal_number) {
    struct qep_watchdog *dog = NULL;
    QEP_TRY(qep_watchdog_create(comm, 1.0, &dog));
    for (int step = 0; step < 40; step++) {
        qep_watchdog_stamp(dog, "dispatch", 3, step);
        if (step == 20 && comm->rank == who) {
            if (signal_number == 0)
                comm->ops->abort(comm, 74);
            raise(signal_number);
        }
        QEP_TRY(exchange(comm, 100));
    }
    qep_watchdog_destroy(dog);
    return QEP_OK;
}

static enum qep_status run_hang(struct qep_comm *comm, int who) {
    return run_steps(comm, who, SIGSTOP);
}

static enum qep_status run_kill(struct qep_comm *comm, int who) {
    return run_steps(comm, who, SIGKILL);
}

static enum qep_status run_abort(struct qep_comm *comm, int who) {
    return run_steps(comm, who, 0);
}

static enum qep_status run_drain(struct qep_comm *comm, int who) {
    (void)who;
    QEP_TRY(qep_drain_install());
    if (comm->rank == 0)
        qep_error_line("ready");
    for (int step = 0, stop = 0; !stop; step++) {
        stop = comm->rank == 0 && (qep_drain_requested() || step > 2000);
        QEP_TRY(comm->ops->bcast(comm, &stop, sizeof stop, 0));
        QEP_TRY(exchange(comm, 10));
        qep_sleep_us(10000);
    }
    return qep_drain_requested() ? QEP_OK : qep_fail(QEP_ERR_BUG, "rank saw no signal");
}

/* Rank 1 does something else than the others, whose votes it could take for what it wants. */
static enum qep_status run_mixed(struct qep_comm *comm, int how) {
    int32_t vote[16] = {0}, votes[16 * MAX_TEST_RANKS];
    if (comm->rank == 1 && how == 0)
        QEP_TRY(comm->ops->bcast(comm, vote, sizeof *vote, 0));
    if (comm->rank == 1 && how == 1)
        QEP_TRY(exchange(comm, 0));
    if (comm->rank == 1 && how == 2)
        QEP_TRY(comm->ops->bcast(comm, vote, sizeof vote, 1));
    QEP_TRY(comm->ops->allgather(comm, vote, votes, sizeof *vote));
    return qep_comm_agree(comm, QEP_OK);
}

static double cpu_seconds(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           1e-6 * (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

static enum qep_status run_idle(struct qep_comm *comm, int who) {
    int word = 0;
    (void)who;
    QEP_TRY(qep_comm_barrier(comm));
    double before_s = cpu_seconds();
    if (comm->rank == 0)
        qep_sleep_us(2000000);
    QEP_TRY(comm->ops->bcast(comm, &word, sizeof word, 0));
    double percent = (cpu_seconds() - before_s) / 2.0 * 100.0;
    fprintf(stderr, "rank %d: %.2f %% of a CPU\n", comm->rank, percent);
    enum qep_status st = QEP_OK;
    if (percent > 5.0)
        st = qep_fail(QEP_ERR_BUG, "an idle rank uses %.2f %% of a CPU", percent);
    return qep_comm_agree(comm, st);
}

static enum qep_status run_cpus(struct qep_comm *comm, int bind) {
    struct qep_cpu_share share;
    QEP_TRY(qep_cpus_divide(comm, bind != 0, &share));
    char line[256];
    int n = snprintf(line, sizeof line, "rank %d: %d of %d CPUs, %s\n", comm->rank, share.num_cpus,
                     share.num_host_cpus, share.list);
    return write(STDOUT_FILENO, line, (size_t)n) == n ? QEP_OK : QEP_ERR_IO;
}

static int compare_doubles(const void *pa, const void *pb) {
    double a = *(const double *)pa, b = *(const double *)pb;
    return (a > b) - (a < b);
}

static enum qep_status run_latency(struct qep_comm *comm, int who) {
    static const size_t sizes[] = {0, 64, 2048, 8192, 65536};
    enum { WARM_UP = 200, TIMED = 2000 };
    static double us[TIMED];
    (void)who;
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        for (int i = 0; i < WARM_UP + TIMED; i++) {
            double start_s = qep_now_s();
            QEP_TRY(sizes[s] == 0 ? qep_comm_barrier(comm) : exchange(comm, sizes[s]));
            if (i >= WARM_UP)
                us[i - WARM_UP] = (qep_now_s() - start_s) * 1e6;
        }
        qsort(us, TIMED, sizeof us[0], compare_doubles);
        if (comm->rank == 0)
            printf("np %d, %6zu bytes a pair: min %.1f, median %.1f, p90 %.1f us\n",
                   comm->num_ranks, sizes[s], us[0], us[TIMED / 2], us[TIMED * 9 / 10]);
    }
    return QEP_OK;
}

static const struct mode modes[] = {
    {"fail", run_fail},       {"alike", run_alike}, {"hang", run_hang}, {"abort", run_abort},
    {"kill", run_kill},       {"drain", run_drain}, {"idle", run_idle}, {"cpus", run_cpus},
    {"latency", run_latency}, {"mixed", run_mixed},
};

int main(int argc, char **argv) {
    struct qep_comm *comm = NULL;
    enum qep_status st = qep_comm_mpi_create(&comm);
    if (st != QEP_OK) {
        qep_error_line("%s", qep_last_error());
        return (int)st;
    }
    st = qep_fail(QEP_ERR_USAGE, "no such mode, or more than %d ranks", MAX_TEST_RANKS);
    for (size_t i = 0; i < sizeof modes / sizeof modes[0] && comm->num_ranks <= MAX_TEST_RANKS; i++)
        if (argc > 1 && strcmp(argv[1], modes[i].name) == 0)
            st = modes[i].run(comm, argc > 2 ? atoi(argv[2]) : 0);
    if (st != QEP_OK && !comm->failure_shared)
        qep_comm_give_up(comm, st, "%s", qep_last_error());
    if (st != QEP_OK && comm->rank == 0)
        qep_error_line("%s", qep_last_error());
    qep_comm_destroy(comm);
    return (int)st;
}

#include "cli/build_cli.h"

#include "base/clock.h"
#include "base/log.h"
#include "dist/drain.h"
#include "dist/watchdog.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

volatile sig_atomic_t qep_stop_requested;
static const int stop_signals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};
enum { NUM_STOP_SIGNALS = sizeof stop_signals / sizeof *stop_signals };
static struct sigaction old_actions[NUM_STOP_SIGNALS];

static void on_signal(int number) {
    qep_stop_requested = 1;
    qep_drain_signalled(number);
}

void qep_stop_install(void) {
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&action.sa_mask);
    qep_stop_requested = 0;
    for (int i = 0; i < NUM_STOP_SIGNALS; i++) {
        action.sa_flags = stop_signals[i] == SIGINT ? (int)SA_RESETHAND : 0;
        sigaction(stop_signals[i], NULL, &old_actions[i]);
        if (!qep_drain_is_left(stop_signals[i], &old_actions[i]))
            sigaction(stop_signals[i], &action, NULL);
    }
}

void qep_stop_restore(void) {
    for (int i = 0; i < NUM_STOP_SIGNALS; i++)
        sigaction(stop_signals[i], &old_actions[i], NULL);
}

int qep_default_jobs(const struct qep_comm *comm) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    int count = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    int ranks = comm->num_local_ranks < 1 ? 1 : comm->num_local_ranks;
    return count / ranks < 1 ? 1 : count / ranks;
}

void qep_progress_show(struct qep_progress_line *line, const char *what, uint64_t done_bytes,
                       uint64_t total_bytes) {
    double now = qep_now_s();
    if (line->begin_s == 0) {
        line->begin_s = line->last_s = now;
        line->on_terminal = isatty(STDERR_FILENO) == 1;
    }
    if (qep_log_get_level() == QEP_LOG_QUIET || now - line->last_s < (line->on_terminal ? 0.1 : 5))
        return;
    line->last_s = now;
    double seconds = now - line->begin_s, done = (double)done_bytes, total = (double)total_bytes;
    double fraction = total_bytes > 0 ? done / total : 1, rate = done / (seconds + 1e-9);
    int filled = (int)(fraction * 20);
    char bar[21] = "....................";
    memset(bar, '#', (size_t)(filled < 0 ? 0 : filled > 20 ? 20 : filled));
    char text[160];
    snprintf(text, sizeof text, "%s [%s] %3.0f %%  %.2f of %.2f GB  %.2f GB/s  %.0f s left  %s",
             line->label, bar, fraction * 100, done / 1e9, total / 1e9, rate / 1e9,
             rate > 0 ? (total - done) / rate : 0.0, what);
    if (!line->on_terminal) {
        qep_info("%s", text);
        return;
    }
    if (!qep_log_is_read())
        return;
    struct winsize size = {0};
    int columns =
        ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col : 80;
    fprintf(stderr, "\r%.*s\033[K", columns - 1, text);
    fflush(stderr);
    line->shown = true;
}

void qep_progress_end(struct qep_progress_line *line) {
    if (!line->shown)
        return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    line->shown = false;
}

struct progress_arg {
    struct qep_progress_line line;
    int rank;
};

static void on_progress(void *p, const struct qep_build_progress *progress) {
    struct progress_arg *arg = p;
    if (arg->rank == 0)
        qep_progress_show(&arg->line, progress->file, progress->done_bytes, progress->total_bytes);
}

static void summarise(const char *label, const struct qep_build_options *options,
                      const struct qep_build *build, double seconds) {
    struct qep_build_sizes sizes = qep_build_sizes(build);
    qep_info(
        "%s: %s: %.3f GB -> %.3f GB of tensors, %.3f GB on disk (%.1f %%) in %.1f s: %.2f GB/s",
        label, options->dir, (double)sizes.source_bytes / 1e9, (double)sizes.tensor_bytes / 1e9,
        (double)sizes.stored_bytes / 1e9,
        100.0 * (double)sizes.stored_bytes / ((double)sizes.source_bytes + 1), seconds,
        (double)sizes.source_bytes / 1e9 / (seconds + 1e-9));
    if (sizes.num_resumed > 0)
        qep_info("%s: continued: %zu of %zu files were there", label, sizes.num_resumed,
                 sizes.num_files);
}

/* Each step ends in an agreement: a rank that failed must not leave the others waiting. */
static enum qep_status run_steps(struct qep_job *job, struct qep_build *build, bool *complete) {
    struct qep_comm *comm = job->comm;
    *complete = false;
    qep_watchdog_stamp(comm->dog, "preparing the directory", -1, -1);
    enum qep_status st = comm->rank == 0 ? qep_build_prepare(build, complete) : QEP_OK;
    QEP_TRY(qep_comm_agree(comm, st));
    QEP_TRY(comm->ops->bcast(comm, complete, sizeof *complete, 0));
    if (*complete)
        return QEP_OK;
    qep_watchdog_stamp(comm->dog, "making files", -1, -1);
    QEP_TRY(qep_comm_agree(comm, qep_build_files(build, comm->rank, comm->num_ranks)));
    qep_watchdog_stamp(comm->dog, "finishing the directory", -1, -1);
    return qep_comm_agree(comm, comm->rank == 0 ? qep_build_finish(build) : QEP_OK);
}

enum qep_status qep_build_run(struct qep_job *job, const char *label,
                              const struct qep_build_options *options, enum qep_status st) {
    struct qep_build_options full = *options;
    struct progress_arg progress = {.line = {.label = label}, .rank = job->comm->rank};
    struct qep_build *build = NULL;
    double begin_s = qep_now_s();
    full.stop = &qep_stop_requested;
    full.on_progress = on_progress;
    full.progress_arg = &progress;
    bool complete = false;
    if (st == QEP_OK)
        st = qep_build_create(&full, &build);
    st = qep_comm_agree(job->comm, st);
    if (st == QEP_OK)
        st = qep_comm_same(job->comm, "the source (or an option)", qep_build_identity(build));
    qep_stop_install();
    if (st == QEP_OK)
        st = run_steps(job, build, &complete);
    qep_stop_restore();
    qep_progress_end(&progress.line);
    if (st == QEP_OK && complete)
        qep_info("%s: %s: was complete but for its last steps, which are done now", label,
                 options->dir);
    else if (st == QEP_OK)
        summarise(label, options, build, qep_now_s() - begin_s);
    qep_build_destroy(build);
    return st;
}

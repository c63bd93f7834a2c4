/* What convert and synth share: driving a build over the ranks of a job with progress, signals and
 * a summary. */
#ifndef QEP_CLI_BUILD_CLI_H
#define QEP_CLI_BUILD_CLI_H

#include "cli/command.h"
#include "shard/build.h"

#include <signal.h>

/* Set by SIGUSR1, SIGTERM and, unless ignored before (nohup), SIGINT and SIGHUP between
 * qep_stop_install and qep_stop_restore. */
extern volatile sig_atomic_t qep_stop_requested;
void qep_stop_install(void);
void qep_stop_restore(void);

/* Threads for this rank when the user gave none: its share of the CPUs it may run on. */
int qep_default_jobs(const struct qep_comm *comm);

/* A bar on a terminal, else a line every few seconds; rank 0 only. `state` starts zeroed. */
struct qep_progress_line {
    const char *label;
    double begin_s, last_s;
    bool shown, on_terminal;
};
void qep_progress_show(struct qep_progress_line *line, const char *what, uint64_t done_bytes,
                       uint64_t total_bytes);
void qep_progress_end(struct qep_progress_line *line);

/* Runs the whole build on all ranks; `label` begins progress and summary; options' stop and
 * on_progress are set here. st is this rank's status so far: ranks agree on it first. */
enum qep_status qep_build_run(struct qep_job *job, const char *label,
                              const struct qep_build_options *options, enum qep_status st);

#endif

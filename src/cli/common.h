/* Options that run, bench and their kin share, and running a job on the chosen transport. */
#ifndef QEP_CLI_COMMON_H
#define QEP_CLI_COMMON_H

#include "cli/options.h"
#include "dist/comm.h"
#include "engine/engine.h"

struct qep_common {
    struct qep_engine_options engine;
    const char *transport; /* auto, self, threads, mpi, nccl */
    int64_t ranks;         /* with --transport threads */
    const char *progress;  /* auto, always, never */
    bool quiet, verbose;
    const char *config_file;
    bool answered; /* --help or --version was all: nothing is left to do */
};

enum { QEP_NUM_COMMON_OPTIONS = 18 };

/* Defaults, and the table that fills `common` (targets point into it). */
void qep_common_init(struct qep_common *common, struct qep_option table[QEP_NUM_COMMON_OPTIONS]);

/* Parses argv with the command's own table and the common one (command_line.h). Collective. */
enum qep_status qep_common_parse(struct qep_comm *comm, struct qep_common *common,
                                 const struct qep_option_table *own,
                                 const struct qep_option_table *shared,
                                 void (*print_help)(const struct qep_option_table *own), int argc,
                                 char **argv);

/* What one rank does in a job. arg is shared by all ranks of a process. */
typedef enum qep_status qep_rank_fn(struct qep_comm *comm, void *arg);

/* Runs fn on every rank of the transport that `common` asks for: on this process's rank of `comm`,
 * or on P threads. Returns this rank's (threads: the job's) status. */
enum qep_status qep_common_launch(struct qep_comm *comm, const struct qep_common *common,
                                  qep_rank_fn *fn, void *arg);

/* Prints what start-up decided, when not --quiet: one line each for model, ranks and loading. */
void qep_common_report(const struct qep_engine *engine);

#endif

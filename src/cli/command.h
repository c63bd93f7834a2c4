/* The commands: one file each. A command parses its own argv, runs on all ranks of job->comm, and
 * returns a status; main prints the message and picks the exit code. */
#ifndef QEP_CLI_COMMAND_H
#define QEP_CLI_COMMAND_H

#include "base/status.h"
#include "dist/comm.h"

struct qep_job {
    struct qep_comm *comm; /* self or mpi, as launched; borrowed */
};

/* argv[0] is the command's name. */
enum qep_status qep_cmd_run(struct qep_job *job, int argc, char **argv);
enum qep_status qep_cmd_convert(struct qep_job *job, int argc, char **argv);
enum qep_status qep_cmd_synth(struct qep_job *job, int argc, char **argv);
enum qep_status qep_cmd_inspect(struct qep_job *job, int argc, char **argv);
enum qep_status qep_cmd_reseal(struct qep_job *job, int argc, char **argv);
enum qep_status qep_cmd_tokenize(struct qep_job *job, int argc, char **argv);
enum qep_status qep_cmd_bench(struct qep_job *job, int argc, char **argv);

#endif

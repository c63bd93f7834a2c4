/* The command line as a whole: finds the command, runs it on this rank. */
#ifndef QEP_CLI_CLI_H
#define QEP_CLI_CLI_H

#include "dist/comm.h"

/* Returns the command's status; the message is in qep_last_error. */
enum qep_status qep_cli_main(struct qep_comm *comm, int argc, char **argv);

#endif

/* What every command does with its argv, before anything that depends on an option. */
#ifndef QEP_CLI_COMMAND_LINE_H
#define QEP_CLI_COMMAND_LINE_H

#include "cli/options.h"
#include "dist/comm.h"

struct qep_command_line {
    const struct qep_option_table *tables; /* the command's own first */
    size_t num_tables;
    void (*print_help)(const struct qep_option_table *own);
    const char **directory; /* its one positional argument; NULL: it takes none */
};

/* Parses argv[1..argc) on every rank; *answered: --help or --version was all, rank 0 has printed
 * it and nothing is left to do. A file of options (QEP_OPTION_CONFIG_FILE, options_file.h) is read
 * by rank 0 and gives what the command line does not. Collective: all ranks fail alike, and
 * with QEP_ERR_USAGE unless their options are the same (options_same.h). argv[0] begins messages.
 */
enum qep_status qep_command_line_read(struct qep_comm *comm, const struct qep_command_line *line,
                                      int argc, char **argv, bool *answered);

#endif

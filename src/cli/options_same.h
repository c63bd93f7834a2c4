/* One command line for all ranks of a job: what the ranks do together follows from the options, so
 * ranks with different ones must part before they do anything together. */
#ifndef QEP_CLI_OPTIONS_SAME_H
#define QEP_CLI_OPTIONS_SAME_H

#include "cli/options.h"
#include "dist/comm.h"

enum qep_options_scope {
    QEP_OPTIONS_LEADING, /* what decides how to go on: --help, --version, the file of options */
    QEP_OPTIONS_ALL      /* positional arguments, and the values of all rows but per_rank ones */
};

/* Compares with rank 0. An option that was not given equals one given with the default's value,
 * unless its row tells the two apart (`given`). QEP_ERR_USAGE on all ranks names the lowest rank
 * that differs, the option, and both values. Collective, in steps and sizes that depend on no
 * option. */
enum qep_status qep_options_same(struct qep_comm *comm, const struct qep_option_table *tables,
                                 size_t num_tables, const struct qep_options_found *found,
                                 enum qep_options_scope scope);

#endif

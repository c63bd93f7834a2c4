/* Option tables over getopt_long: one row per option, the same row makes the parser and the help
 * line. One pass over argv decides what is an option and what is an option's value. Every table has
 * -h, --help and --version besides its rows. */
#ifndef QEP_CLI_OPTIONS_H
#define QEP_CLI_OPTIONS_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum qep_option_kind {
    QEP_OPTION_FLAG,        /* bool: present = true */
    QEP_OPTION_INT,         /* int64_t within [min, max] */
    QEP_OPTION_DOUBLE,      /* double within [min, max] */
    QEP_OPTION_STRING,      /* const char *, borrowed from argv */
    QEP_OPTION_PATH,        /* as STRING, not empty */
    QEP_OPTION_CONFIG_FILE, /* as PATH, once at most, and not from a file (options_file.h) */
    QEP_OPTION_CHOICE       /* const char *, one of `choices` ("a|b|c") */
};

struct qep_option {
    const char *name; /* long name without -- */
    char short_name;  /* 0: none */
    enum qep_option_kind kind;
    void *target;
    const char *arg; /* shown in help: N, DIR; NULL for flags */
    const char *help;
    double min, max;     /* INT, DOUBLE */
    const char *choices; /* CHOICE */
    bool *given;         /* set true when present; may be NULL */
    bool per_rank;       /* may differ between ranks (options_same.h) */
};

struct qep_option_table {
    const struct qep_option *options;
    size_t num_options;
};

enum { QEP_OPTIONS_MAX = 128 }; /* of all tables of a command */

/* What else a command line said. */
struct qep_options_found {
    char **positional; /* what is no option, in argv */
    int num_positional;
    bool help, version;
    bool given[QEP_OPTIONS_MAX]; /* row by row, the tables one after the other */
};

/* Parses argv[1..argc); options of all tables are accepted anywhere before a lone "--", the last
 * of several counts. Positional arguments are moved to the end. QEP_ERR_USAGE for an unknown
 * option, a missing or malformed value, an unknown choice. */
enum qep_status qep_options_parse(const struct qep_option_table *tables, size_t num_tables,
                                  int argc, char **argv, struct qep_options_found *found);

/* The one positional argument of a command that takes a directory. */
enum qep_status qep_options_directory(const char *command, const struct qep_options_found *found,
                                      const char **dir);

/* True when --help or --version was given: the command has nothing else to do. Rank 0 prints it;
 * print_help gets `own`. */
bool qep_options_answer(const struct qep_options_found *found, int rank,
                        void (*print_help)(const struct qep_option_table *own),
                        const struct qep_option_table *own);

/* Writes the options of a table, and the standard ones, to stdout, a line each. */
void qep_options_help(const struct qep_option_table *table);

#endif

/* Option tables over getopt_long: one row per option, the same row makes the parser and the help
 * line. */
#ifndef QEP_CLI_OPTIONS_H
#define QEP_CLI_OPTIONS_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum qep_option_kind {
    QEP_OPTION_FLAG,   /* bool: present = true */
    QEP_OPTION_CLEAR,  /* bool: present = false */
    QEP_OPTION_INT,    /* int64_t within [min, max] */
    QEP_OPTION_DOUBLE, /* double within [min, max] */
    QEP_OPTION_STRING, /* const char *, borrowed from argv */
    QEP_OPTION_CHOICE  /* const char *, one of `choices` ("a|b|c") */
};

struct qep_option {
    const char *name; /* long name without -- ; a name of one character is a short option too */
    char short_name;  /* 0: none */
    enum qep_option_kind kind;
    void *target;
    const char *arg; /* shown in help: N, DIR; NULL for flags */
    const char *help;
    double min, max;     /* INT, DOUBLE */
    const char *choices; /* CHOICE */
    bool *given;         /* set true when present; may be NULL */
};

struct qep_option_table {
    const struct qep_option *options;
    size_t num_options;
};

/* Parses argv[1..argc); options of all tables are accepted anywhere. Positional arguments are moved
 * to the end and *first_positional is the index of the first (== argc when none). QEP_ERR_USAGE for
 * an unknown option, a missing or malformed value, an unknown choice. */
enum qep_status qep_options_parse(const struct qep_option_table *tables, size_t num_tables,
                                  int argc, char **argv, int *first_positional);

/* Writes the options of a table to stdout, a line each. */
void qep_options_help(const struct qep_option_table *table);

#endif

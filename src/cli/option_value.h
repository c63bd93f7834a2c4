/* The value of one option: read from text or JSON, then stored. */
#ifndef QEP_CLI_OPTION_VALUE_H
#define QEP_CLI_OPTION_VALUE_H

#include "cli/options.h"

struct qep_option_value {
    int64_t whole;    /* INT */
    double number;    /* DOUBLE */
    const char *text; /* STRING, PATH, CONFIG_FILE, CHOICE; borrowed */
};

bool qep_option_takes_value(const struct qep_option *opt);

/* A word of the command line, or a string of a file, that ends in a NUL. False when the option
 * cannot take it. */
bool qep_option_read(const struct qep_option *opt, const char *text, struct qep_option_value *out);

/* Writes to the option's target. */
void qep_option_store(const struct qep_option *opt, const struct qep_option_value *value);

/* "a whole number in 0..5", for messages. */
void qep_option_expected(const struct qep_option *opt, char *out, size_t bytes);

#endif

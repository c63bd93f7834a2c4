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

/* The value that the target has, as a command line would give it: its own text, or a number in
 * `number`; NULL: none. Not for flags. */
enum { QEP_OPTION_NUMBER_BYTES = 32 };
const char *qep_option_text(const struct qep_option *opt, char number[QEP_OPTION_NUMBER_BYTES]);

/* "a whole number in 0..5", for messages. */
void qep_option_expected(const struct qep_option *opt, char *out, size_t bytes);

#endif

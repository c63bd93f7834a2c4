/* Options from a file: a JSON object of option names (in full) and values. */
#ifndef QEP_CLI_OPTIONS_FILE_H
#define QEP_CLI_OPTIONS_FILE_H

#include "cli/options.h"

/* Stores what json[0..len), the content of `path`, gives for options that found->given does not
 * settle (has, or has the contrary of: --no-think for "think"); the others are checked alike. Flags
 * take true; INT and DOUBLE take numbers, the others strings; null, and false for a flag, stand for
 * "not given". QEP_ERR_DATA names path and key: an unknown key, one met twice, a value of another
 * kind or out of range. The strings stored live until the next call. */
enum qep_status qep_options_from_json(const struct qep_option_table *tables, size_t num_tables,
                                      const struct qep_options_found *found, const char *path,
                                      const char *json, size_t len);

#endif

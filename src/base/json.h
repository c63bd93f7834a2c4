/* JSON of files, through cJSON: the whole input must be one object (a list or a number would read
 * as an object without members), keys are case-sensitive, numbers are checked for kind and range.
 * Errors are QEP_ERR_DATA and name `where` (a path) and the key. */
#ifndef QEP_BASE_JSON_H
#define QEP_BASE_JSON_H

#include "base/status.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A value takes up to 150 bytes of memory and two of text, so the size of a file bounds little. The
 * largest model that we take needs 2.2 million in its manifest, a tokenizer 1 million. */
enum { QEP_JSON_MAX_VALUES = 4 << 20 };

/* Parses text[0..len). The result is owned by the caller (cJSON_Delete). QEP_ERR_DATA also for more
 * than QEP_JSON_MAX_VALUES values; QEP_ERR_SYSTEM when memory is short. */
enum qep_status qep_json_parse(const char *text, size_t len, const char *where, cJSON **out);

/* Reads and parses a file of at most max_bytes (see qep_file_read). */
enum qep_status qep_json_read(const char *path, size_t max_bytes, cJSON **out);

/* The member, or NULL when absent or null. `obj` may be NULL. */
const cJSON *qep_json_get(const cJSON *obj, const char *key);

/* A whole number in [min, max]; fractions, strings and out-of-range values are errors. The "opt"
 * form leaves *out alone when the key is absent or null. */
enum qep_status qep_json_int(const cJSON *obj, const char *key, const char *where, int64_t min,
                             int64_t max, int64_t *out);
enum qep_status qep_json_int_opt(const cJSON *obj, const char *key, const char *where, int64_t min,
                                 int64_t max, int64_t *out);
enum qep_status qep_json_double_opt(const cJSON *obj, const char *key, const char *where,
                                    double min, double max, double *out);
enum qep_status qep_json_bool_opt(const cJSON *obj, const char *key, const char *where, bool *out);

/* A string member, borrowed from the tree; the "opt" form gives NULL when absent or null. */
enum qep_status qep_json_string(const cJSON *obj, const char *key, const char *where,
                                const char **out);
enum qep_status qep_json_string_opt(const cJSON *obj, const char *key, const char *where,
                                    const char **out);

#endif

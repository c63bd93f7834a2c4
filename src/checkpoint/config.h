/* config.json -> struct qep_model_config. Accepts the official nested form (text_config) and the
 * flat one; every value is checked for kind, range and agreement, so later code may trust it.
 * Errors are QEP_ERR_DATA and name file, key, expected and found. */
#ifndef QEP_CHECKPOINT_CONFIG_H
#define QEP_CHECKPOINT_CONFIG_H

#include "base/json.h"
#include "base/status.h"
#include "model/config.h"

#include <stddef.h>

enum { QEP_CONFIG_MAX_BYTES = 4 << 20 };

/* Reads a config.json; `where` in messages is the path. */
enum qep_status qep_config_read(const char *path, struct qep_model_config *out);

/* The same from text[0..len). */
enum qep_status qep_config_parse(const char *text, size_t len, const char *where,
                                 struct qep_model_config *out);

/* The same from a parsed tree (borrowed). */
enum qep_status qep_config_from_json(const cJSON *root, const char *where,
                                     struct qep_model_config *out);

/* The flat form that qep_config_from_json reads back to an equal struct. The tree is owned by the
 * caller (cJSON_Delete). QEP_ERR_SYSTEM when memory is out. */
enum qep_status qep_config_to_json(const struct qep_model_config *config, cJSON **out);

#endif

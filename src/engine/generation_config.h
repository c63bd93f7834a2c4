/* generation_config.json: sampling defaults and stop ids of a model directory. */
#ifndef QEP_ENGINE_GENERATION_CONFIG_H
#define QEP_ENGINE_GENERATION_CONFIG_H

#include "engine/sampler.h"
#include "model/config.h"

enum { QEP_GENERATION_CONFIG_MAX_BYTES = 1 << 20 };

struct qep_generation_config {
    struct qep_sampling sampling; /* greedy unless the file says do_sample */
    int32_t eos_token_id[QEP_MAX_EOS];
    int32_t num_eos;
};

/* Reads DIR/generation_config.json. Without the file: greedy, and eos from config.json.
 * QEP_ERR_DATA names file and key of a malformed one. */
enum qep_status qep_generation_config_read(const char *dir, const struct qep_model_config *config,
                                           struct qep_generation_config *out);

/* The same from text[0..len); `where` is the name in messages. */
enum qep_status qep_generation_config_parse(const char *text, size_t len, const char *where,
                                            const struct qep_model_config *config,
                                            struct qep_generation_config *out);

#endif

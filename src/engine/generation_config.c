#include "engine/generation_config.h"

#include "base/file.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

static enum qep_status read_eos(const cJSON *tree, const char *path, int32_t vocab_size,
                                struct qep_generation_config *out) {
    const cJSON *eos = qep_json_get(tree, "eos_token_id");
    if (eos == NULL)
        return QEP_OK;
    int count = cJSON_IsArray(eos) ? cJSON_GetArraySize(eos) : 1;
    if (count > QEP_MAX_EOS)
        return qep_fail(QEP_ERR_DATA, "%s: \"eos_token_id\": %d ids, at most %d are supported",
                        path, count, QEP_MAX_EOS);
    out->num_eos = 0;
    for (int i = 0; i < count; i++) {
        const cJSON *item = cJSON_IsArray(eos) ? cJSON_GetArrayItem(eos, i) : eos;
        double id = cJSON_IsNumber(item) ? item->valuedouble : -1.0;
        if (!(id >= 0 && id < vocab_size) || id != (int32_t)id)
            return qep_fail(QEP_ERR_DATA, "%s: \"eos_token_id\": expected ids in 0..%d", path,
                            vocab_size - 1);
        out->eos_token_id[out->num_eos++] = (int32_t)id;
    }
    return QEP_OK;
}

static enum qep_status read_sampling(const cJSON *tree, const char *path, struct qep_sampling *s) {
    bool do_sample = false;
    QEP_TRY(qep_json_bool_opt(tree, "do_sample", path, &do_sample));
    QEP_TRY(qep_json_double_opt(tree, "temperature", path, 0.0, 1e6, &s->temperature));
    QEP_TRY(qep_json_int_opt(tree, "top_k", path, 0, INT32_MAX, &s->top_k));
    QEP_TRY(qep_json_double_opt(tree, "top_p", path, 0.0, 1.0, &s->top_p));
    QEP_TRY(qep_json_double_opt(tree, "min_p", path, 0.0, 1.0, &s->min_p));
    QEP_TRY(
        qep_json_double_opt(tree, "repetition_penalty", path, 1e-6, 1e6, &s->repetition_penalty));
    s->greedy = !do_sample;
    return QEP_OK;
}

static void set_defaults(const struct qep_model_config *config, struct qep_generation_config *out) {
    *out = (struct qep_generation_config){.sampling = QEP_SAMPLING_DEFAULT,
                                          .num_eos = config->num_eos};
    out->sampling.greedy = true;
    memcpy(out->eos_token_id, config->eos_token_id, sizeof out->eos_token_id);
}

enum qep_status qep_generation_config_parse(const char *text, size_t len, const char *where,
                                            const struct qep_model_config *config,
                                            struct qep_generation_config *out) {
    cJSON *tree = NULL;
    set_defaults(config, out);
    QEP_TRY(qep_json_parse(text, len, where, &tree));
    enum qep_status st = read_sampling(tree, where, &out->sampling);
    if (st == QEP_OK)
        st = read_eos(tree, where, config->vocab_size, out);
    cJSON_Delete(tree);
    return st;
}

enum qep_status qep_generation_config_read(const char *dir, const struct qep_model_config *config,
                                           struct qep_generation_config *out) {
    char *path = NULL, *text = NULL;
    size_t len = 0;
    enum qep_status st = QEP_OK;
    set_defaults(config, out);
    QEP_TRY(qep_path_join(dir, "generation_config.json", &path));
    if (!qep_path_exists(path))
        goto done;
    QEP_TRY_GOTO(st, done, qep_file_read(path, QEP_GENERATION_CONFIG_MAX_BYTES, &text, &len));
    st = qep_generation_config_parse(text, len, path, config, out);
done:
    free(text);
    free(path);
    return st;
}

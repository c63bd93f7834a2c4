#include "checkpoint/config.h"

#include <string.h>

static bool add_numbers(cJSON *obj, const struct qep_model_config *c) {
    const struct {
        const char *key;
        double value;
    } rows[] = {
        {"vocab_size", c->vocab_size},
        {"hidden_size", c->hidden_size},
        {"num_hidden_layers", c->num_hidden_layers},
        {"rms_norm_eps", c->rms_norm_eps},
        {"max_position_embeddings", c->max_position_embeddings},
        {"num_attention_heads", c->num_attention_heads},
        {"num_key_value_heads", c->num_key_value_heads},
        {"head_dim", c->head_dim},
        {"rope_theta", c->rope_theta},
        {"rotary_dim", c->rotary_dim},
        {"linear_num_key_heads", c->linear_num_key_heads},
        {"linear_num_value_heads", c->linear_num_value_heads},
        {"linear_key_head_dim", c->linear_key_head_dim},
        {"linear_value_head_dim", c->linear_value_head_dim},
        {"linear_conv_kernel_dim", c->linear_conv_kernel_dim},
        {"num_experts", c->num_experts},
        {"num_experts_per_tok", c->num_experts_per_tok},
        {"moe_intermediate_size", c->moe_intermediate_size},
        {"shared_expert_intermediate_size", c->shared_expert_intermediate_size},
        {"intermediate_size", c->intermediate_size},
    };
    bool ok = true;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].value != 0 || strcmp(rows[i].key, "rms_norm_eps") == 0)
            ok = ok && cJSON_AddNumberToObject(obj, rows[i].key, rows[i].value) != NULL;
    return ok;
}

static bool add_lists(cJSON *obj, const struct qep_model_config *c) {
    cJSON *eos = cJSON_AddArrayToObject(obj, "eos_token_id");
    cJSON *types = cJSON_AddArrayToObject(obj, "layer_types");
    bool ok = eos != NULL && types != NULL;
    for (int32_t i = 0; ok && i < c->num_eos; i++)
        ok = cJSON_AddItemToArray(eos, cJSON_CreateNumber(c->eos_token_id[i]));
    for (int32_t i = 0; ok && i < c->num_hidden_layers; i++)
        ok = cJSON_AddItemToArray(types,
                                  cJSON_CreateString(c->layer_types[i] == QEP_LAYER_FULL_ATTENTION
                                                         ? "full_attention"
                                                         : "linear_attention"));
    return ok;
}

enum qep_status qep_config_to_json(const struct qep_model_config *config, cJSON **out) {
    cJSON *obj = cJSON_CreateObject();
    *out = NULL;
    if (obj == NULL || cJSON_AddStringToObject(obj, "model_type", config->model_type) == NULL ||
        cJSON_AddBoolToObject(obj, "tie_word_embeddings", config->tie_word_embeddings) == NULL ||
        !add_numbers(obj, config) || !add_lists(obj, config)) {
        cJSON_Delete(obj);
        return qep_fail(QEP_ERR_SYSTEM, "model config: out of memory");
    }
    *out = obj;
    return QEP_OK;
}

/* The model's dimensions, named by the checkpoint's own keys (config.json, text_config). Filled and
 * validated by checkpoint/config; everything after may trust it. */
#ifndef QEP_MODEL_CONFIG_H
#define QEP_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

enum { QEP_MAX_LAYERS = 1024, QEP_MAX_EOS = 16, QEP_MAX_EXPERTS = 4096 };

enum qep_layer_type { QEP_LAYER_LINEAR_ATTENTION = 0, QEP_LAYER_FULL_ATTENTION = 1 };

struct qep_model_config {
    char model_type[64]; /* qwen3_5_moe, qwen3_5, qwen3_next (as in config.json, "_text" removed) */
    int32_t vocab_size;
    int32_t hidden_size;
    int32_t num_hidden_layers;
    uint8_t layer_types[QEP_MAX_LAYERS]; /* enum qep_layer_type */
    bool tie_word_embeddings;
    double rms_norm_eps;
    int32_t max_position_embeddings;

    int32_t num_attention_heads;
    int32_t num_key_value_heads;
    int32_t head_dim;
    double rope_theta;
    int32_t rotary_dim; /* head_dim * partial_rotary_factor, even */

    int32_t linear_num_key_heads;
    int32_t linear_num_value_heads; /* a multiple of linear_num_key_heads */
    int32_t linear_key_head_dim;
    int32_t linear_value_head_dim;
    int32_t linear_conv_kernel_dim;

    int32_t num_experts; /* 0: dense */
    int32_t num_experts_per_tok;
    int32_t moe_intermediate_size;
    int32_t shared_expert_intermediate_size; /* 0: no shared expert */
    int32_t intermediate_size;               /* dense MLP */

    int32_t eos_token_id[QEP_MAX_EOS];
    int32_t num_eos;
};

#endif

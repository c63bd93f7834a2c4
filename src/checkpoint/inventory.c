#include "checkpoint/inventory.h"

#include "base/mem.h"
#include "base/progress.h"
#include "shard/shard.h" /* vocabulary blocks */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

struct builder {
    const struct qep_model_config *config;
    struct qep_inventory *inventory;
    size_t cap;
    int32_t layer, expert;
    enum qep_status st;
};

__attribute__((format(printf, 5, 6))) static void add(struct builder *b, enum qep_tensor_kind kind,
                                                      int64_t rows, int64_t cols, const char *fmt,
                                                      ...) {
    struct qep_inventory *inv = b->inventory;
    void *items = inv->specs;
    if (b->st != QEP_OK)
        return;
    b->st = qep_grow(&items, &b->cap, inv->num_specs + 1, sizeof *inv->specs, "tensor list");
    if (b->st != QEP_OK)
        return;
    inv->specs = items;
    qep_progress(1);
    struct qep_tensor_spec *spec = &inv->specs[inv->num_specs++];
    *spec = (struct qep_tensor_spec){.kind = kind,
                                     .rows = rows,
                                     .cols = cols,
                                     .layer = b->layer,
                                     .expert = b->expert,
                                     .vocab_block = -1};
    int n = 0;
    if (b->layer >= 0)
        n = snprintf(spec->name, sizeof spec->name, "layers.%d.", (int)b->layer);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(spec->name + n, sizeof spec->name - (size_t)n, fmt, ap);
    va_end(ap);
}

static void add_full_attention(struct builder *b) {
    const struct qep_model_config *c = b->config;
    int64_t q = (int64_t)c->num_attention_heads * c->head_dim;
    int64_t kv = (int64_t)c->num_key_value_heads * c->head_dim;
    add(b, QEP_TENSOR_MATRIX, 2 * q, c->hidden_size, "self_attn.q_proj.weight"); /* with gate */
    add(b, QEP_TENSOR_MATRIX, kv, c->hidden_size, "self_attn.k_proj.weight");
    add(b, QEP_TENSOR_MATRIX, kv, c->hidden_size, "self_attn.v_proj.weight");
    add(b, QEP_TENSOR_MATRIX, c->hidden_size, q, "self_attn.o_proj.weight");
    add(b, QEP_TENSOR_VECTOR, 1, c->head_dim, "self_attn.q_norm.weight");
    add(b, QEP_TENSOR_VECTOR, 1, c->head_dim, "self_attn.k_norm.weight");
}

static void add_deltanet(struct builder *b) {
    const struct qep_model_config *c = b->config;
    int64_t k = (int64_t)c->linear_num_key_heads * c->linear_key_head_dim;
    int64_t v = (int64_t)c->linear_num_value_heads * c->linear_value_head_dim;
    int64_t heads = c->linear_num_value_heads;
    add(b, QEP_TENSOR_MATRIX, 2 * k + v, c->hidden_size, "linear_attn.in_proj_qkv.weight");
    add(b, QEP_TENSOR_MATRIX, v, c->hidden_size, "linear_attn.in_proj_z.weight");
    add(b, QEP_TENSOR_MATRIX, heads, c->hidden_size, "linear_attn.in_proj_a.weight");
    add(b, QEP_TENSOR_MATRIX, heads, c->hidden_size, "linear_attn.in_proj_b.weight");
    add(b, QEP_TENSOR_CONV, 2 * k + v, c->linear_conv_kernel_dim, "linear_attn.conv1d.weight");
    add(b, QEP_TENSOR_VECTOR, 1, heads, "linear_attn.A_log");
    add(b, QEP_TENSOR_VECTOR, 1, heads, "linear_attn.dt_bias");
    add(b, QEP_TENSOR_VECTOR, 1, c->linear_value_head_dim, "linear_attn.norm.weight");
    add(b, QEP_TENSOR_MATRIX, c->hidden_size, v, "linear_attn.out_proj.weight");
}

static void add_mlp(struct builder *b, const char *prefix, int64_t inter) {
    int64_t hidden = b->config->hidden_size;
    add(b, QEP_TENSOR_MATRIX, inter, hidden, "%s.gate_proj.weight", prefix);
    add(b, QEP_TENSOR_MATRIX, inter, hidden, "%s.up_proj.weight", prefix);
    add(b, QEP_TENSOR_MATRIX, hidden, inter, "%s.down_proj.weight", prefix);
}

static void add_moe(struct builder *b) {
    const struct qep_model_config *c = b->config;
    add(b, QEP_TENSOR_MATRIX, c->num_experts, c->hidden_size, "mlp.gate.weight");
    if (c->shared_expert_intermediate_size > 0) {
        add(b, QEP_TENSOR_MATRIX, 1, c->hidden_size, "mlp.shared_expert_gate.weight");
        add_mlp(b, "mlp.shared_expert", c->shared_expert_intermediate_size);
    }
    for (b->expert = 0; b->expert < c->num_experts; b->expert++) {
        int e = (int)b->expert;
        add(b, QEP_TENSOR_MATRIX, 2 * (int64_t)c->moe_intermediate_size, c->hidden_size,
            "mlp.experts.%d.gate_up_proj", e);
        add(b, QEP_TENSOR_MATRIX, c->hidden_size, c->moe_intermediate_size,
            "mlp.experts.%d.down_proj", e);
    }
    b->expert = -1;
}

static void add_layer(struct builder *b) {
    const struct qep_model_config *c = b->config;
    add(b, QEP_TENSOR_VECTOR, 1, c->hidden_size, "input_layernorm.weight");
    add(b, QEP_TENSOR_VECTOR, 1, c->hidden_size, "post_attention_layernorm.weight");
    if (c->layer_types[b->layer] == QEP_LAYER_FULL_ATTENTION)
        add_full_attention(b);
    else
        add_deltanet(b);
    if (c->num_experts > 0)
        add_moe(b);
    else
        add_mlp(b, "mlp", c->intermediate_size);
}

static void add_head(struct builder *b) {
    int32_t vocab = b->config->vocab_size, block_rows = qep_vocab_block_rows(vocab);
    for (int32_t block = 0; block < qep_num_vocab_blocks(vocab); block++) {
        int32_t begin = block * block_rows;
        int32_t rows = vocab - begin < block_rows ? vocab - begin : block_rows;
        add(b, QEP_TENSOR_MATRIX, rows, b->config->hidden_size, "lm_head.weight.block.%d",
            (int)block);
        if (b->st == QEP_OK)
            b->inventory->specs[b->inventory->num_specs - 1].vocab_block = block;
    }
}

enum qep_status qep_inventory_create(const struct qep_model_config *config,
                                     struct qep_inventory *out) {
    struct builder b = {.config = config, .inventory = out, .layer = -1, .expert = -1};
    *out = (struct qep_inventory){0};
    if (!config->tie_word_embeddings)
        add(&b, QEP_TENSOR_MATRIX, config->vocab_size, config->hidden_size, "embed_tokens.weight");
    add(&b, QEP_TENSOR_VECTOR, 1, config->hidden_size, "norm.weight");
    for (b.layer = 0; b.layer < config->num_hidden_layers; b.layer++)
        add_layer(&b);
    b.layer = -1;
    add_head(&b);
    if (b.st != QEP_OK)
        qep_inventory_free(out);
    return b.st;
}

void qep_inventory_free(struct qep_inventory *inventory) {
    if (inventory == NULL)
        return;
    free(inventory->specs);
    *inventory = (struct qep_inventory){0};
}

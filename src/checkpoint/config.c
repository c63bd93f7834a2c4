/* Bounds are wide enough for every published model of the family and narrow enough that products of
 * them stay far from overflow and no header alone can ask for absurd memory. */
#include "checkpoint/config.h"

#include <stdio.h>
#include <string.h>

enum {
    MAX_VOCAB = 1 << 21,
    MAX_HIDDEN = 1 << 16,
    MAX_INTERMEDIATE = 1 << 20,
    MAX_HEADS = 1024,
    MAX_HEAD_DIM = 4096,
    MAX_ROTARY_DIM = 512,        /* kernels/rope.h */
    MAX_QUERY_HEADS_PER_KV = 64, /* kernels/cpu/attention.c */
    MAX_CONV_KERNEL = 8,         /* kernels/cpu/deltanet.c */
    MAX_PROJECTION = 1 << 22,    /* rows of any attention projection */
    MAX_LAYER_EXPERTS = 1 << 18
};

struct source {
    const cJSON *top;  /* the whole file */
    const cJSON *text; /* text_config, or the same as top */
    const char *where;
};

static enum qep_status get_i32(const struct source *s, const char *key, int64_t max, int32_t *out) {
    int64_t value = 0;
    QEP_TRY(qep_json_int(s->text, key, s->where, 1, max, &value));
    *out = (int32_t)value;
    return QEP_OK;
}

static enum qep_status get_i32_opt(const struct source *s, const char *key, int64_t min,
                                   int64_t max, int32_t *out) {
    int64_t value = *out;
    QEP_TRY(qep_json_int_opt(s->text, key, s->where, min, max, &value));
    *out = (int32_t)value;
    return QEP_OK;
}

/* Refuses a switch that the forward pass does not have. */
static enum qep_status demand_bool(const struct source *s, const char *key, bool expected) {
    bool value = expected;
    QEP_TRY(qep_json_bool_opt(s->text, key, s->where, &value));
    if (value != expected)
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\": expected %s, found %s (not supported)", s->where,
                        key, expected ? "true" : "false", value ? "true" : "false");
    return QEP_OK;
}

static const char *const known_types[] = {"qwen3_5_moe", "qwen3_5", "qwen3_next"};

static enum qep_status base_type(const struct source *s, const cJSON *obj, char out[64]) {
    const char *type = NULL;
    QEP_TRY(qep_json_string(obj, "model_type", s->where, &type));
    for (size_t i = 0; i < sizeof known_types / sizeof *known_types; i++) {
        size_t n = strlen(known_types[i]);
        if (strncmp(type, known_types[i], n) == 0 &&
            (type[n] == '\0' || strcmp(type + n, "_text") == 0)) {
            snprintf(out, 64, "%s", known_types[i]);
            return QEP_OK;
        }
    }
    return qep_fail(QEP_ERR_DATA,
                    "%s: \"model_type\": expected qwen3_5_moe, qwen3_5 or qwen3_next (with or "
                    "without _text), found \"%.80s\"",
                    s->where, type);
}

static enum qep_status parse_type(const struct source *s, struct qep_model_config *c) {
    QEP_TRY(base_type(s, s->top, c->model_type));
    if (s->text == s->top || qep_json_get(s->text, "model_type") == NULL)
        return QEP_OK;
    char text_type[64];
    QEP_TRY(base_type(s, s->text, text_type));
    if (strcmp(text_type, c->model_type) != 0)
        return qep_fail(QEP_ERR_DATA, "%s: \"text_config.model_type\": expected %s, found %s",
                        s->where, c->model_type, text_type);
    return QEP_OK;
}

static enum qep_status refuse_quantised(const struct source *s) {
    const cJSON *q = qep_json_get(s->top, "quantization_config");
    if (q == NULL)
        q = qep_json_get(s->text, "quantization_config");
    if (q != NULL) {
        const cJSON *method = qep_json_get(q, "quant_method");
        return qep_fail(QEP_ERR_DATA,
                        "%s: \"quantization_config\": the checkpoint is already quantised "
                        "(quant_method %.40s); expected an unquantised BF16, F16 or F32 one",
                        s->where, cJSON_IsString(method) ? method->valuestring : "unknown");
    }
    if (qep_json_get(s->top, "quantization") != NULL ||
        qep_json_get(s->text, "quantization") != NULL)
        return qep_fail(QEP_ERR_DATA,
                        "%s: \"quantization\": this is an MLX-converted checkpoint (norms are "
                        "changed there); expected the original Hugging Face one",
                        s->where);
    return QEP_OK;
}

/* Options of related models that change the arithmetic. */
static enum qep_status refuse_variants(const struct source *s) {
    const char *act = NULL;
    int32_t step = 1;
    QEP_TRY(qep_json_string_opt(s->text, "hidden_act", s->where, &act));
    if (act != NULL && strcmp(act, "silu") != 0)
        return qep_fail(QEP_ERR_DATA, "%s: \"hidden_act\": expected silu, found \"%.40s\"",
                        s->where, act);
    QEP_TRY(demand_bool(s, "attention_bias", false));
    QEP_TRY(demand_bool(s, "attn_output_gate", true));
    QEP_TRY(demand_bool(s, "norm_topk_prob", true));
    QEP_TRY(demand_bool(s, "use_sliding_window", false));
    QEP_TRY(get_i32_opt(s, "decoder_sparse_step", 0, 1 << 20, &step));
    if (step != 1)
        return qep_fail(QEP_ERR_DATA, "%s: \"decoder_sparse_step\": expected 1, found %d", s->where,
                        (int)step);
    const cJSON *dense = qep_json_get(s->text, "mlp_only_layers");
    if (dense != NULL && (!cJSON_IsArray(dense) || cJSON_GetArraySize(dense) != 0))
        return qep_fail(QEP_ERR_DATA, "%s: \"mlp_only_layers\": expected an empty list", s->where);
    return QEP_OK;
}

static enum qep_status check_rope_type(const struct source *s, const cJSON *rope, const char *key) {
    const char *type = NULL;
    if (rope == NULL)
        return QEP_OK;
    if (!cJSON_IsObject(rope))
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\": expected an object", s->where, key);
    QEP_TRY(qep_json_string_opt(rope, "rope_type", s->where, &type));
    if (type == NULL)
        QEP_TRY(qep_json_string_opt(rope, "type", s->where, &type));
    if (type != NULL && strcmp(type, "default") != 0)
        return qep_fail(QEP_ERR_DATA,
                        "%s: \"%s\": expected rope_type default, found \"%.40s\" (rope scaling is "
                        "not supported)",
                        s->where, key, type);
    if (type == NULL && qep_json_get(rope, "factor") != NULL)
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\": rope scaling is not supported, found a factor",
                        s->where, key);
    return QEP_OK;
}

static enum qep_status parse_rope(const struct source *s, struct qep_model_config *c) {
    const cJSON *rope = qep_json_get(s->text, "rope_parameters");
    double factor = 1.0, theta = 10000.0;
    int32_t explicit_dim = 0;
    QEP_TRY(check_rope_type(s, rope, "rope_parameters"));
    QEP_TRY(check_rope_type(s, qep_json_get(s->text, "rope_scaling"), "rope_scaling"));
    QEP_TRY(qep_json_double_opt(s->text, "rope_theta", s->where, 1.0, 1e15, &theta));
    QEP_TRY(qep_json_double_opt(s->text, "partial_rotary_factor", s->where, 0.0, 1.0, &factor));
    if (rope != NULL) {
        QEP_TRY(qep_json_double_opt(rope, "rope_theta", s->where, 1.0, 1e15, &theta));
        QEP_TRY(qep_json_double_opt(rope, "partial_rotary_factor", s->where, 0.0, 1.0, &factor));
    }
    c->rope_theta = theta;
    c->rotary_dim = (int32_t)(c->head_dim * factor); /* truncated, as the reference does */
    /* Our own manifests state the product: a factor need not survive the round trip. */
    QEP_TRY(get_i32_opt(s, "rotary_dim", 1, MAX_HEAD_DIM, &explicit_dim));
    if (explicit_dim != 0)
        c->rotary_dim = explicit_dim;
    if (c->rotary_dim < 2 || c->rotary_dim % 2 != 0 || c->rotary_dim > c->head_dim)
        return qep_fail(QEP_ERR_DATA,
                        "%s: \"partial_rotary_factor\": expected an even number of rotary "
                        "dimensions in 2..%d, found %d",
                        s->where, (int)c->head_dim, (int)c->rotary_dim);
    if (c->rotary_dim > MAX_ROTARY_DIM)
        return qep_fail(
            QEP_ERR_DATA,
            "%s: \"partial_rotary_factor\": at most %d rotary dimensions are supported, "
            "found %d",
            s->where, MAX_ROTARY_DIM, (int)c->rotary_dim);
    return QEP_OK;
}

static enum qep_status parse_layer_list(const struct source *s, const cJSON *list,
                                        struct qep_model_config *c) {
    int idx = 0;
    const cJSON *item = NULL;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != c->num_hidden_layers)
        return qep_fail(QEP_ERR_DATA, "%s: \"layer_types\": expected a list of %d, found %d items",
                        s->where, (int)c->num_hidden_layers,
                        cJSON_IsArray(list) ? cJSON_GetArraySize(list) : 0);
    cJSON_ArrayForEach (item, list) {
        const char *type = cJSON_IsString(item) ? item->valuestring : "not a string";
        if (strcmp(type, "linear_attention") == 0)
            c->layer_types[idx++] = QEP_LAYER_LINEAR_ATTENTION;
        else if (strcmp(type, "full_attention") == 0)
            c->layer_types[idx++] = QEP_LAYER_FULL_ATTENTION;
        else
            return qep_fail(QEP_ERR_DATA,
                            "%s: \"layer_types\"[%d]: expected linear_attention or "
                            "full_attention, found \"%.40s\"",
                            s->where, idx, type);
    }
    return QEP_OK;
}

static enum qep_status parse_layers(const struct source *s, struct qep_model_config *c) {
    const cJSON *list = qep_json_get(s->text, "layer_types");
    int32_t interval = 4;
    QEP_TRY(get_i32(s, "num_hidden_layers", QEP_MAX_LAYERS, &c->num_hidden_layers));
    if (list != NULL)
        return parse_layer_list(s, list, c);
    QEP_TRY(get_i32_opt(s, "full_attention_interval", 1, QEP_MAX_LAYERS, &interval));
    for (int32_t i = 0; i < c->num_hidden_layers; i++)
        c->layer_types[i] =
            (i + 1) % interval == 0 ? QEP_LAYER_FULL_ATTENTION : QEP_LAYER_LINEAR_ATTENTION;
    return QEP_OK;
}

static enum qep_status parse_attention(const struct source *s, struct qep_model_config *c) {
    QEP_TRY(get_i32(s, "num_attention_heads", MAX_HEADS, &c->num_attention_heads));
    QEP_TRY(get_i32(s, "num_key_value_heads", MAX_HEADS, &c->num_key_value_heads));
    c->head_dim = c->hidden_size / c->num_attention_heads;
    QEP_TRY(get_i32_opt(s, "head_dim", 1, MAX_HEAD_DIM, &c->head_dim));
    if (c->head_dim < 1 || c->head_dim > MAX_HEAD_DIM)
        return qep_fail(QEP_ERR_DATA, "%s: \"head_dim\" is missing", s->where);
    if (c->num_attention_heads % c->num_key_value_heads != 0)
        return qep_fail(QEP_ERR_DATA,
                        "%s: \"num_key_value_heads\": expected a divisor of num_attention_heads "
                        "%d, found %d",
                        s->where, (int)c->num_attention_heads, (int)c->num_key_value_heads);
    if (c->num_attention_heads / c->num_key_value_heads > MAX_QUERY_HEADS_PER_KV)
        return qep_fail(QEP_ERR_DATA,
                        "%s: \"num_attention_heads\": at most %d per key/value head are supported, "
                        "found %d over %d",
                        s->where, MAX_QUERY_HEADS_PER_KV, (int)c->num_attention_heads,
                        (int)c->num_key_value_heads);
    if (2 * (int64_t)c->num_attention_heads * c->head_dim > MAX_PROJECTION)
        return qep_fail(QEP_ERR_DATA,
                        "%s: \"num_attention_heads\" x \"head_dim\": expected at most %d, found "
                        "%d x %d",
                        s->where, MAX_PROJECTION / 2, (int)c->num_attention_heads,
                        (int)c->head_dim);
    return parse_rope(s, c);
}

static enum qep_status parse_deltanet(const struct source *s, struct qep_model_config *c) {
    QEP_TRY(get_i32(s, "linear_num_key_heads", MAX_HEADS, &c->linear_num_key_heads));
    QEP_TRY(get_i32(s, "linear_num_value_heads", MAX_HEADS, &c->linear_num_value_heads));
    QEP_TRY(get_i32(s, "linear_key_head_dim", MAX_HEAD_DIM, &c->linear_key_head_dim));
    QEP_TRY(get_i32(s, "linear_value_head_dim", MAX_HEAD_DIM, &c->linear_value_head_dim));
    QEP_TRY(get_i32(s, "linear_conv_kernel_dim", MAX_CONV_KERNEL, &c->linear_conv_kernel_dim));
    if (c->linear_num_value_heads % c->linear_num_key_heads != 0)
        return qep_fail(QEP_ERR_DATA,
                        "%s: \"linear_num_value_heads\": expected a multiple of "
                        "linear_num_key_heads %d, found %d",
                        s->where, (int)c->linear_num_key_heads, (int)c->linear_num_value_heads);
    int64_t rows = 2 * (int64_t)c->linear_num_key_heads * c->linear_key_head_dim +
                   2 * (int64_t)c->linear_num_value_heads * c->linear_value_head_dim;
    if (rows > MAX_PROJECTION)
        return qep_fail(QEP_ERR_DATA,
                        "%s: linear attention heads x dims: expected at most %d rows, found %lld",
                        s->where, MAX_PROJECTION, (long long)rows);
    return QEP_OK;
}

static enum qep_status parse_experts(const struct source *s, struct qep_model_config *c) {
    QEP_TRY(get_i32(s, "num_experts", QEP_MAX_EXPERTS, &c->num_experts));
    QEP_TRY(get_i32(s, "num_experts_per_tok", QEP_MAX_EXPERTS, &c->num_experts_per_tok));
    QEP_TRY(get_i32(s, "moe_intermediate_size", MAX_INTERMEDIATE, &c->moe_intermediate_size));
    QEP_TRY(get_i32_opt(s, "shared_expert_intermediate_size", 0, MAX_INTERMEDIATE,
                        &c->shared_expert_intermediate_size));
    if (c->num_experts_per_tok > c->num_experts)
        return qep_fail(QEP_ERR_DATA,
                        "%s: \"num_experts_per_tok\": expected at most num_experts %d, found %d",
                        s->where, (int)c->num_experts, (int)c->num_experts_per_tok);
    if ((int64_t)c->num_experts * c->num_hidden_layers > MAX_LAYER_EXPERTS)
        return qep_fail(QEP_ERR_DATA,
                        "%s: \"num_experts\" x \"num_hidden_layers\": expected at most %d, found "
                        "%d x %d",
                        s->where, MAX_LAYER_EXPERTS, (int)c->num_experts,
                        (int)c->num_hidden_layers);
    return QEP_OK;
}

static enum qep_status parse_mlp(const struct source *s, struct qep_model_config *c) {
    if (strcmp(c->model_type, "qwen3_5") != 0)
        return parse_experts(s, c);
    int32_t experts = 0;
    QEP_TRY(get_i32_opt(s, "num_experts", 0, QEP_MAX_EXPERTS, &experts));
    if (experts != 0)
        return qep_fail(QEP_ERR_DATA,
                        "%s: \"num_experts\": expected none for the dense model_type qwen3_5, "
                        "found %d",
                        s->where, (int)experts);
    return get_i32(s, "intermediate_size", MAX_INTERMEDIATE, &c->intermediate_size);
}

static enum qep_status add_eos(const struct source *s, const cJSON *item,
                               struct qep_model_config *c) {
    double v = cJSON_IsNumber(item) ? item->valuedouble : -1.0;
    if (!(v >= 0 && v < c->vocab_size) || v != (double)(int32_t)v)
        return qep_fail(QEP_ERR_DATA, "%s: \"eos_token_id\": expected token ids in 0..%d", s->where,
                        (int)c->vocab_size - 1);
    if (c->num_eos == QEP_MAX_EOS)
        return qep_fail(QEP_ERR_DATA, "%s: \"eos_token_id\": expected at most %d ids", s->where,
                        QEP_MAX_EOS);
    c->eos_token_id[c->num_eos++] = (int32_t)v;
    return QEP_OK;
}

static enum qep_status parse_eos(const struct source *s, struct qep_model_config *c) {
    const cJSON *eos = qep_json_get(s->text, "eos_token_id"), *item = NULL;
    if (eos == NULL)
        eos = qep_json_get(s->top, "eos_token_id");
    if (eos == NULL)
        return QEP_OK;
    if (!cJSON_IsArray(eos))
        return add_eos(s, eos, c);
    cJSON_ArrayForEach (item, eos) {
        QEP_TRY(add_eos(s, item, c));
    }
    return QEP_OK;
}

enum qep_status qep_config_from_json(const cJSON *root, const char *where,
                                     struct qep_model_config *out) {
    struct source s = {.top = root, .text = qep_json_get(root, "text_config"), .where = where};
    struct qep_model_config *c = out;
    memset(out, 0, sizeof *out);
    if (!cJSON_IsObject(root) || (s.text != NULL && !cJSON_IsObject(s.text)))
        return qep_fail(QEP_ERR_DATA, "%s: expected a JSON object", where);
    if (s.text == NULL)
        s.text = root;
    QEP_TRY(refuse_quantised(&s));
    QEP_TRY(parse_type(&s, c));
    QEP_TRY(refuse_variants(&s));
    QEP_TRY(get_i32(&s, "vocab_size", MAX_VOCAB, &c->vocab_size));
    QEP_TRY(get_i32(&s, "hidden_size", MAX_HIDDEN, &c->hidden_size));
    QEP_TRY(parse_layers(&s, c));
    QEP_TRY(qep_json_bool_opt(s.text, "tie_word_embeddings", where, &c->tie_word_embeddings));
    QEP_TRY(qep_json_bool_opt(s.top, "tie_word_embeddings", where, &c->tie_word_embeddings));
    c->rms_norm_eps = 1e-6;
    QEP_TRY(qep_json_double_opt(s.text, "rms_norm_eps", where, 0.0, 1.0, &c->rms_norm_eps));
    c->max_position_embeddings = 32768;
    QEP_TRY(get_i32_opt(&s, "max_position_embeddings", 1, INT32_MAX, &c->max_position_embeddings));
    QEP_TRY(parse_attention(&s, c));
    QEP_TRY(parse_deltanet(&s, c));
    QEP_TRY(parse_mlp(&s, c));
    return parse_eos(&s, c);
}

enum qep_status qep_config_parse(const char *text, size_t len, const char *where,
                                 struct qep_model_config *out) {
    cJSON *root = NULL;
    memset(out, 0, sizeof *out);
    if (len > QEP_CONFIG_MAX_BYTES)
        return qep_fail(QEP_ERR_DATA, "%s: %zu bytes, at most %d are allowed here", where, len,
                        QEP_CONFIG_MAX_BYTES);
    QEP_TRY(qep_json_parse(text, len, where, &root));
    enum qep_status st = qep_config_from_json(root, where, out);
    cJSON_Delete(root);
    return st;
}

enum qep_status qep_config_read(const char *path, struct qep_model_config *out) {
    cJSON *root = NULL;
    memset(out, 0, sizeof *out);
    QEP_TRY(qep_json_read(path, QEP_CONFIG_MAX_BYTES, &root));
    enum qep_status st = qep_config_from_json(root, path, out);
    cJSON_Delete(root);
    return st;
}

/* Gated DeltaNet (HF modular_qwen3_5.py Qwen3_5GatedDeltaNet): one op a line. */
#include "model/internal.h"

#define OPS (m->be->ops)

enum qep_status model_deltanet(struct qep_model *m, int32_t layer, float *hidden) {
    const struct qep_layer_weights *w = &m->weights->layers[layer];
    const struct qep_layer_cache *cache = &m->cache->layers[layer];
    const struct qep_model_config *c = m->config;
    const struct qep_batch *batch = &m->phase.local;
    int32_t n = batch->num_rows;
    size_t mixed_cols = (size_t)c->linear_num_value_heads * (size_t)c->linear_value_head_dim;
    float *qkv, *z, *a, *b, *out;
    void *conv, *mixed;
    unsigned wants = model_wants(&w->in_proj_qkv) | model_wants(&w->in_proj_z) |
                     model_wants(&w->in_proj_a) | model_wants(&w->in_proj_b);
    QEP_TRY(model_scratch(m, SCRATCH_CONV, (size_t)n * (size_t)w->in_proj_qkv.rows, 4, &conv));
    QEP_TRY(model_scratch(m, SCRATCH_MIXED, (size_t)n * mixed_cols, 4, &mixed));
    QEP_TRY(model_norm(m, hidden, w->input_layernorm, wants, n));    /* [n, H] */
    QEP_TRY(model_linear(m, &w->in_proj_qkv, n, SCRATCH_QKV, &qkv)); /* [n, q | k | v] */
    QEP_TRY(model_linear(m, &w->in_proj_z, n, SCRATCH_Z, &z));       /* [n, value heads, dv] */
    QEP_TRY(model_linear(m, &w->in_proj_a, n, SCRATCH_A, &a));       /* [n, value heads] */
    QEP_TRY(model_linear(m, &w->in_proj_b, n, SCRATCH_B, &b));
    QEP_TRY(OPS->delta_conv(m->be, &m->delta_dims, batch, conv, qkv, w->conv1d, cache->conv_state));
    QEP_TRY(OPS->delta(m->be, &m->delta_dims, batch, mixed, conv, a, b, w->A_log, w->dt_bias,
                       cache->recurrent_state)); /* [n, value heads, dv] */
    QEP_TRY(OPS->delta_norm(m->be, &m->delta_dims, mixed, mixed, z, w->norm, n));
    model_set_input(m, mixed);
    QEP_TRY(model_linear(m, &w->out_proj, n, SCRATCH_OUT, &out)); /* [n, H] */
    return OPS->add(m->be, hidden, out, (size_t)n * (size_t)c->hidden_size);
}

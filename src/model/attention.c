/* Full attention with gated output (HF modular_qwen3_5.py Qwen3_5Attention): one op a line. */
#include "model/internal.h"

#define OPS (m->be->ops)

enum qep_status model_attention(struct qep_model *m, int32_t layer, float *hidden) {
    const struct qep_layer_weights *w = &m->weights->layers[layer];
    const struct qep_model_config *c = m->config;
    const struct qep_batch *batch = &m->phase.local;
    int32_t n = batch->num_rows, mixed_cols = c->num_attention_heads * c->head_dim;
    float *qg, *k, *v;
    struct qep_rows_out mixed;
    /* A decode step of fixed capacity has its blocks before it is recorded. */
    for (int32_t i = 0; m->phase.padded_rows == 0 && i < batch->num_spans; i++)
        QEP_TRY(qep_cache_reserve(m->cache, layer, batch->spans[i].slot,
                                  batch->spans[i].position + batch->spans[i].num_rows));
    void *const *blocks = m->cache->layers[layer].dev_blocks;
    unsigned wants = model_wants(&w->q_proj) | model_wants(&w->k_proj) | model_wants(&w->v_proj);
    QEP_TRY(model_norm(m, hidden, w->input_layernorm, wants, n));     /* [n, H] */
    const struct model_product in[] = {{&w->q_proj, SCRATCH_QG, &qg}, /* [n, heads, 2, head_dim] */
                                       {&w->k_proj, SCRATCH_K, &k},   /* [n, kv_heads, head_dim] */
                                       {&w->v_proj, SCRATCH_V, &v}};
    QEP_TRY(model_products(m, in, 3, n));
    QEP_TRY(OPS->attention_kv(m->be, &m->attention_dims, batch, k, v, w->k_norm, blocks));
    QEP_TRY(model_open_input(m, SCRATCH_MIXED, model_wants(&w->o_proj), false, n, mixed_cols,
                             &mixed)); /* [n, heads, head_dim] */
    QEP_TRY(OPS->attention(m->be, &m->attention_dims, batch, mixed, qg, w->q_norm, blocks));
    return model_add_product(m, &w->o_proj, NULL, n, hidden);
}

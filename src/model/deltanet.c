/* Gated DeltaNet (HF modular_qwen3_5.py Qwen3_5GatedDeltaNet): one op a line. */
#include "model/internal.h"

#define OPS (m->be->ops)

/* [n, q | k | v], [n, value heads, dv], [n, value heads], [n, value heads] */
struct projected {
    float *qkv, *z, *a, *b;
};

/* From the projections to [n, value heads, dv], which becomes the input: op by op. */
static enum qep_status mix(struct qep_model *m, int32_t layer, const struct projected *p) {
    const struct qep_layer_weights *w = &m->weights->layers[layer];
    const struct qep_layer_cache *cache = &m->cache->layers[layer];
    const struct qep_batch *batch = &m->phase.local;
    size_t n = (size_t)batch->num_rows;
    void *conv, *mixed;
    QEP_TRY(model_scratch(m, SCRATCH_CONV, n * (size_t)w->in_proj_qkv.rows, 4, &conv));
    QEP_TRY(model_scratch(m, SCRATCH_MIXED, n * (size_t)w->out_proj.cols, 4, &mixed));
    QEP_TRY(
        OPS->delta_conv(m->be, &m->delta_dims, batch, conv, p->qkv, w->conv1d, cache->conv_state));
    QEP_TRY(OPS->delta(m->be, &m->delta_dims, batch, mixed, conv, p->a, p->b, w->A_log, w->dt_bias,
                       cache->recurrent_state));
    model_set_input(m, mixed);
    return OPS->delta_norm(m->be, &m->delta_dims, mixed, mixed, p->z, w->norm, batch->num_rows);
}

/* The same for a decode step on a device, in one op. */
static enum qep_status mix_step(struct qep_model *m, int32_t layer, const struct projected *p) {
    const struct qep_layer_weights *w = &m->weights->layers[layer];
    const struct qep_batch *batch = &m->phase.local;
    const struct qep_delta_decode_args args = {.qkv = p->qkv,
                                               .z = p->z,
                                               .a = p->a,
                                               .b = p->b,
                                               .conv1d = w->conv1d,
                                               .A_log = w->A_log,
                                               .dt_bias = w->dt_bias,
                                               .norm = w->norm,
                                               .conv_state = m->cache->layers[layer].conv_state,
                                               .recurrent_state =
                                                   m->cache->layers[layer].recurrent_state};
    struct qep_rows_out mixed;
    QEP_TRY(model_open_input(m, SCRATCH_MIXED, model_wants(&w->out_proj), false, batch->num_rows,
                             w->out_proj.cols, &mixed));
    return m->be->device->delta_decode(m->be, &m->delta_dims, batch, mixed, &args);
}

enum qep_status model_deltanet(struct qep_model *m, int32_t layer, float *hidden) {
    const struct qep_layer_weights *w = &m->weights->layers[layer];
    int32_t n = m->phase.local.num_rows;
    bool one_op = m->be->device != NULL && m->phase.rows.decode;
    unsigned wants = model_wants(&w->in_proj_qkv) | model_wants(&w->in_proj_z) |
                     model_wants(&w->in_proj_a) | model_wants(&w->in_proj_b);
    struct projected p;
    const struct model_product in[] = {{&w->in_proj_qkv, SCRATCH_QKV, &p.qkv},
                                       {&w->in_proj_z, SCRATCH_Z, &p.z},
                                       {&w->in_proj_a, SCRATCH_A, &p.a},
                                       {&w->in_proj_b, SCRATCH_B, &p.b}};
    QEP_TRY(model_norm(m, hidden, w->input_layernorm, wants, n)); /* [n, H] */
    QEP_TRY(model_products(m, in, 4, n));
    QEP_TRY(one_op ? mix_step(m, layer, &p) : mix(m, layer, &p));
    return model_add_product(m, &w->out_proj, NULL, n, hidden);
}

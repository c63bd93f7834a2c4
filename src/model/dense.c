/* The MLP of dense models, on the layer's owner. */
#include "model/internal.h"

#define OPS (m->be->ops)

static enum qep_status mlp(struct qep_model *m, int32_t layer, float *hidden, int32_t n) {
    const struct qep_layer_weights *w = &m->weights->layers[layer];
    unsigned wants = model_wants(&w->gate_proj) | model_wants(&w->up_proj);
    float *gate, *up;
    struct qep_rows_out inner;
    QEP_TRY(model_norm(m, hidden, w->post_attention_layernorm, wants, n));
    const struct model_product in[] = {{&w->gate_proj, SCRATCH_GATE, &gate}, /* [n, I] */
                                       {&w->up_proj, SCRATCH_UP, &up}};
    QEP_TRY(model_products(m, in, 2, n));
    QEP_TRY(model_open_input(m, SCRATCH_GATE, model_wants(&w->down_proj), false, n,
                             w->gate_proj.rows, &inner)); /* [n, I] */
    QEP_TRY(OPS->swiglu(m->be, inner, gate, up, n, w->gate_proj.rows));
    return model_add_product(m, &w->down_proj, NULL, n, hidden);
}

/* The rows to owner(layer + 1), from device to device. */
static enum qep_status move_device(struct qep_model *m, int32_t layer) {
    int from = qep_owner(m->placement, layer, 0), to = qep_owner(m->placement, layer + 1, 0);
    int32_t rows = m->phase.padded_rows > 0 ? m->phase.padded_rows : m->phase.num_rows;
    size_t row_bytes = (size_t)m->config->hidden_size * 4, bytes = (size_t)rows * row_bytes;
    void *moved, *hidden;
    if (m->placement->attention == QEP_ATTENTION_SEQUENCES || from == to)
        return m->phase.rows.decode ? QEP_OK : qep_comm_barrier(m->comm);
    QEP_TRY(model_scratch(m, SCRATCH_BASE, (size_t)rows, row_bytes, &moved));
    QEP_TRY(qep_device_move(m->dc, from, to, m->scratch[SCRATCH_HIDDEN].data, moved, bytes));
    if (m->comm->rank != to)
        return QEP_OK;
    QEP_TRY(model_scratch(m, SCRATCH_HIDDEN, (size_t)rows, row_bytes, &hidden));
    return m->be->device->copy(m->be, hidden, moved, bytes);
}

enum qep_status model_dense(struct qep_model *m, int32_t layer) {
    int32_t n = m->phase.local.num_rows, next = 0;
    size_t row_bytes = (size_t)m->config->hidden_size * 4;
    void *hidden = m->scratch[SCRATCH_HIDDEN].data, *host = NULL;
    const float *moved = NULL;
    qep_watchdog_stamp(m->dog, "mlp", layer, m->step);
    if (n > 0)
        QEP_TRY(mlp(m, layer, hidden, n));
    if (m->comm->num_ranks == 1)
        return QEP_OK;
    if (m->be->device != NULL)
        return move_device(m, layer);
    QEP_TRY(model_staging(m, STAGING_BASE, (size_t)n * row_bytes, &host));
    QEP_TRY(OPS->download(m->be, host, hidden, (size_t)n * row_bytes));
    QEP_TRY(qep_exchange_move(m->exchange, &m->phase.rows, layer, host, &moved, &next));
    if (next == 0)
        return QEP_OK;
    QEP_TRY(model_scratch(m, SCRATCH_HIDDEN, (size_t)next, row_bytes, &hidden));
    return OPS->upload(m->be, hidden, moved, (size_t)next * row_bytes);
}

/* THE forward: embedding, layers, head, for any number of rows of any slots. */
#include "model/internal.h"

#include "base/clock.h"
#include "base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OPS (m->be->ops)

enum qep_status model_scratch(struct qep_model *m, enum scratch_id id, size_t count, size_t size,
                              void **dev) {
    struct block *b = &m->scratch[id];
    size_t bytes = 0;
    *dev = NULL;
    if (__builtin_mul_overflow(count, size, &bytes))
        return qep_fail(QEP_ERR_SYSTEM, "scratch: %zu x %zu bytes overflow", count, size);
    if (bytes > b->bytes) {
        size_t grown = model_scratch_grown(bytes);
        m->be->ops->free(m->be, b->data);
        b->data = NULL;
        b->bytes = 0;
        m->scratch_generation++;
        QEP_TRY(m->be->ops->alloc(m->be, grown, "scratch", &b->data));
        b->bytes = grown;
    }
    *dev = b->data;
    return QEP_OK;
}

enum qep_status model_staging(struct qep_model *m, enum staging_id id, size_t bytes, void **host) {
    struct block *b = &m->staging[id];
    *host = NULL;
    if (bytes > b->bytes || b->data == NULL) {
        size_t grown = bytes + bytes / 4 + 64;
        free(b->data);
        b->data = NULL;
        b->bytes = 0;
        QEP_TRY(qep_alloc(grown, 1, "staging", &b->data));
        b->bytes = grown;
    }
    *host = b->data;
    return QEP_OK;
}

void model_set_input(struct qep_model *m, const float *x) {
    m->input = (struct model_input){.f32 = x};
}

enum qep_status model_open_input(struct qep_model *m, enum scratch_id id, unsigned wants,
                                 bool inner, int32_t n, int32_t cols, struct qep_rows_out *out) {
    void *mem;
    *out = (struct qep_rows_out){.act_type = QEP_ACT_F32};
    m->input = (struct model_input){.inner = inner};
    if (m->be->device == NULL || wants != model_act_bit(QEP_ACT_BF16)) {
        QEP_TRY(model_scratch(m, id, (size_t)n * (size_t)cols, sizeof(float), &mem));
        out->f32 = mem;
        m->input.f32 = out->f32;
    }
    if (wants & model_act_bit(QEP_ACT_BF16))
        out->act_type = QEP_ACT_BF16;
    else if (wants & model_act_bit(QEP_ACT_INT8))
        out->act_type = QEP_ACT_INT8;
    else
        return QEP_OK; /* f32 products read the rows themselves; model_act where they must not */
    out->act_stride = qep_act_row_bytes(out->act_type, cols);
    m->input.made[out->act_type] = true;
    return model_scratch(m, model_act_scratch(m->input.inner, out->act_type), (size_t)n,
                         out->act_stride, &out->act);
}

enum qep_status model_norm(struct qep_model *m, const float *x, const float *w, unsigned wants,
                           int32_t n) {
    int32_t cols = m->config->hidden_size;
    struct qep_rows_out out;
    QEP_TRY(model_open_input(m, SCRATCH_NORMED, wants, false, n, cols, &out));
    return OPS->rms_norm(m->be, out, x, w, n, cols, (float)m->config->rms_norm_eps);
}

enum qep_status model_act(struct qep_model *m, enum qep_act_type type, int32_t n, int32_t cols,
                          const void **act) {
    struct model_input *in = &m->input;
    size_t row_bytes = qep_act_row_bytes(type, cols);
    void *rows;
    assert(in->made[type] || in->f32 != NULL);
    if (type == QEP_ACT_F32 && row_bytes == (size_t)cols * 4) {
        *act = in->f32;
        return QEP_OK;
    }
    QEP_TRY(model_scratch(m, model_act_scratch(in->inner, type), (size_t)n, row_bytes, &rows));
    if (!in->made[type])
        QEP_TRY(OPS->act_convert(m->be, rows, row_bytes, type, in->f32, n, cols));
    in->made[type] = true;
    *act = rows;
    return QEP_OK;
}

static enum qep_status run_products(struct qep_model *m, const struct qep_product *products,
                                    int32_t num, enum qep_act_type type, int32_t cols, int32_t n) {
    const void *act;
    if (num == 0)
        return QEP_OK;
    QEP_TRY(model_act(m, type, n, cols, &act));
    return OPS->matmul(m->be, products, num, act, qep_act_row_bytes(type, cols), type, n,
                       m->phase.rows.decode);
}

enum qep_status model_products(struct qep_model *m, const struct model_product *list, int32_t num,
                               int32_t n) {
    for (int type = QEP_ACT_F32; type <= QEP_ACT_INT8; type++) {
        struct qep_product products[QEP_MAX_PRODUCTS];
        int32_t count = 0;
        for (int32_t i = 0; i < num; i++) {
            const struct qep_linear *lin = list[i].lin;
            void *out;
            if (lin->act != (enum qep_act_type)type)
                continue;
            QEP_TRY(model_scratch(m, list[i].id, (size_t)n * (size_t)lin->rows, 4, &out));
            *list[i].out = out;
            products[count++] = (struct qep_product){.weight = lin->weight, .out = out};
        }
        QEP_TRY(run_products(m, products, count, (enum qep_act_type)type, list[0].lin->cols, n));
    }
    return QEP_OK;
}

enum qep_status model_add_product(struct qep_model *m, const struct qep_linear *lin,
                                  const float *gate, int32_t n, float *out) {
    const struct qep_product product = {.weight = lin->weight,
                                        .out = out,
                                        .epilogue = gate == NULL ? QEP_EPILOGUE_ADD
                                                                 : QEP_EPILOGUE_GATED_ADD,
                                        .gate = gate};
    return run_products(m, &product, 1, lin->act, lin->cols, n);
}

enum qep_status qep_model_create(struct qep_comm *comm, struct qep_backend *be,
                                 const struct qep_model_config *c,
                                 const struct qep_placement *placement, struct qep_weights *weights,
                                 const struct qep_model_options *options, struct qep_model **out) {
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof(struct qep_model), "model", &mem));
    struct qep_model *m = mem;
    m->comm = comm;
    m->be = be;
    m->config = c;
    m->placement = placement;
    m->weights = weights;
    m->dc = options->device_comm;
    m->use_graphs = options->device_graphs;
    m->attention_dims = (struct qep_attention_dims){.num_heads = c->num_attention_heads,
                                                    .num_kv_heads = c->num_key_value_heads,
                                                    .head_dim = c->head_dim,
                                                    .rotary_dim = c->rotary_dim,
                                                    .rope_theta = (float)c->rope_theta,
                                                    .eps = (float)c->rms_norm_eps,
                                                    .kv_type = options->kv_type};
    m->delta_dims = (struct qep_delta_dims){.num_key_heads = c->linear_num_key_heads,
                                            .num_value_heads = c->linear_num_value_heads,
                                            .key_head_dim = c->linear_key_head_dim,
                                            .value_head_dim = c->linear_value_head_dim,
                                            .conv_kernel_dim = c->linear_conv_kernel_dim,
                                            .eps = (float)c->rms_norm_eps};
    enum qep_status st = qep_cache_create(be, c, placement, comm->rank, options->num_slots,
                                          options->ctx, options->kv_type, &m->cache);
    if (st == QEP_OK) {
        m->attention_dims.max_blocks = m->cache->max_blocks;
        st = qep_exchange_create(comm, placement, c->hidden_size,
                                 c->num_experts > 0 ? c->num_experts_per_tok : 1, &m->exchange);
    }
    if (st == QEP_OK)
        st = qep_messages_create(placement->num_ranks, &m->messages);
    if (st == QEP_OK)
        st = model_device_create(m);
    if (st != QEP_OK) {
        m->weights = NULL; /* stays the caller's */
        qep_model_destroy(m);
        return st;
    }
    *out = m;
    return QEP_OK;
}

void qep_model_destroy(struct qep_model *m) {
    if (m == NULL)
        return;
    for (int i = 0; i < SCRATCH_COUNT; i++)
        OPS->free(m->be, m->scratch[i].data);
    for (int i = 0; i < STAGING_COUNT; i++)
        free(m->staging[i].data);
    model_decode_destroy(m);
    model_device_destroy(m);
    phase_free(&m->phase);
    qep_exchange_destroy(m->exchange);
    qep_messages_free(&m->messages);
    qep_cache_destroy(m->cache);
    qep_weights_destroy(m->weights);
    free(m);
}

void qep_model_set_watchdog(struct qep_model *m, struct qep_watchdog *dog) {
    m->dog = dog;
}

const struct qep_model_times *qep_model_get_times(const struct qep_model *m) {
    return &m->times;
}

const struct qep_exchange *qep_model_get_exchange(const struct qep_model *m) {
    return m->exchange;
}

uint64_t qep_model_cache_bytes(const struct qep_model *m) {
    return m->cache->bytes;
}

enum qep_status model_reset_slots(struct qep_model *m, const struct qep_plan *plan) {
    for (int32_t i = 0; i < plan->num_spans; i++)
        for (int32_t l = 0; plan->spans[i].reset && l < m->config->num_hidden_layers; l++)
            if (qep_owner(m->placement, l, plan->spans[i].slot) == m->comm->rank)
                QEP_TRY(qep_cache_reset(m->cache, l,
                                        qep_local_slot(m->placement, plan->spans[i].slot)));
    return QEP_OK;
}

enum qep_status model_embed(struct qep_model *m, const int32_t *ids, int32_t n) {
    void *hidden;
    QEP_TRY(
        model_scratch(m, SCRATCH_HIDDEN, (size_t)n * (size_t)m->config->hidden_size, 4, &hidden));
    return OPS->embed(m->be, hidden, m->weights->embed_tokens.weight, ids, n);
}

static enum qep_status embed_local(struct qep_model *m) {
    int32_t n = m->phase.local.num_rows;
    void *ids;
    if (n == 0)
        return QEP_OK;
    QEP_TRY(model_scratch(m, SCRATCH_IDS, (size_t)n, sizeof(int32_t), &ids));
    QEP_TRY(OPS->upload(m->be, ids, m->phase.local_ids, (size_t)n * sizeof(int32_t)));
    return model_embed(m, ids, n);
}

/* The local spans in device memory. A rank owns either the same rows of every layer or, of a layer
 * block, all rows: one upload serves the phase. */
static enum qep_status upload_spans(struct qep_model *m) {
    struct phase *ph = &m->phase;
    size_t bytes = (size_t)ph->local.num_spans * sizeof *ph->local_spans;
    void *dev;
    if (ph->local.num_spans == 0)
        return QEP_OK;
    QEP_TRY(model_scratch(m, SCRATCH_SPANS, bytes, 1, &dev));
    if (!ph->spans_uploaded)
        QEP_TRY(OPS->upload(m->be, dev, ph->local_spans, bytes));
    ph->spans_uploaded = true;
    ph->local.dev_spans = dev;
    return QEP_OK;
}

static enum qep_status run_layer(struct qep_model *m, int32_t layer) {
    bool full = m->config->layer_types[layer] == QEP_LAYER_FULL_ATTENTION;
    double t0 = qep_now_s();
    qep_watchdog_stamp(m->dog, full ? "attention" : "deltanet", layer, m->step);
    if (m->phase.local.num_rows > 0) {
        float *hidden = m->scratch[SCRATCH_HIDDEN].data;
        QEP_TRY(full ? model_attention(m, layer, hidden) : model_deltanet(m, layer, hidden));
        QEP_TRY(model_probe_rows(m, layer, true));
    }
    m->times.mixer += qep_now_s() - t0;
    if (m->config->num_experts == 0)
        return model_dense(m, layer);
    return m->be->device != NULL ? model_moe_device(m, layer) : model_moe(m, layer);
}

/* A device's error comes up at the next call that looks, here or in a later layer. */
enum qep_status model_layer(struct qep_model *m, int32_t layer) {
    char text[QEP_ERROR_MAX];
    enum qep_status st = run_layer(m, layer);
    if (st == QEP_OK || m->be->device == NULL)
        return st;
    snprintf(text, sizeof text, "%s", qep_last_error());
    return qep_fail(st, "%.900s (in layer %d)", text, layer);
}

enum qep_status model_name_step(const struct qep_model *m, enum qep_status st) {
    char text[QEP_ERROR_MAX];
    if (st == QEP_OK || m->be->device == NULL)
        return st;
    snprintf(text, sizeof text, "%s", qep_last_error());
    return qep_fail(st, "%.900s (in step %ld)", text, m->step);
}

static enum qep_status run_phase(struct qep_model *m, const struct qep_plan *plan, int32_t decode,
                                 qep_logits_fn *on_logits, void *ctx) {
    QEP_TRY(phase_build(&m->phase, plan, decode));
    if (m->phase.num_rows == 0)
        return QEP_OK;
    for (int32_t l = 0; l < m->config->num_hidden_layers; l++) {
        QEP_TRY(phase_take_layer(&m->phase, m->placement, m->comm->rank, l, plan));
        QEP_TRY(upload_spans(m));
        if (l == 0)
            QEP_TRY(embed_local(m));
        QEP_TRY(model_probe_rows(m, l, false));
        QEP_TRY(model_layer(m, l));
    }
    int32_t after = m->config->num_hidden_layers;
    if (m->probing)
        QEP_TRY(phase_take_layer(&m->phase, m->placement, m->comm->rank, after, plan));
    QEP_TRY(model_probe_rows(m, after, false));
    return model_head(m, on_logits, ctx);
}

enum qep_status qep_model_forward(struct qep_model *m, const struct qep_plan *plan,
                                  qep_logits_fn *on_logits, void *ctx) {
    m->step = (long)plan->step;
    enum qep_status st = model_reset_slots(m, plan);
    if (st == QEP_OK)
        st = run_phase(m, plan, 1, on_logits, ctx);
    if (st == QEP_OK)
        st = run_phase(m, plan, 0, on_logits, ctx);
    return model_name_step(m, st);
}

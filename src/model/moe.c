/* Mixture of experts over ranks (HF modular_qwen3_5_moe.py Qwen3_5MoeSparseMoeBlock; exchange:
 * dist/exchange.h). owner(l): norm, router, shared expert.  expert ranks: grouped experts, partial
 * sums.  owner(l + 1): the sum. */
#include "model/internal.h"

#include "base/clock.h"

#define OPS (m->be->ops)

/* What owner(l) hands to the exchange, on the host. */
struct routed {
    void *act;
    int32_t *topk_idx;
    float *topk_weights;
    float *base;
    size_t row_bytes;
};

enum qep_status model_moe_products(struct qep_model *m, const struct qep_layer_weights *w,
                                   int32_t n, struct moe_products *out) {
    const struct model_product list[] = {
        {&w->gate, SCRATCH_ROUTER, &out->logits},
        {&w->shared_expert_gate, SCRATCH_SHARED_GATE, &out->shared_gate},
        {&w->shared_gate_proj, SCRATCH_GATE, &out->gate},
        {&w->shared_up_proj, SCRATCH_UP, &out->up}};
    return model_products(m, list, m->config->shared_expert_intermediate_size > 0 ? 4 : 1, n);
}

enum qep_status model_shared_expert(struct qep_model *m, const struct qep_layer_weights *w,
                                    const struct moe_products *p, float *hidden, int32_t n) {
    struct model_input outer = m->input;
    struct qep_rows_out inner;
    QEP_TRY(model_open_input(m, SCRATCH_GATE, model_wants(&w->shared_down_proj), true, n,
                             w->shared_gate_proj.rows, &inner)); /* [n, I] */
    QEP_TRY(OPS->swiglu(m->be, inner, p->gate, p->up, n, w->shared_gate_proj.rows));
    QEP_TRY(model_add_product(m, &w->shared_down_proj, p->shared_gate, n, hidden));
    m->input = outer;
    return QEP_OK;
}

static enum qep_status route(struct qep_model *m, const float *logits, int32_t n,
                             struct routed *r) {
    int32_t k = m->config->num_experts_per_tok;
    size_t pairs = (size_t)n * (size_t)k;
    void *idx, *weights;
    QEP_TRY(model_scratch(m, SCRATCH_TOPK_IDX, pairs, 4, &idx));
    QEP_TRY(model_scratch(m, SCRATCH_TOPK_WEIGHTS, pairs, 4, &weights));
    QEP_TRY(OPS->router_topk(m->be, idx, weights, logits, n, m->config->num_experts, k, NULL));
    QEP_TRY(OPS->download(m->be, r->topk_idx, idx, pairs * 4));
    return OPS->download(m->be, r->topk_weights, weights, pairs * 4);
}

static enum qep_status reserve_routed(struct qep_model *m, int32_t n, enum qep_act_type act_type,
                                      struct routed *r) {
    size_t rows = (size_t)n, pairs = rows * (size_t)m->config->num_experts_per_tok;
    void *mem;
    r->row_bytes = qep_act_row_bytes(act_type, m->config->hidden_size);
    QEP_TRY(model_staging(m, STAGING_ACT, rows * r->row_bytes, &r->act));
    QEP_TRY(model_staging(m, STAGING_IDX, pairs * 4, &mem));
    r->topk_idx = mem;
    QEP_TRY(model_staging(m, STAGING_WEIGHTS, pairs * 4, &mem));
    r->topk_weights = mem;
    QEP_TRY(model_staging(m, STAGING_BASE, rows * (size_t)m->config->hidden_size * 4, &mem));
    r->base = mem;
    return QEP_OK;
}

/* owner(l)'s part. */
static enum qep_status prepare(struct qep_model *m, int32_t layer, struct routed *r) {
    const struct qep_layer_weights *w = &m->weights->layers[layer];
    int32_t n = m->phase.local.num_rows, cols = m->config->hidden_size;
    float *hidden = m->scratch[SCRATCH_HIDDEN].data;
    struct moe_products products;
    const void *act;
    QEP_TRY(reserve_routed(m, n, w->expert_act, r));
    if (n == 0)
        return QEP_OK;
    QEP_TRY(model_norm(m, hidden, w->post_attention_layernorm, model_moe_wants(w), n));
    QEP_TRY(model_moe_products(m, w, n, &products));
    QEP_TRY(route(m, products.logits, n, r));
    QEP_TRY(model_act(m, w->expert_act, n, cols, &act));
    QEP_TRY(OPS->download(m->be, r->act, act, (size_t)n * r->row_bytes));
    if (m->config->shared_expert_intermediate_size > 0)
        QEP_TRY(model_shared_expert(m, w, &products, hidden, n));
    return OPS->download(m->be, r->base, hidden, (size_t)n * (size_t)cols * 4);
}

/* An expert rank's part: partial sums of the received rows, on the host. */
static enum qep_status run_experts(struct qep_model *m, int32_t layer, const void *recv_rows,
                                   size_t stride, int32_t num_recv,
                                   const struct qep_exchange_items *items, float **partials) {
    const struct qep_layer_weights *w = &m->weights->layers[layer];
    size_t cols = (size_t)m->config->hidden_size,
           out_bytes = (size_t)items->num_partials * cols * 4;
    void *rows, *expert_out, *sums, *host;
    QEP_TRY(model_staging(m, STAGING_PARTIALS, out_bytes, &host));
    *partials = host;
    if (items->num_items == 0)
        return QEP_OK;
    QEP_TRY(model_scratch(m, SCRATCH_RECV, (size_t)num_recv, stride, &rows));
    QEP_TRY(model_scratch(m, SCRATCH_EXPERT_OUT, (size_t)items->num_items * cols, 4, &expert_out));
    QEP_TRY(model_scratch(m, SCRATCH_PARTIALS, out_bytes, 1, &sums));
    QEP_TRY(OPS->upload(m->be, rows, recv_rows, (size_t)num_recv * stride));
    const struct qep_expert_args args = {.rows = rows,
                                         .row_stride = stride,
                                         .act_type = w->expert_act,
                                         .num_rows = num_recv,
                                         .num_items = items->num_items,
                                         .item_expert = items->item_expert,
                                         .item_row = items->item_row,
                                         .item_weight = items->item_weight,
                                         .gate_up =
                                             (const struct qep_weight *const *)w->expert_gate_up,
                                         .down = (const struct qep_weight *const *)w->expert_down,
                                         .hidden_size = m->config->hidden_size,
                                         .intermediate_size = m->config->moe_intermediate_size,
                                         .decode = m->phase.rows.decode};
    QEP_TRY(OPS->experts(m->be, &args, expert_out)); /* [num_items, H] */
    const struct qep_tree_args tree = {.src = expert_out,
                                       .num_out = items->num_partials,
                                       .cols = m->config->hidden_size,
                                       .leaf_begin = items->leaf_begin,
                                       .leaf_row = items->leaf_row,
                                       .leaf_id = items->leaf_id};
    QEP_TRY(OPS->tree_sum(m->be, &tree, sums)); /* [num_partials, H] */
    return OPS->download(m->be, host, sums, out_bytes);
}

/* owner(l + 1)'s part: base + tree of partials becomes the hidden rows. */
static enum qep_status finish(struct qep_model *m, const struct qep_exchange_sums *sums) {
    size_t cols = (size_t)m->config->hidden_size, rows = (size_t)sums->num_rows;
    size_t partial_bytes = (size_t)sums->num_partials * cols * 4;
    void *base, *partials, *hidden;
    if (rows == 0)
        return QEP_OK;
    QEP_TRY(model_scratch(m, SCRATCH_BASE, rows * cols, 4, &base));
    QEP_TRY(model_scratch(m, SCRATCH_SUM_IN, partial_bytes, 1, &partials));
    QEP_TRY(model_scratch(m, SCRATCH_HIDDEN, rows * cols, 4, &hidden));
    QEP_TRY(OPS->upload(m->be, base, sums->base, rows * cols * 4));
    QEP_TRY(OPS->upload(m->be, partials, sums->partials, partial_bytes));
    const struct qep_tree_args tree = {.base = base,
                                       .src = partials,
                                       .num_out = sums->num_rows,
                                       .cols = m->config->hidden_size,
                                       .leaf_begin = sums->leaf_begin,
                                       .leaf_row = sums->leaf_row,
                                       .leaf_id = sums->leaf_id};
    return OPS->tree_sum(m->be, &tree, hidden); /* [rows, H] */
}

enum qep_status model_moe(struct qep_model *m, int32_t layer) {
    struct routed r;
    const void *recv_rows;
    size_t stride;
    int32_t num_recv;
    const struct qep_exchange_items *items;
    const struct qep_exchange_sums *sums;
    float *partials;
    double t0 = qep_now_s();
    QEP_TRY(prepare(m, layer, &r));
    double t1 = qep_now_s();
    qep_watchdog_stamp(m->dog, "dispatch", layer, m->step);
    QEP_TRY(qep_exchange_dispatch(m->exchange, &m->phase.rows, layer, r.act, r.row_bytes,
                                  r.topk_idx, r.topk_weights, r.base, &recv_rows, &stride,
                                  &num_recv, &items));
    double t2 = qep_now_s();
    qep_watchdog_stamp(m->dog, "experts", layer, m->step);
    QEP_TRY(run_experts(m, layer, recv_rows, stride, num_recv, items, &partials));
    double t3 = qep_now_s();
    qep_watchdog_stamp(m->dog, "combine", layer, m->step);
    QEP_TRY(qep_exchange_combine(m->exchange, partials, &sums));
    QEP_TRY(finish(m, sums));
    double t4 = qep_now_s();
    m->times.moe_local += t1 - t0;
    m->times.dispatch += t2 - t1;
    m->times.experts += t3 - t2;
    m->times.combine += t4 - t3;
    return QEP_OK;
}

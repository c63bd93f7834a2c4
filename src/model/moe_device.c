/* Mixture of experts whose rows never leave the devices: routing, exchange and sums follow from
 * ids in device memory (kernels/device_ops.h), the transport moves device rows (device_comm.h).
 *
 *   owner(l)     norm, router, shared expert; packets (activation row | ids | weights)
 *   dispatch     decode: every row to every rank with experts, sizes from the plan alone
 *                prefill: lists of rows per rank; their lengths, and only they, come to the host
 *   expert rank  grouped experts; one partial sum for each (received row, range of its experts)
 *   combine      partials to owner(l + 1), which has base rows and ids from owner(l)
 *   owner(l + 1) base + tree of the partials
 *
 * With one rank nothing is packed or moved and the host is not waited for. */
#include "model/internal.h"

#include "base/clock.h"
#include "base/mem.h"
#include "dist/device_exchange.h"
#include "kernels/device_ops.h"

#include <stdlib.h>
#include <string.h>

#define OPS (m->be->ops)
#define DEV (m->be->device)

struct model_device {
    struct qep_expert_set **sets; /* [num_layers] */
    int32_t *expert_range;        /* dev [num_experts] */
    int32_t *expert_rank;         /* dev [num_experts] */
    /* host [2, num_ranges]: the table of this layer, and the one that SCRATCH_RANGES holds */
    struct qep_expert_range *ranges;
    const void *ranges_at; /* where the second was uploaded to */
    int32_t num_ranges;
    struct qep_device_exchange *exchange;
};

/* One layer's dispatch and combine on this rank. */
struct flow {
    int32_t layer, n; /* own rows of the layer */
    size_t row_bytes, packet_bytes;
    const void *act;
    struct qep_topk topk;   /* of the own rows */
    struct qep_topk served; /* of the rows this rank's experts serve */
    const void *rows;       /* those rows */
    size_t row_stride;
    int32_t num_recv;
    float *partials;
    /* owner(l + 1): */
    struct qep_topk next; /* ids of its rows */
    int32_t num_next;
    const int32_t *positions; /* dev, or NULL */
};

static struct qep_topk plain_topk(const int32_t *idx, const float *weights, int32_t k) {
    return (struct qep_topk){.idx = idx,
                             .weights = weights,
                             .idx_stride = (size_t)k * 4,
                             .weights_stride = (size_t)k * 4,
                             .top_k = k};
}

static int32_t num_ranges_of(const struct qep_placement *pl, int rank) {
    return pl->dyadic_begin[rank + 1] - pl->dyadic_begin[rank];
}

static enum qep_status upload_table(struct qep_model *m, const int32_t *host, int32_t count,
                                    int32_t **dev) {
    void *mem = NULL;
    QEP_TRY(OPS->alloc(m->be, (size_t)count * sizeof *host, "expert table", &mem));
    *dev = mem;
    return OPS->upload(m->be, mem, host, (size_t)count * sizeof *host);
}

static enum qep_status create_sets(struct qep_model *m, struct model_device *d) {
    int32_t num = m->weights->num_local_experts;
    QEP_TRY(qep_calloc((size_t)m->config->num_hidden_layers, sizeof(struct qep_expert_set *),
                       "expert tables", (void **)&d->sets));
    for (int32_t l = 0; num > 0 && l < m->config->num_hidden_layers; l++) {
        const struct qep_layer_weights *w = &m->weights->layers[l];
        QEP_TRY(DEV->expert_set_create(m->be, (const struct qep_weight *const *)w->expert_gate_up,
                                       (const struct qep_weight *const *)w->expert_down, num,
                                       &d->sets[l]));
    }
    return QEP_OK;
}

enum qep_status model_device_create(struct qep_model *m) {
    const struct qep_placement *pl = m->placement;
    if (m->be->device == NULL)
        return QEP_OK;
    QEP_TRY(DEV->check_dims(m->be, &m->attention_dims, &m->delta_dims));
    if (m->config->num_experts == 0)
        return QEP_OK;
    if (m->config->num_experts > QEP_DEVICE_MAX_EXPERTS ||
        m->config->num_experts_per_tok > QEP_DEVICE_MAX_TOP_K)
        return qep_fail(QEP_ERR_DATA,
                        "the %s backend takes at most %d experts and %d of them a token, the model "
                        "has %d and %d",
                        OPS->name, QEP_DEVICE_MAX_EXPERTS, QEP_DEVICE_MAX_TOP_K,
                        m->config->num_experts, m->config->num_experts_per_tok);
    QEP_TRY(qep_calloc(1, sizeof *m->device, "expert tables", (void **)&m->device));
    struct model_device *d = m->device;
    d->num_ranges = pl->dyadic_begin[pl->num_ranks];
    QEP_TRY(qep_calloc(2 * (size_t)d->num_ranges, sizeof *d->ranges, "expert ranges",
                       (void **)&d->ranges));
    QEP_TRY(qep_device_exchange_create(m->comm, m->dc, pl, &d->exchange));
    QEP_TRY(upload_table(m, pl->expert_dyadic, pl->num_experts, &d->expert_range));
    QEP_TRY(upload_table(m, pl->expert_rank, pl->num_experts, &d->expert_rank));
    return create_sets(m, d);
}

void model_device_destroy(struct qep_model *m) {
    struct model_device *d = m->device;
    if (d == NULL)
        return;
    for (int32_t l = 0; d->sets != NULL && l < m->config->num_hidden_layers; l++)
        DEV->expert_set_destroy(m->be, d->sets[l]);
    OPS->free(m->be, d->expert_range);
    OPS->free(m->be, d->expert_rank);
    free(d->sets);
    free(d->ranges);
    qep_device_exchange_destroy(d->exchange);
    free(d);
}

/* ---- sizes ---- */

/* Rows of the phase that `rank` owns at `layer`. */
static int32_t rows_of(const struct qep_model *m, int32_t layer, int rank) {
    const struct phase *ph = &m->phase;
    int32_t n = 0;
    if (ph->padded_rows > 0)
        return m->placement->attention == QEP_ATTENTION_SEQUENCES ||
                       qep_owner(m->placement, layer, 0) == rank
                   ? ph->padded_rows
                   : 0;
    for (int32_t i = 0; i < ph->num_rows; i++)
        n += qep_owner(m->placement, layer, ph->row_slot[i]) == rank;
    return n;
}

/* ---- dispatch ---- */

static enum qep_status own_lists(struct qep_model *m, const struct qep_topk *topk, int32_t n,
                                 int32_t **rows, int32_t **positions, int32_t **counts) {
    size_t ranks = (size_t)m->placement->num_ranks, lists = ranks * (size_t)n;
    void *mem;
    QEP_TRY(model_scratch(m, SCRATCH_LISTS, 2 * lists + ranks, sizeof(int32_t), &mem));
    *rows = mem;
    *positions = *rows + lists;
    *counts = *positions + lists;
    return DEV->route_lists(m->be, topk, n, m->device->expert_rank, m->placement->num_ranks, *rows,
                            *positions, *counts);
}

/* Packs the rows of every destination one behind the other. lists NULL: all rows, once. */
static enum qep_status pack_rows(struct qep_model *m, const struct flow *f, const int32_t *lists,
                                 void **packets) {
    const struct qep_device_exchange *ex = m->device->exchange;
    int num_ranks = m->placement->num_ranks;
    const int32_t *counts = ex->counts + (size_t)m->comm->rank * (size_t)num_ranks;
    int32_t total = lists == NULL ? f->n : qep_device_exchange_sent(ex, m->comm->rank);
    QEP_TRY(model_scratch(m, SCRATCH_PACKETS, (size_t)total, f->packet_bytes, packets));
    if (f->n == 0)
        return QEP_OK;
    if (lists == NULL)
        return DEV->pack(m->be, *packets, f->act, f->row_bytes, &f->topk, NULL, f->n);
    char *at = *packets;
    for (int p = 0; p < num_ranks; p++) {
        if (counts[p] > 0)
            QEP_TRY(DEV->pack(m->be, at, f->act, f->row_bytes, &f->topk,
                              lists + (size_t)p * (size_t)f->n, counts[p]));
        at += (size_t)counts[p] * f->packet_bytes;
    }
    return QEP_OK;
}

static enum qep_status send_packets(struct qep_model *m, struct flow *f, const void *packets) {
    struct qep_device_exchange *ex = m->device->exchange;
    void *recv;
    f->num_recv = qep_device_exchange_received(ex, m->comm->rank);
    QEP_TRY(model_scratch(m, SCRATCH_RECV, (size_t)f->num_recv, f->packet_bytes, &recv));
    f->rows = recv;
    f->row_stride = f->packet_bytes;
    const char *first = recv;
    f->served = (struct qep_topk){
        .idx = (const int32_t *)(const void *)(first + f->row_bytes),
        .weights = (const float *)(const void *)(first + f->row_bytes +
                                                 (size_t)f->topk.top_k * sizeof(int32_t)),
        .idx_stride = f->packet_bytes,
        .weights_stride = f->packet_bytes,
        .top_k = f->topk.top_k};
    return qep_device_exchange_dispatch(ex, m->phase.rows.decode, packets, f->packet_bytes, recv);
}

/* From the plan in decode, else from the routing, whose counts [num_ranks] lie on the device. */
static enum qep_status count_rows(struct qep_model *m, const struct flow *f,
                                  const int32_t *counts_dev) {
    struct qep_device_exchange *ex = m->device->exchange;
    size_t bytes = (size_t)m->placement->num_ranks * sizeof *ex->mine;
    if (m->phase.rows.decode) {
        for (int p = 0; p < m->placement->num_ranks; p++)
            qep_device_exchange_count(ex, p, rows_of(m, f->layer, p));
        return QEP_OK;
    }
    memset(ex->mine, 0, bytes);
    if (counts_dev != NULL)
        QEP_TRY(OPS->download(m->be, ex->mine, counts_dev, bytes));
    return qep_device_exchange_share_counts(ex);
}

static enum qep_status dispatch(struct qep_model *m, struct flow *f) {
    int32_t *rows = NULL, *positions = NULL, *counts = NULL;
    void *packets;
    if (!m->phase.rows.decode && f->n > 0)
        QEP_TRY(own_lists(m, &f->topk, f->n, &rows, &positions, &counts));
    QEP_TRY(count_rows(m, f, counts));
    f->positions = positions;
    QEP_TRY(pack_rows(m, f, rows, &packets));
    return send_packets(m, f, packets);
}

/* ---- base rows ---- */

/* Base rows and ids go where the sum is taken. */
static enum qep_status move_base(struct qep_model *m, struct flow *f) {
    int me = m->comm->rank;
    int32_t k = f->topk.top_k;
    size_t base_bytes = (size_t)m->config->hidden_size * 4, id_bytes = (size_t)k * 4;
    int from = qep_owner(m->placement, f->layer, 0), to = qep_owner(m->placement, f->layer + 1, 0);
    f->next = f->topk;
    f->num_next = rows_of(m, f->layer + 1, me);
    if (m->placement->attention == QEP_ATTENTION_SEQUENCES || from == to)
        return QEP_OK;
    void *base = m->scratch[SCRATCH_HIDDEN].data, *next_base = NULL, *next_ids = NULL;
    QEP_TRY(model_scratch(m, SCRATCH_BASE, (size_t)f->num_next, base_bytes, &next_base));
    QEP_TRY(model_scratch(m, SCRATCH_NEXT_IDS, (size_t)f->num_next, id_bytes, &next_ids));
    size_t rows = (size_t)rows_of(m, f->layer, from);
    QEP_TRY(qep_device_move(m->dc, from, to, base, next_base, rows * base_bytes));
    QEP_TRY(qep_device_move(m->dc, from, to, f->topk.idx, next_ids, rows * id_bytes));
    f->next = plain_topk(next_ids, NULL, k);
    f->positions = NULL;
    if (me != to)
        return QEP_OK;
    void *hidden;
    QEP_TRY(model_scratch(m, SCRATCH_HIDDEN, (size_t)f->num_next, base_bytes, &hidden));
    QEP_TRY(DEV->copy(m->be, hidden, next_base, (size_t)f->num_next * base_bytes));
    if (m->phase.rows.decode || f->num_next == 0)
        return QEP_OK;
    int32_t *lists, *positions, *counts;
    QEP_TRY(own_lists(m, &f->next, f->num_next, &lists, &positions, &counts));
    f->positions = positions;
    return QEP_OK;
}

/* ---- experts and combine ---- */

/* rows_from[p]: rows of the phase whose partials rank p computes for one owner. */
void model_device_ranges(const struct qep_model *m, const int32_t *rows_from,
                         struct qep_expert_range *ranges) {
    const struct qep_placement *pl = m->placement;
    int32_t first = 0;
    for (int p = 0; p < pl->num_ranks; p++) {
        int32_t own = num_ranges_of(pl, p);
        for (int32_t j = 0; j < own; j++) {
            int32_t g = pl->dyadic_begin[p] + j;
            ranges[g] = (struct qep_expert_range){.level = pl->dyadic[g].level,
                                                  .index = pl->dyadic[g].index,
                                                  .rank = p,
                                                  .first_row = first + j,
                                                  .row_step = own};
        }
        first += rows_from[p] * own;
    }
}

/* The table of this layer in device memory; uploaded when it differs from the last one. */
static enum qep_status layer_ranges(struct qep_model *m, const struct flow *f,
                                    const struct qep_expert_range **dev) {
    struct model_device *d = m->device;
    int num_ranks = m->placement->num_ranks;
    int source = m->placement->attention == QEP_ATTENTION_SEQUENCES
                     ? m->comm->rank
                     : qep_owner(m->placement, f->layer, 0);
    size_t bytes = (size_t)d->num_ranges * sizeof *d->ranges;
    struct qep_expert_range *last = d->ranges + d->num_ranges;
    void *mem;
    *dev = m->phase.ranges;
    if (*dev != NULL)
        return QEP_OK;
    model_device_ranges(m, d->exchange->counts + (size_t)source * (size_t)num_ranks, d->ranges);
    QEP_TRY(model_scratch(m, SCRATCH_RANGES, bytes, 1, &mem));
    *dev = mem;
    if (d->ranges_at == mem && memcmp(last, d->ranges, bytes) == 0)
        return QEP_OK;
    memcpy(last, d->ranges, bytes);
    d->ranges_at = mem;
    return OPS->upload(m->be, mem, d->ranges, bytes);
}

/* The partials of the received rows; the only rank adds the experts to the hidden rows at once. */
static enum qep_status run_experts(struct qep_model *m, struct flow *f,
                                   const struct qep_expert_range *ranges) {
    const struct qep_placement *pl = m->placement;
    bool alone = pl->num_ranks == 1;
    int me = m->comm->rank;
    int32_t own = num_ranges_of(pl, me);
    size_t cols = (size_t)m->config->hidden_size;
    void *out = m->scratch[SCRATCH_HIDDEN].data;
    if (!alone)
        QEP_TRY(
            model_scratch(m, SCRATCH_PARTIALS, (size_t)f->num_recv * (size_t)own * cols, 4, &out));
    f->partials = out;
    if (f->num_recv == 0 || own == 0)
        return QEP_OK;
    const struct qep_routed_args args = {.rows = f->rows,
                                         .row_stride = f->row_stride,
                                         .act_type = m->weights->layers[f->layer].expert_act,
                                         .num_rows = f->num_recv,
                                         .topk = f->served,
                                         .base = alone ? out : NULL,
                                         .experts = m->device->sets[f->layer],
                                         .first_expert = pl->experts[me].begin,
                                         .expert_range = m->device->expert_range,
                                         .ranges = ranges,
                                         .first_range = pl->dyadic_begin[me],
                                         .num_ranges = own,
                                         .num_experts = pl->num_experts,
                                         .hidden_size = m->config->hidden_size,
                                         .intermediate_size = m->config->moe_intermediate_size,
                                         .decode = m->phase.rows.decode};
    return DEV->routed(m->be, &args, out);
}

static enum qep_status send_partials(struct qep_model *m, const struct flow *f,
                                     const float **partials) {
    struct qep_device_exchange *ex = m->device->exchange;
    size_t row_bytes = (size_t)m->config->hidden_size * 4;
    void *recv;
    QEP_TRY(model_scratch(m, SCRATCH_SUM_IN,
                          qep_device_exchange_combine_bytes(ex, f->layer, row_bytes), 1, &recv));
    *partials = recv;
    return qep_device_exchange_combine(ex, m->phase.rows.decode, f->partials, recv);
}

static enum qep_status sum_up(struct qep_model *m, const struct flow *f, const float *partials,
                              const struct qep_expert_range *ranges) {
    float *hidden = m->scratch[SCRATCH_HIDDEN].data;
    if (f->num_next == 0)
        return QEP_OK;
    const struct qep_combine_args args = {.base = hidden,
                                          .partials = partials,
                                          .topk = f->next,
                                          .expert_range = m->device->expert_range,
                                          .ranges = ranges,
                                          .positions = f->positions,
                                          .num_rows = f->num_next,
                                          .hidden_size = m->config->hidden_size,
                                          .num_experts = m->config->num_experts};
    return DEV->combine(m->be, &args, hidden);
}

/* One rank: its rows go to its experts as they are. */
static enum qep_status run_alone(struct qep_model *m, struct flow *f) {
    double t0 = qep_now_s();
    qep_watchdog_stamp(m->dog, "experts", f->layer, m->step);
    f->rows = f->act;
    f->row_stride = f->row_bytes;
    f->num_recv = f->n;
    f->served = f->topk;
    QEP_TRY(run_experts(m, f, NULL));
    m->times.experts += qep_now_s() - t0;
    return QEP_OK;
}

static enum qep_status exchange(struct qep_model *m, struct flow *f) {
    const struct qep_expert_range *ranges;
    const float *partials;
    double t0 = qep_now_s();
    qep_watchdog_stamp(m->dog, "dispatch", f->layer, m->step);
    QEP_TRY(dispatch(m, f));
    QEP_TRY(move_base(m, f));
    QEP_TRY(layer_ranges(m, f, &ranges));
    double t1 = qep_now_s();
    qep_watchdog_stamp(m->dog, "experts", f->layer, m->step);
    QEP_TRY(run_experts(m, f, ranges));
    double t2 = qep_now_s();
    qep_watchdog_stamp(m->dog, "combine", f->layer, m->step);
    QEP_TRY(send_partials(m, f, &partials));
    QEP_TRY(sum_up(m, f, partials, ranges));
    m->times.dispatch += t1 - t0;
    m->times.experts += t2 - t1;
    m->times.combine += qep_now_s() - t2;
    return QEP_OK;
}

/* owner(l)'s part. */
static enum qep_status prepare(struct qep_model *m, struct flow *f) {
    const struct qep_layer_weights *w = &m->weights->layers[f->layer];
    int32_t n = f->n, cols = m->config->hidden_size, k = m->config->num_experts_per_tok;
    size_t pairs = (size_t)n * (size_t)k;
    float *hidden = m->scratch[SCRATCH_HIDDEN].data;
    struct moe_products products;
    void *idx, *weights;
    QEP_TRY(model_scratch(m, SCRATCH_TOPK_IDX, pairs, 4, &idx));
    QEP_TRY(model_scratch(m, SCRATCH_TOPK_WEIGHTS, pairs, 4, &weights));
    f->topk = plain_topk(idx, weights, k);
    if (n == 0)
        return QEP_OK;
    QEP_TRY(model_norm(m, hidden, w->post_attention_layernorm, model_moe_wants(w), n));
    QEP_TRY(model_moe_products(m, w, n, &products));
    QEP_TRY(OPS->router_topk(m->be, idx, weights, products.logits, n, m->config->num_experts, k,
                             m->phase.padded_rows > 0 ? m->phase.local.dev_spans : NULL));
    QEP_TRY(model_act(m, w->expert_act, n, cols, &f->act));
    if (m->config->shared_expert_intermediate_size > 0)
        QEP_TRY(model_shared_expert(m, w, &products, hidden, n));
    return QEP_OK;
}

enum qep_status model_moe_device(struct qep_model *m, int32_t layer) {
    size_t row_bytes =
        qep_act_row_bytes(m->weights->layers[layer].expert_act, m->config->hidden_size);
    struct flow f = {.layer = layer,
                     .n = m->phase.local.num_rows,
                     .row_bytes = row_bytes,
                     .packet_bytes = qep_packet_bytes(row_bytes, m->config->num_experts_per_tok)};
    double t0 = qep_now_s();
    QEP_TRY(prepare(m, &f));
    m->times.moe_local += qep_now_s() - t0;
    return m->placement->num_ranks == 1 ? run_alone(m, &f) : exchange(m, &f);
}

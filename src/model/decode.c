/* Decoding without the host. The rows of a step lie in device memory at fixed places: spans (slot,
 * position), draws, input ids; a step runs the layers on them, draws a token for each, and advances
 * them, so one captured graph serves all steps of a capacity. Capacities are powers of two; rows
 * beyond the sequences are padding (slot -1). Two of everything a step leaves behind (tokens,
 * logits): the host reads a step's tokens while the next one runs.
 *
 *   rows of all ranks, `layers`:    [capacity], the owner of a layer computes all of them
 *                      `sequences`: [ranks, capacity], rank r owns the r-th part */
#include "model/decode.h"

#define OPS (m->be->ops)
#define DEV (m->be->device)

enum { MIN_KV_BUCKET = 1024 };

static enum qep_status run_layers(struct qep_model *m, int32_t kv_end) {
    struct model_decode *d = m->decode;
    struct phase *ph = &m->phase;
    int32_t level = 0;
    while (1 << level < d->capacity)
        level++;
    ph->rows = (struct qep_exchange_rows){.decode = true};
    ph->padded_rows = d->capacity;
    ph->ranges = m->config->num_experts == 0
                     ? NULL
                     : d->ranges + (size_t)level *
                                       (size_t)m->placement->dyadic_begin[m->placement->num_ranks];
    const struct qep_batch own = {.num_rows = d->capacity,
                                  .num_spans = d->capacity,
                                  .spans = d->host_spans + d->own_begin,
                                  .dev_spans = d->spans + d->own_begin,
                                  .max_end = kv_end};
    for (int32_t l = 0; l < m->config->num_hidden_layers; l++) {
        bool mine = decode_by_sequence(m) || qep_owner(m->placement, l, 0) == m->comm->rank;
        ph->local = mine ? own : (struct qep_batch){0};
        if (l == 0 && mine)
            QEP_TRY(model_embed(m, d->ids + d->own_begin, d->capacity));
        QEP_TRY(model_layer(m, l));
    }
    return QEP_OK;
}

/* The rows of lm_head's input, from their owners to every rank: [num_rows]. */
static enum qep_status share_rows(struct qep_model *m, const void **rows, size_t row_bytes) {
    struct model_decode *d = m->decode;
    size_t bytes = (size_t)d->capacity * row_bytes;
    int last = qep_owner(m->placement, m->config->num_hidden_layers, 0);
    bool mine = decode_by_sequence(m) || last == m->comm->rank;
    void *normed, *act, *all;
    QEP_TRY(model_scratch(m, SCRATCH_ACT_BF16, (size_t)d->capacity, row_bytes, &act));
    if (mine) {
        int32_t cols = m->config->hidden_size;
        QEP_TRY(model_scratch(m, SCRATCH_NORMED, (size_t)d->capacity * (size_t)cols, 4, &normed));
        const struct qep_rows_out out = {normed, act, row_bytes, m->weights->head_act};
        QEP_TRY(OPS->rms_norm(m->be, out, m->scratch[SCRATCH_HIDDEN].data, m->weights->norm,
                              d->capacity, cols, (float)m->config->rms_norm_eps));
    }
    *rows = act;
    if (m->placement->num_ranks == 1)
        return QEP_OK;
    QEP_TRY(model_scratch(m, SCRATCH_HEAD, (size_t)d->num_rows, row_bytes, &all));
    *rows = all;
    if (decode_by_sequence(m))
        return m->dc->ops->allgather(m->dc, act, all, bytes);
    return qep_device_move(m->dc, last, QEP_EVERY_RANK, act, all, bytes);
}

static enum qep_status draw_tokens(struct qep_model *m, int side) {
    struct model_decode *d = m->decode;
    const struct qep_linear *head = &m->weights->lm_head;
    size_t row_bytes = qep_act_row_bytes(m->weights->head_act, m->config->hidden_size);
    int32_t first_id = m->placement->vocab_rows[m->comm->rank].begin, n = d->num_rows;
    const void *rows;
    QEP_TRY(share_rows(m, &rows, row_bytes));
    const struct qep_product product = {
        .weight = head->weight, .out = d->side[side].logits, .whole_rows = m->config->vocab_size};
    if (head->rows > 0)
        QEP_TRY(OPS->matmul(m->be, &product, 1, rows, row_bytes, head->act, n, 1));
    QEP_TRY(DEV->sample_candidates(m->be, d->mine, d->side[side].logits, n, head->rows, first_id,
                                   m->config->vocab_size, d->num_ids,
                                   d->has_allowed ? d->allowed : NULL, d->seen, d->draws));
    const struct qep_row_candidates *all = d->mine;
    if (m->placement->num_ranks > 1) {
        QEP_TRY(m->dc->ops->allgather(m->dc, d->mine, d->all, (size_t)n * sizeof *d->mine));
        all = d->all;
    }
    QEP_TRY(DEV->sample_final(m->be, d->side[side].tokens, all, m->placement->num_ranks, n,
                              m->config->vocab_size, d->num_ids, d->seen, d->draws));
    return DEV->advance(m->be, d->spans, d->draws, d->ids, d->side[side].tokens, n);
}

static enum qep_status run_step(struct qep_model *m, int32_t kv_end, int side) {
    QEP_TRY(run_layers(m, kv_end));
    qep_watchdog_stamp(m->dog, "head", -1, m->step);
    return draw_tokens(m, side);
}

/* KV blocks for the positions that the step writes. */
static enum qep_status reserve_blocks(struct qep_model *m, int32_t *end) {
    struct model_decode *d = m->decode;
    *end = 1;
    for (int32_t i = 0; i < d->capacity; i++) {
        const struct qep_span *span = &d->host_spans[d->own_begin + i];
        if (d->still[d->own_begin + i])
            continue;
        *end = span->position + 1 > *end ? span->position + 1 : *end;
        for (int32_t l = 0; l < m->config->num_hidden_layers; l++)
            if (m->config->layer_types[l] == QEP_LAYER_FULL_ATTENTION &&
                (decode_by_sequence(m) || qep_owner(m->placement, l, 0) == m->comm->rank))
                QEP_TRY(qep_cache_reserve(m->cache, l, span->slot, span->position + 1));
    }
    return QEP_OK;
}

static int32_t kv_bucket(const struct qep_model *m, int32_t end) {
    int64_t limit = (int64_t)m->cache->max_blocks * QEP_KV_BLOCK, bucket = MIN_KV_BUCKET;
    while (bucket < end)
        bucket *= 2;
    return (int32_t)(bucket < limit ? bucket : limit);
}

static struct decode_graph *find_graph(struct qep_model *m, int32_t kv_end, int side) {
    struct model_decode *d = m->decode;
    for (int32_t i = 0; i < d->num_graphs; i++) {
        struct decode_graph *g = &d->graphs[i];
        if (g->capacity == d->capacity && g->kv_end == kv_end && g->side == side)
            return g;
    }
    if (d->num_graphs == DECODE_MAX_GRAPHS)
        decode_drop_graphs(m);
    struct decode_graph *g = &d->graphs[d->num_graphs++];
    *g = (struct decode_graph){
        .capacity = d->capacity, .kv_end = kv_end, .side = side, .scratch_generation = UINT64_MAX};
    return g;
}

static bool is_current(const struct qep_model *m, const struct decode_graph *g) {
    return g->scratch_generation == m->scratch_generation &&
           g->backend_generation == m->be->generation;
}

/* The first step of a kind runs op by op: workspaces take their size, and the transport has seen
 * every message. The second is captured; from then on it is launched as long as memory stays. */
static enum qep_status issue(struct qep_model *m, int32_t kv_end, int side) {
    bool may = m->use_graphs && (m->placement->num_ranks == 1 || m->dc->capturable);
    if (!may)
        return run_step(m, kv_end, side);
    struct decode_graph *g = find_graph(m, kv_end, side);
    if (g->graph != NULL && !is_current(m, g)) {
        DEV->graph_destroy(m->be, g->graph);
        g->graph = NULL;
        g->scratch_generation = UINT64_MAX;
    }
    if (g->graph == NULL && !is_current(m, g)) {
        QEP_TRY(run_step(m, kv_end, side));
        g->scratch_generation = m->scratch_generation;
        g->backend_generation = m->be->generation;
        return QEP_OK;
    }
    if (g->graph == NULL) {
        QEP_TRY(DEV->capture_begin(m->be));
        enum qep_status st = run_step(m, kv_end, side), end = DEV->capture_end(m->be, &g->graph);
        QEP_TRY(st);
        QEP_TRY(end);
    }
    return DEV->graph_launch(m->be, g->graph);
}

static enum qep_status take(struct qep_model *m, int32_t *tokens) {
    struct model_decode *d = m->decode;
    if (d == NULL || d->taken == d->issued)
        return qep_fail(QEP_ERR_BUG, "decode: no step is under way");
    int side = (int)(d->taken % DECODE_UNDER_WAY);
    QEP_TRY(DEV->event_wait(m->be, d->side[side].done));
    d->taken++;
    for (int32_t i = 0; i < d->num_sequences; i++) {
        int32_t token = d->side[side].host[d->index[i]];
        d->still[d->index[i]] = d->still[d->index[i]] || token < 0;
        if (tokens != NULL)
            tokens[i] = token;
    }
    return QEP_OK;
}

static enum qep_status step(struct qep_model *m) {
    struct model_decode *d = m->decode;
    int32_t end = 0;
    if (d == NULL || d->num_sequences == 0)
        return qep_fail(QEP_ERR_BUG, "decode: STEP before BEGIN");
    if (d->issued - d->taken == DECODE_UNDER_WAY)
        QEP_TRY(take(m, NULL));
    int side = (int)(d->issued % DECODE_UNDER_WAY);
    QEP_TRY(reserve_blocks(m, &end));
    QEP_TRY(issue(m, kv_bucket(m, end), side));
    QEP_TRY(DEV->download_async(m->be, d->side[side].host, d->side[side].tokens,
                                (size_t)d->num_rows * sizeof(int32_t), d->side[side].done));
    d->issued++;
    for (int32_t r = 0; r < d->num_rows; r++)
        d->host_spans[r].position += d->still[r] ? 0 : 1;
    return m->placement->num_ranks > 1 ? m->dc->ops->poll_errors(m->dc) : QEP_OK;
}

enum qep_status qep_model_decode_take(struct qep_model *m, int32_t *tokens) {
    return model_name_step(m, take(m, tokens));
}

/* The logits that a step since BEGIN drew from, one of the newest two, joined on rank 0: row
 * [vocab_size]. */
static enum qep_status fetch_logits(struct qep_model *m, const struct qep_plan *plan, float *row) {
    struct model_decode *d = m->decode;
    size_t vocab = (size_t)m->weights->lm_head.rows;
    int32_t sequence, number;
    void *mine;
    QEP_TRY(decode_plan_read_logits(plan, &sequence, &number));
    if (d == NULL || sequence < 0 || sequence >= d->num_sequences || number < 0 ||
        number >= d->issued || number < d->issued - DECODE_UNDER_WAY)
        return qep_fail(QEP_ERR_BUG, "decode: no logits of sequence %d and step %d", sequence,
                        number);
    int side = number % DECODE_UNDER_WAY;
    QEP_TRY(model_staging(m, STAGING_LOGITS_SEND, vocab * sizeof *row, &mine));
    QEP_TRY(OPS->download(m->be, mine, d->side[side].logits + (size_t)d->index[sequence] * vocab,
                          vocab * sizeof *row));
    return model_gather_logits(m, 1, mine, row);
}

/* All ranks take what is under way: afterwards BEGIN or LOGITS may come. */
static enum qep_status settle(struct qep_model *m) {
    while (m->decode != NULL && m->decode->taken < m->decode->issued)
        QEP_TRY(qep_model_decode_take(m, NULL));
    return QEP_OK;
}

enum qep_status qep_model_decode(struct qep_model *m, const struct qep_plan *plan, float *row) {
    m->step = (long)plan->step;
    qep_watchdog_stamp(m->dog, "decode", -1, m->step);
    if (m->be->device == NULL)
        return qep_fail(QEP_ERR_BUG, "decode: the %s backend has no device table", OPS->name);
    if (plan->kind == QEP_PLAN_DECODE_STEP)
        return model_name_step(m, step(m));
    QEP_TRY(settle(m));
    if (plan->kind == QEP_PLAN_DECODE_BEGIN)
        return decode_begin_run(m, plan);
    return fetch_logits(m, plan, row);
}

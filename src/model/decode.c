/* Decoding without the host. The rows of a step lie in device memory at fixed places: spans (slot,
 * position), draws, input ids; a step runs the layers on them, draws a token for each, and advances
 * them, so one captured graph serves all steps of a capacity. Capacities are powers of two; rows
 * beyond the sequences are padding (slot -1). Two of everything a step leaves behind (tokens,
 * logits): the host reads a step's tokens while the next one runs.
 *
 *   rows of all ranks, `layers`:    [capacity], the owner of a layer computes all of them
 *                      `sequences`: [ranks, capacity], rank r owns the r-th part */
#include "model/internal.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

#define OPS (m->be->ops)
#define DEV (m->be->device)

enum { MAX_CAPACITY = 64, MIN_KV_BUCKET = 1024, UNDER_WAY = 2, MAX_GRAPHS = 64 };

enum seen_bits { SEEN_GENERATED = 1, SEEN_PROMPT = 2 };

/* The head of plan->extra; behind it draws [num_spans], allowed [num_allowed], seen [num_seen]. */
struct decode_extra {
    int32_t num_ids, num_allowed, num_seen, unused;
};

struct seen_id {
    int32_t slot, id, bits;
};

struct decode_graph {
    struct qep_graph *graph; /* NULL: only warmed up */
    int32_t capacity, kv_end, side;
    uint64_t scratch_generation, backend_generation;
};

struct model_decode {
    int32_t max_capacity; /* rows of one owner */
    int32_t max_rows;     /* rows of all ranks */
    int32_t capacity, num_rows, own_begin;
    int32_t num_sequences;
    int32_t *index;              /* [max_rows] row of the i-th sequence */
    struct qep_span *host_spans; /* [max_rows] with the positions of the next step */
    bool *still;                 /* [max_rows] the row was flagged or never was one */
    /* dev [max_rows] */
    struct qep_span *spans;
    struct qep_device_draw *draws;
    int32_t *ids;
    struct {
        int32_t *tokens;
        float *logits; /* [max_rows, vocabulary rows of this rank] */
        int32_t *host; /* page-locked */
        struct qep_event *done;
    } side[UNDER_WAY];
    struct qep_row_candidates *mine, *all; /* dev [max_rows], [num_ranks, max_rows] */
    uint8_t *seen, *allowed;               /* dev [slots, vocab_size], [vocab_size] */
    size_t seen_row;                       /* bytes of a slot's flags */
    bool has_allowed;
    int32_t num_ids;
    struct qep_expert_range *ranges; /* dev [log2 capacities, ranges of all ranks] */
    int64_t issued, taken;
    struct decode_graph graphs[MAX_GRAPHS];
    int32_t num_graphs;
};

static int32_t capacity_for(int32_t rows) {
    int32_t c = 1;
    while (c < rows)
        c *= 2;
    return c;
}

static bool by_sequence(const struct qep_model *m) {
    return m->placement->attention == QEP_ATTENTION_SEQUENCES;
}

static int32_t parts(const struct qep_model *m) {
    return by_sequence(m) ? m->placement->num_ranks : 1;
}

int32_t qep_model_decode_capacity(const struct qep_model *m) {
    if (m->be->device == NULL)
        return 0;
    int32_t c = capacity_for(m->cache->num_local_slots);
    return (c < MAX_CAPACITY ? c : MAX_CAPACITY) * parts(m);
}

/* ---- plans ---- */

static bool has_penalty(const struct qep_device_draw *d) {
    return d->presence_penalty < 0 || d->presence_penalty > 0 || d->repetition_penalty < 1 ||
           d->repetition_penalty > 1;
}

static void append_seen(char **at, int32_t slot, const int32_t *ids, int32_t n, int32_t bits) {
    for (int32_t i = 0; i < n; i++) {
        const struct seen_id seen = {slot, ids[i], bits};
        memcpy(*at, &seen, sizeof seen);
        *at += sizeof seen;
    }
}

enum qep_status qep_decode_plan_begin(struct qep_plan *plan,
                                      const struct qep_decode_options *options,
                                      struct qep_device_draw *draws,
                                      const struct qep_decode_history *history) {
    size_t n = (size_t)plan->num_spans;
    struct decode_extra head = {.num_ids = options->num_ids,
                                .num_allowed = options->allowed != NULL ? options->num_ids : 0};
    for (int32_t i = 0; i < plan->num_spans; i++) {
        draws[i].slot = plan->spans[i].slot;
        draws[i].position = (uint64_t)plan->spans[i].position + 1;
        if (has_penalty(&draws[i]))
            head.num_seen += history[i].num_prompt + history[i].num_generated;
    }
    QEP_TRY(qep_plan_extend(plan, sizeof head + n * sizeof *draws + (size_t)head.num_allowed +
                                      (size_t)head.num_seen * sizeof(struct seen_id)));
    char *at = plan->extra;
    memcpy(at, &head, sizeof head);
    memcpy(at + sizeof head, draws, n * sizeof *draws);
    at += sizeof head + n * sizeof *draws;
    if (head.num_allowed > 0)
        memcpy(at, options->allowed, (size_t)head.num_allowed);
    at += head.num_allowed;
    for (int32_t i = 0; i < plan->num_spans; i++) {
        if (!has_penalty(&draws[i]))
            continue;
        append_seen(&at, draws[i].slot, history[i].prompt_ids, history[i].num_prompt, SEEN_PROMPT);
        append_seen(&at, draws[i].slot, history[i].generated_ids, history[i].num_generated,
                    SEEN_GENERATED);
    }
    return QEP_OK;
}

/* ---- memory ---- */

static enum qep_status alloc_dev(struct qep_model *m, size_t count, size_t size, void *out) {
    void *mem = NULL;
    QEP_TRY(OPS->alloc(m->be, count * size, "decode state", &mem));
    memcpy(out, &mem, sizeof mem);
    return QEP_OK;
}

static enum qep_status alloc_sides(struct qep_model *m, struct model_decode *d) {
    size_t rows = (size_t)d->max_rows, vocab = (size_t)m->weights->lm_head.rows;
    for (int s = 0; s < UNDER_WAY; s++) {
        QEP_TRY(alloc_dev(m, rows, sizeof(int32_t), &d->side[s].tokens));
        QEP_TRY(alloc_dev(m, rows * vocab, sizeof(float), &d->side[s].logits));
        QEP_TRY(DEV->host_alloc(m->be, rows * sizeof(int32_t), (void **)&d->side[s].host));
        QEP_TRY(DEV->event_create(m->be, &d->side[s].done));
    }
    return QEP_OK;
}

/* The tables of expert ranges, one for each capacity: row counts are the same for all layers. */
static enum qep_status upload_ranges(struct qep_model *m, struct model_decode *d) {
    const struct qep_placement *pl = m->placement;
    int32_t num = pl->dyadic_begin[pl->num_ranks], sets = 0;
    for (int32_t c = 1; c <= d->max_capacity; c *= 2)
        sets++;
    if (m->config->num_experts == 0)
        return QEP_OK;
    size_t count = (size_t)num * (size_t)sets;
    struct qep_expert_range *host = NULL;
    int32_t *rows_from = NULL;
    enum qep_status st = QEP_OK;
    QEP_TRY_GOTO(st, done, alloc_dev(m, count, sizeof *host, &d->ranges));
    QEP_TRY_GOTO(st, done, qep_alloc(count, sizeof *host, "expert ranges", (void **)&host));
    QEP_TRY_GOTO(
        st, done,
        qep_alloc((size_t)pl->num_ranks, sizeof *rows_from, "expert ranges", (void **)&rows_from));
    for (int32_t i = 0; i < sets; i++) {
        for (int p = 0; p < pl->num_ranks; p++)
            rows_from[p] = pl->experts[p].end > pl->experts[p].begin ? 1 << i : 0;
        model_device_ranges(m, rows_from, host + (size_t)i * (size_t)num);
    }
    st = OPS->upload(m->be, d->ranges, host, count * sizeof *host);
done:
    free(host);
    free(rows_from);
    return st;
}

static enum qep_status create(struct qep_model *m) {
    QEP_TRY(qep_calloc(1, sizeof *m->decode, "decode state", (void **)&m->decode));
    struct model_decode *d = m->decode;
    size_t vocab = (size_t)m->config->vocab_size, ranks = (size_t)m->placement->num_ranks;
    size_t slots = (size_t)m->cache->num_local_slots * (size_t)parts(m);
    d->max_rows = qep_model_decode_capacity(m);
    d->max_capacity = d->max_rows / parts(m);
    size_t rows = (size_t)d->max_rows;
    d->seen_row = vocab;
    QEP_TRY(qep_calloc(rows, sizeof *d->index, "decode state", (void **)&d->index));
    QEP_TRY(qep_calloc(rows, sizeof *d->host_spans, "decode state", (void **)&d->host_spans));
    QEP_TRY(qep_calloc(rows, sizeof *d->still, "decode state", (void **)&d->still));
    QEP_TRY(alloc_dev(m, rows, sizeof *d->spans, &d->spans));
    QEP_TRY(alloc_dev(m, rows, sizeof *d->draws, &d->draws));
    QEP_TRY(alloc_dev(m, rows, sizeof *d->ids, &d->ids));
    QEP_TRY(alloc_dev(m, rows, sizeof *d->mine, &d->mine));
    QEP_TRY(alloc_dev(m, rows * ranks, sizeof *d->all, &d->all));
    QEP_TRY(alloc_dev(m, (slots * vocab + 3) / 4 * 4, 1, &d->seen));
    QEP_TRY(alloc_dev(m, (vocab + 3) / 4 * 4, 1, &d->allowed));
    QEP_TRY(alloc_sides(m, d));
    return upload_ranges(m, d);
}

static void drop_graphs(struct qep_model *m) {
    struct model_decode *d = m->decode;
    for (int32_t i = 0; i < d->num_graphs; i++)
        DEV->graph_destroy(m->be, d->graphs[i].graph);
    d->num_graphs = 0;
}

void model_decode_destroy(struct qep_model *m) {
    struct model_decode *d = m->decode;
    if (d == NULL)
        return;
    (void)OPS->sync(m->be);
    drop_graphs(m);
    for (int s = 0; s < UNDER_WAY; s++) {
        if (d->side[s].done != NULL)
            (void)DEV->event_wait(m->be, d->side[s].done);
        DEV->event_destroy(m->be, d->side[s].done);
        DEV->host_free(m->be, d->side[s].host);
        OPS->free(m->be, d->side[s].tokens);
        OPS->free(m->be, d->side[s].logits);
    }
    OPS->free(m->be, d->spans);
    OPS->free(m->be, d->draws);
    OPS->free(m->be, d->ids);
    OPS->free(m->be, d->mine);
    OPS->free(m->be, d->all);
    OPS->free(m->be, d->seen);
    OPS->free(m->be, d->allowed);
    OPS->free(m->be, d->ranges);
    free(d->index);
    free(d->host_spans);
    free(d->still);
    free(d);
}

/* ---- begin ---- */

static enum qep_status place_rows(struct qep_model *m, const struct qep_plan *plan) {
    struct model_decode *d = m->decode;
    int32_t most = 1, num_parts = parts(m);
    for (int32_t i = 0; i < plan->num_spans; i++) {
        int32_t before = 0; /* sequences of the same owner */
        for (int32_t j = 0; by_sequence(m) && j < i; j++)
            before += qep_owner(m->placement, 0, plan->spans[j].slot) ==
                      qep_owner(m->placement, 0, plan->spans[i].slot);
        d->index[i] = by_sequence(m) ? before : i;
        most = d->index[i] + 1 > most ? d->index[i] + 1 : most;
    }
    if (most > d->max_capacity)
        return qep_fail(QEP_ERR_BUG, "decode: %d sequences of one rank, at most %d", most,
                        d->max_capacity);
    d->capacity = capacity_for(most);
    d->num_rows = d->capacity * num_parts;
    d->own_begin = by_sequence(m) ? d->capacity * m->comm->rank : 0;
    d->num_sequences = plan->num_spans;
    for (int32_t i = 0; i < plan->num_spans; i++)
        if (by_sequence(m))
            d->index[i] += d->capacity * qep_owner(m->placement, 0, plan->spans[i].slot);
    return QEP_OK;
}

static enum qep_status upload_rows(struct qep_model *m, const struct qep_plan *plan) {
    struct model_decode *d = m->decode;
    size_t rows = (size_t)d->num_rows;
    const char *draws_in = plan->extra + sizeof(struct decode_extra);
    struct qep_device_draw *draws = NULL;
    int32_t *ids = NULL;
    enum qep_status st = QEP_OK;
    QEP_TRY_GOTO(st, done, qep_calloc(rows, sizeof *draws, "decode state", (void **)&draws));
    QEP_TRY_GOTO(st, done, qep_calloc(rows, sizeof *ids, "decode state", (void **)&ids));
    for (int32_t r = 0; r < d->num_rows; r++) {
        d->host_spans[r] =
            (struct qep_span){.row0 = r % d->capacity, .num_rows = 1, .slot = -1, .decode = 1};
        d->still[r] = true;
        draws[r].slot = -1;
        ids[r] = -1;
    }
    for (int32_t i = 0; i < plan->num_spans; i++) {
        int32_t r = d->index[i];
        d->host_spans[r].slot = qep_local_slot(m->placement, plan->spans[i].slot);
        d->host_spans[r].position = plan->spans[i].position;
        d->still[r] = false;
        memcpy(&draws[r], draws_in + (size_t)i * sizeof *draws, sizeof *draws);
        ids[r] = plan->ids[plan->spans[i].row0];
    }
    QEP_TRY_GOTO(st, done,
                 OPS->upload(m->be, d->spans, d->host_spans, rows * sizeof *d->host_spans));
    QEP_TRY_GOTO(st, done, OPS->upload(m->be, d->draws, draws, rows * sizeof *draws));
    st = OPS->upload(m->be, d->ids, ids, rows * sizeof *ids);
done:
    free(draws);
    free(ids);
    return st;
}

static enum qep_status mark_seen(struct qep_model *m, const struct qep_plan *plan, const char *list,
                                 int32_t count) {
    struct model_decode *d = m->decode;
    int32_t *ids = NULL;
    void *dev;
    for (int32_t i = 0; i < plan->num_spans; i++)
        QEP_TRY(OPS->zero(m->be, d->seen + (size_t)plan->spans[i].slot * d->seen_row, d->seen_row));
    if (count == 0)
        return QEP_OK;
    QEP_TRY(model_scratch(m, SCRATCH_IDS, (size_t)count, sizeof *ids, &dev));
    QEP_TRY(qep_alloc((size_t)count, sizeof *ids, "decode state", (void **)&ids));
    enum qep_status st = QEP_OK;
    /* Runs of one slot and kind go in one call. */
    for (int32_t begin = 0; st == QEP_OK && begin < count;) {
        struct seen_id first, next;
        int32_t n = 0;
        memcpy(&first, list + (size_t)begin * sizeof first, sizeof first);
        for (; begin + n < count; n++) {
            memcpy(&next, list + (size_t)(begin + n) * sizeof next, sizeof next);
            if (next.slot != first.slot || next.bits != first.bits)
                break;
            ids[begin + n] = next.id;
        }
        int32_t *at = (int32_t *)dev + begin;
        st = OPS->upload(m->be, at, ids + begin, (size_t)n * sizeof *ids);
        if (st == QEP_OK)
            st = DEV->mark_seen(m->be, d->seen, first.slot, m->config->vocab_size, at, n,
                                (uint8_t)first.bits);
        begin += n;
    }
    free(ids);
    return st;
}

static enum qep_status begin(struct qep_model *m, const struct qep_plan *plan) {
    struct decode_extra head;
    if (m->decode == NULL)
        QEP_TRY(create(m));
    struct model_decode *d = m->decode;
    if (plan->extra_bytes < sizeof head || d->issued != d->taken)
        return qep_fail(QEP_ERR_BUG, "decode: BEGIN while steps are under way");
    memcpy(&head, plan->extra, sizeof head);
    const char *allowed =
        plan->extra + sizeof head + (size_t)plan->num_spans * sizeof(struct qep_device_draw);
    /* Both are arguments of captured ops. */
    if (head.num_ids != d->num_ids || (head.num_allowed > 0) != d->has_allowed)
        drop_graphs(m);
    d->issued = d->taken = 0;
    d->num_ids = head.num_ids;
    d->has_allowed = head.num_allowed > 0;
    QEP_TRY(model_reset_slots(m, plan));
    QEP_TRY(place_rows(m, plan));
    QEP_TRY(upload_rows(m, plan));
    if (d->has_allowed)
        QEP_TRY(OPS->upload(m->be, d->allowed, allowed, (size_t)head.num_allowed));
    return mark_seen(m, plan, allowed + head.num_allowed, head.num_seen);
}

/* ---- a step ---- */

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
        bool mine = by_sequence(m) || qep_owner(m->placement, l, 0) == m->comm->rank;
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
    size_t num_ranks = (size_t)m->placement->num_ranks, bytes = (size_t)d->capacity * row_bytes;
    int last = qep_owner(m->placement, m->config->num_hidden_layers, 0);
    bool mine = by_sequence(m) || last == m->comm->rank;
    void *normed, *act, *all, *mem;
    QEP_TRY(model_scratch(m, SCRATCH_ACT_BF16, (size_t)d->capacity, row_bytes, &act));
    if (mine) {
        int32_t cols = m->config->hidden_size;
        QEP_TRY(model_scratch(m, SCRATCH_NORMED, (size_t)d->capacity * (size_t)cols, 4, &normed));
        QEP_TRY(OPS->rms_norm(m->be, normed, m->scratch[SCRATCH_HIDDEN].data, m->weights->norm,
                              d->capacity, cols, (float)m->config->rms_norm_eps));
        QEP_TRY(OPS->act_convert(m->be, act, row_bytes, m->weights->head_act, normed, d->capacity,
                                 cols));
    }
    *rows = act;
    if (num_ranks == 1)
        return QEP_OK;
    QEP_TRY(model_scratch(m, SCRATCH_HEAD, (size_t)d->num_rows, row_bytes, &all));
    *rows = all;
    if (by_sequence(m))
        return m->dc->ops->allgather(m->dc, act, all, bytes);
    QEP_TRY(model_staging(m, STAGING_COUNTS, 4 * num_ranks * sizeof(size_t), &mem));
    size_t *sizes = mem;
    memset(sizes, 0, 4 * num_ranks * sizeof *sizes);
    for (size_t p = 0; mine && p < num_ranks; p++)
        sizes[p] = bytes;
    sizes[2 * num_ranks + (size_t)last] = bytes;
    return m->dc->ops->alltoallv(m->dc, act, sizes, sizes + num_ranks, all, sizes + 2 * num_ranks,
                                 sizes + 3 * num_ranks);
}

static enum qep_status draw_tokens(struct qep_model *m, int side) {
    struct model_decode *d = m->decode;
    const struct qep_linear *head = &m->weights->lm_head;
    size_t row_bytes = qep_act_row_bytes(m->weights->head_act, m->config->hidden_size);
    int32_t first_id = m->placement->vocab_rows[m->comm->rank].begin, n = d->num_rows;
    const void *rows;
    QEP_TRY(share_rows(m, &rows, row_bytes));
    if (head->rows > 0)
        QEP_TRY(OPS->matmul(m->be, d->side[side].logits, rows, row_bytes, head->act, head->weight,
                            n, 1));
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
                (by_sequence(m) || qep_owner(m->placement, l, 0) == m->comm->rank))
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
    if (d->num_graphs == MAX_GRAPHS)
        drop_graphs(m);
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

static enum qep_status step(struct qep_model *m) {
    struct model_decode *d = m->decode;
    int32_t end = 0;
    if (d == NULL || d->num_sequences == 0)
        return qep_fail(QEP_ERR_BUG, "decode: STEP before BEGIN");
    if (d->issued - d->taken == UNDER_WAY)
        QEP_TRY(qep_model_decode_take(m, NULL));
    int side = (int)(d->issued % UNDER_WAY);
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
    struct model_decode *d = m->decode;
    if (d == NULL || d->taken == d->issued)
        return qep_fail(QEP_ERR_BUG, "decode: no step is under way");
    int side = (int)(d->taken % UNDER_WAY);
    QEP_TRY(model_name_step(m, DEV->event_wait(m->be, d->side[side].done)));
    d->taken++;
    for (int32_t i = 0; i < d->num_sequences; i++) {
        int32_t token = d->side[side].host[d->index[i]];
        d->still[d->index[i]] = d->still[d->index[i]] || token < 0;
        if (tokens != NULL)
            tokens[i] = token;
    }
    return QEP_OK;
}

/* The logits that step `number` since BEGIN drew from, joined on rank 0: row [vocab_size]. It is
 * one of the newest two. */
static enum qep_status fetch_logits(struct qep_model *m, int32_t sequence, int32_t number,
                                    float *row) {
    struct model_decode *d = m->decode;
    size_t num_ranks = (size_t)m->placement->num_ranks, vocab = (size_t)m->weights->lm_head.rows;
    int side = number % UNDER_WAY;
    void *mine, *mem;
    if (sequence < 0 || sequence >= d->num_sequences)
        return qep_fail(QEP_ERR_BUG, "decode: logits of sequence %d of %d", sequence,
                        d->num_sequences);
    QEP_TRY(model_staging(m, STAGING_LOGITS_SEND, vocab * sizeof *row, &mine));
    QEP_TRY(OPS->download(m->be, mine, d->side[side].logits + (size_t)d->index[sequence] * vocab,
                          vocab * sizeof *row));
    QEP_TRY(model_staging(m, STAGING_COUNTS, 4 * num_ranks * sizeof(size_t), &mem));
    size_t *sizes = mem, *recv_bytes = sizes + 2 * num_ranks, *recv_offset = recv_bytes + num_ranks;
    memset(sizes, 0, 4 * num_ranks * sizeof *sizes);
    sizes[0] = vocab * sizeof *row;
    for (size_t p = 0; m->comm->rank == 0 && p < num_ranks; p++) {
        struct qep_range range = m->placement->vocab_rows[p];
        recv_bytes[p] = (size_t)(range.end - range.begin) * sizeof *row;
        recv_offset[p] = (size_t)range.begin * sizeof *row;
    }
    return m->comm->ops->alltoallv(m->comm, mine, sizes, sizes + num_ranks, row, recv_bytes,
                                   recv_offset);
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
        return begin(m, plan);
    return fetch_logits(m, plan->spans[0].slot, plan->spans[0].position, row);
}

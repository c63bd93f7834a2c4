/* A decode run begins: memory for its steps, the rows of its sequences, what they have seen. */
#include "model/decode.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

#define OPS (m->be->ops)
#define DEV (m->be->device)

static int32_t capacity_for(int32_t rows) {
    int32_t c = 1;
    while (c < rows)
        c *= 2;
    return c;
}

static int32_t parts_of(const struct qep_placement *placement) {
    return placement->attention == QEP_ATTENTION_SEQUENCES ? placement->num_ranks : 1;
}

static int32_t parts(const struct qep_model *m) {
    return parts_of(m->placement);
}

int32_t decode_capacity(int32_t num_local_slots) {
    int32_t c = capacity_for(num_local_slots);
    return c < DECODE_MAX_CAPACITY ? c : DECODE_MAX_CAPACITY;
}

int32_t qep_model_decode_capacity(const struct qep_model *m) {
    if (m->be->device == NULL)
        return 0;
    return decode_capacity(m->cache->num_local_slots) * parts(m);
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
    for (int s = 0; s < DECODE_UNDER_WAY; s++) {
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

uint64_t decode_bytes(const struct qep_backend *be, const struct qep_model_config *config,
                      const struct qep_placement *placement, int rank, int32_t num_local_slots) {
    size_t num_parts = (size_t)parts_of(placement), ranks = (size_t)placement->num_ranks;
    size_t capacity = (size_t)decode_capacity(num_local_slots), rows = capacity * num_parts;
    size_t vocab = (size_t)config->vocab_size, slots = (size_t)num_local_slots * num_parts;
    const struct qep_range *own = &placement->vocab_rows[rank];
    size_t sets = 1;
    while ((size_t)1 << (sets - 1) < capacity)
        sets++;
    const size_t blocks[] = {
        rows * sizeof(struct qep_span),
        rows * sizeof(struct qep_device_draw),
        rows * sizeof(int32_t),
        rows * sizeof(struct qep_row_candidates),
        rows * ranks * sizeof(struct qep_row_candidates),
        slots * vocab,
        vocab,
        rows * sizeof(int32_t), /* two sides */
        rows * sizeof(int32_t),
        rows * (size_t)(own->end - own->begin) * sizeof(float),
        rows * (size_t)(own->end - own->begin) * sizeof(float),
        config->num_experts == 0 ? 0
                                 : (size_t)placement->dyadic_begin[placement->num_ranks] * sets *
                                       sizeof(struct qep_expert_range),
    };
    uint64_t bytes = 0;
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
        bytes += be->device->block_bytes(be, blocks[i]);
    return bytes;
}

void decode_drop_graphs(struct qep_model *m) {
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
    decode_drop_graphs(m);
    for (int s = 0; s < DECODE_UNDER_WAY; s++) {
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

/* ---- rows ---- */

static enum qep_status place_rows(struct qep_model *m, const struct qep_plan *plan) {
    struct model_decode *d = m->decode;
    int32_t most = 1, num_parts = parts(m);
    for (int32_t i = 0; i < plan->num_spans; i++) {
        int32_t before = 0; /* sequences of the same owner */
        for (int32_t j = 0; decode_by_sequence(m) && j < i; j++)
            before += qep_owner(m->placement, 0, plan->spans[j].slot) ==
                      qep_owner(m->placement, 0, plan->spans[i].slot);
        d->index[i] = decode_by_sequence(m) ? before : i;
        most = d->index[i] + 1 > most ? d->index[i] + 1 : most;
    }
    if (most > d->max_capacity)
        return qep_fail(QEP_ERR_BUG, "decode: %d sequences of one rank, at most %d", most,
                        d->max_capacity);
    d->capacity = capacity_for(most);
    d->num_rows = d->capacity * num_parts;
    d->own_begin = decode_by_sequence(m) ? d->capacity * m->comm->rank : 0;
    d->num_sequences = plan->num_spans;
    for (int32_t i = 0; i < plan->num_spans; i++)
        if (decode_by_sequence(m))
            d->index[i] += d->capacity * qep_owner(m->placement, 0, plan->spans[i].slot);
    return QEP_OK;
}

static enum qep_status upload_rows(struct qep_model *m, const struct qep_plan *plan,
                                   const struct decode_begin *begin) {
    struct model_decode *d = m->decode;
    size_t rows = (size_t)d->num_rows;
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
        draws[r] = decode_draw(begin, i);
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

static enum qep_status mark_seen(struct qep_model *m, const struct qep_plan *plan,
                                 const struct decode_begin *begin) {
    struct model_decode *d = m->decode;
    int32_t *ids = NULL, count = begin->num_seen;
    void *dev;
    for (int32_t i = 0; i < plan->num_spans; i++)
        QEP_TRY(OPS->zero(m->be, d->seen + (size_t)plan->spans[i].slot * d->seen_row, d->seen_row));
    if (count == 0)
        return QEP_OK;
    QEP_TRY(model_scratch(m, SCRATCH_IDS, (size_t)count, sizeof *ids, &dev));
    QEP_TRY(qep_alloc((size_t)count, sizeof *ids, "decode state", (void **)&ids));
    enum qep_status st = QEP_OK;
    /* Runs of one slot and kind go in one call. */
    for (int32_t first = 0; st == QEP_OK && first < count;) {
        struct decode_seen_id of = decode_seen(begin, first), next = of;
        int32_t n = 0;
        for (; first + n < count; n++) {
            next = decode_seen(begin, first + n);
            if (next.slot != of.slot || next.bits != of.bits)
                break;
            ids[first + n] = next.id;
        }
        int32_t *at = (int32_t *)dev + first;
        st = OPS->upload(m->be, at, ids + first, (size_t)n * sizeof *ids);
        if (st == QEP_OK)
            st = DEV->mark_seen(m->be, d->seen, of.slot, m->config->vocab_size, at, n,
                                (uint8_t)of.bits);
        first += n;
    }
    free(ids);
    return st;
}

enum qep_status decode_begin_run(struct qep_model *m, const struct qep_plan *plan) {
    struct decode_begin begin;
    QEP_TRY(decode_plan_read_begin(plan, &begin));
    if (m->decode == NULL)
        QEP_TRY(create(m));
    struct model_decode *d = m->decode;
    if (d->issued != d->taken)
        return qep_fail(QEP_ERR_BUG, "decode: BEGIN while steps are under way");
    /* Both are arguments of captured ops. */
    if (begin.num_ids != d->num_ids || (begin.num_allowed > 0) != d->has_allowed)
        decode_drop_graphs(m);
    d->issued = d->taken = 0;
    d->num_ids = begin.num_ids;
    d->has_allowed = begin.num_allowed > 0;
    QEP_TRY(model_reset_slots(m, plan));
    QEP_TRY(place_rows(m, plan));
    QEP_TRY(upload_rows(m, plan, &begin));
    if (d->has_allowed)
        QEP_TRY(OPS->upload(m->be, d->allowed, begin.allowed, (size_t)begin.num_allowed));
    return mark_seen(m, plan, &begin);
}

#include "experts_support.h"

#include <string.h>

void choose_experts(struct rng *rng, struct layer *l) {
    const struct expert_case *c = l->c;
    for (int32_t r = 0; r < c->num_rows; r++) {
        bool chosen[NUM_EXPERTS] = {false};
        for (int32_t j = 0; j < c->top_k; j++) {
            int32_t e = c->only >= 0 ? c->only : rng_below(rng, NUM_EXPERTS);
            while (chosen[e])
                e = (e + 1) % NUM_EXPERTS;
            chosen[e] = true;
            l->idx[r * c->top_k + j] = e;
            l->weights[r * c->top_k + j] = (float)(1 + rng_below(rng, 80)) / 81.0f;
        }
    }
}

void make_layer(struct layer *l, struct qep_backend *cuda, struct qep_backend *ref, struct rng *rng,
                const struct expert_case *c, enum qep_weight_type first,
                enum qep_weight_type second) {
    size_t rows = (size_t)c->num_rows, hidden = (size_t)c->hidden, pairs = rows * (size_t)c->top_k;
    memset(l, 0, sizeof *l);
    l->cuda = cuda;
    l->ref = ref;
    l->c = c;
    for (int e = 0; e < NUM_EXPERTS; e++) {
        l->host[e] = random_weight(rng, first, 2 * c->inner, c->hidden, 32);
        l->host[e + NUM_EXPERTS] = random_weight(rng, second, c->hidden, c->inner, 64);
    }
    for (int e = 0; e < 2 * NUM_EXPERTS; e++) {
        OK(ref->ops->weight_create(ref, &l->host[e], &l->ref_weight[e]));
        OK(cuda->ops->weight_create(cuda, &l->host[e], &l->weight[e]));
    }
    float *x = random_floats(rng, rows * hidden, 1.0f);
    l->row_bytes = qep_act_row_bytes(QEP_ACT_BF16, c->hidden);
    l->rows = must_alloc(rows * l->row_bytes);
    l->plain = must_alloc(rows * hidden * sizeof *l->plain);
    OK(ref->ops->act_convert(ref, l->rows, l->row_bytes, QEP_ACT_BF16, x, c->num_rows, c->hidden));
    for (size_t i = 0; i < rows; i++)
        decode_act_row(QEP_ACT_BF16, l->rows + i * l->row_bytes, c->hidden, l->plain + i * hidden);
    free(x);
    l->idx = must_alloc(pairs * sizeof *l->idx);
    l->weights = must_alloc(pairs * sizeof *l->weights);
    l->base = random_floats(rng, rows * hidden, 1.0f);
    choose_experts(rng, l);
    l->dev_rows = dev_put(cuda, l->rows, rows * l->row_bytes);
    l->dev_idx = dev_put(cuda, l->idx, pairs * 4);
    l->dev_weights = dev_put(cuda, l->weights, pairs * 4);
    l->dev_base = dev_put(cuda, l->base, rows * hidden * 4);
}

void free_layer(struct layer *l) {
    for (int e = 0; e < 2 * NUM_EXPERTS; e++) {
        l->ref->ops->weight_destroy(l->ref, l->ref_weight[e]);
        l->cuda->ops->weight_destroy(l->cuda, l->weight[e]);
        free_weight(&l->host[e]);
    }
    l->cuda->ops->free(l->cuda, l->dev_rows);
    l->cuda->ops->free(l->cuda, l->dev_idx);
    l->cuda->ops->free(l->cuda, l->dev_weights);
    l->cuda->ops->free(l->cuda, l->dev_base);
    free(l->rows);
    free(l->plain);
    free(l->idx);
    free(l->weights);
    free(l->base);
}

/* Maximal dyadic ranges of [begin, end), the last rank's up to the next power of two. */
static void add_ranges(struct ranks *r, int rank) {
    int32_t at = r->split->begin[rank], end = r->split->begin[rank + 1];
    end = end == NUM_EXPERTS && at < end ? 32 : end;
    while (at < end) {
        int32_t level = 0;
        while (at % (2 << level) == 0 && at + (2 << level) <= end)
            level++;
        for (int32_t e = at; e < at + (1 << level) && e < NUM_EXPERTS; e++)
            r->expert_range[e] = r->num_ranges;
        r->ranges[r->num_ranges++] =
            (struct qep_expert_range){.level = level, .index = at >> level, .rank = rank};
        at += 1 << level;
    }
}

void make_ranks(struct ranks *r, const struct layer *l, const struct split *split) {
    memset(r, 0, sizeof *r);
    r->cuda = l->cuda;
    r->split = split;
    for (int p = 0; p < split->num_ranks; p++) {
        int32_t begin = split->begin[p], num = split->begin[p + 1] - begin;
        r->range_begin[p] = r->num_ranges;
        add_ranges(r, p);
        for (int32_t e = begin; e < begin + num; e++)
            r->expert_rank[e] = p;
        if (num > 0)
            OK(l->cuda->device->expert_set_create(
                l->cuda, (const struct qep_weight *const *)l->weight + begin,
                (const struct qep_weight *const *)l->weight + NUM_EXPERTS + begin, num,
                &r->sets[p]));
    }
    r->range_begin[split->num_ranks] = r->num_ranges;
    int32_t first_row = 0;
    for (int p = 0; p < split->num_ranks; p++) {
        int32_t num = r->range_begin[p + 1] - r->range_begin[p];
        for (int32_t g = 0; g < num; g++) {
            r->ranges[r->range_begin[p] + g].first_row = first_row + g;
            r->ranges[r->range_begin[p] + g].row_step = num;
        }
        first_row += num * l->c->num_rows;
    }
    r->dev_expert_range = dev_put(l->cuda, r->expert_range, sizeof r->expert_range);
    r->dev_expert_rank = dev_put(l->cuda, r->expert_rank, sizeof r->expert_rank);
    r->dev_ranges = dev_put(l->cuda, r->ranges, (size_t)r->num_ranges * sizeof r->ranges[0]);
}

void free_ranks(struct ranks *r) {
    for (int p = 0; p < r->split->num_ranks; p++)
        r->cuda->device->expert_set_destroy(r->cuda, r->sets[p]);
    r->cuda->ops->free(r->cuda, r->dev_expert_range);
    r->cuda->ops->free(r->cuda, r->dev_expert_rank);
    r->cuda->ops->free(r->cuda, r->dev_ranges);
}

struct qep_topk plain_topk(const struct layer *l) {
    size_t stride = (size_t)l->c->top_k * 4;
    return (struct qep_topk){l->dev_idx, l->dev_weights, stride, stride, l->c->top_k};
}

struct qep_routed_args routed_args(const struct layer *l, const struct ranks *r, int rank,
                                   int32_t decode) {
    return (struct qep_routed_args){.rows = l->dev_rows,
                                    .row_stride = l->row_bytes,
                                    .act_type = QEP_ACT_BF16,
                                    .num_rows = l->c->num_rows,
                                    .topk = plain_topk(l),
                                    .experts = r->sets[rank],
                                    .first_expert = r->split->begin[rank],
                                    .expert_range = r->dev_expert_range,
                                    .ranges = r->dev_ranges,
                                    .first_range = r->range_begin[rank],
                                    .num_ranges = r->range_begin[rank + 1] - r->range_begin[rank],
                                    .num_experts = NUM_EXPERTS,
                                    .hidden_size = l->c->hidden,
                                    .intermediate_size = l->c->inner,
                                    .decode = decode};
}

struct qep_combine_args combine_args(const struct layer *l, const struct ranks *r,
                                     const float *partials, const int32_t *positions) {
    return (struct qep_combine_args){.base = l->dev_base,
                                     .partials = partials,
                                     .topk = plain_topk(l),
                                     .expert_range = r->dev_expert_range,
                                     .ranges = r->dev_ranges,
                                     .positions = positions,
                                     .num_rows = l->c->num_rows,
                                     .hidden_size = l->c->hidden,
                                     .num_experts = NUM_EXPERTS};
}

static size_t partial_bytes(const struct layer *l, const struct ranks *r) {
    return (size_t)l->c->num_rows * (size_t)r->num_ranges * (size_t)l->c->hidden * 4;
}

float *nan_partials(const struct layer *l, const struct ranks *r) {
    size_t bytes = partial_bytes(l, r);
    void *nans = must_alloc(bytes);
    memset(nans, 0xff, bytes);
    float *dev = dev_put(l->cuda, nans, bytes);
    free(nans);
    return dev;
}

float *rank_partials(float *partials, const struct layer *l, const struct ranks *r, int rank) {
    return partials + (size_t)r->range_begin[rank] * (size_t)l->c->num_rows * (size_t)l->c->hidden;
}

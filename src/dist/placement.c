#include "dist/placement.h"

#include "base/mem.h"
#include "shard/shard.h"

#include <math.h>
#include <stdlib.h>

enum { EXPERT_BLOCKS = 32, MAX_RANKS = 4096 };

/* The context at which the costs of the two layer types are compared. */
#define COST_CONTEXT 4096.0

static int32_t min_i32(int32_t a, int32_t b) {
    return a < b ? a : b;
}

/* Boundary r of num_ranks + 1: `blocks` shared out as evenly as whole blocks allow. */
static int32_t block_boundary(int32_t blocks, int rank, int num_ranks) {
    return (int32_t)((int64_t)blocks * rank / num_ranks);
}

static void place_experts(struct qep_placement *pl) {
    int32_t unit = (pl->num_experts + EXPERT_BLOCKS - 1) / EXPERT_BLOCKS;
    unit = unit < 1 ? 1 : unit;
    int32_t blocks = (pl->num_experts + unit - 1) / unit;
    for (int r = 0; r < pl->num_ranks; r++) {
        int32_t begin = block_boundary(blocks, r, pl->num_ranks) * unit;
        int32_t end = block_boundary(blocks, r + 1, pl->num_ranks) * unit;
        begin = min_i32(begin, pl->num_experts);
        end = min_i32(end, pl->num_experts);
        pl->experts[r] = (struct qep_range){begin, end};
        for (int32_t e = begin; e < end; e++)
            pl->expert_rank[e] = r;
    }
}

static void place_vocab(struct qep_placement *pl, int32_t vocab_size) {
    int32_t rows = qep_vocab_block_rows(vocab_size);
    int32_t blocks = qep_num_vocab_blocks(vocab_size);
    for (int r = 0; r < pl->num_ranks; r++) {
        struct qep_range range = {block_boundary(blocks, r, pl->num_ranks),
                                  block_boundary(blocks, r + 1, pl->num_ranks)};
        pl->vocab_blocks[r] = range;
        pl->vocab_rows[r] = (struct qep_range){min_i32(range.begin * rows, vocab_size),
                                               min_i32(range.end * rows, vocab_size)};
    }
}

/* About the bytes that a decode step reads for one layer outside the routed experts: weights at
 * int8, the DeltaNet state read and written in fp32, keys and values of COST_CONTEXT positions. */
static double layer_cost(const struct qep_model_config *c, int32_t layer) {
    double hidden = c->hidden_size;
    double mlp = c->num_experts > 0
                     ? hidden * c->num_experts + 3.0 * hidden * c->shared_expert_intermediate_size
                     : 3.0 * hidden * c->intermediate_size;
    if (c->layer_types[layer] == QEP_LAYER_FULL_ATTENTION) {
        double q = (double)c->num_attention_heads * c->head_dim;
        double kv = (double)c->num_key_value_heads * c->head_dim;
        return mlp + hidden * (3.0 * q + 2.0 * kv) + 2.0 * kv * 2.0 * COST_CONTEXT;
    }
    double k = (double)c->linear_num_key_heads * c->linear_key_head_dim;
    double v = (double)c->linear_num_value_heads * c->linear_value_head_dim;
    double state = v * c->linear_key_head_dim * 4.0 * 2.0;
    return mlp + hidden * (2.0 * k + 3.0 * v + 2.0 * c->linear_num_value_heads) + state;
}

/* Boundary r lies where the cost up to it is nearest to r / P of the whole (the lower of two). */
static void place_layers(struct qep_placement *pl, const struct qep_model_config *config) {
    double total = 0.0, sum = 0.0;
    int rank = 0;
    for (int32_t l = 0; l < pl->num_layers; l++)
        total += layer_cost(config, l);
    for (int32_t l = 0; l < pl->num_layers; l++) {
        double cost = layer_cost(config, l);
        /* Layer l starts the next rank when boundary rank + 1 is not nearer to the layer's end. */
        while (rank + 1 < pl->num_ranks) {
            double target = total * (rank + 1) / pl->num_ranks;
            if (fabs(sum - target) > fabs(sum + cost - target))
                break;
            rank++;
        }
        pl->layer_rank[l] = rank;
        sum += cost;
    }
}

/* The largest dyadic range that starts at `begin` and stays below `end`. */
static int32_t dyadic_level(int32_t begin, int32_t end) {
    int32_t level = 0;
    while (level < 30 && (begin & (((int32_t)2 << level) - 1)) == 0 &&
           begin + ((int32_t)2 << level) <= end)
        level++;
    return level;
}

/* Cuts every rank's experts into maximal dyadic ranges; returns their number. With store == false
 * it only counts. */
static int32_t cut_dyadic(struct qep_placement *pl, bool store) {
    int32_t n = 0;
    for (int r = 0; r < pl->num_ranks; r++) {
        struct qep_range range = pl->experts[r];
        pl->dyadic_begin[r] = n;
        if (range.begin == range.end)
            continue;
        int32_t end = range.end == pl->num_experts ? pl->num_experts_padded : range.end;
        for (int32_t at = range.begin; at < end; n++) {
            int32_t level = dyadic_level(at, end);
            int32_t next = at + ((int32_t)1 << level);
            if (store) {
                pl->dyadic[n] = (struct qep_dyadic){level, at >> level};
                for (int32_t e = at; e < next && e < pl->num_experts; e++)
                    pl->expert_dyadic[e] = n;
            }
            at = next;
        }
    }
    pl->dyadic_begin[pl->num_ranks] = n;
    return n;
}

static enum qep_status alloc_tables(struct qep_placement *pl) {
    static const char what[] = "placement";
    size_t ranks = (size_t)pl->num_ranks, experts = (size_t)pl->num_experts;
    QEP_TRY(qep_calloc(ranks, sizeof *pl->experts, what, (void **)&pl->experts));
    QEP_TRY(qep_calloc(ranks, sizeof *pl->vocab_blocks, what, (void **)&pl->vocab_blocks));
    QEP_TRY(qep_calloc(ranks, sizeof *pl->vocab_rows, what, (void **)&pl->vocab_rows));
    QEP_TRY(
        qep_calloc((size_t)pl->num_layers, sizeof *pl->layer_rank, what, (void **)&pl->layer_rank));
    QEP_TRY(qep_calloc(experts, sizeof *pl->expert_rank, what, (void **)&pl->expert_rank));
    QEP_TRY(qep_calloc(experts, sizeof *pl->expert_dyadic, what, (void **)&pl->expert_dyadic));
    return qep_calloc(ranks + 1, sizeof *pl->dyadic_begin, what, (void **)&pl->dyadic_begin);
}

static enum qep_status build(struct qep_placement *pl, const struct qep_model_config *config) {
    QEP_TRY(alloc_tables(pl));
    place_experts(pl);
    place_vocab(pl, config->vocab_size);
    place_layers(pl, config);
    int32_t num_dyadic = cut_dyadic(pl, false);
    QEP_TRY(qep_calloc((size_t)num_dyadic, sizeof *pl->dyadic, "placement", (void **)&pl->dyadic));
    cut_dyadic(pl, true);
    return QEP_OK;
}

enum qep_status qep_placement_create(const struct qep_model_config *config, int num_ranks,
                                     enum qep_attention_mode attention,
                                     struct qep_placement **out) {
    struct qep_placement *pl = NULL;
    *out = NULL;
    if (num_ranks < 1 || num_ranks > MAX_RANKS)
        return qep_fail(QEP_ERR_USAGE, "%d ranks: between 1 and %d are possible", num_ranks,
                        MAX_RANKS);
    QEP_TRY(qep_calloc(1, sizeof *pl, "placement", (void **)&pl));
    pl->num_ranks = num_ranks;
    pl->attention = attention;
    pl->num_layers = config->num_hidden_layers;
    pl->num_experts = config->num_experts;
    pl->num_experts_padded = 1;
    while (pl->num_experts_padded < pl->num_experts)
        pl->num_experts_padded *= 2;
    enum qep_status st = build(pl, config);
    if (st == QEP_OK) {
        *out = pl;
        pl = NULL;
    }
    qep_placement_destroy(pl);
    return st;
}

void qep_placement_destroy(struct qep_placement *pl) {
    if (pl == NULL)
        return;
    free(pl->experts);
    free(pl->vocab_blocks);
    free(pl->vocab_rows);
    free(pl->layer_rank);
    free(pl->expert_rank);
    free(pl->dyadic);
    free(pl->dyadic_begin);
    free(pl->expert_dyadic);
    free(pl);
}

int qep_owner(const struct qep_placement *placement, int32_t layer, int32_t slot) {
    if (placement->attention == QEP_ATTENTION_SEQUENCES)
        return (int)(slot % placement->num_ranks);
    int32_t last = placement->num_layers - 1;
    return placement->layer_rank[layer < last ? layer : last];
}

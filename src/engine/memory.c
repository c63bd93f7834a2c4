/* What fits into the memory of a host or a GPU. */
#include "engine/engine_internal.h"

#include "base/mem.h"
#include "dist/cgroup.h"
#include "model/cache.h"
#include "model/need.h"
#include "model/rank_bytes.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_RANKS_NAMED = 256 };

static uint64_t mem_available(void) {
    char line[128];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    if (f == NULL)
        return UINT64_MAX;
    while (fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    fclose(f);
    return kib == 0 ? UINT64_MAX : kib * 1024;
}

/* What a host without GPUs could still give away: containers and Slurm allow less than there is. */
static uint64_t host_memory(void) {
    char self[4096];
    uint64_t available = mem_available(), allowed = UINT64_MAX;
    if (qep_cgroup_read("/proc/self", "cgroup", self, sizeof self))
        allowed = qep_cgroup_memory_left(self, "/sys/fs/cgroup");
    return available < allowed ? available : allowed;
}

uint64_t engine_free_memory(const struct qep_engine *e) {
    return e->on_gpu ? e->gpu.free_bytes / (uint64_t)e->gpu_sharers
                     : host_memory() / (uint64_t)e->comm->num_local_ranks;
}

enum qep_status engine_agree_all(struct qep_comm *comm, bool mine, bool *all) {
    int32_t vote = mine ? 1 : 0;
    int32_t *votes = NULL;
    QEP_TRY(qep_comm_gather(comm, &vote, sizeof vote, "votes", (void **)&votes));
    *all = true;
    for (int p = 0; p < comm->num_ranks; p++)
        *all = *all && votes[p] == 1;
    free(votes);
    return QEP_OK;
}

/* The largest share of the weights that a rank of `num_ranks` holds. */
static enum qep_status largest_share(const struct qep_shard_dir *dir, int num_ranks,
                                     enum qep_attention_mode attention, uint64_t *bytes) {
    struct qep_placement *placement = NULL;
    struct qep_rank_bytes *ranks = NULL;
    enum qep_status st = QEP_OK;
    *bytes = 0;
    QEP_TRY(qep_placement_create(qep_shard_dir_config(dir), num_ranks, attention, &placement));
    QEP_TRY_GOTO(st, done,
                 qep_alloc((size_t)num_ranks, sizeof *ranks, "rank sizes", (void **)&ranks));
    qep_rank_bytes(dir, placement, ranks);
    for (int p = 0; p < num_ranks; p++) {
        uint64_t sum = ranks[p].experts + ranks[p].head + ranks[p].dense + ranks[p].embed;
        *bytes = sum > *bytes ? sum : *bytes;
    }
done:
    free(ranks);
    qep_placement_destroy(placement);
    return st;
}

/* Layers whose state a rank of num_ranks holds for one of its sequences, at most. */
static uint64_t layers_held(const struct qep_model_config *c, enum qep_layer_type type,
                            int num_ranks, enum qep_attention_mode attention) {
    uint64_t count = 0, ranks = attention == QEP_ATTENTION_SEQUENCES ? 1 : (uint64_t)num_ranks;
    for (int32_t l = 0; l < c->num_hidden_layers; l++)
        count += c->layer_types[l] == type ? 1 : 0;
    return (count + ranks - 1) / ranks;
}

/* DeltaNet states of this rank's sequences. */
static uint64_t state_bytes(const struct qep_engine *e, int num_ranks,
                            enum qep_attention_mode attention) {
    const struct qep_model_config *c = qep_shard_dir_config(e->dir);
    uint64_t ranks = attention == QEP_ATTENTION_SEQUENCES ? (uint64_t)num_ranks : 1;
    uint64_t slots = ((uint64_t)e->options.num_slots + ranks - 1) / ranks;
    return slots * qep_cache_state_bytes(c) *
           layers_held(c, QEP_LAYER_LINEAR_ATTENTION, num_ranks, attention);
}

enum qep_status engine_sequences_fit(const struct qep_engine *e, bool *fit) {
    uint64_t weights = 0;
    int ranks = e->comm->num_ranks;
    QEP_TRY(largest_share(e->dir, ranks, QEP_ATTENTION_SEQUENCES, &weights));
    *fit = weights + state_bytes(e, ranks, QEP_ATTENTION_SEQUENCES) <= engine_free_memory(e) / 2;
    return QEP_OK;
}

/* ---- GPUs ---- */

/* The options that decide how much a rank takes. */
struct demand {
    const struct qep_placement *placement;
    int rank;
    int64_t ctx, num_slots, prefill_chunk;
};

static struct demand own_demand(const struct qep_engine *e, int64_t ctx) {
    return (struct demand){.placement = e->placement,
                           .rank = e->comm->rank,
                           .ctx = ctx,
                           .num_slots = e->options.num_slots,
                           .prefill_chunk = e->options.prefill_chunk};
}

static enum qep_status gpu_need(const struct qep_engine *e, const struct demand *d,
                                struct qep_model_need *need) {
    int64_t rows = d->prefill_chunk < d->ctx ? d->prefill_chunk : d->ctx;
    const struct qep_need_options options = {.activations = e->activations,
                                             .kv_type = e->kv_type,
                                             .num_slots = (int32_t)d->num_slots,
                                             .ctx = (int32_t)d->ctx,
                                             .prefill_rows = (int32_t)rows,
                                             .num_threads = e->facts.num_threads};
    return qep_model_need(e->be, e->dir, d->placement, d->rank, &options, need);
}

/* What is left for KV blocks: half of a host's memory; of a GPU's, what all else leaves. */
static enum qep_status kv_memory(const struct qep_engine *e, int64_t max_ctx, uint64_t *bytes) {
    uint64_t memory = engine_free_memory(e);
    struct qep_model_need need;
    *bytes = memory / 2;
    if (!e->on_gpu)
        return QEP_OK;
    const struct demand d = own_demand(e, max_ctx);
    QEP_TRY(gpu_need(e, &d, &need));
    uint64_t room = memory - memory / 10;
    *bytes = room > need.total_without_blocks ? room - need.total_without_blocks : 0;
    return QEP_OK;
}

static uint64_t kv_bytes_per_block(const struct qep_engine *e) {
    const struct qep_model_config *c = qep_shard_dir_config(e->dir);
    uint64_t bytes = 0;
    for (int32_t l = 0; l < c->num_hidden_layers; l++)
        if (c->layer_types[l] == QEP_LAYER_FULL_ATTENTION &&
            (e->attention == QEP_ATTENTION_SEQUENCES ||
             qep_owner(e->placement, l, 0) == e->comm->rank))
            bytes += qep_kv_block_bytes(e->kv_type, c->num_key_value_heads, c->head_dim);
    return bytes;
}

/* What this rank's memory and the model allow. */
static enum qep_status own_ctx(const struct qep_engine *e, int64_t *ctx) {
    int64_t max = qep_shard_dir_config(e->dir)->max_position_embeddings;
    uint64_t per_block = kv_bytes_per_block(e), memory = 0;
    *ctx = max;
    if (e->options.ctx > max)
        return qep_fail(QEP_ERR_USAGE, "--ctx %lld: the model has %lld positions",
                        (long long)e->options.ctx, (long long)max);
    QEP_TRY(kv_memory(e, max, &memory));
    if (per_block > 0) {
        uint64_t blocks = memory / per_block / (uint64_t)e->options.num_slots;
        if (blocks < (uint64_t)(max / QEP_KV_BLOCK))
            *ctx = (int64_t)(blocks > 0 ? blocks : 1) * QEP_KV_BLOCK;
    }
    return QEP_OK;
}

enum qep_status engine_choose_ctx(struct qep_engine *e) {
    int64_t ctx = 0, *all = NULL;
    QEP_TRY(qep_comm_agree(e->comm, own_ctx(e, &ctx)));
    QEP_TRY(qep_comm_gather(e->comm, &ctx, sizeof ctx, "context sizes", (void **)&all));
    for (int p = 0; p < e->comm->num_ranks; p++)
        ctx = all[p] < ctx ? all[p] : ctx;
    free(all);
    e->facts.ctx = (int32_t)(e->options.ctx > 0 ? e->options.ctx : ctx);
    return QEP_OK;
}

/* Does it fit? Otherwise *fits is false and nothing else happens. */
static enum qep_status fits(const struct qep_engine *e, const struct demand *d, uint64_t room,
                            bool *fits) {
    struct qep_model_need need;
    QEP_TRY(gpu_need(e, d, &need));
    *fits = need.total <= room;
    return QEP_OK;
}

/* The largest multiple of `step` below *value at which d fits; 0: none. value lies within d. */
static enum qep_status largest_fit(const struct qep_engine *e, struct demand *d, int64_t *value,
                                   int64_t step, uint64_t room, int64_t *found) {
    int64_t low = 0, high = (*value - 1) / step + 1; /* low fits or is 0; high does not */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        bool ok = false;
        *value = middle * step;
        QEP_TRY(fits(e, d, room, &ok));
        *(ok ? &low : &high) = middle;
    }
    *found = low * step;
    return QEP_OK;
}

/* The rank with the most weights. */
static enum qep_status heaviest_rank(const struct qep_shard_dir *dir,
                                     const struct qep_placement *placement, int *rank) {
    struct qep_rank_bytes *ranks = NULL;
    uint64_t most = 0;
    *rank = 0;
    QEP_TRY(qep_alloc((size_t)placement->num_ranks, sizeof *ranks, "rank sizes", (void **)&ranks));
    qep_rank_bytes(dir, placement, ranks);
    for (int p = 0; p < placement->num_ranks; p++) {
        uint64_t sum = ranks[p].experts + ranks[p].head + ranks[p].dense + ranks[p].embed;
        if (sum > most) {
            most = sum;
            *rank = p;
        }
    }
    free(ranks);
    return QEP_OK;
}

/* The least number of ranks on GPUs of their own that would do; 0: none. */
static enum qep_status ranks_that_fit(const struct qep_engine *e, int *found) {
    *found = 0;
    for (int p = e->comm->num_ranks + 1; p <= MAX_RANKS_NAMED && *found == 0; p++) {
        struct qep_placement *placement = NULL;
        bool ok = false;
        QEP_TRY(qep_placement_create(qep_shard_dir_config(e->dir), p, e->attention, &placement));
        struct demand d = own_demand(e, e->facts.ctx);
        d.placement = placement;
        enum qep_status st = heaviest_rank(e->dir, placement, &d.rank);
        if (st == QEP_OK)
            st = fits(e, &d, e->gpu.free_bytes, &ok);
        qep_placement_destroy(placement);
        QEP_TRY(st);
        *found = ok ? p : 0;
    }
    return QEP_OK;
}

/* The change that would do and costs least, in words. */
static enum qep_status what_would_do(const struct qep_engine *e, uint64_t room, char *text,
                                     size_t text_bytes) {
    static const char *const names[] = {"--prefill-chunk", "--ctx", "--slots"};
    for (int i = 0; i < 3; i++) {
        struct demand d = own_demand(e, e->facts.ctx);
        int64_t *const values[] = {&d.prefill_chunk, &d.ctx, &d.num_slots}, found = 0;
        int64_t step = i == 2 ? 1 : QEP_KV_BLOCK;
        QEP_TRY(largest_fit(e, &d, values[i], step, room, &found));
        if (found == 0)
            continue;
        snprintf(text, text_bytes, "%s %lld would do", names[i], (long long)found);
        return QEP_OK;
    }
    int ranks = 0;
    QEP_TRY(ranks_that_fit(e, &ranks));
    if (ranks > 0)
        snprintf(text, text_bytes, "%d ranks on GPUs of their own would do", ranks);
    else
        snprintf(text, text_bytes, "no number of such GPUs would do");
    return QEP_OK;
}

enum qep_status engine_check_gpu_memory(struct qep_engine *e) {
    uint64_t room = e->on_gpu ? engine_free_memory(e) : 0;
    struct qep_model_need need;
    char would_do[64];
    if (!e->on_gpu)
        return QEP_OK;
    const struct demand d = own_demand(e, e->facts.ctx);
    QEP_TRY(gpu_need(e, &d, &need));
    e->facts.gpu_need = need.total;
    if (need.total <= room)
        return QEP_OK;
    QEP_TRY(what_would_do(e, room, would_do, sizeof would_do));
    return qep_fail(QEP_ERR_UNAVAILABLE,
                    "too little GPU memory: a rank of %d needs %.2f GB (%.2f of weights, %.2f of "
                    "caches for %lld x %d positions), %.2f GB are free for it on %s; %s",
                    e->comm->num_ranks, 1e-9 * (double)need.total, 1e-9 * (double)need.weights,
                    1e-9 * (double)(need.states + need.blocks), (long long)d.num_slots,
                    e->facts.ctx, 1e-9 * (double)room, e->gpu.name, would_do);
}

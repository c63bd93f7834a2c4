/* What fits into the memory of a host or a GPU. */
#include "engine/engine_internal.h"

#include "base/mem.h"
#include "model/cache.h"
#include "model/rank_bytes.h"

#include <stdio.h>
#include <stdlib.h>

/* What a host without GPUs could still give away. */
static uint64_t host_memory(void) {
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

uint64_t engine_free_memory(const struct qep_engine *e) {
    return e->on_gpu ? e->gpu.free_bytes / (uint64_t)e->gpu_sharers
                     : host_memory() / (uint64_t)e->comm->num_local_ranks;
}

enum qep_status engine_agree_all(struct qep_comm *comm, bool mine, bool *all) {
    int32_t vote = mine ? 1 : 0;
    void *mem = NULL;
    QEP_TRY(qep_alloc((size_t)comm->num_ranks, sizeof vote, "votes", &mem));
    int32_t *votes = mem;
    enum qep_status st = comm->ops->allgather(comm, &vote, votes, sizeof vote);
    *all = true;
    for (int p = 0; st == QEP_OK && p < comm->num_ranks; p++)
        *all = *all && votes[p] == 1;
    free(votes);
    return st;
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

/* What a rank's GPU holds besides weights, states and KV: activations of a prefill chunk of some
 * hundred rows and what repacking needs (256 MB, a sixteenth of small devices), and the logits of
 * two decode steps. Chunks of thousands of rows take more. */
static uint64_t workspace_bytes(const struct qep_engine *e, int num_ranks) {
    const uint64_t usual = (uint64_t)256 << 20;
    uint64_t rows = (uint64_t)e->options.num_slots < 64 ? (uint64_t)e->options.num_slots : 64;
    uint64_t vocab = (uint64_t)qep_shard_dir_config(e->dir)->vocab_size;
    return (e->gpu.total_bytes / 16 < usual ? e->gpu.total_bytes / 16 : usual) +
           2 * rows * (vocab / (uint64_t)num_ranks) * sizeof(float);
}

/* What is left for KV blocks: half of a host's memory; of a GPU's, what weights, states and
 * workspaces leave. */
static enum qep_status kv_memory(const struct qep_engine *e, uint64_t *bytes) {
    uint64_t memory = engine_free_memory(e), used = 0;
    *bytes = memory / 2;
    if (!e->on_gpu)
        return QEP_OK;
    QEP_TRY(largest_share(e->dir, e->comm->num_ranks, e->attention, &used));
    used +=
        state_bytes(e, e->comm->num_ranks, e->attention) + workspace_bytes(e, e->comm->num_ranks);
    uint64_t room = memory - memory / 10;
    *bytes = room > used ? room - used : 0;
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

enum qep_status engine_choose_ctx(struct qep_engine *e) {
    const struct qep_model_config *c = qep_shard_dir_config(e->dir);
    int64_t max = c->max_position_embeddings, mine = max;
    uint64_t per_block = kv_bytes_per_block(e), memory = 0;
    if (e->options.ctx > max)
        return qep_fail(QEP_ERR_USAGE, "--ctx %lld: the model has %lld positions",
                        (long long)e->options.ctx, (long long)max);
    QEP_TRY(kv_memory(e, &memory));
    if (per_block > 0) {
        uint64_t blocks = memory / per_block / (uint64_t)e->options.num_slots;
        if (blocks < (uint64_t)(max / QEP_KV_BLOCK))
            mine = (int64_t)(blocks > 0 ? blocks : 1) * QEP_KV_BLOCK;
    }
    void *mem = NULL;
    QEP_TRY(qep_alloc((size_t)e->comm->num_ranks, sizeof mine, "context sizes", &mem));
    int64_t *all = mem;
    enum qep_status st = e->comm->ops->allgather(e->comm, &mine, all, sizeof mine);
    for (int p = 0; st == QEP_OK && p < e->comm->num_ranks; p++)
        mine = all[p] < mine ? all[p] : mine;
    free(all);
    e->facts.ctx = (int32_t)(e->options.ctx > 0 ? e->options.ctx : mine);
    return st;
}

static uint64_t gpu_need(const struct qep_engine *e, int num_ranks, uint64_t weights) {
    return weights + state_bytes(e, num_ranks, e->attention) + workspace_bytes(e, num_ranks);
}

enum qep_status engine_check_gpu_memory(const struct qep_engine *e) {
    uint64_t weights = 0, room = e->on_gpu ? engine_free_memory(e) : 0;
    int ranks = e->comm->num_ranks;
    if (!e->on_gpu)
        return QEP_OK;
    QEP_TRY(largest_share(e->dir, ranks, e->attention, &weights));
    uint64_t need = gpu_need(e, ranks, weights);
    if (need <= room)
        return QEP_OK;
    char would_do[64] = "no number of such GPUs would do";
    for (int p = ranks + 1; p <= 256; p++) {
        QEP_TRY(largest_share(e->dir, p, e->attention, &weights));
        if (gpu_need(e, p, weights) <= e->gpu.free_bytes) {
            snprintf(would_do, sizeof would_do, "%d ranks on GPUs of their own would do", p);
            break;
        }
    }
    return qep_fail(QEP_ERR_UNAVAILABLE,
                    "too little GPU memory: a rank of %d needs %.2f GB, %.2f GB are free for it on "
                    "%s; %s",
                    ranks, 1e-9 * (double)need, 1e-9 * (double)room, e->gpu.name, would_do);
}

#include "model/rank_bytes.h"

#include "shard/manifest.h"
#include "shard/verify.h"

#include <math.h>
#include <string.h>

uint64_t qep_tensor_bytes(const struct qep_manifest *m, size_t idx) {
    struct qep_part parts[2];
    uint64_t total = 0;
    int n = qep_layout_parts(&m->inventory.specs[idx], m->types[idx], m->info.group_size, parts);
    for (int p = 0; p < n; p++)
        total += (uint64_t)parts[p].rows * parts[p].row_bytes;
    return total;
}

static void add_tensor(const struct qep_placement *p, const struct qep_manifest *m, size_t idx,
                       struct qep_rank_bytes *ranks) {
    const struct qep_tensor_spec *spec = &m->inventory.specs[idx];
    uint64_t bytes = qep_tensor_bytes(m, idx);
    if (spec->expert >= 0) {
        ranks[p->expert_rank[spec->expert]].experts += bytes;
        return;
    }
    for (int r = 0; r < p->num_ranks; r++) {
        const struct qep_range *blocks = &p->vocab_blocks[r];
        if (spec->vocab_block >= 0) {
            if (spec->vocab_block >= blocks->begin && spec->vocab_block < blocks->end)
                ranks[r].head += bytes;
        } else if (spec->layer >= 0) {
            if (p->attention == QEP_ATTENTION_SEQUENCES || p->layer_rank[spec->layer] == r)
                ranks[r].dense += bytes;
        } else if (p->attention == QEP_ATTENTION_SEQUENCES || r == 0) {
            ranks[r].embed += bytes;
        }
    }
}

void qep_rank_bytes(const struct qep_shard_dir *dir, const struct qep_placement *p,
                    struct qep_rank_bytes *ranks) {
    const struct qep_manifest *m = qep_shard_dir_manifest(dir);
    memset(ranks, 0, (size_t)p->num_ranks * sizeof *ranks);
    for (size_t i = 0; i < m->inventory.num_specs; i++)
        add_tensor(p, m, i, ranks);
}

static double weight_bytes(const struct qep_manifest *m, double expert_share) {
    double total = 0;
    for (size_t i = 0; i < m->inventory.num_specs; i++) {
        const struct qep_tensor_spec *spec = &m->inventory.specs[i];
        double share = spec->expert >= 0                            ? expert_share
                       : spec->vocab_block >= 0 || spec->layer >= 0 ? 1
                                                                    : 0;
        total += share * (double)qep_tensor_bytes(m, i);
    }
    return total;
}

/* Of one sequence; states are read and written. */
static double sequence_bytes(const struct qep_model_config *c, enum qep_kv_type kv_type,
                             int64_t depth) {
    double state = (double)c->linear_num_value_heads * c->linear_key_head_dim *
                   c->linear_value_head_dim * sizeof(float);
    double position = (double)qep_kv_block_bytes(kv_type, c->num_key_value_heads, c->head_dim) /
                      QEP_KV_BLOCK,
           total = 0;
    for (int32_t l = 0; l < c->num_hidden_layers; l++)
        total +=
            c->layer_types[l] == QEP_LAYER_FULL_ATTENTION ? position * (double)depth : 2 * state;
    return total;
}

double qep_step_bytes(const struct qep_shard_dir *dir, enum qep_kv_type kv_type, int64_t batch,
                      int64_t depth) {
    const struct qep_model_config *c = qep_shard_dir_config(dir);
    double missed = c->num_experts > 0 ? 1 - (double)c->num_experts_per_tok / c->num_experts : 1;
    return weight_bytes(qep_shard_dir_manifest(dir), 1 - pow(missed, (double)batch)) +
           (double)batch * sequence_bytes(c, kv_type, depth);
}

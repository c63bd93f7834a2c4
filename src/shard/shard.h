/* The shard directory, read side: which canonical tensors it holds, and loading them by name.
 *
 * Canonical names are the checkpoint's own, without prefix:
 *   embed_tokens.weight                              [vocab_size, hidden_size]  (absent when tied)
 *   norm.weight
 *   lm_head.weight.block.B      B = 0 .. num_vocab_blocks-1: rows [B * vocab_block_rows, ...) of
 * lm_head (when tied: of the one shared table) layers.L.input_layernorm.weight,
 * layers.L.post_attention_layernorm.weight
 *   layers.L.self_attn.{q_proj,k_proj,v_proj,o_proj,q_norm,k_norm}.weight
 *   layers.L.linear_attn.{in_proj_qkv,in_proj_z,in_proj_a,in_proj_b,conv1d,norm,out_proj}.weight
 *   layers.L.linear_attn.{A_log,dt_bias}
 *   layers.L.mlp.gate.weight  layers.L.mlp.shared_expert_gate.weight
 *   layers.L.mlp.shared_expert.{gate_proj,up_proj,down_proj}.weight
 *   layers.L.mlp.experts.E.gate_up_proj [2 * moe_intermediate_size, hidden_size]  (gate rows, then
 * up rows) layers.L.mlp.experts.E.down_proj    [hidden_size, moe_intermediate_size]
 *   layers.L.mlp.{gate_proj,up_proj,down_proj}.weight                             (dense models)
 * Norm weights are stored as in the checkpoint (without the 1 of the unit-offset norms). */
#ifndef QEP_SHARD_SHARD_H
#define QEP_SHARD_SHARD_H

#include "base/status.h"
#include "kernels/weight.h"
#include "model/config.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Vocabulary rows come in blocks, so that any rank reads just its rows whatever S was. */
enum { QEP_MAX_VOCAB_BLOCKS = 64 };
static inline int32_t qep_vocab_block_rows(int32_t vocab_size) {
    return (vocab_size + QEP_MAX_VOCAB_BLOCKS - 1) / QEP_MAX_VOCAB_BLOCKS;
}
static inline int32_t qep_num_vocab_blocks(int32_t vocab_size) {
    int32_t rows = qep_vocab_block_rows(vocab_size);
    return (vocab_size + rows - 1) / rows;
}

struct qep_shard_dir; /* opaque; immutable after open: loads may run from several threads at once */

struct qep_shard_info {
    char recipe[32]; /* bf16, q8, q4, q4-all, or a recipe file's name */
    int32_t group_size;
    int32_t num_shards;    /* S */
    char identity[33];     /* hex XXH3-128 of manifest.json: equal on all ranks of a job */
    uint64_t stored_bytes; /* all .qep files */
    uint64_t tensor_bytes; /* their contents, uncompressed */
};

/* Opens DIR: manifest.json and the headers it names are validated (formats, sizes, every tensor
 * that the config demands is there with the right shape). QEP_ERR_NOINPUT: no such directory or no
 * manifest; QEP_ERR_DATA: damaged, incomplete, or from another conversion. */
enum qep_status qep_shard_dir_open(const char *dir, struct qep_shard_dir **out);
void qep_shard_dir_close(struct qep_shard_dir *dir); /* NULL is fine */

const struct qep_model_config *qep_shard_dir_config(const struct qep_shard_dir *dir);
const struct qep_shard_info *qep_shard_dir_info(const struct qep_shard_dir *dir);
const char *qep_shard_dir_path(const struct qep_shard_dir *dir);

/* Reads, checks and decompresses one tensor; *out is owned by the caller (qep_host_weight_free).
 * Thread-safe. *stored_bytes (may be NULL) is increased by the bytes read from disk.
 * QEP_ERR_DATA names file, tensor and frame of a damaged one. */
enum qep_status qep_shard_load(const struct qep_shard_dir *dir, const char *name,
                               struct qep_host_weight *out, uint64_t *stored_bytes);

/* The same, but tensors stored as two planes stay so (out->planes): whoever takes the weight joins
 * them. */
enum qep_status qep_shard_load_planes(const struct qep_shard_dir *dir, const char *name,
                                      struct qep_host_weight *out, uint64_t *stored_bytes);

/* The shape and type without loading. */
enum qep_status qep_shard_stat(const struct qep_shard_dir *dir, const char *name,
                               enum qep_weight_type *type, int64_t *rows, int64_t *cols);

void qep_host_weight_free(struct qep_host_weight *weight); /* zeroes it; NULL is fine */

#endif

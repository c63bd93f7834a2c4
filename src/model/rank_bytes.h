/* How many bytes of weights each rank would hold, from the manifest alone. */
#ifndef QEP_MODEL_RANK_BYTES_H
#define QEP_MODEL_RANK_BYTES_H

#include "dist/placement.h"
#include "kernels/backend.h"
#include "shard/shard.h"

struct qep_rank_bytes {
    uint64_t experts, head, dense, embed; /* as stored, uncompressed */
};

/* ranks [placement->num_ranks]. */
void qep_rank_bytes(const struct qep_shard_dir *dir, const struct qep_placement *placement,
                    struct qep_rank_bytes *ranks);

/* The fewest bytes that all ranks together read and write in one decode step of `batch` sequences
 * at position `depth`: weights without the embedding, DeltaNet states, keys and values. Routing is
 * taken as uniform: of E experts, E (1 - (1 - top_k / E)^batch) are read. */
double qep_step_bytes(const struct qep_shard_dir *dir, enum qep_kv_type kv_type, int64_t batch,
                      int64_t depth);

/* Bytes in memory of the manifest's idx-th tensor, as stored. */
struct qep_manifest;
uint64_t qep_tensor_bytes(const struct qep_manifest *manifest, size_t idx);

#endif

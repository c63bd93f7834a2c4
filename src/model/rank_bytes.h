/* How many bytes of weights each rank would hold, from the manifest alone. */
#ifndef QEP_MODEL_RANK_BYTES_H
#define QEP_MODEL_RANK_BYTES_H

#include "dist/placement.h"
#include "shard/shard.h"

struct qep_rank_bytes {
    uint64_t experts, head, dense, embed; /* as stored, uncompressed */
};

/* ranks [placement->num_ranks]. */
void qep_rank_bytes(const struct qep_shard_dir *dir, const struct qep_placement *placement,
                    struct qep_rank_bytes *ranks);

/* Bytes in memory of the manifest's idx-th tensor, as stored. */
struct qep_manifest;
uint64_t qep_tensor_bytes(const struct qep_manifest *manifest, size_t idx);

#endif

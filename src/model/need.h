/* How much device memory a rank's part of a model takes, before anything of it is there. */
#ifndef QEP_MODEL_NEED_H
#define QEP_MODEL_NEED_H

#include "model/weights.h"

struct qep_need_options {
    enum qep_activations activations;
    enum qep_kv_type kv_type;
    int32_t num_slots, ctx;
    int32_t prefill_rows; /* of one plan, at most */
    int32_t num_threads;  /* that load */
};

struct qep_model_need {
    uint64_t weights, loading; /* loading: beside the weights while they come */
    uint64_t states, blocks;   /* caches; blocks: of all slots at ctx positions */
    uint64_t running;          /* scratch, workspaces, tables, decode steps */
    uint64_t total;            /* of it all as the backend holds it */
    uint64_t total_without_blocks;
};

/* For backends with a device table. */
enum qep_status qep_model_need(struct qep_backend *be, const struct qep_shard_dir *dir,
                               const struct qep_placement *placement, int rank,
                               const struct qep_need_options *options, struct qep_model_need *out);

#endif

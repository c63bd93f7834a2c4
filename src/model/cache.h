/* The state of sequences on this rank: KV blocks of full-attention layers (64 positions each,
 * allocated when first needed) and convolution and recurrent state of DeltaNet layers, one per
 * slot. */
#ifndef QEP_MODEL_CACHE_H
#define QEP_MODEL_CACHE_H

#include "dist/placement.h"
#include "kernels/backend.h"
#include "model/config.h"

struct qep_layer_cache {
    float *conv_state;      /* dev [local slots, K, C]; NULL unless DeltaNet and owned */
    float *recurrent_state; /* dev [local slots, value heads, key dim, value dim] likewise */
    void **blocks;     /* [local slots, max_blocks] dev pointers; NULL unless attention and owned */
    void **dev_blocks; /* the same table in device memory */
    int32_t *num_blocks; /* [local slots] blocks in use */
};

struct qep_cache {
    struct qep_backend *be;
    const struct qep_model_config *config;
    const struct qep_placement *placement;
    enum qep_kv_type kv_type;
    int32_t num_local_slots;
    int32_t max_blocks;
    struct qep_layer_cache *layers; /* [num_hidden_layers] */
    void **free_blocks;             /* returned by reset slots, for any layer */
    size_t num_free, free_cap;
    uint64_t bytes; /* device memory held */
};

/* The states of one sequence and DeltaNet layer. */
uint64_t qep_cache_state_bytes(const struct qep_model_config *config);

/* Device memory that a rank will take (backends with a device table): `states` with the first
 * sequence, `blocks` when all num_slots sequences have ctx positions. */
struct qep_cache_need {
    uint64_t states, blocks;
};

void qep_cache_plan(const struct qep_backend *be, const struct qep_model_config *config,
                    const struct qep_placement *placement, int rank, int32_t num_slots, int32_t ctx,
                    enum qep_kv_type kv_type, struct qep_cache_need *need);

/* num_slots sequences of at most ctx positions. Borrows be, config, placement. */
enum qep_status qep_cache_create(struct qep_backend *be, const struct qep_model_config *config,
                                 const struct qep_placement *placement, int rank, int32_t num_slots,
                                 int32_t ctx, enum qep_kv_type kv_type, struct qep_cache **out);
void qep_cache_destroy(struct qep_cache *cache); /* NULL is fine */

/* The local index of a sequence's state on its owner. */
int32_t qep_local_slot(const struct qep_placement *placement, int32_t slot);

/* Clears one sequence of one layer: zero states, KV blocks given back. */
enum qep_status qep_cache_reset(struct qep_cache *cache, int32_t layer, int32_t local_slot);

/* Makes room for positions [0, end) of a full-attention layer. */
enum qep_status qep_cache_reserve(struct qep_cache *cache, int32_t layer, int32_t local_slot,
                                  int32_t end);

#endif

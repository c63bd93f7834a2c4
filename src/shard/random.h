/* Tensors without files, for speed measurements at any size: each is made when it is loaded.
 * Unquantised tensors are those of checkpoint/random_source.h; quantised ones repeat one block of
 * codes, so that tens of gigabytes take as long as copying them. */
#ifndef QEP_SHARD_RANDOM_H
#define QEP_SHARD_RANDOM_H

#include "checkpoint/inventory.h"
#include "kernels/weight.h"
#include "quant/recipe.h"
#include "shard/shard.h"

struct qep_random_tensors; /* opaque; immutable */

/* config and inventory are borrowed and outlive it. */
enum qep_status qep_random_tensors_create(const struct qep_model_config *config,
                                          const struct qep_inventory *inventory, uint64_t seed,
                                          int32_t group_size, struct qep_random_tensors **out);
void qep_random_tensors_destroy(struct qep_random_tensors *tensors); /* NULL is fine */

/* What a recipe makes of every tensor; types [inventory->num_specs] is owned by the caller. */
enum qep_status qep_random_tensors_types(const struct qep_random_tensors *tensors,
                                         const struct qep_recipe *recipe,
                                         enum qep_weight_type **types);

/* *out as qep_shard_load gives it. Thread-safe. */
enum qep_status qep_random_tensors_load(const struct qep_random_tensors *tensors, size_t spec_idx,
                                        enum qep_weight_type type, struct qep_host_weight *out);

/* A shard directory of such tensors: qep_shard_load, _stat and the rest take it like any other. */
enum qep_status qep_shard_dir_random(const struct qep_model_config *config,
                                     const struct qep_recipe *recipe, uint64_t seed,
                                     struct qep_shard_dir **out);

#endif

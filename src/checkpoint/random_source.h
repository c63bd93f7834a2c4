/* Random weights with the scales of a trained model: activations and logits stay sane at any size.
 * Each row depends only on (seed, canonical tensor name, row), so any piece can be made anywhere.
 */
#ifndef QEP_CHECKPOINT_RANDOM_SOURCE_H
#define QEP_CHECKPOINT_RANDOM_SOURCE_H

#include "base/status.h"
#include "checkpoint/inventory.h"
#include "checkpoint/source.h"
#include "model/config.h"

#include <stdint.h>

struct qep_random_source; /* opaque; immutable */

/* config and inventory are borrowed and outlive the source. */
enum qep_status qep_random_source_create(const struct qep_model_config *config,
                                         const struct qep_inventory *inventory, uint64_t seed,
                                         struct qep_random_source **out);
void qep_random_source_destroy(struct qep_random_source *source); /* NULL is fine */

struct qep_row_source qep_random_rows(const struct qep_random_source *source);

/* For those that make quantised tensors themselves: the standard deviation of a matrix, and n
 * standard normal numbers that depend on key alone. */
float qep_random_deviation(const struct qep_random_source *source, size_t spec_idx);
void qep_random_normals(const struct qep_random_source *source, uint64_t key, int64_t n,
                        float *out);

#endif

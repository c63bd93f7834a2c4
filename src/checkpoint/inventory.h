/* The canonical tensors a model has: names, shapes, and to which layer, expert or vocabulary block
 * each belongs. One list for conversion, synthesis and the check of a shard directory. */
#ifndef QEP_CHECKPOINT_INVENTORY_H
#define QEP_CHECKPOINT_INVENTORY_H

#include "base/status.h"
#include "model/config.h"

#include <stddef.h>
#include <stdint.h>

enum { QEP_TENSOR_NAME_MAX = 80 };

enum qep_tensor_kind {
    QEP_TENSOR_MATRIX, /* [rows, cols] */
    QEP_TENSOR_VECTOR, /* [cols]; rows = 1 */
    QEP_TENSOR_CONV    /* [rows, 1, cols] */
};

struct qep_tensor_spec {
    char name[QEP_TENSOR_NAME_MAX]; /* canonical, see shard/shard.h */
    enum qep_tensor_kind kind;
    int64_t rows, cols;
    int32_t layer;       /* -1: none */
    int32_t expert;      /* routed expert, -1: none */
    int32_t vocab_block; /* block of lm_head, -1: none */
};

struct qep_inventory {
    struct qep_tensor_spec *specs;
    size_t num_specs;
};

/* Order: embedding, final norm, per layer its dense tensors and then its experts, head blocks. The
 * list is owned by the caller (qep_inventory_free). */
enum qep_status qep_inventory_create(const struct qep_model_config *config,
                                     struct qep_inventory *out);
void qep_inventory_free(struct qep_inventory *inventory); /* zeroes it; NULL is fine */

#endif

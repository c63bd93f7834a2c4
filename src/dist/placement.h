/* Who owns what: pure functions of the dims and P; every rank computes the same table.
 * Experts: contiguous ranges with boundaries on multiples of max(1, ceil(num_experts / 32)).
 * Vocabulary: contiguous ranges in whole vocabulary blocks. Layers: contiguous blocks balanced by
 * cost. Ranges may be empty. */
#ifndef QEP_DIST_PLACEMENT_H
#define QEP_DIST_PLACEMENT_H

#include "base/status.h"
#include "model/config.h"

#include <stdint.h>

enum qep_attention_mode { QEP_ATTENTION_LAYERS, QEP_ATTENTION_SEQUENCES };

struct qep_range {
    int32_t begin, end; /* [begin, end) */
};

/* A node of the sum tree: expert ids [index << level, (index + 1) << level). */
struct qep_dyadic {
    int32_t level, index;
};

struct qep_placement {
    int num_ranks;
    enum qep_attention_mode attention;
    int32_t num_layers;
    int32_t num_experts;
    int32_t num_experts_padded;     /* next power of two, >= 1 */
    struct qep_range *experts;      /* [num_ranks] */
    struct qep_range *vocab_blocks; /* [num_ranks] in vocabulary blocks */
    struct qep_range *vocab_rows;   /* [num_ranks] the same in rows */
    int32_t *layer_rank;            /* [num_layers] owner under LAYERS */
    int32_t *expert_rank;           /* [num_experts] */
    /* Maximal dyadic ranges of each rank's experts, ascending; those of rank r are
     * dyadic[dyadic_begin[r] .. dyadic_begin[r + 1]). The last owner's range is extended to the
     * padded end (absent ids add nothing), so that fewer partials arise. */
    struct qep_dyadic *dyadic;
    int32_t *dyadic_begin;  /* [num_ranks + 1] */
    int32_t *expert_dyadic; /* [num_experts] index into dyadic */
};

/* Builds the table; owned by the caller. */
enum qep_status qep_placement_create(const struct qep_model_config *config, int num_ranks,
                                     enum qep_attention_mode attention, struct qep_placement **out);
void qep_placement_destroy(struct qep_placement *placement);

/* THE owner function: which rank holds the state and dense weights of `layer` for the sequence in
 * `slot`. layer == num_layers stands for the head (final norm): the owner of the last layer. */
int qep_owner(const struct qep_placement *placement, int32_t layer, int32_t slot);

#endif

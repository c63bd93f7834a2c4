/* What the files of decoding on the device share: the state of a run (decode_begin.c makes it,
 * decode.c steps it) and what its plans carry (decode_plan.c). */
#ifndef QEP_MODEL_DECODE_H
#define QEP_MODEL_DECODE_H

#include "model/internal.h"

enum decode_limits { DECODE_MAX_CAPACITY = 64, DECODE_UNDER_WAY = 2, DECODE_MAX_GRAPHS = 64 };

struct decode_graph {
    struct qep_graph *graph; /* NULL: only warmed up */
    int32_t capacity, kv_end, side;
    uint64_t scratch_generation, backend_generation;
};

struct model_decode {
    int32_t max_capacity; /* rows of one owner */
    int32_t max_rows;     /* rows of all ranks */
    int32_t capacity, num_rows, own_begin;
    int32_t num_sequences;
    int32_t *index;              /* [max_rows] row of the i-th sequence */
    struct qep_span *host_spans; /* [max_rows] with the positions of the next step */
    bool *still;                 /* [max_rows] the row was flagged or never was one */
    /* dev [max_rows] */
    struct qep_span *spans;
    struct qep_device_draw *draws;
    int32_t *ids;
    struct {
        int32_t *tokens;
        float *logits; /* [max_rows, vocabulary rows of this rank] */
        int32_t *host; /* page-locked */
        struct qep_event *done;
    } side[DECODE_UNDER_WAY];
    struct qep_row_candidates *mine, *all; /* dev [max_rows], [num_ranks, max_rows] */
    uint8_t *seen, *allowed;               /* dev [slots, vocab_size], [vocab_size] */
    size_t seen_row;                       /* bytes of a slot's flags */
    bool has_allowed;
    int32_t num_ids;
    struct qep_expert_range *ranges; /* dev [log2 capacities, ranges of all ranks] */
    int64_t issued, taken;
    struct decode_graph graphs[DECODE_MAX_GRAPHS];
    int32_t num_graphs;
};

/* ---- plans ---- */

/* What a BEGIN brings besides spans and ids. Lists lie in plan->extra unaligned: read them with
 * decode_draw and decode_seen. */
struct decode_begin {
    int32_t num_ids; /* ids >= num_ids are never drawn */
    int32_t num_allowed, num_seen;
    const char *draws;      /* [num_spans] */
    const uint8_t *allowed; /* [num_allowed]; num_allowed is num_ids, or 0: all are */
    const char *seen;       /* [num_seen] */
};

enum decode_seen_bits { DECODE_SEEN_GENERATED = 1, DECODE_SEEN_PROMPT = 2 };

/* An id that counts for the penalties of a slot. */
struct decode_seen_id {
    int32_t slot, id, bits;
};

/* QEP_ERR_BUG when the plan's bytes are not what its counts say. */
enum qep_status decode_plan_read_begin(const struct qep_plan *plan, struct decode_begin *out);
struct qep_device_draw decode_draw(const struct decode_begin *begin, int32_t i);
struct decode_seen_id decode_seen(const struct decode_begin *begin, int32_t i);

/* Which logits a LOGITS asks for. */
enum qep_status decode_plan_read_logits(const struct qep_plan *plan, int32_t *sequence,
                                        int32_t *step);

/* ---- the state ---- */

static inline bool decode_by_sequence(const struct qep_model *m) {
    return m->placement->attention == QEP_ATTENTION_SEQUENCES;
}

/* Rows of one owner, at most. */
int32_t decode_capacity(int32_t num_local_slots);

/* Device memory of m->decode. */
uint64_t decode_bytes(const struct qep_backend *be, const struct qep_model_config *config,
                      const struct qep_placement *placement, int rank, int32_t num_local_slots);

/* Runs a BEGIN: m->decode is there afterwards. */
enum qep_status decode_begin_run(struct qep_model *m, const struct qep_plan *plan);

void decode_drop_graphs(struct qep_model *m);

#endif

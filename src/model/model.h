/* The model on one rank: weights, caches, exchange, and THE forward. All ranks of a job call
 * forward with the same plan; rank 0 receives the logits. */
#ifndef QEP_MODEL_MODEL_H
#define QEP_MODEL_MODEL_H

#include "dist/device_comm.h"
#include "dist/exchange.h"
#include "dist/watchdog.h"
#include "kernels/device_ops.h"
#include "model/cache.h"
#include "model/plan.h"
#include "model/weights.h"

struct qep_model_options {
    enum qep_activations activations;
    enum qep_kv_type kv_type;
    int32_t num_slots;
    int32_t ctx;                         /* positions of one sequence */
    struct qep_device_comm *device_comm; /* borrowed; device backends only */
    bool device_graphs;                  /* decode steps as captured graphs where possible */
};

/* Seconds spent since creation, this rank. */
struct qep_model_times {
    double mixer, moe_local, dispatch, experts, combine, head;
};

struct qep_model;

/* Borrows everything given; weights go with the model. */
enum qep_status qep_model_create(struct qep_comm *comm, struct qep_backend *be,
                                 const struct qep_model_config *config,
                                 const struct qep_placement *placement, struct qep_weights *weights,
                                 const struct qep_model_options *options, struct qep_model **out);
void qep_model_destroy(struct qep_model *model); /* weights included; NULL is fine */

/* Stamps progress from now on (borrowed; NULL stops). */
void qep_model_set_watchdog(struct qep_model *model, struct qep_watchdog *dog);

/* Called on rank 0 for each row whose logits the plan wants, in plan order within decode rows, then
 * within prefill rows: row is the index into plan->ids, logits [vocab_size] f32, borrowed. */
typedef enum qep_status qep_logits_fn(void *ctx, int32_t row, const float *logits);

/* Collective: one step. Decode spans run first, then prefill spans. QEP_ERR_* are fatal for the
 * job. */
enum qep_status qep_model_forward(struct qep_model *model, const struct qep_plan *plan,
                                  qep_logits_fn *on_logits, void *ctx);

/* Where a value that is not finite first arose. */
struct qep_nonfinite {
    int32_t layer; /* -1: before the first one */
    int32_t position;
    const char *part; /* static: embedding, attention, deltanet, experts, mlp */
};

/* Collective: a forward of the plan (which asks for no logits) that looks at the rows between all
 * parts. *found and *out are the same on every rank. */
enum qep_status qep_model_probe(struct qep_model *model, const struct qep_plan *plan, bool *found,
                                struct qep_nonfinite *out);

/* ---- decoding on the device (backends with a device table) ----
 * Sequences that have been prefilled go on without the host: each step draws a token for each of
 * them, on the device, from what the step before it drew. All calls but take are collective, in the
 * order of plans. */
struct qep_decode_options {
    int32_t num_ids;        /* ids >= num_ids are never drawn */
    const uint8_t *allowed; /* [num_ids] or NULL */
};

/* Ids that count for penalties. */
struct qep_decode_history {
    const int32_t *prompt_ids, *generated_ids;
    int32_t num_prompt, num_generated;
};

/* How many sequences fit one plan; 0 for backends without a device table. */
int32_t qep_model_decode_capacity(const struct qep_model *model);

/* Rank 0: fills plan->extra of a QEP_PLAN_DECODE_BEGIN whose spans and ids (one row each, the
 * newest token of every sequence) are there. draws [num_spans] in order of the spans: position and
 * slot are set here. history [num_spans]; its lists are used where penalties are on. */
enum qep_status qep_decode_plan_begin(struct qep_plan *plan,
                                      const struct qep_decode_options *options,
                                      struct qep_device_draw *draws,
                                      const struct qep_decode_history *history);

/* Rank 0: makes plan a QEP_PLAN_DECODE_LOGITS for the logits that the given step (0: the first
 * since BEGIN; one of the newest two) of BEGIN's span number `sequence` drew from. */
enum qep_status qep_decode_plan_logits(struct qep_plan *plan, int32_t sequence, int32_t step);

/* A decode plan; row [vocab_size] on rank 0 for LOGITS, else NULL. STEP enqueues a step; at most
 * two are under way, a third waits for the first. */
enum qep_status qep_model_decode(struct qep_model *model, const struct qep_plan *plan, float *row);

/* Waits for the oldest step under way: tokens [num_spans of BEGIN]: an id, QEP_TOKEN_FLAGGED (the
 * draw needs DECODE_LOGITS and the host; the sequence stands still until the next BEGIN), or -1
 * for a sequence that stands still. */
enum qep_status qep_model_decode_take(struct qep_model *model, int32_t *tokens);

const struct qep_model_times *qep_model_get_times(const struct qep_model *model);
const struct qep_exchange *qep_model_get_exchange(const struct qep_model *model);
uint64_t qep_model_cache_bytes(const struct qep_model *model);

#endif

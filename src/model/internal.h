/* What the files of the forward share: the model, the batch of one phase, scratch memory. */
#ifndef QEP_MODEL_INTERNAL_H
#define QEP_MODEL_INTERNAL_H

#include "model/model.h"

#include "dist/device_exchange.h"
#include "kernels/device_ops.h"

/* Device scratch, reused from layer to layer; each id is one growing block. */
enum scratch_id {
    SCRATCH_IDS,
    SCRATCH_SPANS,
    SCRATCH_HIDDEN,
    SCRATCH_NEXT,
    SCRATCH_NORMED,
    SCRATCH_ACT_F32,
    SCRATCH_ACT_BF16,
    SCRATCH_ACT_INT8,
    SCRATCH_INNER_ACT_F32,
    SCRATCH_INNER_ACT_BF16,
    SCRATCH_INNER_ACT_INT8,
    SCRATCH_QG,
    SCRATCH_K,
    SCRATCH_V,
    SCRATCH_MIXED,
    SCRATCH_QKV,
    SCRATCH_CONV,
    SCRATCH_Z,
    SCRATCH_A,
    SCRATCH_B,
    SCRATCH_ROUTER,
    SCRATCH_TOPK_IDX,
    SCRATCH_TOPK_WEIGHTS,
    SCRATCH_GATE,
    SCRATCH_UP,
    SCRATCH_SHARED_GATE,
    SCRATCH_RECV,
    SCRATCH_EXPERT_OUT,
    SCRATCH_PARTIALS,
    SCRATCH_SUM_IN,
    SCRATCH_BASE,
    SCRATCH_HEAD,
    SCRATCH_LOGITS,
    SCRATCH_LISTS,
    SCRATCH_PACKETS,
    SCRATCH_NEXT_IDS,
    SCRATCH_RANGES,
    SCRATCH_COUNT
};

/* Rows that the following products read: f32, and the activation rows made of them so far. */
struct model_input {
    const float *f32; /* NULL: only activation rows exist */
    bool inner;       /* activation rows lie in SCRATCH_INNER_ACT_*, not SCRATCH_ACT_* */
    bool made[3];     /* by type */
};

/* Host staging between device memory and the transport. */
enum staging_id {
    STAGING_ACT,
    STAGING_IDX,
    STAGING_WEIGHTS,
    STAGING_BASE,
    STAGING_PARTIALS,
    STAGING_HEAD_SEND,
    STAGING_HEAD_RECV,
    STAGING_LOGITS_SEND,
    STAGING_LOGITS_RECV,
    STAGING_ROW,
    STAGING_PROBE,
    STAGING_COUNT
};

struct block {
    void *data;
    size_t bytes;
};

/* One phase (decode or prefill) of a plan. */
struct phase {
    int32_t num_spans, num_rows;
    struct qep_plan_span *spans; /* row0 renumbered within the phase */
    int32_t *plan_row;           /* [num_rows] row in plan->ids */
    int32_t *row_slot;           /* [num_rows] */
    struct qep_exchange_rows rows;
    /* The part of one layer that this rank owns. */
    struct qep_span *local_spans;
    int32_t *local_ids;
    struct qep_batch local;
    bool spans_uploaded;
    /* A decode step of fixed capacity (decode.c): every owner has padded_rows rows, and the table
     * of expert ranges exists. 0 / NULL otherwise. */
    int32_t padded_rows;
    const struct qep_expert_range *ranges; /* dev */
    size_t span_cap[2], row_cap[3];        /* of the arrays above, in order of kind */
};

/* What this rank found first (probe.c); key INT32_MAX: nothing. */
struct model_probe {
    int32_t key, position;
};

struct qep_model {
    struct qep_comm *comm;
    struct qep_backend *be;
    const struct qep_model_config *config;
    const struct qep_placement *placement;
    struct qep_weights *weights;
    struct qep_cache *cache;
    struct qep_exchange *exchange;
    struct qep_messages messages; /* of the head */
    struct qep_watchdog *dog;
    struct qep_attention_dims attention_dims;
    struct qep_delta_dims delta_dims;
    /* Device backends: */
    struct qep_device_comm *dc;  /* borrowed */
    struct model_device *device; /* moe_device.c; NULL for dense models */
    struct block scratch[SCRATCH_COUNT];
    struct model_decode *decode; /* decode.h; NULL until the first decode plan */
    bool use_graphs;
    uint64_t scratch_generation; /* counts moves of scratch blocks */
    struct block staging[STAGING_COUNT];
    struct model_input input;
    struct phase phase;
    struct qep_model_times times;
    long step;
    bool probing;
    struct model_probe probe;
};

/* What a scratch block of `bytes` is made, so that it does not grow with every few rows. */
static inline size_t model_scratch_grown(size_t bytes) {
    return bytes + bytes / 4;
}

/* `count` elements of `size` bytes of scratch; contents survive until asked for more. */
enum qep_status model_scratch(struct qep_model *m, enum scratch_id id, size_t count, size_t size,
                              void **dev);
enum qep_status model_staging(struct qep_model *m, enum staging_id id, size_t bytes, void **host);

/* Names x [n, cols] as the input of the following products. */
void model_set_input(struct qep_model *m, const float *x);

/* Activation types as bits; 0 for a matrix that this rank does not hold. */
static inline unsigned model_act_bit(enum qep_act_type type) {
    return 1u << type;
}
static inline unsigned model_wants(const struct qep_linear *lin) {
    return lin->weight == NULL ? 0 : model_act_bit(lin->act);
}

/* Where activation rows lie; inner: those of the shared expert's second product. */
static inline enum scratch_id model_act_scratch(bool inner, enum qep_act_type type) {
    static const enum scratch_id ids[2][3] = {
        {SCRATCH_ACT_F32, SCRATCH_ACT_BF16, SCRATCH_ACT_INT8},
        {SCRATCH_INNER_ACT_F32, SCRATCH_INNER_ACT_BF16, SCRATCH_INNER_ACT_INT8}};
    return ids[inner][type];
}

/* Where the op that follows leaves rows [n, cols], which become the input: f32 in scratch `id`
 * where it is read, and activation rows of the type that the products want (bits of `wants`, at
 * least one); of several types, the others are made by model_act. inner: beside the activation rows
 * of an outer input, which stay. */
enum qep_status model_open_input(struct qep_model *m, enum scratch_id id, unsigned wants,
                                 bool inner, int32_t n, int32_t cols, struct qep_rows_out *out);

/* RMSNorm of the rows x [n, hidden_size], which become the input of products that want `wants`. */
enum qep_status model_norm(struct qep_model *m, const float *x, const float *w, unsigned wants,
                           int32_t n);

/* The current input as activation rows of `type`, made at most once. */
enum qep_status model_act(struct qep_model *m, enum qep_act_type type, int32_t n, int32_t cols,
                          const void **act);

/* A product of the current input: *out [n, lin->rows] lies in scratch `id`. */
struct model_product {
    const struct qep_linear *lin;
    enum scratch_id id;
    float **out;
};

/* Products of the current input [n, cols], num <= QEP_MAX_PRODUCTS; those on the same activations
 * in one call of the backend. */
enum qep_status model_products(struct qep_model *m, const struct model_product *list, int32_t num,
                               int32_t n);
/* out[n, lin->rows] += current input x lin^T, row i times sigmoid(gate[i]) unless gate is NULL. */
enum qep_status model_add_product(struct qep_model *m, const struct qep_linear *lin,
                                  const float *gate, int32_t n, float *out);

/* Mixers: hidden [n, hidden_size] += mixer(norm(hidden)), n = phase->local.num_rows > 0. */
enum qep_status model_attention(struct qep_model *m, int32_t layer, float *hidden);
enum qep_status model_deltanet(struct qep_model *m, int32_t layer, float *hidden);

/* What owner(layer) of a MoE layer multiplies its normed rows with: router logits [n, E]; of the
 * shared expert, if there is one, its gate [n, 1], gate_proj and up_proj [n, I]. */
struct moe_products {
    float *logits, *shared_gate, *gate, *up;
};
enum qep_status model_moe_products(struct qep_model *m, const struct qep_layer_weights *w,
                                   int32_t n, struct moe_products *out);
/* hidden += sigmoid(shared_gate) * down_proj(silu(gate) * up); the current input stays. */
enum qep_status model_shared_expert(struct qep_model *m, const struct qep_layer_weights *w,
                                    const struct moe_products *p, float *hidden, int32_t n);

/* What the products on a MoE layer's normed rows want. */
static inline unsigned model_moe_wants(const struct qep_layer_weights *w) {
    return model_act_bit(w->expert_act) | model_wants(&w->gate) |
           model_wants(&w->shared_expert_gate) | model_wants(&w->shared_gate_proj) |
           model_wants(&w->shared_up_proj);
}

/* Second half of a layer: takes the rows of owner(layer) in SCRATCH_HIDDEN and leaves those of
 * owner(layer + 1) there. Collective. */
enum qep_status model_moe(struct qep_model *m, int32_t layer);
enum qep_status model_moe_device(struct qep_model *m, int32_t layer);
enum qep_status model_dense(struct qep_model *m, int32_t layer);

enum { MODEL_HEAD_ROWS = 16 }; /* at once */

/* Final norm, lm_head over all ranks, logits to rank 0. Collective. */
enum qep_status model_head(struct qep_model *m, qep_logits_fn *on_logits, void *ctx);

/* Collective: every rank's logits (host, [n, its vocabulary rows]) to rank 0, where joined holds
 * rank 0's, then rank 1's, ... */
enum qep_status model_gather_logits(struct qep_model *m, int32_t n, const void *mine, void *joined);

/* What model_moe_device needs besides; QEP_ERR_DATA naming a limit of the backend. */
enum qep_status model_device_create(struct qep_model *m);
void model_device_destroy(struct qep_model *m);
void model_device_ranges(const struct qep_model *m, const int32_t *rows_from,
                         struct qep_expert_range *ranges);

/* Adds the step to a device's error. */
enum qep_status model_name_step(const struct qep_model *m, enum qep_status st);

/* Clears the states of spans that begin anew. */
enum qep_status model_reset_slots(struct qep_model *m, const struct qep_plan *plan);

void model_decode_destroy(struct qep_model *m);

/* Embedding (ids dev [n]) and all layers of the phase; leaves the head's rows in SCRATCH_HIDDEN.
 * Collective. */
enum qep_status model_embed(struct qep_model *m, const int32_t *ids, int32_t n);
enum qep_status model_layer(struct qep_model *m, int32_t layer);

/* While probing: looks for what is not finite in the local rows, before or after a layer's mixer;
 * layer num_hidden_layers: after all of them. */
enum qep_status model_probe_rows(struct qep_model *m, int32_t layer, bool after_mixer);

/* Phases of a plan. */
enum qep_status phase_build(struct phase *ph, const struct qep_plan *plan, int32_t decode);
enum qep_status phase_take_layer(struct phase *ph, const struct qep_placement *placement, int rank,
                                 int32_t layer, const struct qep_plan *plan);
void phase_free(struct phase *ph);

#endif

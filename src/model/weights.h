/* The weights one rank holds, repacked by its backend. What is loaded follows from the placement:
 * dense parts of the layers it owns, its experts of every layer, its vocabulary rows of lm_head. */
#ifndef QEP_MODEL_WEIGHTS_H
#define QEP_MODEL_WEIGHTS_H

#include "base/team.h"
#include "dist/placement.h"
#include "kernels/backend.h"
#include "shard/shard.h"

/* A matrix with what its products need to know. weight == NULL: not held by this rank. */
struct qep_linear {
    struct qep_weight *weight;
    enum qep_weight_type type;
    enum qep_act_type act; /* activations it is multiplied with */
    int32_t rows, cols;
};

struct qep_layer_weights {
    float *input_layernorm;          /* [hidden_size] dev, the 1 added */
    float *post_attention_layernorm; /* likewise */
    /* full attention */
    struct qep_linear q_proj, k_proj, v_proj, o_proj;
    float *q_norm, *k_norm; /* [head_dim] dev, the 1 added */
    /* Gated DeltaNet */
    struct qep_linear in_proj_qkv, in_proj_z, in_proj_a, in_proj_b, out_proj;
    float *conv1d, *A_log, *dt_bias, *norm; /* dev */
    /* MoE */
    struct qep_linear gate, shared_expert_gate, shared_gate_proj, shared_up_proj, shared_down_proj;
    struct qep_weight **expert_gate_up, **expert_down; /* [experts of this rank] */
    enum qep_act_type expert_act;                      /* known to every rank */
    /* dense MLP */
    struct qep_linear gate_proj, up_proj, down_proj;
};

struct qep_weights {
    struct qep_backend *be;
    const struct qep_model_config *config;
    int32_t num_layers;
    int32_t num_local_experts;
    struct qep_linear embed_tokens; /* rank may own rows of layer 0 */
    float *norm;                    /* final norm, with the 1 added; owners of the head */
    struct qep_linear lm_head; /* rows = this rank's vocabulary range (may be 0: weight NULL) */
    enum qep_act_type head_act;
    struct qep_layer_weights *layers; /* [num_layers] */
    uint64_t stored_bytes;            /* read from files */
    uint64_t tensor_bytes;            /* after decompression */
    double read_s, place_s;           /* thread-seconds: files to host memory, host to backend */
};

/* How activations are chosen: AUTO takes the backend's own pairing (int8 for quantised weights
 * where it can, else bf16; the reference backend f32). */
enum qep_activations {
    QEP_ACTIVATIONS_AUTO,
    QEP_ACTIVATIONS_BF16,
    QEP_ACTIVATIONS_INT8,
    QEP_ACTIVATIONS_FP32
};

/* Loads with the team's threads in parallel. QEP_ERR_USAGE when `activations` does not go with the
 * backend and the directory's weight types. be, dir and placement are borrowed and outlive the
 * weights. */
enum qep_status qep_weights_load(struct qep_backend *be, struct qep_team *team,
                                 const struct qep_shard_dir *dir,
                                 const struct qep_placement *placement, int rank,
                                 enum qep_activations activations, struct qep_weights **out);
void qep_weights_destroy(struct qep_weights *weights); /* NULL is fine */

/* Device memory of a rank's weights (backends with a device table). */
struct qep_weights_need {
    uint64_t bytes;   /* of all */
    uint64_t loading; /* beside it, of one thread while it loads */
};

/* The same weights without their contents: shapes and activation types, all pointers NULL, and what
 * they would take. Reads no tensor. */
enum qep_status qep_weights_plan(struct qep_backend *be, const struct qep_shard_dir *dir,
                                 const struct qep_placement *placement, int rank,
                                 enum qep_activations activations, struct qep_weights **out,
                                 struct qep_weights_need *need);

#endif

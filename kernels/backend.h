/* The compute table: coarse ops on device tensors, one static const table per backend. The model's
 * forward is written once over it (src/model); reference/ is the oracle, cpu/ the fast host form,
 * cuda/ the device form.
 *
 * Pointers named `dev` and all float / row arguments are device memory from ops->alloc (host memory
 * for reference and cpu); struct pointers and arrays of the argument structs are host memory. Ops
 * run in call order; only download and sync block. Every op is local (no communication).
 *
 * Determinism contract: the bits of one output row depend only on that row's inputs and the
 * weights, never on how many rows there are, which neighbours they have, or the number of threads.
 * (Those of a product may depend on the shapes and types of the other products of its call, which
 * therefore follow from the model alone.)
 *
 * Numbers that are not finite: an output that depends on a NaN is NaN; infinity gives infinity, NaN
 * (gates and steps: sigmoid, softplus) or an exact limit (exp in a softmax or a decay), never
 * another number. So what went wrong anywhere is seen in the logits. (Which NaN is not promised,
 * but where 0x7fc00000 is named below.) On a device, attention and delta may make NaN of the rows
 * before it, too, in the same 64 positions of a prefill span: they multiply by 0 what is masked
 * there.
 *
 * Errors: QEP_ERR_SYSTEM (memory), QEP_ERR_UNAVAILABLE (device). Shapes are the caller's duty
 * (asserted). C17 and C++17 both compile this header. */
#ifndef QEP_KERNELS_BACKEND_H
#define QEP_KERNELS_BACKEND_H

#include "base/status.h"
#include "kernels/weight.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct qep_team;
struct qep_device_ops;
struct qep_weight; /* a repacked weight matrix [rows, cols], owned by its backend */

/* Activation rows as matmuls consume them (and as ranks exchange them). One row is
 *   F32   cols floats
 *   BF16  cols bf16 (round to nearest even)
 *   INT8  G = ceil(cols / 32) groups: 32 * G int8 (the tail zero), then G floats: x = q * scale,
 *         scale = absmax / 127 (0 for a zero group), q = round-half-even(x / scale); with a number
 *         in the group that is not finite, and only then, scale = NaN (0x7fc00000) and all q = 0
 * padded with zero bytes to a multiple of 16. */
enum qep_act_type { QEP_ACT_F32, QEP_ACT_BF16, QEP_ACT_INT8 };
enum { QEP_ACT_GROUP = 32, QEP_KV_BLOCK = 64, QEP_DELTA_CHUNK = 64 };

static inline size_t qep_act_row_bytes(enum qep_act_type type, int32_t cols) {
    size_t n = (size_t)cols, groups = (n + QEP_ACT_GROUP - 1) / QEP_ACT_GROUP;
    size_t bytes = type == QEP_ACT_F32    ? 4 * n
                   : type == QEP_ACT_BF16 ? 2 * n
                                          : groups * (QEP_ACT_GROUP + 4);
    return (bytes + 15) / 16 * 16;
}

/* Where an op leaves rows [n, cols] that products read next: as f32, as activation rows (those of
 * act_convert on the f32 rows, in the same bits), or both. A device backend may go without f32
 * where act_type is BF16; otherwise f32 is never NULL. */
struct qep_rows_out {
    float *f32;
    void *act; /* row i at act + i * act_stride; NULL: none */
    size_t act_stride;
    enum qep_act_type act_type;
};

static inline struct qep_rows_out qep_f32_rows(float *f32) {
    struct qep_rows_out out = {f32, 0, 0, QEP_ACT_F32};
    return out;
}

/* K and V of one block of QEP_KV_BLOCK positions: K [64, num_kv_heads, head_dim], then V the same.
 *   F32, BF16: plain.  INT8: all of K's and V's int8 first, then float scales [2][64, num_kv_heads]
 *   (absmax / 127 per position and head; with a number there that is not finite, and only then, the
 *   scale is NaN (0x7fc00000) and the int8 are 0). */
enum qep_kv_type { QEP_KV_F32, QEP_KV_BF16, QEP_KV_INT8 };

static inline size_t qep_kv_block_bytes(enum qep_kv_type type, int32_t num_kv_heads,
                                        int32_t head_dim) {
    size_t rows = 2 * (size_t)QEP_KV_BLOCK * (size_t)num_kv_heads, n = rows * (size_t)head_dim;
    size_t bytes = type == QEP_KV_F32 ? 4 * n : type == QEP_KV_BF16 ? 2 * n : n + 4 * rows;
    return (bytes + 63) / 64 * 64;
}

/* Consecutive rows of one sequence at consecutive positions. A prefill span starts at a multiple of
 * 64 positions; a decode span is one row. */
struct qep_span {
    int32_t row0, num_rows;
    int32_t slot;     /* local index of the sequence's state on this rank */
    int32_t position; /* of row0 */
    int32_t decode;   /* 1: decode arithmetic (recurrent DeltaNet), 0: prefill (chunked) */
};

/* The rows of one call. All spans are of one kind. dev_spans is the same array in device memory;
 * the cuda backend takes the contents of decode spans from there alone, so that a captured graph
 * replays with other slots and positions: a decode span of slot -1 is padding (its outputs are
 * zero, it changes no state), and max_end bounds what the device may find. */
struct qep_batch {
    int32_t num_rows, num_spans;
    const struct qep_span *spans;     /* ascending row0, covering all rows */
    const struct qep_span *dev_spans; /* dev [num_spans] */
    int32_t max_end;                  /* >= position + num_rows of every span */
};

/* dev_spans == NULL: a host backend, whose device memory is the host's. */
static inline struct qep_batch qep_batch_of(int32_t num_rows, int32_t num_spans,
                                            const struct qep_span *spans,
                                            const struct qep_span *dev_spans) {
    struct qep_batch batch = {num_rows, num_spans, spans, dev_spans ? dev_spans : spans, 0};
    for (int32_t i = 0; i < num_spans; i++) {
        int32_t end = spans[i].position + spans[i].num_rows;
        batch.max_end = end > batch.max_end ? end : batch.max_end;
    }
    return batch;
}

/* What becomes of a product's sums. */
enum qep_epilogue {
    QEP_EPILOGUE_STORE,    /* out = sums */
    QEP_EPILOGUE_ADD,      /* out += sums */
    QEP_EPILOGUE_GATED_ADD /* out[i, :] += sigmoid(gate[i]) * sums[i, :] */
};

/* One of the matrices that a call multiplies its rows with. */
struct qep_product {
    const struct qep_weight *weight; /* [rows, cols]; cols is the same for all of a call */
    float *out;                      /* dev [n, rows]; apart from all else of the call */
    enum qep_epilogue epilogue;
    const float *gate; /* dev [n], of a gated add */
    /* Of a part of a matrix, whose rows another rank has more of: rows of the whole matrix, from
     * which the splits of K then follow. 0: the weight is whole. */
    int32_t whole_rows;
};

enum { QEP_MAX_PRODUCTS = 4 }; /* of one call */

struct qep_attention_dims {
    int32_t num_heads, num_kv_heads, head_dim, rotary_dim;
    float rope_theta, eps;
    enum qep_kv_type kv_type;
    int32_t max_blocks; /* of one slot in the block table */
};

struct qep_delta_dims {
    int32_t num_key_heads, num_value_heads, key_head_dim, value_head_dim, conv_kernel_dim;
    float eps; /* of the gated norm */
};

/* The row of conv_state that holds the input of a position (>= -kernel; before a sequence's first
 * one, the zeros its slot starts with). */
static inline int32_t qep_conv_row(int32_t position, int32_t kernel) {
    return (position + kernel) % kernel;
}

/* Routed experts on the rows that reached this rank. Items are (row, expert) pairs sorted by
 * expert, then row. */
struct qep_expert_args {
    const void *rows; /* dev: activation rows, row r at rows + r * row_stride */
    size_t row_stride;
    enum qep_act_type act_type;
    int32_t num_rows, num_items;
    const int32_t *item_expert;              /* [num_items] index into gate_up / down, ascending */
    const int32_t *item_row;                 /* [num_items] */
    const float *item_weight;                /* [num_items] routing weight */
    const struct qep_weight *const *gate_up; /* each [2 * I, H]: gate rows, then up rows */
    const struct qep_weight *const *down;    /* each [H, I] */
    int32_t hidden_size, intermediate_size;
    int32_t decode; /* 1: decode arithmetic */
};

/* Sums along the expert-id tree: output o = base[o] (skipped when base == NULL) + tree of the
 * leaves leaf_begin[o] .. leaf_begin[o + 1], ascending by leaf_id. Two neighbouring subtrees merge
 * at the highest bit in which their ids differ, left + right, f32; no leaf: the tree adds nothing.
 */
struct qep_tree_args {
    const float *base; /* dev [num_out, cols] or NULL (then an empty tree gives 0) */
    const float *src;  /* dev [*, cols] */
    int32_t num_out, cols;
    const int32_t *leaf_begin; /* [num_out + 1] */
    const int32_t *leaf_row;   /* row of src */
    const int32_t *leaf_id;    /* first expert id of the leaf's dyadic range */
};

struct qep_backend;

struct qep_backend_ops {
    const char *name; /* reference, cpu, cuda */

    /* Device memory, zeroed, 256-byte aligned where the device cares (64 on hosts). */
    enum qep_status (*alloc)(struct qep_backend *be, size_t bytes, const char *what, void **dev);
    void (*free)(struct qep_backend *be, void *dev);
    enum qep_status (*upload)(struct qep_backend *be, void *dev, const void *host, size_t bytes);
    enum qep_status (*download)(struct qep_backend *be, void *host, const void *dev, size_t bytes);
    enum qep_status (*zero)(struct qep_backend *be, void *dev, size_t bytes);
    enum qep_status (*sync)(struct qep_backend *be);

    /* Repacks; host is not kept. alloc, upload and weight_create may run on several threads of one
     * team job at once (a team's nested jobs run in place). */
    enum qep_status (*weight_create)(struct qep_backend *be, const struct qep_host_weight *host,
                                     struct qep_weight **out);
    void (*weight_destroy)(struct qep_backend *be, struct qep_weight *weight);
    /* Whether matmul takes this pair. */
    bool (*supports)(const struct qep_backend *be, enum qep_weight_type weight,
                     enum qep_act_type act);

    /* out[n, cols] = weight[ids[i], :]; ids [n] dev, a negative one gives a row of zeros. */
    enum qep_status (*embed)(struct qep_backend *be, float *out, const struct qep_weight *weight,
                             const int32_t *ids, int32_t n);
    /* out = x * rsqrt(mean(x^2) + eps) * w, rows of cols; w already holds the 1 of unit-offset
     * norms. Where the mean is not finite in f32 the row is NaN; so it is with all norms below.
     * out.f32 may be x. */
    enum qep_status (*rms_norm)(struct qep_backend *be, struct qep_rows_out out, const float *x,
                                const float *w, int32_t n, int32_t cols, float eps);
    /* f32 rows [n, cols] -> activation rows at out + i * row_stride. */
    enum qep_status (*act_convert)(struct qep_backend *be, void *out, size_t row_stride,
                                   enum qep_act_type type, const float *x, int32_t n, int32_t cols);
    /* The sums act[n, cols] x weight[rows, cols]^T of `num` products, each with its epilogue. What
     * can share a launch does. decode: 1 for the decode arithmetic (few rows, K split by shape);
     * bits may differ between the two, never with n. */
    enum qep_status (*matmul)(struct qep_backend *be, const struct qep_product *products,
                              int32_t num, const void *act, size_t row_stride,
                              enum qep_act_type type, int32_t n, int32_t decode);
    /* out[n, I] = silu(gate) * up; gate[n, I], up[n, I]. out.f32 may be gate. */
    enum qep_status (*swiglu)(struct qep_backend *be, struct qep_rows_out out, const float *gate,
                              const float *up, int32_t n, int32_t cols);

    /* Full attention, MODEL section 5.1. qg [n, heads, 2, head_dim] (q, then gate, of each head), k
     * and v [n, kv_heads, head_dim]; q_norm, k_norm [head_dim] f32 with the 1 added. attention_kv:
     * RMSNorm of k, RoPE, and K and V written at (slot, position). attention: RMSNorm + RoPE of q,
     * softmax over positions 0..p of the slot, out[n, heads, head_dim] = attention * sigmoid(gate).
     * attention_kv of the same rows comes first. blocks: dev block table [slots, max_blocks] of
     * device pointers, see enum qep_kv_type. */
    enum qep_status (*attention_kv)(struct qep_backend *be, const struct qep_attention_dims *dims,
                                    const struct qep_batch *batch, const float *k, const float *v,
                                    const float *k_norm, void *const *blocks);
    enum qep_status (*attention)(struct qep_backend *be, const struct qep_attention_dims *dims,
                                 const struct qep_batch *batch, struct qep_rows_out out,
                                 const float *qg, const float *q_norm, void *const *blocks);

    /* Gated DeltaNet, MODEL section 5.2. conv: out = silu(depthwise causal conv of qkv [n, C]), C =
     * 2 * key heads * key_head_dim + value heads * value_head_dim; weight f32 [C, K] dev;
     * conv_state f32 [slots, K, C] holds the last K inputs, each in the row qep_conv_row of its
     * position, and is updated; a decode step writes a row of it that it does not read. out may not
     * be qkv. */
    enum qep_status (*delta_conv)(struct qep_backend *be, const struct qep_delta_dims *dims,
                                  const struct qep_batch *batch, float *out, const float *qkv,
                                  const float *weight, float *conv_state);
    /* delta: qkv [n, C] after conv (q | k | v), a and b [n, value heads] raw; A_log, dt_bias f32
     * [value heads]; l2 norms, gates, delta rule; state f32 [slots, value heads, key_head_dim,
     * value_head_dim], updated; out [n, value heads, value_head_dim]. Prefill spans: cpu and cuda
     * chunk at multiples of 64 positions. */
    enum qep_status (*delta)(struct qep_backend *be, const struct qep_delta_dims *dims,
                             const struct qep_batch *batch, float *out, const float *qkv,
                             const float *a, const float *b, const float *A_log,
                             const float *dt_bias, float *state);
    /* out = w * rms(o) * silu(z) per value head; w [value_head_dim] plain. out may be o. */
    enum qep_status (*delta_norm)(struct qep_backend *be, const struct qep_delta_dims *dims,
                                  float *out, const float *o, const float *z, const float *w,
                                  int32_t n);

    /* Softmax over all experts, the top_k largest (ties: lower id first), weights p / sum(chosen
     * p). A row with a logit that is not finite has NaN weights (0x7fc00000) and any distinct ids:
     * a NaN that is only never chosen would be lost. topk_idx and topk_weights are device memory,
     * idx in descending order of p. dev_spans: dev [n] or NULL; the ids of padding rows (slot < 0)
     * are -1. */
    enum qep_status (*router_topk)(struct qep_backend *be, int32_t *topk_idx, float *topk_weights,
                                   const float *logits, int32_t n, int32_t num_experts,
                                   int32_t top_k, const struct qep_span *dev_spans);
    /* out[num_items, H] = item_weight * down(silu(gate x) * up x); the intermediate goes through
     * act_convert of the same act_type. */
    enum qep_status (*experts)(struct qep_backend *be, const struct qep_expert_args *args,
                               float *out);
    enum qep_status (*tree_sum)(struct qep_backend *be, const struct qep_tree_args *args,
                                float *out);

    void (*destroy)(struct qep_backend *be);
};

struct qep_backend {
    const struct qep_backend_ops *ops;
    const struct qep_device_ops *device; /* kernels/device_ops.h; NULL for host backends */
    bool joins_planes;   /* weight_create takes bf16 weights as planes, from one qep_shard_load */
    uint64_t generation; /* counts moves of internal workspaces: older graphs are void */
    const char *isa; /* the kernels chosen: "c" for reference, baseline / avx2 / avx512 for cpu */
};

/* Plain C, one thread. */
enum qep_status qep_backend_reference_create(struct qep_backend **out);

/* Host SIMD on `team` (borrowed; NULL = one thread). isa: NULL or "auto" = the best this CPU has;
 * QEP_ERR_USAGE for an unknown name, QEP_ERR_UNAVAILABLE for one this CPU lacks. */
enum qep_status qep_backend_cpu_create(struct qep_team *team, const char *isa,
                                       struct qep_backend **out);

/* A CUDA device. QEP_ERR_UNAVAILABLE, naming the reason: a build without CUDA, no device, a driver
 * too old for the toolkit, a device below sm_80. device: ordinal among the visible ones, or -1: the
 * rank's local number modulo their count. team (borrowed, may be NULL) is for loading. */
enum qep_status qep_backend_cuda_create(struct qep_team *team, int device, int local_rank,
                                        struct qep_backend **out);

/* What start-up needs to know before a backend exists: false without a usable device. */
struct qep_cuda_device {
    char name[64];
    unsigned char uuid[16];
    int compute_capability; /* 80, 90, ... */
    uint64_t total_bytes, free_bytes;
};
bool qep_cuda_present(void);
enum qep_status qep_backend_cuda_device(const struct qep_backend *be, struct qep_cuda_device *out);

/* ISA levels for the agreement between ranks: index into the ascending list baseline, avx2, avx512.
 */
int qep_cpu_isa_level(void);             /* the best level of this CPU */
const char *qep_cpu_isa_name(int level); /* NULL beyond the list */

#ifdef __cplusplus
}
#endif
#endif

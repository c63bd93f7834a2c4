/* The second table of a device backend: what keeps routing, exchange, sampling and whole decode
 * steps on the device. Conventions as in backend.h: `dev` and all data arguments are device memory,
 * structs and the arrays marked host are host memory, ops run in call order on the backend's
 * stream and return before they are done. Everything but *_create, *_destroy, host_alloc,
 * download_async, event_wait and the graph calls may be captured. Limits (refused at load by
 * cuda_limits): top_k <= 32, num_experts <= 1024. */
#ifndef QEP_KERNELS_DEVICE_OPS_H
#define QEP_KERNELS_DEVICE_OPS_H

#include "kernels/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { QEP_DEVICE_MAX_TOP_K = 32, QEP_DEVICE_MAX_EXPERTS = 1024 };

struct qep_expert_set; /* the expert matrices of one layer and rank, as tables on the device */
struct qep_graph;
struct qep_event;

/* Routing data of rows, row i at base + i * stride bytes (rows of a packet, or plain arrays). */
struct qep_topk {
    const int32_t *idx; /* dev [k] a row, global expert ids; -1: the row is padding */
    const float *weights;
    size_t idx_stride, weights_stride;
    int32_t top_k;
};

/* A maximal dyadic range of expert ids that one rank holds: ids [index << level, (index + 1) <<
 * level). */
struct qep_expert_range {
    int32_t level, index;
    int32_t rank;
    int32_t first_row; /* in `partials` of combine: row of the rank's first row and this range */
    int32_t row_step;  /* rows from one row of the rank to its next: the number of its ranges */
};

/* The routed experts of this rank on num_rows received rows. base NULL: out is the partials
 * [num_rows, num_ranges, H]: the sum along the tree of the chosen experts in the range, routing
 * weights applied; rows of ranges without a chosen expert are left as they are. Bits equal those of
 * `experts` followed by `tree_sum`.
 * base [num_rows, H]: this rank holds all experts, and out [num_rows, H], which may be base, is
 * what `combine` makes of the partials; expert_range, ranges, first_range, num_ranges are not read.
 */
struct qep_routed_args {
    const void *rows;
    size_t row_stride;
    enum qep_act_type act_type;
    int32_t num_rows;
    struct qep_topk topk;
    const float *base;
    const struct qep_expert_set *experts;
    int32_t first_expert;                  /* global id of the set's expert 0 */
    const int32_t *expert_range;           /* dev [num_experts] index into ranges (global list) */
    const struct qep_expert_range *ranges; /* dev, all ranks', ascending by id */
    int32_t first_range, num_ranges;       /* this rank's part of the list */
    int32_t num_experts;
    int32_t hidden_size, intermediate_size;
    int32_t decode;
};

/* out[o] = base[o] + tree of the partials of the ranges that hold a chosen expert of row o. out may
 * be base. The partial of row o and range g is row ranges[g].first_row + position *
 * ranges[g].row_step of `partials`, position = positions == NULL ? o :
 * positions[ranges[g].rank * num_rows + o]. Padding rows (idx -1) give base. */
struct qep_combine_args {
    const float *base;
    const float *partials;
    struct qep_topk topk;
    const int32_t *expert_range;
    const struct qep_expert_range *ranges;
    const int32_t *positions; /* dev [num_ranks, num_rows] or NULL */
    int32_t num_rows, hidden_size, num_experts;
};

/* A decode step of one DeltaNet layer between its projections: delta_conv, delta and delta_norm of
 * backend.h, with their bits. n rows, one for each span; device memory, shapes as there. Padding
 * rows become zeros. */
struct qep_delta_decode_args {
    const float *qkv; /* before the convolution */
    const float *z, *a, *b;
    const float *conv1d, *A_log, *dt_bias, *norm;
    float *conv_state, *recurrent_state;
};

/* Packets: activation row [row_bytes] | idx i32 [k] | weights f32 [k], padded to 16 bytes. */
static inline size_t qep_packet_bytes(size_t row_bytes, int32_t top_k) {
    return (row_bytes + 8 * (size_t)top_k + 15) / 16 * 16;
}

/* One sequence's draw, as the sampler of src/engine/sampler.h defines it. */
struct qep_device_draw {
    uint64_t seed, position; /* of the token to be drawn */
    double temperature, top_p, min_p, presence_penalty, repetition_penalty;
    int64_t top_k;
    int32_t greedy;
    uint32_t choice;
    int32_t slot; /* of the seen flags; -1: no draw for this row */
    int32_t unused;
};

/* What one vocabulary range knows of one row's draw, as ranks exchange it: the largest
 * QEP_SAMPLE_CANDIDATES values after mask and penalties, descending (ties: lower id first). Only
 * the first one where the settings are greedy or without filters; a row without a draw has none. */
enum { QEP_SAMPLE_CANDIDATES = 64 };
struct qep_row_candidates {
    double max;      /* the largest value; -inf when no id can be drawn */
    double weight;   /* sum of exp((value - max) / temperature) over the range, for top-p; else 0 */
    int32_t num;     /* candidates present */
    int32_t num_ids; /* ids of the range that can be drawn (allowed, above -inf) */
    double value[QEP_SAMPLE_CANDIDATES];
    int32_t id[QEP_SAMPLE_CANDIDATES]; /* global token ids */
    /* The winner over all ids of the range where the settings have no filter; -1: none. */
    double best_value;
    double best_score; /* (best_value - max) / temperature + noise */
    int32_t best_id;
    int32_t has_nan; /* a logit that could be drawn is NaN or infinite */
    int32_t tied;    /* ids with the last candidate's value are missing */
    int32_t close;   /* a second score lies within rounding of the best */
};

/* The candidates do not decide the draw, or a logit is not finite: the full row is for the host. */
enum { QEP_TOKEN_FLAGGED = -2 };

/* What a model asks of the ops that keep workspaces; 0 and NULL for what it has not. */
struct qep_device_load {
    const struct qep_attention_dims *attention;
    const struct qep_delta_dims *delta;
    int32_t prefill_rows, decode_rows; /* of one call, at most */
    int32_t prefill_spans;
    /* Products of F32 activations and BF16 weights: the most rows and columns. */
    int32_t f32_rows, f32_cols;
    /* routed */
    int32_t expert_prefill_rows, expert_decode_rows;
    int32_t top_k, num_experts, num_local_experts, num_expert_layers;
    int32_t hidden_size, intermediate_size;
    /* sample_candidates */
    int32_t sample_rows, num_vocab, first_id, vocab_size;
};

/* One launch of a kernel, as profile_end tells it. */
struct qep_launch_time {
    char kernel[64]; /* the function, without template arguments */
    uint32_t grid[3], block[3];
    size_t shared_bytes; /* dynamic, of a block */
    double us;           /* from the end of the launch before it: with the gap between the two */
};

/* A weight as it will be loaded; group_size 0 without scales. */
struct qep_weight_dims {
    enum qep_weight_type type;
    int32_t rows, cols, group_size;
};

/* Is what is waited for done? Does not block. */
typedef enum qep_status qep_query_fn(void *ctx, bool *done);
typedef enum qep_status qep_wait_fn(void *ctx, qep_query_fn *query, void *query_ctx);

struct qep_device_ops {
    /* Memory that will be taken, for checks before anything is loaded: by an alloc; by a weight,
     * and beside it while it is being loaded; by workspaces and tables under a load; and
     * altogether, from the sum of what stays, of what `threads` loading threads take, and of what
     * comes after loading. */
    uint64_t (*block_bytes)(const struct qep_backend *be, size_t bytes);
    uint64_t (*weight_bytes)(const struct qep_backend *be, const struct qep_weight_dims *dims,
                             uint64_t *loading);
    uint64_t (*workspace_bytes)(const struct qep_backend *be, const struct qep_device_load *load);
    uint64_t (*held_bytes)(const struct qep_backend *be, uint64_t staying, uint64_t loading,
                           uint64_t later);
    /* QEP_ERR_USAGE naming the limit that the model exceeds. */
    enum qep_status (*check_dims)(struct qep_backend *be,
                                  const struct qep_attention_dims *attention,
                                  const struct qep_delta_dims *delta);
    /* out [n, value heads, value_head_dim]. */
    enum qep_status (*delta_decode)(struct qep_backend *be, const struct qep_delta_dims *dims,
                                    const struct qep_batch *batch, struct qep_rows_out out,
                                    const struct qep_delta_decode_args *args);
    /* gate_up, down: host [num]; borrowed. */
    enum qep_status (*expert_set_create)(struct qep_backend *be,
                                         const struct qep_weight *const *gate_up,
                                         const struct qep_weight *const *down, int32_t num,
                                         struct qep_expert_set **out);
    void (*expert_set_destroy)(struct qep_backend *be, struct qep_expert_set *set);
    enum qep_status (*routed)(struct qep_backend *be, const struct qep_routed_args *args,
                              float *out);
    enum qep_status (*combine)(struct qep_backend *be, const struct qep_combine_args *args,
                               float *out);
    /* For every rank p: rows[p * n + j] = the j-th row with an expert on p, positions[p * n + row]
     * = j or -1, counts[p]. expert_rank dev [num_experts]. */
    enum qep_status (*route_lists)(struct qep_backend *be, const struct qep_topk *topk, int32_t n,
                                   const int32_t *expert_rank, int32_t num_ranks, int32_t *rows,
                                   int32_t *positions, int32_t *counts);
    /* Packet j = row list[j] (list NULL: row j), j < num. act row i at act + i * row_bytes. */
    enum qep_status (*pack)(struct qep_backend *be, void *packets, const void *act,
                            size_t row_bytes, const struct qep_topk *topk, const int32_t *list,
                            int32_t num);
    /* out row j = rows[list[j]], rows of `bytes` (a multiple of 4). */
    enum qep_status (*gather_rows)(struct qep_backend *be, void *out, const void *rows,
                                   size_t bytes, const int32_t *list, int32_t num);

    /* seen[slot, ids[i]] |= bits; ids dev [n], those outside the vocabulary are skipped. A new
     * sequence clears its row by ops->zero first. seen is allocated to a multiple of 4 bytes. */
    enum qep_status (*mark_seen)(struct qep_backend *be, uint8_t *seen, int32_t slot,
                                 int32_t vocab_size, const int32_t *ids, int32_t n, uint8_t bits);
    /* Sampling. logits [n, num_vocab] are the ids [first_id, first_id + num_vocab); draws dev [n];
     * seen dev u8 [slots, vocab_size]: bit 0 generated, bit 1 in the prompt; allowed dev u8
     * [vocab_size] or NULL; ids >= num_ids are never drawn. */
    enum qep_status (*sample_candidates)(struct qep_backend *be, struct qep_row_candidates *out,
                                         const float *logits, int32_t n, int32_t num_vocab,
                                         int32_t first_id, int32_t vocab_size, int32_t num_ids,
                                         const uint8_t *allowed, const uint8_t *seen,
                                         const struct qep_device_draw *draws);
    /* tokens[i] from the candidates of all ranks [num_ranks, n]: the id, QEP_TOKEN_FLAGGED, or -1
     * for rows without a draw; a drawn id is marked in seen. */
    enum qep_status (*sample_final)(struct qep_backend *be, int32_t *tokens,
                                    const struct qep_row_candidates *candidates, int32_t num_ranks,
                                    int32_t n, int32_t vocab_size, int32_t num_ids, uint8_t *seen,
                                    const struct qep_device_draw *draws);
    /* Between two steps of a decode graph: position of every span and draw + 1; spans and draws of
     * rows whose token is negative become padding (slot -1). ids[i] = tokens[i]. */
    enum qep_status (*advance)(struct qep_backend *be, struct qep_span *spans,
                               struct qep_device_draw *draws, int32_t *ids, const int32_t *tokens,
                               int32_t n);

    /* Page-locked host memory, and copies to it that do not block: ticket_wait blocks until the
     * copy of its ticket is there. A copy runs beside the ops that follow it. */
    enum qep_status (*host_alloc)(struct qep_backend *be, size_t bytes, void **host);
    void (*host_free)(struct qep_backend *be, void *host);
    enum qep_status (*event_create)(struct qep_backend *be, struct qep_event **out);
    void (*event_destroy)(struct qep_backend *be, struct qep_event *event);
    enum qep_status (*download_async)(struct qep_backend *be, void *pinned, const void *dev,
                                      size_t bytes, struct qep_event *done);
    enum qep_status (*event_wait)(struct qep_backend *be, struct qep_event *event);

    /* Ops called between begin and end are recorded, not run. */
    enum qep_status (*capture_begin)(struct qep_backend *be);
    enum qep_status (*capture_end)(struct qep_backend *be, struct qep_graph **out);
    enum qep_status (*graph_launch)(struct qep_backend *be, struct qep_graph *graph);
    void (*graph_destroy)(struct qep_backend *be, struct qep_graph *graph);
    /* For measurements: the launches of this thread between begin and end, one after the other, are
     * timed each by itself (graphs are not: they have no launches of their own). *times [*num] is
     * the caller's (free). Profilers such as ncu and nsys see the same range. */
    enum qep_status (*profile_begin)(struct qep_backend *be);
    enum qep_status (*profile_end)(struct qep_backend *be, struct qep_launch_time **times,
                                   size_t *num);
    /* What a transport on device memory needs: the backend's cudaStream_t, copies in stream order,
     * whether the stream is idle, and how sync, download and event_wait are to wait while
     * collectives are under way: fn returns when `query` says that it is done, or with an error
     * (fn NULL: as usual). */
    void *(*stream)(struct qep_backend *be);
    enum qep_status (*copy)(struct qep_backend *be, void *dst, const void *src, size_t bytes);
    enum qep_status (*query)(struct qep_backend *be, bool *idle);
    void (*set_wait)(struct qep_backend *be, qep_wait_fn *fn, void *ctx);
};

#ifdef __cplusplus
}
#endif
#endif

/* A layer of experts with rows for them, on the reference and the cuda backend, and the tables of
 * its split over ranks. */
#ifndef QEP_TESTS_EXPERTS_SUPPORT_H
#define QEP_TESTS_EXPERTS_SUPPORT_H

#include "device_support.h"

enum { NUM_EXPERTS = 20, MAX_RANKS = 4, MAX_RANGES = 32 };

#define OK(expr) ck_assert_msg((expr) == QEP_OK, "%s: %s", #expr, qep_last_error())

struct expert_case {
    const char *name;
    int32_t num_rows, top_k, hidden, inner;
    int32_t only;    /* >= 0: every row goes to this expert alone */
    int32_t padding; /* row without experts, -1: none */
};

/* One layer's experts and rows, on both backends. */
struct layer {
    struct qep_backend *cuda, *ref; /* borrowed */
    const struct expert_case *c;
    struct qep_host_weight host[2 * NUM_EXPERTS]; /* gate_up, then down */
    struct qep_weight *ref_weight[2 * NUM_EXPERTS], *weight[2 * NUM_EXPERTS];
    size_t row_bytes;
    char *rows;   /* BF16 activation rows */
    float *plain; /* the same in fp32 */
    void *dev_rows;
    int32_t *idx;   /* [num_rows, top_k] */
    float *weights; /* [num_rows, top_k] */
    float *base;    /* [num_rows, hidden] */
    void *dev_idx, *dev_weights, *dev_base;
};

/* idx and weights of the host. */
void choose_experts(struct rng *rng, struct layer *l);
void make_layer(struct layer *l, struct qep_backend *cuda, struct qep_backend *ref, struct rng *rng,
                const struct expert_case *c, enum qep_weight_type first,
                enum qep_weight_type second);
void free_layer(struct layer *l);

struct split {
    int num_ranks;
    int32_t begin[MAX_RANKS + 1];
};

/* The device tables of one split. */
struct ranks {
    struct qep_backend *cuda;
    const struct split *split;
    int32_t num_ranges, range_begin[MAX_RANKS + 1];
    struct qep_expert_range ranges[MAX_RANGES];
    int32_t expert_range[NUM_EXPERTS], expert_rank[NUM_EXPERTS];
    void *dev_expert_range, *dev_expert_rank, *dev_ranges;
    struct qep_expert_set *sets[MAX_RANKS];
};

void make_ranks(struct ranks *r, const struct layer *l, const struct split *split);
void free_ranks(struct ranks *r);
struct qep_topk plain_topk(const struct layer *l);
struct qep_routed_args routed_args(const struct layer *l, const struct ranks *r, int rank,
                                   int32_t decode);
struct qep_combine_args combine_args(const struct layer *l, const struct ranks *r,
                                     const float *partials, const int32_t *positions);
/* Partials of NaNs: a row that nobody wrote must not be read. */
float *nan_partials(const struct layer *l, const struct ranks *r);
float *rank_partials(float *partials, const struct layer *l, const struct ranks *r, int rank);

#endif

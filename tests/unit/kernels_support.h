/* What the kernel tests share: random data, host weights, and the list of backends under test: the
 * reference first, then cpu at every ISA level this CPU has with 1, 2 and 3 threads. */
#ifndef QEP_TESTS_KERNELS_SUPPORT_H
#define QEP_TESTS_KERNELS_SUPPORT_H

#include "kernels/backend.h"

enum { MAX_VARIANTS = 10 };

struct variant {
    char name[32];
    struct qep_backend *be;
    struct qep_team *team;
};

/* Opens all backends (levels this CPU lacks are said on stdout); closes them. */
int open_variants(struct variant *variants);
void close_variants(struct variant *variants, int count);

/* Deterministic generator. */
struct rng {
    uint64_t state;
};
uint32_t rng_next(struct rng *rng);
int rng_below(struct rng *rng, int limit);
float rng_normal(struct rng *rng);
float *random_floats(struct rng *rng, size_t count, float scale); /* free */

struct qep_host_weight random_weight(struct rng *rng, enum qep_weight_type type, int64_t rows,
                                     int64_t cols, int32_t group_size);
void free_weight(struct qep_host_weight *weight);
const char *weight_name(enum qep_weight_type type);

void *must_alloc(size_t bytes);

/* matmul of one product, stored in out [n, rows]. */
enum qep_status multiply(struct qep_backend *be, float *out, const void *act, size_t row_stride,
                         enum qep_act_type type, const struct qep_weight *weight, int32_t n,
                         int32_t decode);

/* Calls of several products: awkward sizes; numbers of rows for them. */
enum { NUM_GROUP_SHAPES = 7, NUM_GROUP_ROWS = 5 };
struct group_shape {
    int32_t num, cols;
    int32_t rows[QEP_MAX_PRODUCTS], group[QEP_MAX_PRODUCTS];
};
extern const struct group_shape group_shapes[NUM_GROUP_SHAPES];
extern const int32_t group_rows[NUM_GROUP_ROWS];

/* A call's products with random weights, what their epilogues add to and with. All on the host. */
struct group {
    const struct group_shape *shape;
    struct qep_host_weight host[QEP_MAX_PRODUCTS];
    enum qep_epilogue epilogue[QEP_MAX_PRODUCTS];
    float *before[QEP_MAX_PRODUCTS]; /* [n, rows] */
    float *gate;                     /* [n] */
    int32_t n;
};
/* Product i has weights of type types[i] and epilogue (first + i) % 3. */
struct group make_group(struct rng *rng, const struct group_shape *shape,
                        const enum qep_weight_type *types, int first, int32_t n);
void free_group(struct group *g);
/* sums [n, rows] of product i alone become what its epilogue leaves of them: y + x, each operation
 * by itself. */
void apply_epilogue(const struct group *g, int32_t i, float *sums);

/* Activation rows back to fp32. */
void decode_act_row(enum qep_act_type type, const void *row, int32_t cols, float *out);

/* Fails with the first bad index. close: |a - b| <= tolerance * largest |b|. */
void assert_same_bits(const void *a, const void *b, size_t bytes, const char *what);
void assert_close(const float *a, const float *b, size_t count, double tolerance, const char *what);

#endif

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

/* Activation rows back to fp32. */
void decode_act_row(enum qep_act_type type, const void *row, int32_t cols, float *out);

/* Fails with the first bad index. close: |a - b| <= tolerance * largest |b|. */
void assert_same_bits(const void *a, const void *b, size_t bytes, const char *what);
void assert_close(const float *a, const float *b, size_t count, double tolerance, const char *what);

#endif

/* What the tests of Gated DeltaNet share: inputs of one sequence, and the definition in float64. */
#ifndef QEP_TESTS_DELTA_SUPPORT_H
#define QEP_TESTS_DELTA_SUPPORT_H

#include "kernels_support.h"

size_t channels_of(const struct qep_delta_dims *d);  /* C */
size_t state_floats(const struct qep_delta_dims *d); /* of a slot */
size_t out_row(const struct qep_delta_dims *d);

/* Of n rows, and the state before them. */
struct delta_inputs {
    float *qkv, *a, *b, *A_log, *dt_bias, *state;
};

/* How decays are drawn: mild, tiny, strong, mixed in one chunk, beyond any sum. */
enum decay { MILD, TINY, STRONG, MIXED, HUGE_DECAY, NUM_DECAYS };

struct delta_inputs make_delta_inputs(struct rng *rng, const struct qep_delta_dims *d, int32_t n,
                                      enum decay decay);
void free_delta_inputs(struct delta_inputs *in);

/* The op `delta` in float64, row by row; state is updated. */
void delta_scan_double(const struct qep_delta_dims *d, const struct delta_inputs *in, int32_t n,
                       float *out, float *state);

#endif

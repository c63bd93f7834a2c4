/* Angles of the rotary embedding. The frequencies are fp32 values, as checkpoints define them; the
 * angle is their product with the position in double, so that it stays exact up to 2^20 and
 * beyond. */
#ifndef QEP_KERNELS_ROPE_H
#define QEP_KERNELS_ROPE_H

#include <math.h>
#include <stdint.h>

enum { QEP_ROPE_MAX_PAIRS = 256 };

/* freq[j] = theta^(-2 j / rotary_dim) for j < rotary_dim / 2. */
static inline void qep_rope_frequencies(float theta, int32_t rotary_dim, float *freq) {
    for (int32_t j = 0; j < rotary_dim / 2; j++)
        freq[j] = (float)pow((double)theta, -2.0 * j / rotary_dim);
}

static inline void qep_rope_angles(const float *freq, int32_t num_pairs, int64_t position,
                                   float *cosines, float *sines) {
    for (int32_t j = 0; j < num_pairs; j++) {
        double angle = (double)position * (double)freq[j];
        cosines[j] = (float)cos(angle);
        sines[j] = (float)sin(angle);
    }
}

/* Rotates the pairs (j, j + num_pairs) of x in place. */
static inline void qep_rope_rotate(float *x, int32_t num_pairs, const float *cosines,
                                   const float *sines) {
    for (int32_t j = 0; j < num_pairs; j++) {
        float a = x[j], b = x[j + num_pairs];
        x[j] = a * cosines[j] - b * sines[j];
        x[j + num_pairs] = b * cosines[j] + a * sines[j];
    }
}

#endif

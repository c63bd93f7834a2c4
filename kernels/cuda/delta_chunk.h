/* What the two kernels of the chunked delta rule agree on. With k, q the normalised rows (q
 * scaled), D_ij = exp(g_{j+1} + ... + g_i) for i >= j else 0, e_i = exp(g_0 + ... + g_i):
 *
 *   A  = strictly lower part of beta_i (k_i . k_j) D_ij,   T = (I + A)^-1
 *   N  = T beta (V - e K S)
 *   O  = e Q S + ((Q K^T) D) N
 *   S' = e_last S + (D_last,j k_j)^T N
 *
 * prepare computes, for all chunks at once, what does not depend on S; chunk walks over the chunks
 * of a span. Products are mma on tf32 (rounded to nearest), sums, state and inverse are fp32. Only
 * exp of sums of decays is taken, summed from j + 1 on: differences of one long sum would have no
 * digits left after a strong decay. */
#ifndef QEP_KERNELS_CUDA_DELTA_CHUNK_H
#define QEP_KERNELS_CUDA_DELTA_CHUNK_H

#include "kernels/cuda/deltanet.h"

enum {
    DELTA_C = QEP_DELTA_CHUNK,
    /* Keys of few dims are nearly parallel, and the inverse enlarges the rounding of tf32. */
    CHUNKED_MIN_KEY_DIM = 8,
    CHUNKED_MAX_KEY_DIM = 128,
    /* Floats that prepare leaves per chunk and value head, in this order. Rows beyond the span are
     * zero. */
    CHUNK_T = 0,                                     /* [C][C]: T_ij beta_j, tf32 */
    CHUNK_P = CHUNK_T + DELTA_C * DELTA_C,           /* [C][C]: (Q K^T) D, tf32 */
    CHUNK_KEY_FACTOR = CHUNK_P + DELTA_C * DELTA_C,  /* [C]: e_i / |k_i| */
    CHUNK_QUERY_FACTOR = CHUNK_KEY_FACTOR + DELTA_C, /* [C]: e_i / |q_i| / sqrt(key_head_dim) */
    CHUNK_END_FACTOR = CHUNK_QUERY_FACTOR + DELTA_C, /* [C]: D_last,j / |k_j| */
    CHUNK_WHOLE = CHUNK_END_FACTOR + DELTA_C,        /* [1]: e_last */
    CHUNK_FLOATS = CHUNK_WHOLE + DELTA_C
};

#endif

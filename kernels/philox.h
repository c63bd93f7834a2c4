/* Philox4x32-10: 128 random bits as a pure function of a 64-bit key and a 128-bit counter, the same
 * on a CPU and a GPU. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011);
 * checked against the known answers of Random123. */
#ifndef QEP_KERNELS_PHILOX_H
#define QEP_KERNELS_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define QEP_PHILOX_FN static inline __host__ __device__
#else
#define QEP_PHILOX_FN static inline
#endif

QEP_PHILOX_FN void qep_philox4x32(const uint32_t key[2], const uint32_t counter[4],
                                  uint32_t out[4]) {
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* The middle of the word's 2^-32 wide cell: never 0, never 1, exact in double. */
QEP_PHILOX_FN double qep_philox_uniform(uint32_t word) {
    return ((double)word + 0.5) * 0x1p-32;
}

#endif

/* Elementary functions shared by the host backends: straight-line fp32 code, so that a loop over
 * them vectorises and gives the same bits on every ISA level (no libm, no contraction). Within 2
 * ulp of the exact value, 4 for the composed ones; +-inf and NaN behave like libm's. Sources of the
 * polynomials: Cephes expf and logf. Square roots are exact on every level. */
#ifndef QEP_KERNELS_MATHFN_H
#define QEP_KERNELS_MATHFN_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Also device code, compiled without contraction as everywhere. */
#ifdef __CUDACC__
#define QEP_HD static __host__ __device__ __forceinline__
#else
#define QEP_HD static inline
#endif

QEP_HD uint32_t qep_float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

QEP_HD float qep_float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* What a value that is not finite becomes where its own bits are lost. */
#define QEP_NAN_BITS 0x7fc00000u
#define QEP_INF_BITS 0x7f800000

QEP_HD float qep_nanf(void) {
    return qep_float_from_bits(QEP_NAN_BITS);
}

/* Bits of the largest magnitude among n values: QEP_INF_BITS or more if, and only if, one of them
 * is not finite. (The maximum of floats drops a NaN.) */
QEP_HD int32_t qep_absmax_bits(const float *x, size_t n) {
    int32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t bits = (int32_t)(qep_float_bits(x[i]) & 0x7fffffffu);
        most = bits > most ? bits : most;
    }
    return most;
}

/* The scale of n values as int8: the largest magnitude / 127, NaN where one is not finite. Codes
 * are 0 unless it is positive. */
QEP_HD float qep_int8_scale(const float *x, size_t n) {
    int32_t most = qep_absmax_bits(x, n);
    return most < QEP_INF_BITS ? qep_float_from_bits((uint32_t)most) / 127.0f : qep_nanf();
}

/* The square root of a sum or mean of squares, to divide by. NaN where it has overflowed: what is
 * divided by infinity is 0, as if it were sound. */
QEP_HD float qep_norm_rootf(float squares) {
    return squares > 3.4028235e38f ? qep_nanf() : sqrtf(squares);
}

/* 1.5 * 2^23: adding it to |x| < 2^22 rounds x to an integer (half to even) in the low bits. */
#define QEP_ROUND_MAGIC 12582912.0f

QEP_HD int32_t qep_round_even_int(float x) {
    return (int32_t)(qep_float_bits(x + QEP_ROUND_MAGIC) - 0x4b400000u);
}

/* 2^n for n in [-126, 127]. */
QEP_HD float qep_pow2i(int32_t n) {
    return qep_float_from_bits((uint32_t)(n + 127) << 23);
}

QEP_HD float qep_expf(float x) {
    /* Beyond these bounds the result is 0 or inf anyway; NaN passes both tests. */
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    float rounded = x * 1.44269504088896341f + QEP_ROUND_MAGIC;
    int32_t n = (int32_t)(qep_float_bits(rounded) - 0x4b400000u);
    float nf = rounded - QEP_ROUND_MAGIC;
    n = n < -160 ? -160 : n; /* the bits of a NaN */
    n = n > 160 ? 160 : n;
    /* ln 2 in two parts; the first has few bits, so nf times it is exact. */
    float r = x - nf * 0.693359375f;
    r = r - nf * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    /* Two factors, because 2^n alone leaves the normal range at both ends. */
    int32_t half = n >> 1;
    return p * qep_pow2i(half) * qep_pow2i(n - half);
}

/* Natural logarithm of a normal positive x (subnormal x counts as 2^-126), inf or NaN. */
QEP_HD float qep_logf(float x) {
    float tiny = 1.17549435e-38f;
    float v = x < tiny ? tiny : x;
    /* v = m * 2^e with m in [sqrt(1/2), sqrt(2)). */
    uint32_t shifted = qep_float_bits(v) - 0x3f3504f3u;
    float e = (float)((int32_t)shifted >> 23);
    float f = qep_float_from_bits((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    float z = f * f;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    p = p * f * z;
    p = p + e * -2.12194440e-4f;
    p = p - 0.5f * z;
    float y = (f + p) + e * 0.693359375f;
    return x > 3.4028235e38f || x != x ? x : y;
}

/* log(1 + u) for u in [0, 1]. */
QEP_HD float qep_log1p_unit(float u) {
    float y = 1.0f + u;
    /* What rounding took from 1 + u comes back to first order. */
    return qep_logf(y) + (u - (y - 1.0f)) / y;
}

/* NaN at +-inf, unlike torch: a sum that overflowed has lost its sign, and is no open or shut gate.
 * x - x is 0 for finite x and changes no bit. */
QEP_HD float qep_sigmoidf(float x) {
    return 1.0f / (1.0f + qep_expf(-x)) + (x - x);
}

/* NaN at -inf, as torch has it: a product that overflowed is not taken for 0. */
QEP_HD float qep_siluf(float x) {
    return x / (1.0f + qep_expf(-x));
}

/* log(1 + exp(x)); x itself from 20 on, as torch has it (equal in fp32). NaN at +-inf, likewise. */
QEP_HD float qep_softplusf(float x) {
    float magnitude = x < 0.0f ? -x : x;
    float u = qep_expf(-magnitude);
    float positive = x > 0.0f ? x : 0.0f;
    return positive + qep_log1p_unit(u) + (x - x);
}

#endif

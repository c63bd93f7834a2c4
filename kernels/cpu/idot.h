/* Integer dot products of one group: 32 columns of 16 weight rows with M INT8 activation rows. The
 * weights are unsigned bytes or nibbles, the activations signed, which is what the dot product
 * instructions take; the caller subtracts offset * (sum of the activations). Sums are exact, so
 * levels may differ in how they form them. */
#ifndef QEP_KERNELS_CPU_IDOT_H
#define QEP_KERNELS_CPU_IDOT_H

#include "kernels/cpu/simd.h"

#include <stdbool.h>
#include <stddef.h>

#if defined(__AVX512F__)
enum { IDOT_ROWS = 8 };
#elif defined(__AVX2__)
enum { IDOT_ROWS = 4 };
#else
enum { IDOT_ROWS = 2 };
#endif

INLINE int32_t load_quad(const int8_t *p) {
    int32_t quad;
    memcpy(&quad, p, sizeof quad);
    return quad;
}

#if defined(__AVX512F__)

INLINE void idot_group(const int M, const bool INT4, const uint8_t *w, const int8_t *const *x,
                       vi sum[][PARTS]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i acc[IDOT_ROWS];
    for (int m = 0; m < M; m++)
        acc[m] = _mm512_setzero_si512();
    for (int j = 0; j < (INT4 ? 4 : 8); j++) {
        __m512i bytes = _mm512_loadu_si512(w + j * 64);
        __m512i low = INT4 ? _mm512_and_si512(bytes, nibble) : bytes;
        for (int m = 0; m < M; m++)
            acc[m] = _mm512_dpbusd_epi32(acc[m], low, _mm512_set1_epi32(load_quad(x[m] + j * 4)));
        if (INT4) {
            __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
            for (int m = 0; m < M; m++)
                acc[m] = _mm512_dpbusd_epi32(acc[m], high,
                                             _mm512_set1_epi32(load_quad(x[m] + 16 + j * 4)));
        }
    }
    for (int m = 0; m < M; m++)
        sum[m][0] = (vi)acc[m];
}

#elif defined(__AVX2__)

/* maddubs adds two products in 16 bits: with nibbles as weights a product is at most 15 * 127, and
 * the 16 of one group and lane still fit, so an INT8 weight goes as two nibbles. */
INLINE void idot_group(const int M, const bool INT4, const uint8_t *w, const int8_t *const *x,
                       vi sum[][PARTS]) {
    const __m256i nibble = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
    const __m256i sixteen = _mm256_set1_epi16(16);
    for (int p = 0; p < PARTS; p++) {
        __m256i acc_low[IDOT_ROWS], acc_high[IDOT_ROWS];
        for (int m = 0; m < M; m++)
            acc_low[m] = acc_high[m] = _mm256_setzero_si256();
        for (int j = 0; j < (INT4 ? 4 : 8); j++) {
            __m256i bytes =
                _mm256_loadu_si256((const __m256i *)(const void *)(w + j * 64 + p * 32));
            __m256i low = _mm256_and_si256(bytes, nibble);
            __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
            for (int m = 0; m < M; m++) {
                __m256i a = _mm256_set1_epi32(load_quad(x[m] + j * 4));
                __m256i b = INT4 ? _mm256_set1_epi32(load_quad(x[m] + 16 + j * 4)) : a;
                acc_low[m] = _mm256_add_epi16(acc_low[m], _mm256_maddubs_epi16(low, a));
                acc_high[m] = _mm256_add_epi16(acc_high[m], _mm256_maddubs_epi16(high, b));
            }
        }
        for (int m = 0; m < M; m++)
            sum[m][p] = (vi)_mm256_add_epi32(_mm256_madd_epi16(acc_low[m], one),
                                             _mm256_madd_epi16(acc_high[m], INT4 ? one : sixteen));
    }
}

#else

/* Four rows x four columns of bytes times one quad of activations (as words, twice). */
INLINE __m128i quad_products(__m128i bytes, __m128i a) {
    const __m128i zero = _mm_setzero_si128();
    __m128i first = _mm_madd_epi16(_mm_unpacklo_epi8(bytes, zero), a);
    __m128i second = _mm_madd_epi16(_mm_unpackhi_epi8(bytes, zero), a);
    __m128 even = _mm_shuffle_ps(_mm_castsi128_ps(first), _mm_castsi128_ps(second), 0x88);
    __m128 odd = _mm_shuffle_ps(_mm_castsi128_ps(first), _mm_castsi128_ps(second), 0xdd);
    return _mm_add_epi32(_mm_castps_si128(even), _mm_castps_si128(odd));
}

INLINE __m128i quad_words(const int8_t *p) {
    __m128i bytes = _mm_set1_epi32(load_quad(p));
    return _mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
}

INLINE void idot_group(const int M, const bool INT4, const uint8_t *w, const int8_t *const *x,
                       vi sum[][PARTS]) {
    const __m128i nibble = _mm_set1_epi8(15);
    for (int p = 0; p < PARTS; p++) {
        __m128i acc[IDOT_ROWS];
        for (int m = 0; m < M; m++)
            acc[m] = _mm_setzero_si128();
        for (int j = 0; j < (INT4 ? 4 : 8); j++) {
            __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(w + j * 64 + p * 16));
            __m128i low = INT4 ? _mm_and_si128(bytes, nibble) : bytes;
            __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble);
            for (int m = 0; m < M; m++) {
                acc[m] = _mm_add_epi32(acc[m], quad_products(low, quad_words(x[m] + j * 4)));
                if (INT4)
                    acc[m] =
                        _mm_add_epi32(acc[m], quad_products(high, quad_words(x[m] + 16 + j * 4)));
            }
        }
        for (int m = 0; m < M; m++)
            sum[m][p] = (vi)acc[m];
    }
}

#endif
#endif

/* Vectors of the ISA level being compiled, as compiler vector types; intrinsics only where the
 * vector extensions have no word for it. Anything that adds across lanes works on 16 partial sums
 * whatever the vector's length, in one order, so that bits do not depend on the level. */
#ifndef QEP_KERNELS_CPU_SIMD_H
#define QEP_KERNELS_CPU_SIMD_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { VL = 16 };
#elif defined(__AVX2__)
enum { VL = 8 };
#else
enum { VL = 4 };
#endif
enum { PARTS = 16 / VL }; /* vectors that hold 16 lanes */

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef float vf_any __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint32_t vu_any __attribute__((vector_size(VL * 4), aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline, unused))

INLINE vf vf_load(const float *p) {
    return *(const vf_any *)p;
}

INLINE void vf_store(float *p, vf v) {
    *(vf_any *)p = v;
}

INLINE vu vu_load(const void *p) {
    return *(const vu_any *)p;
}

INLINE vf vf_from_vi(vi v) {
    return __builtin_convertvector(v, vf);
}

INLINE vf vf_from_bf16(const uint16_t *p) {
#if defined(__AVX512F__)
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return (vf)_mm512_slli_epi32(wide, 16);
#elif defined(__AVX2__)
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return (vf)_mm256_slli_epi32(wide, 16);
#else
    __m128i half = _mm_loadl_epi64((const __m128i *)(const void *)p);
    return (vf)_mm_unpacklo_epi16(_mm_setzero_si128(), half);
#endif
}

INLINE vf vf_from_int8(const int8_t *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
#else
    int32_t four;
    memcpy(&four, p, sizeof four);
    __m128i bytes = _mm_cvtsi32_si128(four);
    __m128i words = _mm_unpacklo_epi8(bytes, bytes);
    return (vf)_mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(words, words), 24));
#endif
}

/* Sum of 16 lanes: l + (l + 8), then + 4, + 2, + 1. */
INLINE float fold16(const vf *parts) {
#if defined(__AVX512F__)
    __m512 all = (__m512)parts[0];
    __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1));
    __m256 eight = (__m256)_mm512_castps512_ps256(all);
    eight = eight + high;
    __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
#elif defined(__AVX2__)
    __m256 eight = (__m256)(parts[0] + parts[1]);
    __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
#else
    __m128 four = (__m128)((parts[0] + parts[2]) + (parts[1] + parts[3]));
#endif
    __m128 two = four + _mm_movehl_ps(four, four);
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/* Dot product in 16 partial sums, one per column mod 16. */
INLINE float dot16(const float *a, const float *b, int32_t n) {
    vf acc[PARTS];
    float tail_a[16] = {0}, tail_b[16] = {0};
    int32_t i = 0;
    for (int p = 0; p < PARTS; p++)
        acc[p] = (vf){0};
    for (; i + 16 <= n; i += 16)
        for (int p = 0; p < PARTS; p++)
            acc[p] += vf_load(a + i + p * VL) * vf_load(b + i + p * VL);
    if (i < n) {
        memcpy(tail_a, a + i, (size_t)(n - i) * sizeof *a);
        memcpy(tail_b, b + i, (size_t)(n - i) * sizeof *b);
        for (int p = 0; p < PARTS; p++)
            acc[p] += vf_load(tail_a + p * VL) * vf_load(tail_b + p * VL);
    }
    return fold16(acc);
}

#endif

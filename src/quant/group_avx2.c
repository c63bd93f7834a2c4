#include "quant/group.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2")))
#define INLINE TARGET static inline __attribute__((always_inline))

typedef __m256 vec;

INLINE vec v_set(float x) {
    return _mm256_set1_ps(x);
}
INLINE vec v_load(const float *p) {
    return _mm256_loadu_ps(p);
}
INLINE void v_store(float *p, vec a) {
    _mm256_storeu_ps(p, a);
}
INLINE vec v_add(vec a, vec b) {
    return _mm256_add_ps(a, b);
}
INLINE vec v_sub(vec a, vec b) {
    return _mm256_sub_ps(a, b);
}
INLINE vec v_mul(vec a, vec b) {
    return _mm256_mul_ps(a, b);
}
INLINE vec v_div(vec a, vec b) {
    return _mm256_div_ps(a, b);
}
INLINE vec v_min(vec a, vec b) {
    return _mm256_min_ps(a, b);
}
INLINE vec v_max(vec a, vec b) {
    return _mm256_max_ps(a, b);
}

#include "quant/group_template.h"

TARGET float qep_int4_group_avx2(const float *w, int n, float *q) {
    return quantize_group(w, n, &int4_grid, q);
}

TARGET float qep_int8_group_avx2(const float *w, int n, float *q) {
    return quantize_group(w, n, &int8_grid, q);
}
#endif

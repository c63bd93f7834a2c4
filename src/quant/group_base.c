/* Plain C: eight floats in a struct, which compilers turn into what the machine has. */
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    float lane[8];
} vec;

#define LANEWISE(expression)                                                                       \
    do {                                                                                           \
        vec r;                                                                                     \
        for (int i = 0; i < 8; i++)                                                                \
            r.lane[i] = (expression);                                                              \
        return r;                                                                                  \
    } while (0)

INLINE vec v_set(float x) {
    LANEWISE(x);
}
INLINE vec v_load(const float *p) {
    LANEWISE(p[i]);
}
INLINE void v_store(float *p, vec a) {
    for (int i = 0; i < 8; i++)
        p[i] = a.lane[i];
}
INLINE vec v_add(vec a, vec b) {
    LANEWISE(a.lane[i] + b.lane[i]);
}
INLINE vec v_sub(vec a, vec b) {
    LANEWISE(a.lane[i] - b.lane[i]);
}
INLINE vec v_mul(vec a, vec b) {
    LANEWISE(a.lane[i] * b.lane[i]);
}
INLINE vec v_div(vec a, vec b) {
    LANEWISE(a.lane[i] / b.lane[i]);
}
INLINE vec v_min(vec a, vec b) {
    LANEWISE(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]);
}
INLINE vec v_max(vec a, vec b) {
    LANEWISE(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]);
}

#include "quant/group_template.h"

float qep_int4_group_base(const float *w, int n, float *q) {
    return quantize_group(w, n, &int4_grid, q);
}

float qep_int8_group_base(const float *w, int n, float *q) {
    return quantize_group(w, n, &int8_grid, q);
}

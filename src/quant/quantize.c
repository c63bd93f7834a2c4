/* Grid and least squares. For int4 the scale is searched on +-c * absmax / 8, then refined: with
 * the codes q fixed, the best scale is sum(w q) / sum(q q); with it new codes, a few times. A
 * negative scale gives the sixteenth level to the positive side. Sums run in 16 fixed lanes, so
 * that vector width changes nothing. */
#include "quant/quantize.h"

#include <stdbool.h>
#include <string.h>

enum { LANES = 16, REFINEMENTS = 3 };

/* Below this a group is all zeros: 1 / scale would overflow and the error is nothing. */
static const float tiny = 1e-30f;

/* Adding and subtracting 1.5 * 2^23 rounds to nearest even. */
static const float round_magic = 12582912.0f;

struct grid {
    float low, high; /* codes */
    const float *factors;
    int num_factors;
    float divisor;
    bool both_signs;
};

static const float int4_factors[] = {1.08f, 1.05f, 1.02f, 0.99f, 0.96f, 0.93f,
                                     0.90f, 0.87f, 0.84f, 0.81f, 0.78f, 0.75f};
static const struct grid int4_grid = {-8, 7, int4_factors, 12, 8.0f, true};
static const float int8_factors[] = {1.0f, 0.996f, 0.992f, 0.985f};
static const struct grid int8_grid = {-127, 127, int8_factors, 4, 127.0f, false};

#define INLINE static inline __attribute__((always_inline))

INLINE float lane_sum(const float *acc) {
    float s[LANES];
    memcpy(s, acc, sizeof s);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            s[j] += s[j + half];
    return s[0];
}

INLINE float code_of(float w, float inv, const struct grid *g) {
    float q = w * inv;
    q = q < g->low ? g->low : q;
    q = q > g->high ? g->high : q;
    return (q + round_magic) - round_magic;
}

/* Squared error of n (a multiple of LANES) weights under `scale`. */
INLINE float error_of(const float *w, int n, float scale, const struct grid *g) {
    float acc[LANES] = {0}, inv = 1.0f / scale;
    for (int i = 0; i < n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float e = w[i + j] - code_of(w[i + j], inv, g) * scale;
            acc[j] += e * e;
        }
    return lane_sum(acc);
}

/* The least-squares scale for the codes that `scale` gives; 0 when all codes are 0. */
INLINE float refine(const float *w, int n, float scale, const struct grid *g) {
    float wq[LANES] = {0}, qq[LANES] = {0}, inv = 1.0f / scale;
    for (int i = 0; i < n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float q = code_of(w[i + j], inv, g);
            wq[j] += w[i + j] * q;
            qq[j] += q * q;
        }
    float den = lane_sum(qq);
    return den > 0 ? lane_sum(wq) / den : 0;
}

INLINE float round_scale(float scale) {
    return qep_bf16_to_f32(qep_f32_to_bf16(scale));
}

INLINE float best_scale(const float *w, int n, const struct grid *g) {
    float peak[LANES] = {0}, absmax = 0;
    for (int i = 0; i < n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float a = __builtin_fabsf(w[i + j]);
            peak[j] = a > peak[j] ? a : peak[j];
        }
    for (int j = 0; j < LANES; j++)
        absmax = peak[j] > absmax ? peak[j] : absmax;
    if (absmax < tiny)
        return 0;
    float best = round_scale(absmax / g->divisor), best_error = error_of(w, n, best, g);
    for (int sign = 0; sign < (g->both_signs ? 2 : 1); sign++)
        for (int f = 0; f < g->num_factors; f++) {
            float s = round_scale((sign == 0 ? absmax : -absmax) * g->factors[f] / g->divisor);
            float error = error_of(w, n, s, g);
            if (error < best_error) {
                best = s;
                best_error = error;
            }
        }
    float s = best;
    for (int step = 0; step < REFINEMENTS; step++) {
        s = round_scale(refine(w, n, s, g));
        if (__builtin_fabsf(s) < tiny)
            break;
        float error = error_of(w, n, s, g);
        if (error < best_error) {
            best = s;
            best_error = error;
        }
    }
    return best;
}

/* One group: codes as floats to q[n]. Returns the scale. */
INLINE float quantize_group(const float *w, int n, const struct grid *g, float *q) {
    float scale = best_scale(w, n, g);
    float inv = scale == 0 ? 0 : 1.0f / scale;
    for (int i = 0; i < n; i++)
        q[i] = code_of(w[i], inv, g);
    return scale;
}

typedef float group_fn(const float *w, int n, float *q);

/* The same code for three instruction sets; results are equal bits. */
#define VARIANT(suffix, attributes)                                                                \
    attributes static float int4_group_##suffix(const float *w, int n, float *q) {                 \
        return quantize_group(w, n, &int4_grid, q);                                                \
    }                                                                                              \
    attributes static float int8_group_##suffix(const float *w, int n, float *q) {                 \
        return quantize_group(w, n, &int8_grid, q);                                                \
    }
VARIANT(base, )
#if defined(__x86_64__)
VARIANT(avx2, __attribute__((target("avx2"))))
VARIANT(avx512, __attribute__((target("avx512f,avx512vl,avx512dq,prefer-vector-width=512"))))
#endif

static group_fn *pick_group_fn(bool int4) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return int4 ? int4_group_avx512 : int8_group_avx512;
    if (__builtin_cpu_supports("avx2"))
        return int4 ? int4_group_avx2 : int8_group_avx2;
#endif
    return int4 ? int4_group_base : int8_group_base;
}

/* Copies a group and pads it with zeros to whole lanes. */
static int load_group(const float *w, int64_t n, float *padded) {
    int full = ((int)n + LANES - 1) / LANES * LANES;
    memcpy(padded, w, (size_t)n * sizeof *w);
    memset(padded + n, 0, (size_t)(full - n) * sizeof *w);
    return full;
}

void qep_quantize_int8(const float *w, int64_t rows, int64_t cols, int32_t group_size,
                       int8_t *values, uint16_t *scales) {
    _Alignas(64) float padded[QEP_MAX_GROUP_SIZE], q[QEP_MAX_GROUP_SIZE];
    group_fn *group = pick_group_fn(false);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c += group_size) {
            int64_t n = cols - c < group_size ? cols - c : group_size;
            int full = load_group(w + r * cols + c, n, padded);
            *scales++ = qep_f32_to_bf16(group(padded, full, q));
            for (int64_t i = 0; i < n; i++)
                *values++ = (int8_t)q[i];
        }
}

void qep_quantize_int4(const float *w, int64_t rows, int64_t cols, int32_t group_size,
                       uint8_t *values, uint16_t *scales) {
    _Alignas(64) float padded[QEP_MAX_GROUP_SIZE], q[QEP_MAX_GROUP_SIZE];
    group_fn *group = pick_group_fn(true);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c += group_size) {
            int64_t n = cols - c < group_size ? cols - c : group_size;
            int full = load_group(w + r * cols + c, n, padded);
            *scales++ = qep_f32_to_bf16(group(padded, full, q));
            /* Groups are even, so only a row's end leaves a high nibble free: it is 0. */
            for (int64_t i = 0; i < n; i += 2) {
                unsigned low = (unsigned)((int)q[i] + 8);
                unsigned high = i + 1 < n ? (unsigned)((int)q[i + 1] + 8) : 0;
                *values++ = (uint8_t)(low | high << 4);
            }
        }
}

void qep_dequantize_row(const struct qep_host_weight *weight, int64_t row, float *out) {
    int64_t cols = weight->cols, first = row * cols;
    int64_t groups =
        weight->group_size == 0 ? 0 : (cols + weight->group_size - 1) / weight->group_size;
    for (int64_t c = 0; c < cols; c++) {
        float scale = groups == 0
                          ? 0
                          : qep_bf16_to_f32(weight->scales[row * groups + c / weight->group_size]);
        switch (weight->type) {
        case QEP_WEIGHT_F32:
            out[c] = ((const float *)weight->data)[first + c];
            break;
        case QEP_WEIGHT_BF16:
            out[c] = qep_bf16_to_f32(((const uint16_t *)weight->data)[first + c]);
            break;
        case QEP_WEIGHT_INT8:
            out[c] = (float)((const int8_t *)weight->data)[first + c] * scale;
            break;
        case QEP_WEIGHT_INT4: {
            unsigned pair = ((const uint8_t *)weight->data)[row * ((cols + 1) / 2) + c / 2];
            out[c] = (float)((int)(c % 2 == 0 ? pair & 15u : pair >> 4) - 8) * scale;
            break;
        }
        }
    }
}

size_t qep_find_nonfinite_f32(const float *values, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        if ((bits & 0x7f800000u) == 0x7f800000u)
            return i;
    }
    return n;
}

size_t qep_find_nonfinite_bf16(const uint16_t *values, size_t n) {
    /* Blocks without an early exit vectorise; the exact index is sought only in a bad one. */
    for (size_t begin = 0; begin < n; begin += 1024) {
        size_t end = n - begin < 1024 ? n : begin + 1024;
        unsigned bad = 0;
        for (size_t i = begin; i < end; i++)
            bad |= (values[i] & 0x7f80u) == 0x7f80u;
        for (size_t i = begin; bad != 0 && i < end; i++)
            if ((values[i] & 0x7f80u) == 0x7f80u)
                return i;
    }
    return n;
}

#include "quant/quantize.h"

#include "quant/group.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#define INFINITY_BITS 0x7f800000u
/* 2^60: the squared errors of a group of larger values overflow, so nothing chooses its scale. */
#define INTEGER_LIMIT ((127u + 60u) << 23)

static qep_group_fn *pick_group_fn(bool int4) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return int4 ? qep_int4_group_avx2 : qep_int8_group_avx2;
#endif
    return int4 ? qep_int4_group_base : qep_int8_group_base;
}

/* Copies a group and pads it with zeros to whole lanes. */
static int load_group(const float *w, int64_t n, float *padded) {
    int full = ((int)n + QEP_GROUP_LANES - 1) / QEP_GROUP_LANES * QEP_GROUP_LANES;
    memcpy(padded, w, (size_t)n * sizeof *w);
    memset(padded + n, 0, (size_t)(full - n) * sizeof *w);
    return full;
}

static uint32_t magnitude_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x7fffffffu;
}

static bool all_below(const float *w, int n, uint32_t limit) {
    uint32_t largest = 0;
    for (int i = 0; i < n; i++) {
        uint32_t bits = magnitude_bits(w[i]);
        largest = bits > largest ? bits : largest;
    }
    return largest < limit;
}

/* A group's scale as bf16, its codes in q. */
static uint16_t quantize(qep_group_fn *group, const float *padded, int full, float *q) {
    if (all_below(padded, full, INTEGER_LIMIT))
        return qep_f32_to_bf16(group(padded, full, q));
    memset(q, 0, (size_t)full * sizeof *q);
    return qep_f32_to_bf16(NAN);
}

void qep_quantize_int8(const float *w, int64_t rows, int64_t cols, int32_t group_size,
                       int8_t *values, uint16_t *scales) {
    _Alignas(64) float padded[QEP_MAX_GROUP_SIZE], q[QEP_MAX_GROUP_SIZE];
    qep_group_fn *group = pick_group_fn(false);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c += group_size) {
            int64_t n = cols - c < group_size ? cols - c : group_size;
            int full = load_group(w + r * cols + c, n, padded);
            *scales++ = quantize(group, padded, full, q);
            for (int64_t i = 0; i < n; i++)
                *values++ = (int8_t)q[i];
        }
}

void qep_quantize_int4(const float *w, int64_t rows, int64_t cols, int32_t group_size,
                       uint8_t *values, uint16_t *scales) {
    _Alignas(64) float padded[QEP_MAX_GROUP_SIZE], q[QEP_MAX_GROUP_SIZE];
    qep_group_fn *group = pick_group_fn(true);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c += group_size) {
            int64_t n = cols - c < group_size ? cols - c : group_size;
            int full = load_group(w + r * cols + c, n, padded);
            *scales++ = quantize(group, padded, full, q);
            /* Groups are even, so only a row's end leaves a high nibble free: it is 0. */
            int64_t i = 0;
            for (; i + 1 < n; i += 2)
                *values++ = (uint8_t)(((int)q[i] + 8) | ((int)q[i + 1] + 8) << 4);
            if (i < n)
                *values++ = (uint8_t)((int)q[i] + 8);
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

uint32_t qep_storable_limit(enum qep_weight_type type) {
    switch (type) {
    case QEP_WEIGHT_F32:
        return INFINITY_BITS;
    case QEP_WEIGHT_BF16:
        return 0x7f7f8000u; /* what is nearer to 2^128 than to the largest bf16 */
    case QEP_WEIGHT_INT8:
    case QEP_WEIGHT_INT4:
        break;
    }
    return INTEGER_LIMIT;
}

size_t qep_find_beyond_f32(const float *values, size_t n, uint32_t limit) {
    for (size_t i = 0; i < n; i++)
        if (magnitude_bits(values[i]) >= limit)
            return i;
    return n;
}

size_t qep_find_beyond_bf16(const uint16_t *values, size_t n, uint32_t limit) {
    const unsigned high = (limit + 0xffffu) >> 16;
    /* Blocks without an early exit vectorise; the exact index is sought only in a bad one. */
    for (size_t begin = 0; begin < n; begin += 1024) {
        size_t end = n - begin < 1024 ? n : begin + 1024;
        unsigned bad = 0;
        for (size_t i = begin; i < end; i++)
            bad |= (values[i] & 0x7fffu) >= high;
        for (size_t i = begin; bad != 0 && i < end; i++)
            if ((values[i] & 0x7fffu) >= high)
                return i;
    }
    return n;
}

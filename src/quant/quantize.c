#include "quant/quantize.h"

#include "quant/group.h"

#include <stdbool.h>
#include <string.h>

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

void qep_quantize_int8(const float *w, int64_t rows, int64_t cols, int32_t group_size,
                       int8_t *values, uint16_t *scales) {
    _Alignas(64) float padded[QEP_MAX_GROUP_SIZE], q[QEP_MAX_GROUP_SIZE];
    qep_group_fn *group = pick_group_fn(false);
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
    qep_group_fn *group = pick_group_fn(true);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c += group_size) {
            int64_t n = cols - c < group_size ? cols - c : group_size;
            int full = load_group(w + r * cols + c, n, padded);
            *scales++ = qep_f32_to_bf16(group(padded, full, q));
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

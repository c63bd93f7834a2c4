/* Row-wise and element-wise ops: RMSNorm, activation rows, SwiGLU. */
#include "kernels/reference/reference.h"

#include "kernels/mathfn.h"

#include <string.h>

enum qep_status ref_rms_norm(struct qep_backend *be, struct qep_rows_out out, const float *x,
                             const float *w, int32_t n, int32_t cols, float eps) {
    for (int32_t i = 0; i < n; i++) {
        const float *row = x + (size_t)i * (size_t)cols;
        float *dst = out.f32 + (size_t)i * (size_t)cols;
        float inv = 1.0f / qep_norm_rootf(ref_sum_squares(row, cols) / (float)cols + eps);
        for (int32_t c = 0; c < cols; c++)
            dst[c] = row[c] * inv * w[c];
    }
    return ref_finish_rows(be, &out, n, cols);
}

static void quantise_row(uint8_t *out, const float *x, int32_t cols) {
    int32_t num_groups = (cols + QEP_ACT_GROUP - 1) / QEP_ACT_GROUP;
    int8_t *quants = (int8_t *)out;
    for (int32_t g = 0; g < num_groups; g++) {
        int32_t begin = g * QEP_ACT_GROUP;
        int32_t end = begin + QEP_ACT_GROUP < cols ? begin + QEP_ACT_GROUP : cols;
        float scale = qep_int8_scale(x + begin, (size_t)(end - begin));
        for (int32_t c = begin; c < end; c++) {
            float q = scale > 0.0f ? x[c] / scale : 0.0f;
            q = q > 127.0f ? 127.0f : q; /* a subnormal scale may have lost bits */
            q = q < -127.0f ? -127.0f : q;
            quants[c] = (int8_t)qep_round_even_int(q);
        }
        memcpy(out + (size_t)num_groups * QEP_ACT_GROUP + 4 * (size_t)g, &scale, sizeof scale);
    }
}

enum qep_status ref_act_convert(struct qep_backend *be, void *out, size_t row_stride,
                                enum qep_act_type type, const float *x, int32_t n, int32_t cols) {
    (void)be;
    for (int32_t i = 0; i < n; i++) {
        const float *row = x + (size_t)i * (size_t)cols;
        uint8_t *dst = (uint8_t *)out + (size_t)i * row_stride;
        memset(dst, 0, qep_act_row_bytes(type, cols));
        if (type == QEP_ACT_F32) {
            memcpy(dst, row, (size_t)cols * sizeof *row);
        } else if (type == QEP_ACT_BF16) {
            for (int32_t c = 0; c < cols; c++) {
                uint16_t bits = qep_f32_to_bf16(row[c]);
                memcpy(dst + 2 * (size_t)c, &bits, sizeof bits);
            }
        } else {
            quantise_row(dst, row, cols);
        }
    }
    return QEP_OK;
}

enum qep_status ref_finish_rows(struct qep_backend *be, const struct qep_rows_out *out, int32_t n,
                                int32_t cols) {
    if (out->act == NULL)
        return QEP_OK;
    return ref_act_convert(be, out->act, out->act_stride, out->act_type, out->f32, n, cols);
}

enum qep_status ref_swiglu(struct qep_backend *be, struct qep_rows_out out, const float *gate,
                           const float *up, int32_t n, int32_t cols) {
    size_t count = (size_t)n * (size_t)cols;
    for (size_t i = 0; i < count; i++)
        out.f32[i] = qep_siluf(gate[i]) * up[i];
    return ref_finish_rows(be, &out, n, cols);
}

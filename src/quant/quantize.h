/* Quantisers: rows of floats -> integer groups with bf16 scales (layout: kernels/weight.h). The
 * choice of each group's scale is by true squared error with the rounded scale, so results are the
 * same bits on every machine. Inputs must be finite. */
#ifndef QEP_QUANT_QUANTIZE_H
#define QEP_QUANT_QUANTIZE_H

#include "kernels/weight.h"

#include <stddef.h>
#include <stdint.h>

enum { QEP_MAX_GROUP_SIZE = 128 };

/* int8, symmetric, -127..127. values [rows, cols], scales [rows, ceil(cols / group_size)]. */
void qep_quantize_int8(const float *w, int64_t rows, int64_t cols, int32_t group_size,
                       int8_t *values, uint16_t *scales);

/* int4, codes 0..15 = -8..7 times a scale of either sign. values [rows, ceil(cols / 2)]. */
void qep_quantize_int4(const float *w, int64_t rows, int64_t cols, int32_t group_size,
                       uint8_t *values, uint16_t *scales);

/* Row `row` of any weight as floats: out [cols]. */
void qep_dequantize_row(const struct qep_host_weight *weight, int64_t row, float *out);

/* Index of the first NaN or infinity, n when there is none. */
size_t qep_find_nonfinite_f32(const float *values, size_t n);
size_t qep_find_nonfinite_bf16(const uint16_t *values, size_t n);

#endif

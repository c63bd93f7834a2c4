/* Quantisers: rows of floats -> integer groups with bf16 scales (layout: kernels/weight.h). The
 * choice of each group's scale is by true squared error with the rounded scale, so results are the
 * same bits on every machine. A group with a value beyond qep_storable_limit gets a scale that is
 * NaN and codes that stand for 0, so that whoever uses it meets NaN. */
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

/* The bits of the smallest magnitude (sign cleared) that a weight of this type cannot stand for:
 * NaN and infinity, and what would become infinite (bf16) or has no scale (integers). */
uint32_t qep_storable_limit(enum qep_weight_type type);

/* Index of the first value whose magnitude has bits >= limit as f32, n when there is none. */
size_t qep_find_beyond_f32(const float *values, size_t n, uint32_t limit);
size_t qep_find_beyond_bf16(const uint16_t *values, size_t n, uint32_t limit);

#endif

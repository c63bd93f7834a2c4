/* A weight matrix as stored: canonical row-major, on the host, before a backend repacks it.
 *
 *   F32   data f32  [rows, cols]
 *   BF16  data bf16 [rows, cols], as uint16_t bit patterns
 *   INT8  data int8 [rows, cols]; scales bf16 [rows, ceil(cols / group_size)]; w = q * s
 *   INT4  data u8   [rows, ceil(cols / 2)]; scales as for INT8; w = (u - 8) * s, where u is the low
 *         nibble for an even column and the high nibble for an odd one; s may be negative
 *
 * The last group of a row may be short. 1-D tensors are rows = 1, cols = n; conv1d.weight [C, 1, K]
 * is rows = C, cols = K. */
#ifndef QEP_KERNELS_WEIGHT_H
#define QEP_KERNELS_WEIGHT_H

#include <stddef.h>
#include <stdint.h>

enum qep_weight_type { QEP_WEIGHT_F32, QEP_WEIGHT_BF16, QEP_WEIGHT_INT8, QEP_WEIGHT_INT4 };

struct qep_host_weight {
    enum qep_weight_type type;
    int64_t rows, cols;
    int32_t group_size; /* 0 unless INT8 / INT4 */
    /* BF16 for backends that take it so (qep_backend.joins_planes): data is two planes of rows *
     * cols bytes, the high and then the low byte of the 16 bits rotated left by one. */
    int32_t planes;
    void *data;       /* owned: free with qep_host_weight_free (malloc family) */
    uint16_t *scales; /* owned likewise, NULL unless INT8 / INT4 */
};

static inline size_t qep_weight_data_bytes(enum qep_weight_type type, int64_t rows, int64_t cols) {
    switch (type) {
    case QEP_WEIGHT_F32:
        return (size_t)rows * (size_t)cols * 4;
    case QEP_WEIGHT_BF16:
        return (size_t)rows * (size_t)cols * 2;
    case QEP_WEIGHT_INT8:
        return (size_t)rows * (size_t)cols;
    case QEP_WEIGHT_INT4:
        return (size_t)rows * (size_t)((cols + 1) / 2);
    }
    return 0;
}

static inline size_t qep_weight_num_scales(int64_t rows, int64_t cols, int32_t group_size) {
    return group_size == 0 ? 0 : (size_t)rows * (size_t)((cols + group_size - 1) / group_size);
}

/* bf16 <-> f32; to bf16 rounds to nearest, ties to even (NaN stays NaN). */
static inline float qep_bf16_to_f32(uint16_t bits) {
    union {
        uint32_t u;
        float f;
    } v;
    v.u = (uint32_t)bits << 16;
    return v.f;
}

static inline uint16_t qep_f32_to_bf16(float value) {
    union {
        float f;
        uint32_t u;
    } v;
    v.f = value;
    if ((v.u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((v.u >> 16) | 0x40u);
    return (uint16_t)((v.u + 0x7fffu + ((v.u >> 16) & 1u)) >> 16);
}

#endif

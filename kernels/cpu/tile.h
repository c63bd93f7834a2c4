/* The fp32 micro-kernel: M rows of x times 16 columns of w, kept in registers.
 * Each output is one sum over k ascending, so M and the ISA level do not show
 * in its bits. Used by matmuls, attention's P V and the DeltaNet chunks. */
#ifndef QEP_KERNELS_CPU_TILE_H
#define QEP_KERNELS_CPU_TILE_H

#include "kernels/cpu/simd.h"

#include <stdbool.h>
#include <stddef.h>

/* As many accumulators as the registers hold beside the operands. */
#if defined(__AVX512F__)
enum { TILE_ROWS = 8 };
#elif defined(__AVX2__)
enum { TILE_ROWS = 6 };
#else
enum { TILE_ROWS = 2 };
#endif

/* w as fp32 or bf16: the 16 columns of k lie at data + k * k_stride. */
struct tile_w {
    const void *data;
    bool bf16;
    size_t k_stride;
};

/* acc[m] gets the 16 sums of row m. Row m of x is x[m]; packed, all rows are in x[0] as [k][M],
 * which spares registers, and cache sets when rows lie a power of two apart. M, BF16 and PACKED are
 * constants at every call. */
INLINE void tile_fixed(const int M, const bool BF16, const bool PACKED, const struct tile_w *w,
                       const float *const *x, int32_t num_k, vf acc[][PARTS]) {
    vf sum[TILE_ROWS][PARTS];
    const float *row[TILE_ROWS];
    const size_t k_stride = w->k_stride;
    for (int m = 0; m < M; m++) {
        row[m] = PACKED ? x[0] : x[m];
        for (int p = 0; p < PARTS; p++)
            sum[m][p] = (vf){0};
    }
    for (size_t k = 0; k < (size_t)num_k; k++) {
        vf column[PARTS];
        for (int p = 0; p < PARTS; p++) {
            size_t at = k * k_stride + (size_t)(p * VL);
            column[p] = BF16 ? vf_from_bf16((const uint16_t *)w->data + at)
                             : vf_load((const float *)w->data + at);
        }
        for (int m = 0; m < M; m++)
            for (int p = 0; p < PARTS; p++)
                sum[m][p] += column[p] * (PACKED ? row[0][k * (size_t)M + (size_t)m] : row[m][k]);
    }
    for (int m = 0; m < M; m++)
        for (int p = 0; p < PARTS; p++)
            acc[m][p] = sum[m][p];
}

#define TILE_CASE(m)                                                                               \
    case m:                                                                                        \
        if (w->bf16 && packed)                                                                     \
            tile_fixed(m, true, true, w, x, num_k, acc);                                           \
        else if (w->bf16)                                                                          \
            tile_fixed(m, true, false, w, x, num_k, acc);                                          \
        else if (packed)                                                                           \
            tile_fixed(m, false, true, w, x, num_k, acc);                                          \
        else                                                                                       \
            tile_fixed(m, false, false, w, x, num_k, acc);                                         \
        break

/* How many of `left` rows the next tile takes: one of the sizes compiled below. */
static inline int tile_rows(int32_t left) {
    if (left >= TILE_ROWS)
        return TILE_ROWS;
    return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

__attribute__((noinline, unused)) static void tile(int num_rows, const struct tile_w *w,
                                                   bool packed, const float *const *x,
                                                   int32_t num_k, vf acc[][PARTS]) {
    switch (num_rows) {
        TILE_CASE(1);
        TILE_CASE(2);
#if defined(__AVX512F__)
        TILE_CASE(4);
        TILE_CASE(8);
#elif defined(__AVX2__)
        TILE_CASE(4);
        TILE_CASE(6);
#endif
    }
}

/* out[i, 0..num_cols) = sum over k of x[i, k] w[k, :], added to out when `add`. x has rows x_stride
 * apart; rows of out and w are contiguous, padded to 16 columns. */
__attribute__((unused)) static void small_gemm(float *out, size_t out_stride, const float *x,
                                               size_t x_stride, const float *w, size_t w_stride,
                                               int32_t num_rows, int32_t num_cols, int32_t num_k,
                                               bool add) {
    for (int32_t c = 0; c < num_cols; c += 16) {
        struct tile_w panel = {w + c, false, w_stride};
        for (int32_t i = 0; i < num_rows;) {
            int rows = tile_rows(num_rows - i);
            const float *row[TILE_ROWS];
            vf acc[TILE_ROWS][PARTS];
            for (int m = 0; m < rows; m++)
                row[m] = x + (size_t)(i + m) * x_stride;
            tile(rows, &panel, false, row, num_k, acc);
            for (int m = 0; m < rows; m++)
                for (int p = 0; p < PARTS; p++) {
                    float *dst = out + (size_t)(i + m) * out_stride + c + p * VL;
                    vf_store(dst, add ? vf_load(dst) + acc[m][p] : acc[m][p]);
                }
            i += rows;
        }
    }
}

#endif

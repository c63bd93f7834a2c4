/* The fp32 micro-kernel: M rows of x times up to two blocks of 16 columns of w, kept in registers.
 * Each output is one sum over k ascending, so M, the number of blocks and the ISA level do not show
 * in its bits. Used by matmuls, attention's P V and the DeltaNet chunks. */
#ifndef QEP_KERNELS_CPU_TILE_H
#define QEP_KERNELS_CPU_TILE_H

#include "kernels/cpu/simd.h"

#include <stdbool.h>
#include <stddef.h>

/* As many accumulators as the registers hold beside the operands. */
#if defined(__AVX512F__)
enum { TILE_ROWS = 8, TILE_BLOCKS = 2 };
#elif defined(__AVX2__)
enum { TILE_ROWS = 6, TILE_BLOCKS = 1 };
#else
enum { TILE_ROWS = 2, TILE_BLOCKS = 1 };
#endif

/* w as fp32 or bf16: element (k, column c) lies at k * k_stride + c / 16 * block_stride + c % 16.
 */
struct tile_w {
    const void *data;
    bool bf16;
    size_t k_stride, block_stride;
};

/* acc[m] gets 16 * BLOCKS sums; M, BLOCKS and BF16 are constants at every call. */
INLINE void tile_fixed(const int M, const int BLOCKS, const bool BF16, const struct tile_w *w,
                       const float *const *x, int32_t num_k, vf acc[][TILE_BLOCKS * PARTS]) {
    const int parts = BLOCKS * PARTS;
    vf sum[TILE_ROWS][TILE_BLOCKS * PARTS];
    const float *row[TILE_ROWS];
    const size_t k_stride = w->k_stride, block_stride = w->block_stride;
    for (int m = 0; m < M; m++) {
        row[m] = x[m];
        for (int p = 0; p < parts; p++)
            sum[m][p] = (vf){0};
    }
    for (size_t k = 0; k < (size_t)num_k; k++) {
        vf column[TILE_BLOCKS * PARTS];
        for (int p = 0; p < parts; p++) {
            size_t at =
                k * k_stride + (size_t)(p / PARTS) * block_stride + (size_t)(p % PARTS * VL);
            column[p] = BF16 ? vf_from_bf16((const uint16_t *)w->data + at)
                             : vf_load((const float *)w->data + at);
        }
        for (int m = 0; m < M; m++)
            for (int p = 0; p < parts; p++)
                sum[m][p] += column[p] * row[m][k];
    }
    for (int m = 0; m < M; m++)
        for (int p = 0; p < parts; p++)
            acc[m][p] = sum[m][p];
}

#define TILE_CASE(m)                                                                               \
    case m:                                                                                        \
        if (blocks == TILE_BLOCKS && w->bf16)                                                      \
            tile_fixed(m, TILE_BLOCKS, true, w, x, num_k, acc);                                    \
        else if (blocks == TILE_BLOCKS)                                                            \
            tile_fixed(m, TILE_BLOCKS, false, w, x, num_k, acc);                                   \
        else if (w->bf16)                                                                          \
            tile_fixed(m, 1, true, w, x, num_k, acc);                                              \
        else                                                                                       \
            tile_fixed(m, 1, false, w, x, num_k, acc);                                             \
        break

/* How many of `left` rows the next tile takes: one of the sizes compiled below. */
static inline int tile_rows(int32_t left) {
    if (left >= TILE_ROWS)
        return TILE_ROWS;
    return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

__attribute__((noinline, unused)) static void tile(int num_rows, int blocks, const struct tile_w *w,
                                                   const float *const *x, int32_t num_k,
                                                   vf acc[][TILE_BLOCKS * PARTS]) {
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

/* out[i, 0..num_cols) = sum over k of x[i, k] w[k, :], added to out when `add`, subtracted when
 * add < 0. x has rows x_stride apart; rows of out and w are contiguous, padded to 16 columns. */
__attribute__((unused)) static void small_gemm(float *out, size_t out_stride, const float *x,
                                               size_t x_stride, const float *w, size_t w_stride,
                                               int32_t num_rows, int32_t num_cols, int32_t num_k,
                                               int add) {
    int32_t num_blocks = (num_cols + 15) / 16;
    for (int32_t b = 0; b < num_blocks; b += TILE_BLOCKS) {
        int blocks = num_blocks - b < TILE_BLOCKS ? 1 : TILE_BLOCKS;
        struct tile_w panel = {w + (size_t)b * 16, false, w_stride, 16};
        for (int32_t i = 0; i < num_rows;) {
            int rows = tile_rows(num_rows - i);
            const float *row[TILE_ROWS];
            vf acc[TILE_ROWS][TILE_BLOCKS * PARTS];
            for (int m = 0; m < rows; m++)
                row[m] = x + (size_t)(i + m) * x_stride;
            tile(rows, blocks, &panel, row, num_k, acc);
            for (int m = 0; m < rows; m++) {
                float *dst = out + (size_t)(i + m) * out_stride + (size_t)b * 16;
                for (int p = 0; p < blocks * PARTS; p++) {
                    vf old = add != 0 ? vf_load(dst + p * VL) : (vf){0};
                    vf_store(dst + p * VL, add == 0  ? acc[m][p]
                                           : add > 0 ? old + acc[m][p]
                                                     : old - acc[m][p]);
                }
            }
            i += rows;
        }
    }
}

#endif

/* Packed weight matrices. Rows are kept in two halves side by side: tile i of 16 rows holds rows
 * 8 i .. 8 i + 7 ("first") and half + 8 i .. half + 8 i + 7 ("second"), half = ceil(rows / 2). In a
 * gate_up matrix [2 I, H] the second half is `up`, so one lane holds gate and up of the same unit.
 *
 * A tile runs over K in blocks of 64 columns (zero padded); a block is 1 (INT4), 2 (INT8), 4 (BF16)
 * or 8 (F32) loads of 16 bytes a lane, 512 bytes a warp. With g = lane / 4, t = lane % 4 a lane
 * holds columns 32 h + 8 t + 4 j + q (h, j in 0..1, q in 0..3) of rows g of both halves: two mma
 * k-steps (h, j) of 16 columns in an order of its own, the same for the activations, of which a
 * lane then takes 16 consecutive bytes per h. Where (half s, h, j, q) lies:
 *
 *   INT4  u = q + 8     load 0, word 2 h + j, nibble s + 2 (q / 2) + 4 (q % 2)
 *   INT8  u = q + 128   load h, word 2 j + q / 2, byte s + 2 (q % 2)
 *   BF16                load 2 h + j, word s + 2 (q / 2), half word q % 2
 *   F32                 load 4 h + 2 j + s, word q
 *
 * Scales: bf16 [num_tiles][num_groups][8][2], the pair being the two halves. */
#ifndef QEP_KERNELS_CUDA_WEIGHT_H
#define QEP_KERNELS_CUDA_WEIGHT_H

#include "kernels/weight.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_TILE_UNITS = 8, CUDA_BLOCK_COLS = 64, CUDA_LOAD_BYTES = 512, CUDA_GROUP_BYTES = 32 };

/* The shape, passed to kernels by value. */
struct cuda_matrix {
    enum qep_weight_type type;
    int32_t rows, cols;
    int32_t half;         /* ceil(rows / 2) */
    int32_t num_tiles;    /* ceil(half / 8) */
    int32_t num_blocks;   /* ceil(cols / 64) */
    int32_t group32;      /* columns of a scale group / 32; 1 for BF16 and F32 */
    uint32_t group_magic; /* k / group32 = k * magic >> 32; unused when group32 is 1 */
    int32_t num_groups;   /* 0 for BF16 and F32 */
};

struct qep_weight {
    struct cuda_matrix shape;
    void *data;   /* dev */
    void *scales; /* dev, NULL without */
};

static inline int32_t cuda_block_loads(enum qep_weight_type type) {
    return type == QEP_WEIGHT_INT4   ? 1
           : type == QEP_WEIGHT_INT8 ? 2
           : type == QEP_WEIGHT_BF16 ? 4
                                     : 8;
}

static inline size_t cuda_tile_bytes(const struct cuda_matrix *m) {
    return (size_t)m->num_blocks * (size_t)cuda_block_loads(m->type) * CUDA_LOAD_BYTES;
}

static inline size_t cuda_tile_scale_bytes(const struct cuda_matrix *m) {
    return (size_t)m->num_groups * CUDA_GROUP_BYTES;
}

#ifdef __cplusplus
}
#endif
#endif

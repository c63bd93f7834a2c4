/* Launchers of the matrix kernels. All pointers are device memory. */
#ifndef QEP_KERNELS_CUDA_MATMUL_H
#define QEP_KERNELS_CUDA_MATMUL_H

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/weight.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- repack.cu ---- */

/* Canonical rows of tiles tile0 .. tile0 + num_tiles: num_first rows of the first half, then
 * num_second of the second. */
struct cuda_repack_part {
    int32_t tile0, num_tiles, num_first, num_second;
    int32_t planes; /* bf16: the rows' high bytes, then their low bytes (kernels/weight.h) */
};

cudaError_t cuda_launch_repack(cudaStream_t stream, const struct cuda_matrix *m,
                               const struct cuda_repack_part *part, const void *from, void *data);
cudaError_t cuda_launch_repack_scales(cudaStream_t stream, const struct cuda_matrix *m,
                                      const struct cuda_repack_part *part, const void *from,
                                      void *scales);
cudaError_t cuda_launch_embed(cudaStream_t stream, const struct cuda_matrix *m, const void *data,
                              const void *scales, const int32_t *ids, int32_t n, float *out);

/* ---- matmul_decode.cu, matmul_prefill.cu, matmul_f32.cu ---- */

/* Products whose weights have the same type and scale groups. */
struct cuda_matmul {
    const struct qep_product *products; /* host */
    int32_t num;
    const void *act;
    size_t row_stride; /* bytes, a multiple of 16 */
    int32_t n;
    int32_t num_sms;
};

/* One launch for all products. */
cudaError_t cuda_launch_matmul_decode(cudaStream_t stream, const struct cuda_matmul *job);
/* The same in fp32 arithmetic, for F32 activations or F32 weights; one arithmetic for both phases.
 */
cudaError_t cuda_launch_matmul_f32(cudaStream_t stream, const struct cuda_matmul *job,
                                   enum qep_act_type act_type);
/* A launch for each. */
cudaError_t cuda_launch_matmul_prefill(cudaStream_t stream, const struct cuda_matmul *job);

/* ---- matmul_split.cu ---- */

/* F32 rows to three BF16 rows each, part_stride = qep_act_row_bytes(BF16, cols) apart; and the sums
 * of the three results [3 n, rows], to rows `first` .. first + n of the product. */
cudaError_t cuda_launch_split(cudaStream_t stream, const void *act, size_t row_stride, int32_t n,
                              int32_t cols, void *parts, size_t part_stride);
cudaError_t cuda_launch_join(cudaStream_t stream, const float *parts, int32_t first, int32_t n,
                             const struct qep_product *product);

#ifdef __cplusplus
}
#endif
#endif

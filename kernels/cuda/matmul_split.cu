/* fp32 activations on the tensor cores: a float is the sum of three bf16 (24 bits of mantissa), and
 * bf16 products are exact in fp32. Rows 3 i .. 3 i + 2 are the high, middle and low parts of row
 * i; the three results are added from the smallest on. */
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_args.cuh"

enum { SPLIT_THREADS = 256 };

static __global__ void split_kernel(gptr<const byte_t> act, size_t row_stride, int cols,
                                    gptr<byte_t> parts, size_t part_stride) {
    gptr<const float> x = gptr<const float>(act + blockIdx.x * row_stride);
    gptr<byte_t> first = parts + static_cast<size_t>(blockIdx.x) * 3 * part_stride;
    int padded = static_cast<int>(part_stride / 2);
    for (int c = threadIdx.x; c < padded; c += SPLIT_THREADS) {
        float rest = 0.0f;
        if (c < cols)
            rest = x[c];
#pragma unroll
        for (int p = 0; p < 3; p++) {
            gptr<uint16_t> part = gptr<uint16_t>(first + p * part_stride);
            uint16_t bits = to_bf16(rest);
            part[c] = bits;
            /* What is infinite or NaN has no rest. */
            rest = (bits & 0x7f80u) == 0x7f80u ? 0.0f : rest - from_bf16(bits);
        }
    }
}

extern "C" cudaError_t cuda_launch_split(cudaStream_t stream, const void *act, size_t row_stride,
                                         int32_t n, int32_t cols, void *parts, size_t part_stride) {
    return launch(split_kernel, dim3(n), dim3(SPLIT_THREADS), 0, stream,
                  static_cast<const byte_t *>(act), row_stride, cols, static_cast<byte_t *>(parts),
                  part_stride);
}

static __global__ void join_kernel(gptr<const float> parts, int first, product_store store) {
    int column = first + static_cast<int>(blockIdx.x), rows = store.rows;
    size_t from = static_cast<size_t>(blockIdx.x) * 3 * rows;
    float factor = store.factor(column);
    for (int r = threadIdx.x; r < rows; r += SPLIT_THREADS) {
        float high = parts[from + r], middle = parts[from + rows + r];
        float low = parts[from + 2 * static_cast<size_t>(rows) + r];
        store.put(r, column, factor, (low + middle) + high);
    }
}

extern "C" cudaError_t cuda_launch_join(cudaStream_t stream, const float *parts, int32_t first,
                                        int32_t n, const struct qep_product *product) {
    return launch(join_kernel, dim3(n), dim3(SPLIT_THREADS), 0, stream, parts, first,
                  store_of(product));
}

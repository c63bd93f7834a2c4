/* Device code that the two kernels of the chunked delta rule share. */
#ifndef QEP_KERNELS_CUDA_DELTA_CHUNK_DEVICE_H
#define QEP_KERNELS_CUDA_DELTA_CHUNK_DEVICE_H

#include "kernels/cuda/delta_chunk.h"
#include "kernels/cuda/delta_device.h"

/* The bits of x rounded to tf32, whose low 13 bits mma ignores; of a NaN, for which the sum would
 * be 0, those it has. */
__device__ __forceinline__ uint32_t tf32_bits(float x) {
    return x != x ? __float_as_uint(x) : __float_as_uint(x) + 0x1000u;
}
/* The same as a number. */
__device__ __forceinline__ float to_tf32(float x) {
    return x != x ? x : __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
}
/* As tf32_bits, for k and q as they came: their NaN may be lost, as their row's factors say it. */
__device__ __forceinline__ uint32_t tf32_bits_of_row(uint32_t x) {
    return x + 0x1000u;
}

/* Chunks of the spans before span `s`: where its own begin in the workspace. */
__device__ __forceinline__ size_t first_chunk(gptr<const qep_span> spans, int s) {
    size_t chunks = 0;
    for (int i = 0; i < s; i++) {
        qep_span span = spans[i];
        chunks += static_cast<size_t>((span.num_rows + DELTA_C - 1) / DELTA_C);
    }
    return chunks;
}

#endif

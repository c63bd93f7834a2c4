/* What mma.sync can do: independent chains of bf16 products in registers. */
#include "kernels/cuda/cu.h"

enum { CHAINS = 8, THREADS = 256, FLOPS_PER_MMA = 2 * 16 * 8 * 16 };

__global__ void mma_chains(gptr<float> out, int steps) {
    float sums[CHAINS][4] = {};
    uint32_t lane = threadIdx.x % 32, one = 0x3f803f80u; /* bf16 1, 1 */
    const uint32_t a[4] = {one ^ lane, one, one ^ (lane << 16), one};
    const uint32_t b[2] = {one, one ^ lane};
    for (int s = 0; s < steps; s++)
        for (int c = 0; c < CHAINS; c++)
            mma_bf16_16816(sums[c], a, b);
    float total = 0.0f;
    for (int c = 0; c < CHAINS; c++)
        for (int i = 0; i < 4; i++)
            total += sums[c][i];
    out[static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x)] = total;
}

extern "C" double bench_launch_mma(float *out, int blocks, int steps, cudaStream_t stream,
                                   cudaError_t *error) {
    *error = launch(mma_chains, dim3(static_cast<unsigned>(blocks)), dim3(THREADS), 0, stream, out,
                    steps);
    return static_cast<double>(blocks) * (THREADS / 32) * steps * CHAINS * FLOPS_PER_MMA;
}

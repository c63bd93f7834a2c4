/* Between two steps of a captured decode: positions move on, what was drawn comes in. */
#include "kernels/cuda/cu.h"
#include "kernels/cuda/sample.h"

namespace {

constexpr int THREADS = 256;

/* Several places of ids may name one flag, or flags of one word. */
__global__ void mark_seen(gptr<uint32_t> seen_words, int32_t slot, int32_t vocab_size,
                          gptr<const int32_t> ids, int32_t n, uint32_t bits) {
    int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= n)
        return;
    int32_t id = ids[i];
    if (id < 0 || id >= vocab_size)
        return;
    int64_t at = static_cast<int64_t>(slot) * vocab_size + id;
    atomicOr(seen_words + at / 4, bits << (8 * (at % 4)));
}

__global__ void advance(gptr<qep_span> spans, gptr<qep_device_draw> draws, gptr<int32_t> ids,
                        gptr<const int32_t> tokens, int32_t n) {
    int i = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (i >= n)
        return;
    int32_t token = tokens[i];
    qep_span span = spans[i];
    qep_device_draw draw = draws[i];
    span.position++;
    draw.position++;
    if (token < 0)
        span.slot = draw.slot = -1;
    spans[i] = span;
    draws[i] = draw;
    ids[i] = token;
}

dim3 blocks(int32_t n) {
    return dim3((static_cast<unsigned int>(n) + THREADS - 1) / THREADS);
}

} // namespace

cudaError_t cuda_launch_mark_seen(uint32_t *seen_words, int32_t slot, int32_t vocab_size,
                                  const int32_t *ids, int32_t n, uint8_t bits,
                                  cudaStream_t stream) {
    return launch(mark_seen, blocks(n), dim3(THREADS), 0, stream, seen_words, slot, vocab_size, ids,
                  n, bits);
}

cudaError_t cuda_launch_advance(struct qep_span *spans, struct qep_device_draw *draws, int32_t *ids,
                                const int32_t *tokens, int32_t n, cudaStream_t stream) {
    return launch(advance, blocks(n), dim3(THREADS), 0, stream, spans, draws, ids, tokens, n);
}

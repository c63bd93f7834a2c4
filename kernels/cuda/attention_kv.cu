/* Writes K (RMSNorm, RoPE) and V of new positions into the cache: a warp per row and KV head. */
#include "kernels/cuda/attention_device.h"
#include "kernels/cuda/int8.cuh"

namespace {

enum { WARPS = 4, PER_LANE = CUDA_MAX_HEAD_DIM / WARP };

/* x: element lane + 32 i of the head in x[i], zero beyond head_dim. */
__device__ __forceinline__ void kv_store_int8(void *block, int row, const float (&x)[PER_LANE],
                                              const cuda_attention_shape &shape) {
    int lane = static_cast<int>(threadIdx.x) % WARP;
    uint32_t magnitude = 0;
    for (int i = 0; i < PER_LANE; i++)
        magnitude = max(magnitude, magnitude_bits(x[i]));
    float scale = int8_scale(magnitude);
    gptr<int8_t> quants =
        gptr<int8_t>(static_cast<int8_t *>(block)) + static_cast<size_t>(row) * shape.head_dim;
    for (int i = 0; i < PER_LANE; i++)
        if (lane + WARP * i < shape.head_dim)
            quants[lane + WARP * i] = int8_code(x[i], scale);
    if (lane == 0) {
        size_t elements = 2 * static_cast<size_t>(QEP_KV_BLOCK) * shape.num_kv_heads *
                          static_cast<size_t>(shape.head_dim);
        gptr<float> scales(
            reinterpret_cast<float *>(static_cast<unsigned char *>(block) + elements));
        scales[row] = scale;
    }
}

template <int TYPE>
__device__ __forceinline__ void kv_store(void *block, int row, const float (&x)[PER_LANE],
                                         const cuda_attention_shape &shape) {
    if (TYPE == QEP_KV_INT8) {
        kv_store_int8(block, row, x, shape);
        return;
    }
    int lane = static_cast<int>(threadIdx.x) % WARP;
    size_t first = static_cast<size_t>(row) * static_cast<size_t>(shape.head_dim);
    for (int i = 0; i < PER_LANE; i++) {
        int d = lane + WARP * i;
        if (d >= shape.head_dim)
            continue;
        if (TYPE == QEP_KV_F32) {
            gptr<float> floats(static_cast<float *>(block));
            floats[first + d] = x[i];
        } else {
            gptr<uint16_t> halves(static_cast<uint16_t *>(block));
            halves[first + d] = to_bf16(x[i]);
        }
    }
}

template <int TYPE>
__global__ void __launch_bounds__(WARPS *WARP)
    attention_kv_kernel(cuda_attention_shape shape, cuda_rope rope, gptr<const qep_span> spans,
                        gptr<const float> k, gptr<const float> v, gptr<const float> k_norm,
                        gptr<void *const> blocks) {
    shared_arena arena;
    sptr<float> freq = arena.take<float>(CUDA_MAX_HEAD_DIM / 2);
    qep_span span = spans[blockIdx.y];
    for (int j = static_cast<int>(threadIdx.x); j < shape.rotary_dim / 2; j += WARPS * WARP)
        freq[j] = rope.freq[j];
    __syncthreads();
    int item = static_cast<int>(blockIdx.x) * WARPS + static_cast<int>(threadIdx.x) / WARP;
    int in_span = item / shape.num_kv_heads, head = item % shape.num_kv_heads;
    if (span.slot < 0 || in_span >= span.num_rows)
        return;
    int lane = static_cast<int>(threadIdx.x) % WARP, position = span.position + in_span;
    size_t at = (static_cast<size_t>(span.row0 + in_span) * shape.num_kv_heads + head) *
                static_cast<size_t>(shape.head_dim);
    void *block =
        blocks[static_cast<size_t>(span.slot) * shape.max_blocks + position / QEP_KV_BLOCK];
    int in_block = position % QEP_KV_BLOCK;
    float x[PER_LANE], inv = inverse_rms(k + at, shape.head_dim, shape.eps);
    for (int i = 0; i < PER_LANE; i++)
        x[i] = lane + WARP * i < shape.head_dim
                   ? norm_and_rotate(k + at, k_norm, inv, lane + WARP * i, shape.rotary_dim, freq,
                                     position)
                   : 0.0f;
    kv_store<TYPE>(block, kv_row(0, in_block, head, shape.num_kv_heads), x, shape);
    for (int i = 0; i < PER_LANE; i++) {
        x[i] = 0.0f;
        if (lane + WARP * i < shape.head_dim)
            x[i] = v[at + lane + WARP * i];
    }
    kv_store<TYPE>(block, kv_row(1, in_block, head, shape.num_kv_heads), x, shape);
}

} // namespace

extern "C" cudaError_t cuda_launch_attention_kv(cudaStream_t stream, enum qep_kv_type type,
                                                const struct cuda_attention_shape *shape,
                                                const struct cuda_rope *rope,
                                                const struct qep_span *dev_spans, int32_t num_spans,
                                                int32_t max_rows, const float *k, const float *v,
                                                const float *k_norm, void *const *blocks) {
    auto kernel = type == QEP_KV_F32    ? attention_kv_kernel<QEP_KV_F32>
                  : type == QEP_KV_BF16 ? attention_kv_kernel<QEP_KV_BF16>
                                        : attention_kv_kernel<QEP_KV_INT8>;
    dim3 grid(static_cast<unsigned>((max_rows * shape->num_kv_heads + WARPS - 1) / WARPS),
              static_cast<unsigned>(num_spans));
    return launch(kernel, grid, dim3(WARPS * WARP), CUDA_MAX_HEAD_DIM / 2 * sizeof(float), stream,
                  *shape, *rope, dev_spans, k, v, k_norm, blocks);
}

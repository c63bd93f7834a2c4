/* Softmax over all experts and the top k: a warp per row, the row's numbers in registers. */
#include "kernels/cuda/elementwise.h"

#include "kernels/cuda/warp.h"
#include "kernels/mathfn.h"

namespace {

enum { ROWS_PER_BLOCK = 4 };

/* What the lanes compare: the largest p, of equals the lower id. */
struct choice {
    float p;
    int id;
};

__device__ __forceinline__ choice better(choice a, choice b) {
    bool take_b = b.p > a.p || (b.p == a.p && b.id < a.id);
    return take_b ? b : a;
}

__device__ __forceinline__ choice warp_best(choice c) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        choice other;
        other.p = __shfl_xor_sync(0xffffffffu, c.p, step);
        other.id = __shfl_xor_sync(0xffffffffu, c.id, step);
        c = better(c, other);
    }
    return c;
}

/* Lane l holds experts l, l + 32, ...; NUM of them. NaN ranks below every number, what is taken
 * or beyond the last expert below NaN, so that ids are in range whatever the logits are; one that
 * is not finite makes all of the row's weights NaN. */
template <int NUM>
__global__ void __launch_bounds__(ROWS_PER_BLOCK *WARP)
    router_kernel(gptr<int32_t> topk_idx, gptr<float> topk_weights, gptr<const float> logits, int n,
                  int num_experts, int top_k, gptr<const qep_span> spans) {
    int lane = static_cast<int>(threadIdx.x) % WARP;
    int row = static_cast<int>(blockIdx.x) * ROWS_PER_BLOCK + static_cast<int>(threadIdx.x) / WARP;
    float p[NUM], max = -INFINITY;
    bool finite = true;
    if (row >= n)
        return;
    gptr<const float> in = logits + static_cast<size_t>(row) * static_cast<size_t>(num_experts);
    for (int i = 0; i < NUM; i++) {
        int e = lane + i * WARP;
        p[i] = -INFINITY;
        if (e < num_experts) {
            p[i] = in[e];
            finite = finite && is_finite(p[i]);
        }
        max = fmaxf(max, p[i]);
    }
    max = warp_max(max);
    finite = __all_sync(0xffffffffu, finite);
    for (int i = 0; i < NUM; i++) {
        float numerator = qep_expf(p[i] - max);
        p[i] = lane + i * WARP >= num_experts ? -2.0f : numerator >= 0.0f ? numerator : -1.0f;
    }
    float sum = 0.0f, mine = 0.0f;
    int mine_id = 0;
    for (int j = 0; j < top_k; j++) {
        choice c = {p[0], lane};
        for (int i = 1; i < NUM; i++)
            c = better(c, choice{p[i], lane + i * WARP});
        c = warp_best(c);
        for (int i = 0; i < NUM; i++)
            p[i] = lane + i * WARP == c.id ? -2.0f : p[i];
        sum += c.p;
        if (lane == j) {
            mine = c.p;
            mine_id = c.id;
        }
    }
    bool padding = false;
    if (spans)
        padding = qep_span(spans[row]).slot < 0;
    if (lane < top_k) {
        size_t at = static_cast<size_t>(row) * static_cast<size_t>(top_k) + lane;
        topk_idx[at] = padding ? -1 : mine_id;
        topk_weights[at] = finite ? mine / sum : qep_nanf();
    }
}

template <int NUM>
cudaError_t launch_router(cudaStream_t stream, int32_t *topk_idx, float *topk_weights,
                          const float *logits, int32_t n, int32_t num_experts, int32_t top_k,
                          const qep_span *dev_spans) {
    dim3 grid(static_cast<unsigned>((n + ROWS_PER_BLOCK - 1) / ROWS_PER_BLOCK));
    return launch(router_kernel<NUM>, grid, dim3(ROWS_PER_BLOCK * WARP), 0, stream, topk_idx,
                  topk_weights, logits, n, num_experts, top_k, dev_spans);
}

} // namespace

extern "C" cudaError_t cuda_launch_router_topk(cudaStream_t stream, int32_t *topk_idx,
                                               float *topk_weights, const float *logits, int32_t n,
                                               int32_t num_experts, int32_t top_k,
                                               const struct qep_span *dev_spans) {
    if (num_experts <= 2 * WARP)
        return launch_router<2>(stream, topk_idx, topk_weights, logits, n, num_experts, top_k,
                                dev_spans);
    if (num_experts <= 8 * WARP)
        return launch_router<8>(stream, topk_idx, topk_weights, logits, n, num_experts, top_k,
                                dev_spans);
    return launch_router<32>(stream, topk_idx, topk_weights, logits, n, num_experts, top_k,
                             dev_spans);
}

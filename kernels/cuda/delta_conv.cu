/* Causal depthwise convolution with SiLU, and the gated norm after the delta rule. */
#include "kernels/cuda/delta_device.h"

namespace {

enum { THREADS = 128, CONV_ROWS = 32 /* rows of a thread */ };

static_assert(static_cast<int>(CONV_ROWS) >= static_cast<int>(CUDA_MAX_CONV),
              "later tiles than the first need no state");

/* A thread per channel and CONV_ROWS rows; the one with the first rows alone reads the state, and
 * writes the new one afterwards. K: taps, 0 = any number of them. Grid: channels, row tiles,
 * spans. */
template <int K>
__global__ void __launch_bounds__(THREADS)
    conv_kernel(gptr<const qep_span> spans, int channels, int any_taps, gptr<float> out,
                gptr<const float> qkv, gptr<const float> weight, gptr<float> conv_state) {
    const int taps = K > 0 ? K : any_taps;
    constexpr int MOST = K > 0 ? K : CUDA_MAX_CONV;
    int c = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    int first = static_cast<int>(blockIdx.y) * CONV_ROWS;
    qep_span span = spans[blockIdx.z];
    if (c >= channels || first >= span.num_rows)
        return;
    size_t width = static_cast<size_t>(channels);
    gptr<const float> x = qkv + static_cast<size_t>(span.row0) * width + c;
    gptr<float> dst = out + static_cast<size_t>(span.row0) * width + c;
    int until = min(first + static_cast<int>(CONV_ROWS), span.num_rows);
    if (span.slot < 0) { /* padding */
        for (int r = first; r < until; r++)
            dst[static_cast<size_t>(r) * width] = 0.0f;
        return;
    }
    gptr<float> state = conv_state + static_cast<size_t>(span.slot) * taps * width + c;
    float w[MOST], window[MOST];
#pragma unroll
    for (int j = 0; j < MOST; j++) {
        int row = first + j - (taps - 1);
        w[j] = window[j] = 0.0f;
        if (j < taps)
            w[j] = weight[static_cast<size_t>(c) * taps + j];
        if (j < taps - 1 && row >= 0)
            window[j] = x[row * width];
        if (j < taps - 1 && row < 0)
            window[j] = state[conv_row(span.position + row, taps) * width];
    }
    for (int r = first; r < until; r++) {
        float newest = x[static_cast<size_t>(r) * width], sum = 0.0f;
#pragma unroll
        for (int j = 0; j < MOST; j++)
            if (j < taps - 1)
                sum += w[j] * window[j];
            else if (j == taps - 1)
                sum += w[j] * newest;
#pragma unroll
        for (int j = 0; j + 1 < MOST; j++)
            window[j] = j == taps - 2 ? newest : window[j + 1];
        dst[static_cast<size_t>(r) * width] = qep_siluf(sum);
    }
    for (int r = max(0, span.num_rows - taps); first == 0 && r < span.num_rows; r++) {
        float v = x[static_cast<size_t>(r) * width];
        state[conv_row(span.position + r, taps) * width] = v;
    }
}

/* out = w * rms(o) * silu(z), a warp per head. */
__global__ void __launch_bounds__(THREADS)
    norm_kernel(gptr<float> out, gptr<const float> o, gptr<const float> z, gptr<const float> w,
                size_t count, int width, float eps) {
    size_t item = static_cast<size_t>(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
    if (item >= count)
        return;
    int lane = static_cast<int>(threadIdx.x) % WARP;
    size_t at = item * static_cast<size_t>(width);
    float inv = inverse_rms(o + at, width, eps);
    for (int d = lane; d < width; d += WARP) {
        float v = o[at + d], gate = z[at + d], weight = w[d];
        out[at + d] = gated_norm(v, inv, weight, qep_siluf(gate));
    }
}

} // namespace

extern "C" cudaError_t cuda_launch_delta_conv(cudaStream_t stream, const struct qep_span *dev_spans,
                                              int32_t num_spans, int32_t max_rows, int32_t channels,
                                              int32_t kernel, float *out, const float *qkv,
                                              const float *weight, float *conv_state) {
    dim3 grid(static_cast<unsigned>((channels + THREADS - 1) / THREADS),
              static_cast<unsigned>((max_rows + CONV_ROWS - 1) / CONV_ROWS),
              static_cast<unsigned>(num_spans));
    return launch(kernel == 4 ? conv_kernel<4> : conv_kernel<0>, grid, dim3(THREADS), 0, stream,
                  dev_spans, channels, kernel, out, qkv, weight, conv_state);
}

extern "C" cudaError_t cuda_launch_delta_norm(cudaStream_t stream, float *out, const float *o,
                                              const float *z, const float *w, size_t count,
                                              int32_t width, float eps) {
    dim3 grid(static_cast<unsigned>((count + THREADS / WARP - 1) / (THREADS / WARP)));
    return launch(norm_kernel, grid, dim3(THREADS), 0, stream, out, o, z, w, count, width, eps);
}

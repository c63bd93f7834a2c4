/* RMSNorm, activation rows, SwiGLU. Rows whose length is a multiple of 4 move in 16
 * bytes; which way is taken follows from the shape. Rows are the grid's x, which has no limit that
 * matters. */
#include "kernels/cuda/elementwise.h"

#include "kernels/cuda/int8.cuh"
#include "kernels/cuda/rows_out.cuh"
#include "kernels/mathfn.h"

namespace {

enum { THREADS = 256 };

/* Of the row blockIdx.x. */
__device__ __forceinline__ int piece_of_row() {
    return static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
}

dim3 blocks_for(size_t threads) {
    return dim3(static_cast<unsigned>((threads + THREADS - 1) / THREADS));
}

/* x[c], or 0 beyond the row. */
__device__ __forceinline__ float at_or_zero(gptr<const float> row, int c, int cols) {
    if (c >= cols)
        return 0.0f;
    return row[c];
}

__device__ __forceinline__ float4 four_or_zero(gptr<const float> row, int c, int cols) {
    if (cols % 4 == 0)
        return c < cols ? as_floats(load16(row + c)) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return make_float4(at_or_zero(row, c, cols), at_or_zero(row, c + 1, cols),
                       at_or_zero(row, c + 2, cols), at_or_zero(row, c + 3, cols));
}

/* ---- RMSNorm: a block per row ---- */

__device__ __forceinline__ float4 scaled(float4 x, float inv, float4 w) {
    return make_float4(x.x * inv * w.x, x.y * inv * w.y, x.z * inv * w.z, x.w * inv * w.w);
}

__global__ void __launch_bounds__(THREADS)
    rms_norm_kernel(rows_out out, gptr<const float> x, gptr<const float> w, int cols, float eps) {
    shared_arena arena;
    sptr<float> part = arena.take<float>(THREADS / WARP);
    x = x + static_cast<size_t>(blockIdx.x) * static_cast<size_t>(cols);
    int quads = cols % 4 == 0 ? cols / 4 : 0;
    float sum = 0.0f;
    for (int i = static_cast<int>(threadIdx.x); i < quads; i += THREADS) {
        float4 v = as_floats(load16(x + 4 * i));
        sum = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, sum))));
    }
    for (int i = 4 * quads + static_cast<int>(threadIdx.x); i < cols; i += THREADS) {
        float v = x[i];
        sum = fmaf(v, v, sum);
    }
    float inv = inverse_root(block_sum(sum, part) / static_cast<float>(cols) + eps);
    for (int c = 8 * static_cast<int>(threadIdx.x); c < cols; c += 8 * THREADS) {
        float4 a = scaled(four_or_zero(x, c, cols), inv, four_or_zero(w, c, cols));
        float4 b = scaled(four_or_zero(x, c + 4, cols), inv, four_or_zero(w, c + 4, cols));
        out.put8(blockIdx.x, c, cols, a, b);
    }
}

/* ---- activation rows: a thread per 16 bytes, a warp per int8 group ---- */

__global__ void __launch_bounds__(THREADS)
    act_f32_kernel(gptr<uint8_t> out, size_t row_stride, gptr<const float> x, int cols) {
    int piece = piece_of_row();
    gptr<const float> row = x + static_cast<size_t>(blockIdx.x) * static_cast<size_t>(cols);
    if (4 * piece < cols)
        store16(out + blockIdx.x * row_stride + 16 * static_cast<size_t>(piece),
                as_bits(four_or_zero(row, 4 * piece, cols)));
}

__global__ void __launch_bounds__(THREADS)
    act_bf16_kernel(gptr<uint8_t> out, size_t row_stride, gptr<const float> x, int cols) {
    int piece = piece_of_row();
    gptr<const float> row = x + static_cast<size_t>(blockIdx.x) * static_cast<size_t>(cols);
    if (8 * piece >= cols)
        return;
    float4 a = four_or_zero(row, 8 * piece, cols), b = four_or_zero(row, 8 * piece + 4, cols);
    store16(out + blockIdx.x * row_stride + 16 * static_cast<size_t>(piece),
            make_uint4(pack_bf16x2(a.x, a.y), pack_bf16x2(a.z, a.w), pack_bf16x2(b.x, b.y),
                       pack_bf16x2(b.z, b.w)));
}

__global__ void __launch_bounds__(THREADS)
    act_int8_kernel(gptr<uint8_t> out, size_t row_stride, gptr<const float> x, int cols) {
    int groups = (cols + QEP_ACT_GROUP - 1) / QEP_ACT_GROUP;
    int group = piece_of_row() / WARP, lane = static_cast<int>(threadIdx.x) % WARP;
    size_t row = blockIdx.x * row_stride, end = row + static_cast<size_t>(groups) * 36;
    if (group == groups) { /* padding of the row */
        if (lane < (16 - groups * 36 % 16) % 16)
            out[end + lane] = 0;
    }
    if (group >= groups)
        return;
    float v = at_or_zero(x + static_cast<size_t>(blockIdx.x) * static_cast<size_t>(cols),
                         group * QEP_ACT_GROUP + lane, cols);
    float scale = int8_scale(magnitude_bits(v));
    out[row + group * QEP_ACT_GROUP + lane] = static_cast<uint8_t>(int8_code(v, scale));
    if (lane == 0)
        store4(out + row + groups * QEP_ACT_GROUP + 4 * group, __float_as_uint(scale));
}

/* ---- element-wise ---- */

__device__ __forceinline__ float swiglu_of(float gate, float up) {
    return qep_siluf(gate) * up;
}

__device__ __forceinline__ float4 swiglu_of(float4 g, float4 u) {
    return make_float4(swiglu_of(g.x, u.x), swiglu_of(g.y, u.y), swiglu_of(g.z, u.z),
                       swiglu_of(g.w, u.w));
}

/* A thread per eight columns. */
__global__ void __launch_bounds__(THREADS)
    swiglu_kernel(rows_out out, gptr<const float> gate, gptr<const float> up, int cols) {
    int c = 8 * piece_of_row();
    size_t row = static_cast<size_t>(blockIdx.x) * static_cast<size_t>(cols);
    if (c >= cols)
        return;
    float4 a = swiglu_of(four_or_zero(gate + row, c, cols), four_or_zero(up + row, c, cols));
    float4 b =
        swiglu_of(four_or_zero(gate + row, c + 4, cols), four_or_zero(up + row, c + 4, cols));
    out.put8(blockIdx.x, c, cols, a, b);
}

dim3 row_grid(int32_t pieces, int32_t n) {
    return dim3(static_cast<unsigned>(n), blocks_for(static_cast<size_t>(pieces)).x);
}

} // namespace

extern "C" cudaError_t cuda_launch_rms_norm(cudaStream_t stream, const struct qep_rows_out *out,
                                            const float *x, const float *w, int32_t n, int32_t cols,
                                            float eps) {
    return launch(rms_norm_kernel, dim3(static_cast<unsigned>(n)), dim3(THREADS),
                  THREADS / WARP * sizeof(float), stream, rows_out_of(*out), x, w, cols, eps);
}

extern "C" cudaError_t cuda_launch_act_f32(cudaStream_t stream, void *out, size_t row_stride,
                                           const float *x, int32_t n, int32_t cols) {
    return launch(act_f32_kernel, row_grid((cols + 3) / 4, n), dim3(THREADS), 0, stream,
                  static_cast<uint8_t *>(out), row_stride, x, cols);
}

extern "C" cudaError_t cuda_launch_act_bf16(cudaStream_t stream, void *out, size_t row_stride,
                                            const float *x, int32_t n, int32_t cols) {
    return launch(act_bf16_kernel, row_grid((cols + 7) / 8, n), dim3(THREADS), 0, stream,
                  static_cast<uint8_t *>(out), row_stride, x, cols);
}

extern "C" cudaError_t cuda_launch_act_int8(cudaStream_t stream, void *out, size_t row_stride,
                                            const float *x, int32_t n, int32_t cols) {
    int32_t groups = (cols + QEP_ACT_GROUP - 1) / QEP_ACT_GROUP;
    return launch(act_int8_kernel, row_grid((groups + 1) * WARP, n), dim3(THREADS), 0, stream,
                  static_cast<uint8_t *>(out), row_stride, x, cols);
}

extern "C" cudaError_t cuda_launch_swiglu(cudaStream_t stream, const struct qep_rows_out *out,
                                          const float *gate, const float *up, int32_t n,
                                          int32_t cols) {
    /* Rows of experts are short: no block has warps without work. */
    int32_t pieces = (cols + 7) / 8, warps = (pieces + WARP - 1) / WARP;
    int32_t threads = warps * WARP < THREADS ? warps * WARP : static_cast<int32_t>(THREADS);
    dim3 grid(static_cast<unsigned>(n), static_cast<unsigned>((pieces + threads - 1) / threads));
    return launch(swiglu_kernel, grid, dim3(static_cast<unsigned>(threads)), 0, stream,
                  rows_out_of(*out), gate, up, cols);
}

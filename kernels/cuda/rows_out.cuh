/* qep_rows_out as kernels see it: f32 rows, bf16 activation rows, or both in one pass. */
#ifndef QEP_KERNELS_CUDA_ROWS_OUT_CUH
#define QEP_KERNELS_CUDA_ROWS_OUT_CUH

#include "kernels/cuda/warp.h"

struct rows_out {
    gptr<float> f32;    /* [n, cols] or NULL */
    gptr<uint16_t> act; /* or NULL */
    size_t act_stride;  /* elements */

    /* Columns c .. c + 8 of a row, c a multiple of 8; what lies beyond cols becomes padding. */
    __device__ __forceinline__ void put8(size_t row, int c, int cols, float4 a, float4 b) const {
        float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        if (f32)
            put_f32(row * static_cast<size_t>(cols), c, cols, a, b);
        if (!act)
            return;
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = c + i < cols ? v[i] : 0.0f;
        store16(act + row * act_stride + c,
                make_uint4(pack_bf16x2(v[0], v[1]), pack_bf16x2(v[2], v[3]),
                           pack_bf16x2(v[4], v[5]), pack_bf16x2(v[6], v[7])));
    }

    /* One element; the last one of a row brings the padding. */
    __device__ __forceinline__ void put(size_t row, int c, int cols, float v) const {
        if (f32)
            f32[row * static_cast<size_t>(cols) + c] = v;
        if (!act)
            return;
        act[row * act_stride + c] = to_bf16(v);
        for (int i = cols; c + 1 == cols && i % 8 != 0; i++)
            act[row * act_stride + i] = 0;
    }

  private:
    __device__ __forceinline__ void put_f32(size_t first, int c, int cols, float4 a,
                                            float4 b) const {
        float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        if (cols % 4 == 0) {
            store16(f32 + first + c, as_bits(a));
            if (c + 4 < cols)
                store16(f32 + first + c + 4, as_bits(b));
            return;
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (c + i < cols)
                f32[first + c + i] = v[i];
    }
};

/* act of another type than bf16 is not the kernel's. */
static inline rows_out rows_out_of(const struct qep_rows_out &out) {
    return {out.f32,
            out.act_type == QEP_ACT_BF16 ? static_cast<uint16_t *>(out.act)
                                         : static_cast<uint16_t *>(nullptr),
            out.act_stride / sizeof(uint16_t)};
}

#endif

/* What the plain matmul kernels of both phases share. */
#ifndef QEP_KERNELS_CUDA_MATMUL_ARGS_CUH
#define QEP_KERNELS_CUDA_MATMUL_ARGS_CUH

#include "kernels/cuda/packed.cuh"

/* Activation rows one after the other. */
struct plain_columns {
    gptr<const byte_t> act;
    size_t row_stride;
    __device__ __forceinline__ gptr<const byte_t> operator()(int column) const {
        return act + static_cast<size_t>(column) * row_stride;
    }
};

struct matmul_store {
    gptr<float> out;
    int rows, half;
    __device__ __forceinline__ void operator()(int unit, int column, float first,
                                               float second) const {
        size_t row = static_cast<size_t>(column) * rows;
        if (unit < half)
            out[row + unit] = first;
        if (unit < half && half + unit < rows)
            out[row + half + unit] = second;
    }
};

#endif

/* What kernels are written in: CUDA C++ under nvcc, the same words under g++ with the emulator of
 * tests/cuda_emu (QEP_CUDA_EMU). Kernels use CUDA's own names (__global__, threadIdx,
 * __syncthreads, __syncwarp, __shfl_xor_sync, __threadfence, atomicAdd, ...) and, so that the
 * emulator sees every access:
 *
 *   global memory    kernel parameters and locals of type gptr<T>; never a bare T* to device memory
 *   shared memory    only dynamic, handed out by shared_arena as sptr<T>; no __shared__ variables
 *   16-byte moves    load16 / store16 / load16_stream, cp_async16
 *   PTX              only the wrappers below
 *   launches         launch(kernel, grid, block, shared bytes, stream, arguments...)
 *
 * Element accesses are p[i]; reading and writing through them is checked under the emulator (a
 * bound reference is a proxy there: write `float v = p[i];`, not `auto v = p[i];`). Compiled with
 * -fmad=false: what is contracted says fmaf. */
#ifndef QEP_KERNELS_CUDA_CU_H
#define QEP_KERNELS_CUDA_CU_H

#include "kernels/backend.h"
#include "kernels/cuda/launch_watch.h"

#ifdef QEP_CUDA_EMU
#include "cuda_emu/emu.h"
#else

#include <cuda_runtime.h>

#endif

/* After a launch that was taken, whoever watches; the arguments are those of launch(). */
template <class Kernel, class... Args>
static inline cudaError_t tell_launch(cudaError_t error, Kernel *kernel, dim3 grid, dim3 block,
                                      size_t shared, cudaStream_t, const Args &...) {
    const cuda_launch told = {reinterpret_cast<const void *>(kernel),
                              {grid.x, grid.y, grid.z},
                              {block.x, block.y, block.z},
                              shared};
    if (error == cudaSuccess)
        cuda_launched(&told);
    return error;
}

#ifdef QEP_CUDA_EMU
#define launch(...) tell_launch(emu::launcher{#__VA_ARGS__, EMU_HERE}(__VA_ARGS__), __VA_ARGS__)
#else

#include <cuda_bf16.h>

template <class T> using gptr = T *;
template <class T> using sptr = T *;

/* Hands out the block's dynamic shared memory; every thread of the block makes the same calls.
 * take: `count` elements, 16-byte aligned. */
struct shared_arena {
    unsigned char *at;
    __device__ __forceinline__ shared_arena() {
        extern __shared__ __align__(16) unsigned char qep_dynamic_shared[];
        at = qep_dynamic_shared;
    }
    template <class T> __device__ __forceinline__ sptr<T> take(int count) {
        T *p = reinterpret_cast<T *>(at);
        at += (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
        return p;
    }
};

/* 16 bytes at an address aligned to 16; T is any element type. */
template <class T> __device__ __forceinline__ uint4 load16(const T *p) {
    return *reinterpret_cast<const uint4 *>(p);
}
template <class T> __device__ __forceinline__ uint2 load8(const T *p) {
    return *reinterpret_cast<const uint2 *>(p);
}
template <class T> __device__ __forceinline__ uint32_t load4(const T *p) {
    return *reinterpret_cast<const uint32_t *>(p);
}
template <class T> __device__ __forceinline__ void store16(T *p, uint4 v) {
    *reinterpret_cast<uint4 *>(p) = v;
}
template <class T> __device__ __forceinline__ void store8(T *p, uint2 v) {
    *reinterpret_cast<uint2 *>(p) = v;
}
template <class T> __device__ __forceinline__ void store4(T *p, uint32_t v) {
    *reinterpret_cast<uint32_t *>(p) = v;
}
/* The same for data read once by the whole grid (weights), from global memory that no thread of
 * the launch writes: past L1, first to leave L2. */
template <class T> __device__ __forceinline__ uint4 load16_stream(const T *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
/* A hint that the 128 bytes around p are wanted in L2 soon. */
template <class T> __device__ __forceinline__ void prefetch_l2(const T *p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

/* Global to shared, 16 bytes; the last 16 - bytes of them become zero (bytes 0: nothing is read).
 * Visible to this thread after cp_async_wait, to others after a barrier behind that. */
template <class T>
__device__ __forceinline__ void cp_async16(T *dst, const T *src, int bytes = 16) {
    uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(dst));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(src), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Until at most N of this thread's newest groups are still under way. */
template <int N> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8. */
template <class T> __device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const T *row) {
    uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
template <class T>
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const T *row) {
    uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* d[16x8] += a[16x16] b[16x8], bf16 inputs, f32 sums; fragments as PTX has them: with g = lane / 4,
 * t = lane % 4:  a0 (g, 2t..) a1 (g + 8, 2t..) a2 (g, 2t + 8..) a3 (g + 8, 2t + 8..);  b0 (k 2t..,
 * n g) b1 (k 2t + 8.., n g);  d0 d1 (g, 2t 2t + 1) d2 d3 (g + 8, 2t 2t + 1). All lanes take part.
 */
__device__ __forceinline__ void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* The same shape m16n8k8 on tf32 inputs (f32 bit patterns, low 13 bits ignored): a0 (g, t) a1 (g +
 * 8, t) a2 (g, t + 4) a3 (g + 8, t + 4); b0 (k t, n g) b1 (k t + 4, n g); d as above. */
__device__ __forceinline__ void mma_tf32_1688(float (&d)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* bf16 as bit patterns (uint16_t), two of them packed in a uint32_t (lower index in the low half).
 */
__device__ __forceinline__ uint32_t pack_bf16x2(float lo, float hi) {
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<uint32_t *>(&v);
}
__device__ __forceinline__ uint16_t to_bf16(float v) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(v));
}
__device__ __forceinline__ float from_bf16(uint16_t v) {
    return __uint_as_float(static_cast<uint32_t>(v) << 16);
}
__device__ __forceinline__ float bf16x2_lo(uint32_t v) {
    return __uint_as_float(v << 16);
}
__device__ __forceinline__ float bf16x2_hi(uint32_t v) {
    return __uint_as_float(v & 0xffff0000u);
}
__device__ __forceinline__ uint32_t sub_bf16x2(uint32_t a, uint32_t b) {
    __nv_bfloat162 v =
        __hsub2(*reinterpret_cast<__nv_bfloat162 *>(&a), *reinterpret_cast<__nv_bfloat162 *>(&b));
    return *reinterpret_cast<uint32_t *>(&v);
}
__device__ __forceinline__ uint32_t add_bf16x2(uint32_t a, uint32_t b) {
    __nv_bfloat162 v =
        __hadd2(*reinterpret_cast<__nv_bfloat162 *>(&a), *reinterpret_cast<__nv_bfloat162 *>(&b));
    return *reinterpret_cast<uint32_t *>(&v);
}

/* Raises the kernel's limit on dynamic shared memory to all that the device has, so that threads
 * with launches of different sizes do not lower each other's; once per thread, device and kernel,
 * as the call takes as long as a launch. */
static inline cudaError_t raise_shared_limit(const void *kernel) {
    struct raised {
        const void *kernel;
        int device;
    };
    static thread_local raised table[64];
    int device = 0, most = 0;
    cudaError_t e = cudaGetDevice(&device);
    raised &known = table[(reinterpret_cast<uintptr_t>(kernel) >> 4) % 64];
    if (e != cudaSuccess || (known.kernel == kernel && known.device == device))
        return e;
    e = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (e == cudaSuccess)
        known = {kernel, device};
    return e;
}

/* kernel<<<grid, block, shared, stream>>>(args...), with the limit on dynamic shared memory raised
 * where it is needed. */
template <class... Params, class... Args>
static inline cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared,
                                 cudaStream_t stream, Args... args) {
    if (shared > 48 * 1024) {
        cudaError_t e = raise_shared_limit(reinterpret_cast<const void *>(kernel));
        if (e != cudaSuccess)
            return e;
    }
    kernel<<<grid, block, shared, stream>>>(static_cast<Params>(args)...);
    return tell_launch(cudaGetLastError(), kernel, grid, block, shared, stream);
}

#endif
#endif

/* Barriers, shuffles and votes. */
#ifndef QEP_CUDA_EMU_WARP_H
#define QEP_CUDA_EMU_WARP_H

#include "cuda_emu/pointers.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

static inline void __syncthreads(emu::site at = EMU_HERE) {
    emu::block_barrier(at);
}
static inline void __syncwarp(unsigned int mask = emu::full_mask, emu::site at = EMU_HERE) {
    emu::warp_barrier(mask, at);
}
static inline void __threadfence() {
    emu::device_fence();
}
static inline void __threadfence_system() {
    emu::device_fence();
}
static inline void __threadfence_block() {
}
/* Barrier and vote in one; true for all threads, any thread, and the count. */
int __syncthreads_and(int predicate, emu::site at = EMU_HERE);
int __syncthreads_or(int predicate, emu::site at = EMU_HERE);
int __syncthreads_count(int predicate, emu::site at = EMU_HERE);

unsigned int __ballot_sync(unsigned int mask, int predicate, emu::site at = EMU_HERE);
int __any_sync(unsigned int mask, int predicate, emu::site at = EMU_HERE);
int __all_sync(unsigned int mask, int predicate, emu::site at = EMU_HERE);
unsigned int __activemask();

namespace emu {
/* The value of lane `from`; it must take part. */
uint64_t shuffle(const char *name, uint32_t mask, uint64_t v, uint32_t from, site at);
/* Which lane each form reads. */
uint32_t shuffle_index(int lane, int width);
uint32_t shuffle_xor(int lanes, int width);
uint32_t shuffle_up(unsigned int delta, int width);
uint32_t shuffle_down(unsigned int delta, int width);
uint32_t reduce(const char *name, uint32_t mask, uint32_t v, uint32_t (*op)(uint32_t, uint32_t),
                site at);

template <class T> inline T shuffled(const char *name, uint32_t mask, T v, uint32_t from, site at) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "32 or 64 bits");
    uint64_t raw = 0;
    memcpy(&raw, &v, sizeof v);
    raw = shuffle(name, mask, raw, from, at);
    memcpy(&v, &raw, sizeof v);
    return v;
}
} // namespace emu

#define EMU_SHUFFLES(type)                                                                         \
    static inline type __shfl_sync(unsigned int mask, type v, int lane, int width = 32,            \
                                   emu::site at = EMU_HERE) {                                      \
        return emu::shuffled("__shfl_sync", mask, v, emu::shuffle_index(lane, width), at);         \
    }                                                                                              \
    static inline type __shfl_xor_sync(unsigned int mask, type v, int lanes, int width = 32,       \
                                       emu::site at = EMU_HERE) {                                  \
        return emu::shuffled("__shfl_xor_sync", mask, v, emu::shuffle_xor(lanes, width), at);      \
    }                                                                                              \
    static inline type __shfl_up_sync(unsigned int mask, type v, unsigned int delta,               \
                                      int width = 32, emu::site at = EMU_HERE) {                   \
        return emu::shuffled("__shfl_up_sync", mask, v, emu::shuffle_up(delta, width), at);        \
    }                                                                                              \
    static inline type __shfl_down_sync(unsigned int mask, type v, unsigned int delta,             \
                                        int width = 32, emu::site at = EMU_HERE) {                 \
        return emu::shuffled("__shfl_down_sync", mask, v, emu::shuffle_down(delta, width), at);    \
    }
EMU_SHUFFLES(int)
EMU_SHUFFLES(unsigned int)
EMU_SHUFFLES(long)
EMU_SHUFFLES(unsigned long)
EMU_SHUFFLES(long long)
EMU_SHUFFLES(unsigned long long)
EMU_SHUFFLES(float)
EMU_SHUFFLES(double)
#undef EMU_SHUFFLES

unsigned int __reduce_add_sync(unsigned int mask, unsigned int v, emu::site at = EMU_HERE);
int __reduce_add_sync(unsigned int mask, int v, emu::site at = EMU_HERE);
unsigned int __reduce_max_sync(unsigned int mask, unsigned int v, emu::site at = EMU_HERE);
int __reduce_max_sync(unsigned int mask, int v, emu::site at = EMU_HERE);
unsigned int __reduce_min_sync(unsigned int mask, unsigned int v, emu::site at = EMU_HERE);
int __reduce_min_sync(unsigned int mask, int v, emu::site at = EMU_HERE);
unsigned int __reduce_or_sync(unsigned int mask, unsigned int v, emu::site at = EMU_HERE);

#endif

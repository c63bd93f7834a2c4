/* cu.h's wrappers: wide moves, cp.async, ldmatrix, mma. */
#ifndef QEP_CUDA_EMU_PTX_H
#define QEP_CUDA_EMU_PTX_H

#include "cuda_emu/pointers.h"

namespace emu {
template <class T> struct is_pointer : std::false_type {};
template <class T> struct is_pointer<gptr<T>> : std::true_type {};
template <class T> struct is_pointer<sptr<T>> : std::true_type {};
template <class P> using if_pointer = std::enable_if_t<is_pointer<P>::value, int>;

void cp_async(allocation &to, intptr_t to_off, allocation &from, intptr_t from_off, int bytes);
void cp_async_commit();
void cp_async_wait(uint32_t pending);
void ldmatrix(uint32_t (&r)[4], allocation &row, intptr_t off, bool trans, site at);
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], site at);
void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], site at);
} // namespace emu

template <class P, emu::if_pointer<P> = 0> inline uint4 load16(P p) {
    return emu::read<uint4>(p.in(), p.offset());
}
template <class P, emu::if_pointer<P> = 0> inline uint2 load8(P p) {
    return emu::read<uint2>(p.in(), p.offset());
}
template <class P, emu::if_pointer<P> = 0> inline uint32_t load4(P p) {
    return emu::read<uint32_t>(p.in(), p.offset());
}
template <class P, emu::if_pointer<P> = 0> inline void store16(P p, uint4 v) {
    emu::write<uint4>(p.in(), p.offset(), v);
}
template <class P, emu::if_pointer<P> = 0> inline void store8(P p, uint2 v) {
    emu::write<uint2>(p.in(), p.offset(), v);
}
template <class P, emu::if_pointer<P> = 0> inline void store4(P p, uint32_t v) {
    emu::write<uint32_t>(p.in(), p.offset(), v);
}
template <class T> inline uint4 load16_stream(gptr<T> p) {
    return emu::read<uint4>(p.in(), p.offset());
}
template <class T> inline T __ldg(gptr<const T> p) {
    return *p;
}
template <class T, std::enable_if_t<!std::is_const<T>::value, int> = 0> inline T __ldg(gptr<T> p) {
    return *p;
}
template <class T> inline void prefetch_l2(gptr<T>) {
}

template <class T, class U> inline void cp_async16(sptr<T> dst, gptr<U> src, int bytes = 16) {
    emu::cp_async(dst.in(), dst.offset(), src.in(), src.offset(), bytes);
}
static inline void cp_async_commit() {
    emu::cp_async_commit();
}
template <int N> inline void cp_async_wait() {
    emu::cp_async_wait(N);
}

template <class T> inline void ldmatrix_x4(uint32_t (&r)[4], sptr<T> row, emu::site at = EMU_HERE) {
    emu::ldmatrix(r, row.in(), row.offset(), false, at);
}
template <class T>
inline void ldmatrix_x4_trans(uint32_t (&r)[4], sptr<T> row, emu::site at = EMU_HERE) {
    emu::ldmatrix(r, row.in(), row.offset(), true, at);
}
static inline void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                  emu::site at = EMU_HERE) {
    emu::mma_bf16(d, a, b, at);
}
static inline void mma_tf32_1688(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                 emu::site at = EMU_HERE) {
    emu::mma_tf32(d, a, b, at);
}

#endif

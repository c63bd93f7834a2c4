/* Atomics on elements of global and shared memory: atomicAdd(p + i, v). */
#ifndef QEP_CUDA_EMU_ATOMICS_H
#define QEP_CUDA_EMU_ATOMICS_H

#include "cuda_emu/pointers.h"

namespace emu {
/* The bytes, after the checks and a chance for other threads to come first. */
void *atomic_at(allocation &a, intptr_t off, size_t size);

template <class T, class P, class F> inline T atomic(const P &p, F change) {
    T *at = static_cast<T *>(atomic_at(p.in(), p.offset(), sizeof(T)));
    T old = *at;
    *at = static_cast<T>(change(old));
    return old;
}
} // namespace emu

#define EMU_ATOMIC_ON(pointer, name, expression)                                                   \
    template <class T, class V> inline T name(pointer<T> p, V v_) {                                \
        T v = static_cast<T>(v_);                                                                  \
        return emu::atomic<T>(p, [v](T old) { return expression; });                               \
    }
#define EMU_ATOMIC(name, expression)                                                               \
    EMU_ATOMIC_ON(gptr, name, expression)                                                          \
    EMU_ATOMIC_ON(sptr, name, expression)
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicSub, old - v)
EMU_ATOMIC(atomicMax, old < v ? v : old)
EMU_ATOMIC(atomicMin, v < old ? v : old)
EMU_ATOMIC(atomicAnd, old &v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicXor, old ^ v)
EMU_ATOMIC(atomicExch, ((void)old, v))
EMU_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
#undef EMU_ATOMIC
#undef EMU_ATOMIC_ON

template <class T> inline T atomicCAS(gptr<T> p, T expected, T v) {
    return emu::atomic<T>(p, [=](T old) { return old == expected ? v : old; });
}
template <class T> inline T atomicCAS(sptr<T> p, T expected, T v) {
    return emu::atomic<T>(p, [=](T old) { return old == expected ? v : old; });
}

#endif

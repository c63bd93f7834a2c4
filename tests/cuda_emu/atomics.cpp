#include "cuda_emu/atomics.h"
#include "cuda_emu/internal.h"

namespace emu {

void *atomic_at(allocation &a, intptr_t off, size_t size) {
    may_yield();
    note_atomic();
    if (off < 0 || static_cast<size_t>(off) + size > a.limit ||
        (a.lo + static_cast<uintptr_t>(off)) % size)
        out_of_bounds(a, off, size, "an atomic on");
    check_atomic(a, static_cast<size_t>(off), size);
    atomic_order(a, static_cast<size_t>(off));
    return a.data + off;
}

} // namespace emu

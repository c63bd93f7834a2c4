#include "base/progress.h"

#include <stdatomic.h>

static _Alignas(64) atomic_ullong count;
static _Alignas(64) atomic_int outside;

void qep_progress(size_t bytes) {
    atomic_fetch_add_explicit(&count, bytes, memory_order_relaxed);
}

uint64_t qep_progress_count(void) {
    return atomic_load_explicit(&count, memory_order_relaxed);
}

void qep_outside_begin(void) {
    atomic_fetch_add_explicit(&outside, 1, memory_order_relaxed);
}

void qep_outside_end(void) {
    atomic_fetch_sub_explicit(&outside, 1, memory_order_relaxed);
}

bool qep_is_outside(void) {
    return atomic_load_explicit(&outside, memory_order_relaxed) > 0;
}

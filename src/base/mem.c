#include "base/mem.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };

enum qep_status qep_alloc(size_t count, size_t size, const char *what, void **out) {
    size_t bytes = 0;
    *out = NULL;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > PTRDIFF_MAX - ALIGNMENT)
        return qep_fail(QEP_ERR_SYSTEM, "%s: %zu x %zu bytes overflow", what, count, size);
    bytes = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    *out = aligned_alloc(ALIGNMENT, bytes);
    if (*out == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "%s: out of memory (%zu bytes)", what, bytes);
    return QEP_OK;
}

enum qep_status qep_calloc(size_t count, size_t size, const char *what, void **out) {
    QEP_TRY(qep_alloc(count, size, what, out));
    memset(*out, 0, count * size);
    return QEP_OK;
}

enum qep_status qep_grow(void **items, size_t *cap, size_t needed, size_t size, const char *what) {
    if (needed <= *cap)
        return QEP_OK;
    size_t new_cap = *cap < 8 ? 8 : *cap;
    while (new_cap < needed)
        if (__builtin_mul_overflow(new_cap, (size_t)2, &new_cap))
            return qep_fail(QEP_ERR_SYSTEM, "%s: too many items", what);
    size_t bytes = 0;
    if (__builtin_mul_overflow(new_cap, size, &bytes))
        return qep_fail(QEP_ERR_SYSTEM, "%s: too many items", what);
    void *grown = realloc(*items, bytes);
    if (grown == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "%s: out of memory (%zu bytes)", what, bytes);
    *items = grown;
    *cap = new_cap;
    return QEP_OK;
}

/* Heap memory: 64-byte aligned, overflow-checked, with a message when it fails. */
#ifndef QEP_BASE_MEM_H
#define QEP_BASE_MEM_H

#include "base/status.h"

#include <stddef.h>

/* Allocates count * size bytes, 64-byte aligned, uninitialised (never NULL for 0 bytes). `what`
 * names the thing in the message. Free with free(). QEP_ERR_SYSTEM when it overflows or memory is
 * out. */
enum qep_status qep_alloc(size_t count, size_t size, const char *what, void **out);

/* The same, zeroed. */
enum qep_status qep_calloc(size_t count, size_t size, const char *what, void **out);

/* Grows *items (from malloc/NULL, elements of `size`) so that `needed` elements fit; doubles *cap.
 */
enum qep_status qep_grow(void **items, size_t *cap, size_t needed, size_t size, const char *what);

#endif

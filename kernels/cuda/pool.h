/* Small device blocks out of large ones: cudaMalloc is slow, synchronises, and rounds to 2 MB; a
 * model has tens of thousands of tensors and KV blocks. Bookkeeping is on the host; the memory
 * itself is never touched. Not thread-safe: the backend's lock guards it. */
#ifndef QEP_KERNELS_CUDA_POOL_H
#define QEP_KERNELS_CUDA_POOL_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_pool;

struct cuda_pool_source {
    enum qep_status (*alloc)(void *ctx, size_t bytes, void **out);
    void (*free)(void *ctx, void *block);
    void *ctx;
};

enum { CUDA_POOL_ALIGN = 256 };

/* slab_bytes: size of the large blocks; 0: every block comes from the source. Blocks above a
 * quarter of a slab always do. */
enum qep_status cuda_pool_create(size_t slab_bytes, struct cuda_pool_source source,
                                 struct cuda_pool **out);
void cuda_pool_destroy(struct cuda_pool *pool); /* gives everything back; NULL is fine */

/* `bytes` (0 counts as 1) at a multiple of 256, contents undefined. */
enum qep_status cuda_pool_alloc(struct cuda_pool *pool, size_t bytes, void **out);
/* NULL is fine; a pointer that is not from this pool is a bug (asserted). */
void cuda_pool_free(struct cuda_pool *pool, void *block);

/* What cuda_pool_alloc of `bytes` takes: a piece of a slab, or a block of the source. */
size_t cuda_pool_block_bytes(const struct cuda_pool *pool, size_t bytes);

uint64_t cuda_pool_held(const struct cuda_pool *pool); /* bytes taken from the source */

#ifdef __cplusplus
}
#endif
#endif

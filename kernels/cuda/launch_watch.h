/* Whoever wants to see every launch of a kernel. C and C++. */
#ifndef QEP_KERNELS_CUDA_LAUNCH_WATCH_H
#define QEP_KERNELS_CUDA_LAUNCH_WATCH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_launch {
    const void *kernel; /* the function on the host */
    uint32_t grid[3], block[3];
    size_t shared_bytes;
};

typedef void cuda_launch_fn(void *ctx, const struct cuda_launch *launch);

/* fn is called after every launch of the calling thread; NULL: nobody looks. */
void cuda_watch_launches(cuda_launch_fn *fn, void *ctx);

/* By launch() in cu.h. */
void cuda_launched(const struct cuda_launch *launch);

#ifdef __cplusplus
}
#endif
#endif

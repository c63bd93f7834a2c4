#include "kernels/cuda/launch_watch.h"

static _Thread_local struct {
    cuda_launch_fn *fn;
    void *ctx;
} watch;

void cuda_watch_launches(cuda_launch_fn *fn, void *ctx) {
    watch.fn = fn;
    watch.ctx = ctx;
}

void cuda_launched(const struct cuda_launch *launch) {
    if (watch.fn != NULL)
        watch.fn(watch.ctx, launch);
}

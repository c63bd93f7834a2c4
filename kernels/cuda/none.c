/* The CUDA backend of a build without one. */
#include "kernels/backend.h"

static enum qep_status no_backend(void) {
    return qep_fail(QEP_ERR_UNAVAILABLE, "--backend cuda: this build has no CUDA backend");
}

enum qep_status qep_backend_cuda_create(struct qep_team *team, int device, int local_rank,
                                        struct qep_backend **out) {
    (void)team;
    (void)device;
    (void)local_rank;
    *out = NULL;
    return no_backend();
}

bool qep_cuda_present(void) {
    return false;
}

enum qep_status qep_backend_cuda_device(const struct qep_backend *be, struct qep_cuda_device *out) {
    (void)be;
    *out = (struct qep_cuda_device){.name = ""};
    return no_backend();
}

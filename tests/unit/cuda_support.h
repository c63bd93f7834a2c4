/* What the tests of the cuda backend share: device copies of host data. Where the backend runs on
 * the emulator, closing it fails if anything was reported. */
#ifndef QEP_TESTS_CUDA_SUPPORT_H
#define QEP_TESTS_CUDA_SUPPORT_H

#include "kernels_support.h"

#include "kernels/device_ops.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef QEP_CUDA_EMU
#include "cuda_emu/runtime.h"
#endif

/* NULL, said on stdout, where there is no device. */
static inline struct qep_backend *open_cuda(void) {
    struct qep_backend *be = NULL;
    enum qep_status st = qep_backend_cuda_create(NULL, -1, 0, &be);
    if (st == QEP_ERR_UNAVAILABLE) {
        printf("skipped: %s\n", qep_last_error());
        return NULL;
    }
    ck_assert_msg(st == QEP_OK, "%s", qep_last_error());
    return be;
}

static inline void close_cuda(struct qep_backend *be) {
    if (be == NULL)
        return;
    ck_assert_int_eq(be->ops->sync(be), QEP_OK);
    be->ops->destroy(be);
#ifdef QEP_CUDA_EMU
    ck_assert_msg(emu_errors() == 0, "%s", emu_last_report());
#endif
}

/* A device copy of host bytes, which start at a multiple of 16; to_host blocks. Free with
 * ops->free and free. */
static inline void *to_device(struct qep_backend *be, const void *host, size_t bytes) {
    void *dev = NULL;
    ck_assert_int_eq(be->ops->alloc(be, bytes, "test", &dev), QEP_OK);
    ck_assert_int_eq(be->ops->upload(be, dev, host, bytes), QEP_OK);
    return dev;
}

static inline void *device_room(struct qep_backend *be, size_t bytes) {
    void *dev = NULL;
    ck_assert_int_eq(be->ops->alloc(be, bytes, "test", &dev), QEP_OK);
    return dev;
}

static inline void *to_host(struct qep_backend *be, const void *dev, size_t bytes) {
    void *host = must_alloc(bytes);
    enum qep_status st = be->ops->download(be, host, dev, bytes);
    ck_assert_msg(st == QEP_OK, "%s", qep_last_error());
    return host;
}

#endif

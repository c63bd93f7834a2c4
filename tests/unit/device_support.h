/* What the tests of the CUDA backend share: the backend, arrays and batches in device memory. Every
 * failure ends the test. */
#ifndef QEP_TESTS_DEVICE_SUPPORT_H
#define QEP_TESTS_DEVICE_SUPPORT_H

#include "kernels/device_ops.h"
#include "kernels_support.h"

#include <check.h>
#include <stdlib.h>

#ifdef QEP_CUDA_EMU
#include "cuda_emu/runtime.h"
#endif

enum { SKIPPED = 77 };

/* First thing in main: 0, or the exit code of a test program that has no device to run on. That is
 * SKIPPED, and said, unless QEP_TEST_NEEDS_DEVICE is set: then it is a failure. This process does
 * not touch the device, as test cases may be forks of it. */
int without_device(void);

/* The CUDA backend: on the emulator or a device, as linked. */
struct qep_backend *open_cuda(void);

/* On the emulator it fails the test if anything was reported. */
static inline void close_cuda(struct qep_backend *be) {
    ck_assert_int_eq(be->ops->sync(be), QEP_OK);
    be->ops->destroy(be);
#ifdef QEP_CUDA_EMU
    ck_assert_msg(emu_errors() == 0, "%s", emu_last_report());
#endif
}

struct qep_backend *open_reference(void);

/* Device memory with `bytes` from the host (NULL: zeros); ops->free. */
void *dev_put(struct qep_backend *be, const void *host, size_t bytes);
void dev_get(struct qep_backend *be, void *host, const void *dev, size_t bytes);
/* A copy on the host (free). */
void *to_host(struct qep_backend *be, const void *dev, size_t bytes);
/* dev_get, then free. */
void dev_take(struct qep_backend *be, void *host, void *dev, size_t bytes);

/* A batch over spans, which stay the caller's; slack is added to max_end. */
struct qep_batch dev_batch(struct qep_backend *be, const struct qep_span *spans, int32_t num_spans,
                           int32_t slack);
void dev_batch_free(struct qep_backend *be, struct qep_batch *batch);

void ok(enum qep_status st);

#endif

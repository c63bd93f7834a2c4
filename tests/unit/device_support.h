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

/* A case of a device's test program; tests run in processes of their own that end after timeout_s,
 * unless CK_FORK=no. */
TCase *device_case(Suite *suite, const char *name, int timeout_s);

/* fn's value, from a process of its own (this one does not touch the device, as test cases may be
 * forks of it); EXIT_FAILURE if that dies. */
int in_child(int (*fn)(void));

/* Runs and frees the suite; what main returns. Without a device to run on that is SKIPPED, and
 * said, or a failure where QEP_TEST_NEEDS_DEVICE is set. A failure where no test ran. With
 * CK_FORK=no and QEP_TEST_STOP=1 the first failed test is the last one: an error of the device
 * stays, and would fail all that follow. */
int run_device_suite(Suite *suite);

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

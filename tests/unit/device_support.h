/* What the tests of the CUDA ops share: the backend, arrays and batches in device memory. Every
 * failure ends the test. */
#ifndef QEP_TESTS_DEVICE_SUPPORT_H
#define QEP_TESTS_DEVICE_SUPPORT_H

#include "kernels_support.h"

/* The CUDA backend: on the emulator or a device, as linked. destroy. */
struct qep_backend *open_cuda(void);
struct qep_backend *open_reference(void);

/* Device memory with `bytes` from the host (NULL: zeros); ops->free. */
void *dev_put(struct qep_backend *be, const void *host, size_t bytes);
void dev_get(struct qep_backend *be, void *host, const void *dev, size_t bytes);
/* dev_get, then free. */
void dev_take(struct qep_backend *be, void *host, void *dev, size_t bytes);

/* A batch over spans, which stay the caller's; slack is added to max_end. */
struct qep_batch dev_batch(struct qep_backend *be, const struct qep_span *spans, int32_t num_spans,
                           int32_t slack);
void dev_batch_free(struct qep_backend *be, struct qep_batch *batch);

void ok(enum qep_status st);

#endif

/* One rank: an exchange is a copy on the stream. */
#include "dist/device_comm_internal.h"

#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>

static enum qep_status copy_if_any(struct qep_device_comm *dc, void *dst, const void *src,
                                   size_t bytes) {
    if (bytes == 0 || dst == src)
        return QEP_OK;
    return dc->memory.copy(dc->memory.ctx, dst, src, bytes);
}

static enum qep_status self_alltoall(struct qep_device_comm *dc, const void *send, void *recv,
                                     size_t bytes) {
    return copy_if_any(dc, recv, send, bytes);
}

static enum qep_status self_warm_up(struct qep_device_comm *dc, void *scratch) {
    (void)dc, (void)scratch;
    return QEP_OK;
}

static enum qep_status self_poll_errors(struct qep_device_comm *dc) {
    (void)dc;
    return QEP_OK;
}

static enum qep_status self_wait(struct qep_device_comm *dc) {
    return qep_device_wait_idle(dc, 0.0, "");
}

static void self_destroy(struct qep_device_comm *dc) {
    free(dc);
}

enum qep_status qep_device_comm_self_create(struct qep_comm *comm,
                                            const struct qep_device_memory *memory,
                                            struct qep_device_comm **out) {
    static const struct qep_device_comm_ops ops = {
        .name = "self",
        .alltoallv = qep_device_copy_self,
        .alltoall = self_alltoall,
        .allgather = self_alltoall,
        .warm_up = self_warm_up,
        .poll_errors = self_poll_errors,
        .wait = self_wait,
        .destroy = self_destroy,
    };
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof **out, "transport", (void **)out));
    qep_device_comm_init(*out, &ops, comm, memory);
    (*out)->capturable = true;
    snprintf((*out)->detail, sizeof(*out)->detail, "copies on the device");
    return QEP_OK;
}

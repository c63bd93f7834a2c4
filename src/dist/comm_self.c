/* The transport of a single rank: copies in place of messages. */
#include "dist/comm.h"

#include "base/mem.h"
#include "dist/comm_internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static enum qep_status self_alltoallv(struct qep_comm *comm, const void *send,
                                      const size_t *send_bytes, const size_t *send_offset,
                                      void *recv, const size_t *recv_bytes,
                                      const size_t *recv_offset) {
    return qep_comm_copy_self(comm, send, send_bytes, send_offset, recv, recv_bytes, recv_offset);
}

static enum qep_status self_allgather(struct qep_comm *comm, const void *send, void *recv,
                                      size_t bytes) {
    (void)comm;
    if (bytes > 0)
        memmove(recv, send, bytes);
    return QEP_OK;
}

static enum qep_status self_bcast(struct qep_comm *comm, void *buf, size_t bytes, int root) {
    (void)comm, (void)buf, (void)bytes, (void)root;
    return QEP_OK;
}

static void self_abort(struct qep_comm *comm, int code) {
    (void)comm;
    qep_comm_flush_stdout();
    _exit(code);
}

static void self_destroy(struct qep_comm *comm) {
    free(comm);
}

enum qep_status qep_comm_self_create(struct qep_comm **out) {
    static const struct qep_comm_ops ops = {
        .name = "self",
        .alltoallv = self_alltoallv,
        .allgather = self_allgather,
        .bcast = self_bcast,
        .abort = self_abort,
        .destroy = self_destroy,
    };
    struct qep_comm *comm = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof *comm, "transport", (void **)&comm));
    comm->ops = &ops;
    comm->num_ranks = 1;
    comm->num_local_ranks = 1;
    comm->waiting_for = QEP_NOT_WAITING;
    *out = comm;
    return QEP_OK;
}

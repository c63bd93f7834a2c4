/* Device memory over a host transport: what goes to other ranks is downloaded to page-locked
 * memory, exchanged there, and what came is uploaded.
 *
 *   send (device)  . | to 1 | to 2 | self | to 4 |     one download for each run without a gap
 *   host send        | to 1 | to 2 | to 4 |            packed, in rank order
 *
 * An upload may still run when an operation returns; host memory is written again only behind the
 * sync that the next operation's downloads need anyway. */
#include "dist/device_comm_internal.h"

#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pinned {
    char *data;
    size_t cap; /* bytes */
};

struct staged_comm {
    struct qep_device_comm base;
    struct pinned send, recv;
    size_t *host_bytes[2], *host_offset[2]; /* [num_ranks] of send, recv; own part 0 */
    size_t *equal;                          /* [2 * num_ranks] for qep_device_equal_alltoall */
};

enum { SEND, RECV };

/* Both before any transfer of the operation: a sync stands in front of freeing. */
static enum qep_status reserve(struct staged_comm *sc, struct pinned *pinned, size_t bytes) {
    const struct qep_device_memory *memory = &sc->base.memory;
    void *data = NULL;
    if (bytes <= pinned->cap)
        return QEP_OK;
    QEP_TRY(memory->sync(memory->ctx));
    memory->host_free(memory->ctx, pinned->data);
    pinned->data = NULL;
    size_t cap = bytes > 2 * pinned->cap ? bytes : 2 * pinned->cap;
    pinned->cap = 0;
    QEP_TRY(memory->host_alloc(memory->ctx, cap, &data));
    pinned->data = data;
    pinned->cap = cap;
    return QEP_OK;
}

/* Packs the parts of other ranks in host memory; returns their bytes. */
static size_t lay_out(struct staged_comm *sc, int side, const size_t *bytes) {
    const struct qep_comm *comm = sc->base.comm;
    size_t total = 0;
    for (int p = 0; p < comm->num_ranks; p++) {
        sc->host_bytes[side][p] = p == comm->rank ? 0 : bytes[p];
        sc->host_offset[side][p] = total;
        total += sc->host_bytes[side][p];
    }
    return total;
}

/* The run of parts from *p on that lie one behind the other on the device: its first rank and
 * bytes; *p moves behind it. false when none is left. */
static bool next_run(const struct staged_comm *sc, int side, const size_t *dev_offset, int *p,
                     int *first, size_t *bytes) {
    const size_t *part = sc->host_bytes[side];
    int num_ranks = sc->base.comm->num_ranks;
    while (*p < num_ranks && part[*p] == 0)
        ++*p;
    *first = *p;
    *bytes = 0;
    for (; *p < num_ranks; ++*p) {
        if (part[*p] > 0 && dev_offset[*p] != dev_offset[*first] + *bytes)
            break;
        *bytes += part[*p];
    }
    return *bytes > 0;
}

static enum qep_status download_parts(struct staged_comm *sc, const char *dev,
                                      const size_t *offset) {
    const struct qep_device_memory *memory = &sc->base.memory;
    int p = 0, first;
    size_t bytes;
    while (next_run(sc, SEND, offset, &p, &first, &bytes))
        QEP_TRY(memory->download(memory->ctx, sc->send.data + sc->host_offset[SEND][first],
                                 dev + offset[first], bytes));
    return QEP_OK;
}

static enum qep_status upload_parts(struct staged_comm *sc, char *dev, const size_t *offset) {
    const struct qep_device_memory *memory = &sc->base.memory;
    int p = 0, first;
    size_t bytes;
    while (next_run(sc, RECV, offset, &p, &first, &bytes))
        QEP_TRY(memory->upload(memory->ctx, dev + offset[first],
                               sc->recv.data + sc->host_offset[RECV][first], bytes));
    return QEP_OK;
}

static enum qep_status staged_alltoallv(struct qep_device_comm *dc, const void *send,
                                        const size_t *send_bytes, const size_t *send_offset,
                                        void *recv, const size_t *recv_bytes,
                                        const size_t *recv_offset) {
    struct staged_comm *sc = (struct staged_comm *)dc;
    size_t num_sent = lay_out(sc, SEND, send_bytes), num_received = lay_out(sc, RECV, recv_bytes);
    QEP_TRY(reserve(sc, &sc->send, num_sent));
    QEP_TRY(reserve(sc, &sc->recv, num_received));
    QEP_TRY(download_parts(sc, send, send_offset));
    QEP_TRY(qep_device_copy_self(dc, send, send_bytes, send_offset, recv, recv_bytes, recv_offset));
    if (num_sent + num_received > 0)
        QEP_TRY(dc->memory.sync(dc->memory.ctx));
    QEP_TRY(dc->comm->ops->alltoallv(dc->comm, sc->send.data, sc->host_bytes[SEND],
                                     sc->host_offset[SEND], sc->recv.data, sc->host_bytes[RECV],
                                     sc->host_offset[RECV]));
    return upload_parts(sc, recv, recv_offset);
}

static enum qep_status staged_alltoall(struct qep_device_comm *dc, const void *send, void *recv,
                                       size_t bytes) {
    struct staged_comm *sc = (struct staged_comm *)dc;
    return qep_device_equal_alltoall(dc, sc->equal, send, recv, bytes);
}

static enum qep_status staged_allgather(struct qep_device_comm *dc, const void *send, void *recv,
                                        size_t bytes) {
    struct staged_comm *sc = (struct staged_comm *)dc;
    const struct qep_device_memory *memory = &dc->memory;
    size_t total = (size_t)dc->comm->num_ranks * bytes;
    if (bytes == 0)
        return QEP_OK;
    QEP_TRY(reserve(sc, &sc->recv, total));
    QEP_TRY(memory->sync(memory->ctx)); /* the last upload reads recv */
    char *own = sc->recv.data + (size_t)dc->comm->rank * bytes;
    QEP_TRY(memory->download(memory->ctx, own, send, bytes));
    QEP_TRY(memory->sync(memory->ctx));
    QEP_TRY(dc->comm->ops->allgather(dc->comm, own, sc->recv.data, bytes));
    return memory->upload(memory->ctx, recv, sc->recv.data, total);
}

static enum qep_status staged_warm_up(struct qep_device_comm *dc, void *scratch) {
    return qep_device_warm_up(dc, scratch, 0.0);
}

static enum qep_status staged_poll_errors(struct qep_device_comm *dc) {
    (void)dc; /* its operations block, and report where they are called */
    return QEP_OK;
}

static enum qep_status staged_wait(struct qep_device_comm *dc) {
    return qep_device_wait_idle(dc, 0.0, "");
}

static void staged_destroy(struct qep_device_comm *dc) {
    struct staged_comm *sc = (struct staged_comm *)dc;
    if (sc->send.data != NULL)
        dc->memory.host_free(dc->memory.ctx, sc->send.data);
    if (sc->recv.data != NULL)
        dc->memory.host_free(dc->memory.ctx, sc->recv.data);
    free(sc->host_bytes[SEND]); /* the block that all arrays are part of */
    free(sc);
}

enum qep_status qep_device_comm_staged_create(struct qep_comm *comm,
                                              const struct qep_device_memory *memory,
                                              struct qep_device_comm **out) {
    static const struct qep_device_comm_ops ops = {
        .name = "staged",
        .alltoallv = staged_alltoallv,
        .alltoall = staged_alltoall,
        .allgather = staged_allgather,
        .warm_up = staged_warm_up,
        .poll_errors = staged_poll_errors,
        .wait = staged_wait,
        .destroy = staged_destroy,
    };
    struct staged_comm *sc = NULL;
    size_t num_ranks = (size_t)comm->num_ranks, *arrays = NULL;
    *out = NULL;
    QEP_TRY(qep_alloc(6 * num_ranks, sizeof *arrays, "transport", (void **)&arrays));
    enum qep_status st = qep_calloc(1, sizeof *sc, "transport", (void **)&sc);
    if (st != QEP_OK) {
        free(arrays);
        return st;
    }
    qep_device_comm_init(&sc->base, &ops, comm, memory);
    snprintf(sc->base.detail, sizeof sc->base.detail, "through host memory, %s", comm->ops->name);
    for (int side = SEND; side <= RECV; side++) {
        sc->host_bytes[side] = arrays + (size_t)side * num_ranks;
        sc->host_offset[side] = arrays + (size_t)(2 + side) * num_ranks;
    }
    sc->equal = arrays + 4 * num_ranks;
    *out = &sc->base;
    return QEP_OK;
}

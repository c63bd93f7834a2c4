#include "dist/device_comm.h"

#include "base/mem.h"
#include "dist/backoff.h"
#include "dist/device_comm_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A stream is waited for once a step, in prefill once a layer: lateness costs more than looking
 * often. */
enum { MAX_STREAM_SLEEP_US = 10 };

void qep_device_comm_destroy(struct qep_device_comm *dc) {
    if (dc == NULL)
        return;
    qep_messages_free(&dc->moves);
    dc->ops->destroy(dc);
}

void qep_device_comm_init(struct qep_device_comm *dc, const struct qep_device_comm_ops *ops,
                          struct qep_comm *comm, const struct qep_device_memory *memory) {
    dc->ops = ops;
    dc->comm = comm;
    dc->memory = *memory;
    dc->spins = qep_backoff_spins(comm->num_local_ranks);
}

enum qep_status qep_device_copy_self(struct qep_device_comm *dc, const void *send,
                                     const size_t *send_bytes, const size_t *send_offset,
                                     void *recv, const size_t *recv_bytes,
                                     const size_t *recv_offset) {
    int me = dc->comm->rank;
    if (send_bytes[me] != recv_bytes[me])
        return qep_fail(QEP_ERR_BUG, "rank %d sends itself %zu bytes but expects %zu", me,
                        send_bytes[me], recv_bytes[me]);
    if (send_bytes[me] == 0)
        return QEP_OK;
    return dc->memory.copy(dc->memory.ctx, (char *)recv + recv_offset[me],
                           (const char *)send + send_offset[me], send_bytes[me]);
}

enum qep_status qep_device_send(struct qep_device_comm *dc, const struct qep_messages *messages,
                                const void *send, void *recv) {
    return dc->ops->alltoallv(dc, send, messages->send_bytes, messages->send_offset, recv,
                              messages->recv_bytes, messages->recv_offset);
}

enum qep_status qep_device_move(struct qep_device_comm *dc, int from, int to, const void *send,
                                void *recv, size_t bytes) {
    qep_messages_one(&dc->moves, dc->comm->rank, from, to, bytes);
    return qep_device_send(dc, &dc->moves, send, recv);
}

static enum qep_status wait_until(struct qep_device_comm *dc,
                                  enum qep_status (*query)(void *ctx, bool *done), void *ctx,
                                  double timeout_s, const char *what) {
    struct qep_backoff backoff;
    bool done = false;
    qep_backoff_init(&backoff, dc->spins);
    backoff.max_sleep_us = MAX_STREAM_SLEEP_US;
    for (;;) {
        QEP_TRY(query(ctx, &done));
        QEP_TRY(dc->ops->poll_errors(dc));
        if (done)
            return QEP_OK;
        if (timeout_s > 0.0 && backoff.waited_s > timeout_s)
            return qep_fail(QEP_ERR_INTERRUPTED, "no progress for %g s in %s", timeout_s, what);
        qep_backoff_wait(&backoff);
    }
}

enum qep_status qep_device_wait_idle(struct qep_device_comm *dc, double timeout_s,
                                     const char *what) {
    return wait_until(dc, dc->memory.query, dc->memory.ctx, timeout_s, what);
}

enum qep_status qep_device_wait_until(struct qep_device_comm *dc,
                                      enum qep_status (*query)(void *ctx, bool *done), void *ctx) {
    return wait_until(dc, query, ctx, 0.0, "");
}

enum qep_status qep_device_equal_alltoall(struct qep_device_comm *dc, size_t *equal,
                                          const void *send, void *recv, size_t bytes) {
    size_t num_ranks = (size_t)dc->comm->num_ranks, *offset = equal + num_ranks;
    for (size_t p = 0; p < num_ranks; p++) {
        equal[p] = bytes;
        offset[p] = p * bytes;
    }
    return dc->ops->alltoallv(dc, send, equal, offset, recv, equal, offset);
}

static enum qep_status warm_up_size(struct qep_device_comm *dc, char *send, char *recv,
                                    size_t bytes, size_t *equal) {
    QEP_TRY(dc->ops->allgather(dc, send, recv, bytes));
    QEP_TRY(dc->ops->alltoall(dc, send, recv, bytes));
    return qep_device_equal_alltoall(dc, equal, send, recv, bytes);
}

enum qep_status qep_device_warm_up(struct qep_device_comm *dc, void *scratch, double timeout_s) {
    const size_t max_bytes = QEP_DEVICE_WARM_UP_BYTES / 2; /* of a pair */
    size_t num_ranks = (size_t)dc->comm->num_ranks;
    size_t *equal = NULL;
    char *send = scratch, *recv = send + num_ranks * max_bytes;
    enum qep_status st = QEP_OK;
    QEP_TRY(qep_alloc(2 * num_ranks, sizeof *equal, "transport", (void **)&equal));
    for (size_t bytes = 16; st == QEP_OK && bytes <= max_bytes; bytes *= 8)
        st = warm_up_size(dc, send, recv, bytes, equal);
    if (st == QEP_OK)
        st = warm_up_size(dc, send, recv, max_bytes, equal);
    if (st == QEP_OK)
        st = qep_device_wait_idle(dc, timeout_s, "the first exchanges between devices");
    free(equal);
    return st;
}

void qep_device_uuid_text(const unsigned char uuid[QEP_DEVICE_UUID_BYTES],
                          char text[QEP_DEVICE_UUID_TEXT_BYTES]) {
    static const char hex[] = "0123456789abcdef";
    char *at = text + sprintf(text, "GPU");
    for (int i = 0; i < QEP_DEVICE_UUID_BYTES; i++) {
        if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10)
            *at++ = '-';
        *at++ = hex[uuid[i] >> 4];
        *at++ = hex[uuid[i] & 15];
    }
    *at = '\0';
}

enum qep_status qep_device_duplicates(struct qep_comm *comm,
                                      const unsigned char uuid[QEP_DEVICE_UUID_BYTES], int *first,
                                      int *second) {
    unsigned char(*all)[QEP_DEVICE_UUID_BYTES] = NULL;
    *first = *second = -1;
    QEP_TRY(qep_comm_gather(comm, uuid, sizeof *all, "UUIDs of the ranks' devices", (void **)&all));
    for (int a = 0; a < comm->num_ranks && *first < 0; a++)
        for (int b = a + 1; b < comm->num_ranks && *first < 0; b++)
            if (memcmp(all[a], all[b], sizeof *all) == 0) {
                *first = a;
                *second = b;
            }
    free(all);
    return QEP_OK;
}

/* auto: may all ranks use NCCL? Collective; why_not is the same on all ranks. */
static enum qep_status nccl_suits(struct qep_comm *comm, const struct qep_device_memory *memory,
                                  bool *suits, char *why_not, size_t why_not_bytes) {
    int first, second;
    enum qep_status st = qep_nccl_load();
    bool shared = comm->failure_shared;
    *suits = false;
    st = qep_comm_agree(comm, st);
    if (st == QEP_ERR_UNAVAILABLE && comm->failure_shared) {
        comm->failure_shared = shared; /* nothing has failed: there is another way */
        snprintf(why_not, why_not_bytes, "not NCCL: %s", qep_last_error());
        return QEP_OK;
    }
    QEP_TRY(st);
    QEP_TRY(qep_device_duplicates(comm, memory->uuid, &first, &second));
    *suits = first < 0;
    if (first >= 0)
        snprintf(why_not, why_not_bytes, "not NCCL: ranks %d and %d share one GPU", first, second);
    return QEP_OK;
}

static enum qep_status create(struct qep_comm *comm, const struct qep_device_memory *memory,
                              enum qep_device_transport transport, double timeout_s,
                              struct qep_device_comm **out) {
    char why_not[sizeof(*out)->detail] = "";
    bool nccl = transport == QEP_DEVICE_TRANSPORT_NCCL;
    if (comm->num_ranks == 1 && !nccl)
        return qep_device_comm_self_create(comm, memory, out);
    if (transport == QEP_DEVICE_TRANSPORT_AUTO)
        QEP_TRY(nccl_suits(comm, memory, &nccl, why_not, sizeof why_not));
    if (nccl)
        return qep_device_comm_nccl_create(comm, memory, timeout_s, out);
    QEP_TRY(qep_comm_agree(comm, qep_device_comm_staged_create(comm, memory, out)));
    if (why_not[0] != '\0')
        memcpy((*out)->detail, why_not, sizeof why_not);
    return QEP_OK;
}

enum qep_status qep_device_comm_create(struct qep_comm *comm,
                                       const struct qep_device_memory *memory,
                                       enum qep_device_transport transport, double timeout_s,
                                       struct qep_device_comm **out) {
    struct qep_messages moves = {0};
    *out = NULL;
    enum qep_status st = qep_comm_agree(comm, qep_messages_create(comm->num_ranks, &moves));
    if (st == QEP_OK)
        st = create(comm, memory, transport, timeout_s, out);
    if (st == QEP_OK)
        (*out)->moves = moves;
    else
        qep_messages_free(&moves);
    return st;
}

/* Ranks over MPI, in host memory. Everything is nonblocking point-to-point messages of exact size
 * between the pairs that have something to say, polled with back-off: MPI's own blocking calls and
 * collectives spin, which would burn the cores that other ranks compute on. */
#include "dist/comm.h"

#ifndef QEP_HAVE_MPI

enum qep_status qep_comm_mpi_create(struct qep_comm **out) {
    *out = (struct qep_comm *)0;
    return qep_fail(QEP_ERR_UNAVAILABLE,
                    "this build has no MPI: build with Open MPI, or run without a launcher");
}

#else

#include "base/mem.h"
#include "dist/backoff.h"
#include "dist/comm_internal.h"

#include <mpi.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Receives take any tag, as the messages of a pair stay in order, and then look at it: ranks that
 * are in different operations find out instead of waiting for ever. */

/* MPI counts are ints: longer messages go in pieces, which arrive in order. */
#define MAX_MESSAGE_BYTES ((size_t)1 << 30)

/* What a request stands for. */
struct transfer {
    int peer;
    int recv_bytes; /* expected; -1 for a send */
};

struct mpi_comm {
    struct qep_comm base;
    MPI_Comm world; /* our own copy of MPI_COMM_WORLD */
    int spins;
    unsigned long num_ops;
    int tag;          /* of the present operation: what its sends carry, its receives expect */
    int num_requests; /* of it, too */
    size_t cap;       /* of the four arrays */
    MPI_Request *requests;
    struct transfer *transfers;
    int *done; /* indices from MPI_Testsome */
    MPI_Status *statuses;
};

static enum qep_status mpi_check(int rc, const char *call) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int len = 0;
    if (rc == MPI_SUCCESS)
        return QEP_OK;
    MPI_Error_string(rc, text, &len);
    return qep_fail(QEP_ERR_UNAVAILABLE, "%s failed: %s", call, text);
}

static void free_arrays(struct mpi_comm *comm) {
    free(comm->requests);
    free(comm->transfers);
    free(comm->done);
    free(comm->statuses);
    comm->requests = NULL;
    comm->transfers = NULL;
    comm->done = NULL;
    comm->statuses = NULL;
    comm->cap = 0;
}

/* Begins an operation with room for all its requests, before the first of them starts (MPI may keep
 * pointers to buffers, not to the request array, but the array must not move while it is polled).
 */
static enum qep_status begin(struct mpi_comm *comm, enum qep_comm_op op, size_t needed) {
    static const char what[] = "messages between ranks";
    comm->tag = qep_comm_op_tag(op, comm->num_ops++);
    comm->num_requests = 0;
    if (needed <= comm->cap)
        return QEP_OK;
    if (needed > INT32_MAX)
        return qep_fail(QEP_ERR_BUG, "%zu messages in one operation", needed);
    free_arrays(comm);
    QEP_TRY(qep_alloc(needed, sizeof *comm->requests, what, (void **)&comm->requests));
    QEP_TRY(qep_alloc(needed, sizeof *comm->transfers, what, (void **)&comm->transfers));
    QEP_TRY(qep_alloc(needed, sizeof *comm->done, what, (void **)&comm->done));
    QEP_TRY(qep_alloc(needed, sizeof *comm->statuses, what, (void **)&comm->statuses));
    comm->cap = needed;
    return QEP_OK;
}

static size_t num_pieces(size_t bytes) {
    return bytes / MAX_MESSAGE_BYTES + (bytes % MAX_MESSAGE_BYTES != 0);
}

static enum qep_status start_recv(struct mpi_comm *comm, void *data, size_t bytes, int peer) {
    for (size_t at = 0; at < bytes;) {
        size_t piece = bytes - at < MAX_MESSAGE_BYTES ? bytes - at : MAX_MESSAGE_BYTES;
        int i = comm->num_requests++;
        comm->transfers[i] = (struct transfer){.peer = peer, .recv_bytes = (int)piece};
        QEP_TRY(mpi_check(MPI_Irecv((char *)data + at, (int)piece, MPI_BYTE, peer, MPI_ANY_TAG,
                                    comm->world, &comm->requests[i]),
                          "MPI_Irecv"));
        at += piece;
    }
    return QEP_OK;
}

static enum qep_status start_send(struct mpi_comm *comm, const void *data, size_t bytes, int peer) {
    for (size_t at = 0; at < bytes;) {
        size_t piece = bytes - at < MAX_MESSAGE_BYTES ? bytes - at : MAX_MESSAGE_BYTES;
        int i = comm->num_requests++;
        comm->transfers[i] = (struct transfer){.peer = peer, .recv_bytes = -1};
        QEP_TRY(mpi_check(MPI_Isend((const char *)data + at, (int)piece, MPI_BYTE, peer, comm->tag,
                                    comm->world, &comm->requests[i]),
                          "MPI_Isend"));
        at += piece;
    }
    return QEP_OK;
}

/* The peer of the first message that has not come: for the watchdog's line. */
static int first_open_peer(const struct mpi_comm *comm) {
    for (int i = 0; i < comm->num_requests; i++)
        if (comm->requests[i] != MPI_REQUEST_NULL)
            return comm->transfers[i].peer;
    return -1;
}

static enum qep_status check_completed(struct mpi_comm *comm, int rc, int num_done) {
    for (int k = 0; k < num_done; k++) {
        const struct transfer *transfer = &comm->transfers[comm->done[k]];
        int bytes = 0;
        /* First: a longer message of another operation is cut off. */
        if (transfer->recv_bytes >= 0 && comm->statuses[k].MPI_TAG != comm->tag)
            return qep_comm_op_mismatch(&comm->base, transfer->peer, comm->statuses[k].MPI_TAG,
                                        comm->tag);
        if (rc == MPI_ERR_IN_STATUS)
            QEP_TRY(mpi_check(comm->statuses[k].MPI_ERROR, "a message between ranks"));
        if (transfer->recv_bytes < 0)
            continue;
        QEP_TRY(mpi_check(MPI_Get_count(&comm->statuses[k], MPI_BYTE, &bytes), "MPI_Get_count"));
        if (bytes != transfer->recv_bytes)
            return qep_comm_size_mismatch(&comm->base, transfer->peer, (size_t)bytes,
                                          (size_t)transfer->recv_bytes);
    }
    return rc == MPI_ERR_IN_STATUS ? QEP_OK : mpi_check(rc, "MPI_Testsome");
}

static enum qep_status wait_all(struct mpi_comm *comm) {
    struct qep_backoff backoff;
    bool named = false;
    int open = comm->num_requests;
    qep_backoff_init(&backoff, comm->spins);
    while (open > 0) {
        int num_done = 0;
        int rc =
            MPI_Testsome(comm->num_requests, comm->requests, &num_done, comm->done, comm->statuses);
        if (num_done == MPI_UNDEFINED)
            break;
        QEP_TRY(check_completed(comm, rc, num_done));
        open -= num_done;
        if (num_done > 0) {
            qep_backoff_init(&backoff, comm->spins);
            continue;
        }
        qep_backoff_wait(&backoff);
        if (qep_backoff_is_long(&backoff)) {
            qep_comm_set_waiting_for(&comm->base, first_open_peer(comm));
            named = true;
        }
    }
    if (named)
        qep_comm_set_waiting_for(&comm->base, -1);
    return QEP_OK;
}

static enum qep_status mpi_alltoallv(struct qep_comm *base, const void *send,
                                     const size_t *send_bytes, const size_t *send_offset,
                                     void *recv, const size_t *recv_bytes,
                                     const size_t *recv_offset) {
    struct mpi_comm *comm = (struct mpi_comm *)base;
    int num_ranks = base->num_ranks, me = base->rank;
    size_t needed = 0;
    for (int p = 0; p < num_ranks; p++)
        if (p != me)
            needed += num_pieces(send_bytes[p]) + num_pieces(recv_bytes[p]);
    QEP_TRY(begin(comm, QEP_COMM_ALLTOALLV, needed));
    for (int i = 1; i < num_ranks; i++) {
        int p = (me + i) % num_ranks;
        if (recv_bytes[p] > 0)
            QEP_TRY(start_recv(comm, (char *)recv + recv_offset[p], recv_bytes[p], p));
    }
    for (int i = 1; i < num_ranks; i++) {
        int p = (me + num_ranks - i) % num_ranks;
        if (send_bytes[p] > 0)
            QEP_TRY(start_send(comm, (const char *)send + send_offset[p], send_bytes[p], p));
    }
    QEP_TRY(qep_comm_copy_self(base, send, send_bytes, send_offset, recv, recv_bytes, recv_offset));
    return wait_all(comm);
}

static enum qep_status mpi_allgather(struct qep_comm *base, const void *send, void *recv,
                                     size_t bytes) {
    struct mpi_comm *comm = (struct mpi_comm *)base;
    int num_ranks = base->num_ranks, me = base->rank;
    char *own = (char *)recv + (size_t)me * bytes;
    QEP_TRY(begin(comm, QEP_COMM_ALLGATHER, 2 * (size_t)(num_ranks - 1) * num_pieces(bytes)));
    for (int i = 1; i < num_ranks; i++) {
        int p = (me + i) % num_ranks;
        QEP_TRY(start_recv(comm, (char *)recv + (size_t)p * bytes, bytes, p));
    }
    for (int i = 1; i < num_ranks; i++)
        QEP_TRY(start_send(comm, send, bytes, (me + num_ranks - i) % num_ranks));
    if (bytes > 0 && own != send)
        memmove(own, send, bytes);
    return wait_all(comm);
}

static enum qep_status mpi_bcast(struct qep_comm *base, void *buf, size_t bytes, int root) {
    struct mpi_comm *comm = (struct mpi_comm *)base;
    size_t num_peers = base->rank == root ? (size_t)(base->num_ranks - 1) : 1;
    QEP_TRY(begin(comm, QEP_COMM_BCAST, num_peers * num_pieces(bytes)));
    if (base->rank != root)
        QEP_TRY(start_recv(comm, buf, bytes, root));
    for (int p = 0; base->rank == root && p < base->num_ranks; p++)
        if (p != root)
            QEP_TRY(start_send(comm, buf, bytes, p));
    return wait_all(comm);
}

static void mpi_abort(struct qep_comm *comm, int code) {
    (void)comm;
    qep_comm_flush_stdout();
    MPI_Abort(MPI_COMM_WORLD, code);
    _Exit(code);
}

static void mpi_destroy(struct qep_comm *base) {
    struct mpi_comm *comm = (struct mpi_comm *)base;
    qep_comm_barrier(base); /* MPI_Finalize waits too, but spins */
    MPI_Comm_free(&comm->world);
    free_arrays(comm);
    free(comm);
    MPI_Finalize();
}

static const struct qep_comm_ops mpi_ops = {
    .name = "mpi",
    .alltoallv = mpi_alltoallv,
    .allgather = mpi_allgather,
    .bcast = mpi_bcast,
    .abort = mpi_abort,
    .destroy = mpi_destroy,
};

/* A launcher started several ranks, but this MPI sees only itself: every one of them would run the
 * whole job and write the same files. */
static enum qep_status check_not_singleton(int num_ranks) {
    static const struct {
        const char *env, *remedy;
    } launchers[] = {
        {"SLURM_STEP_NUM_TASKS",
         "srun does not speak PMIx to this MPI: use srun --mpi=pmix (srun --mpi=list) or mpirun"},
        {"PMI_SIZE", "the launcher belongs to another MPI: use the mpirun of the MPI that this "
                     "program was built with"},
    };
    if (num_ranks > 1 || getenv("OMPI_COMM_WORLD_SIZE") != NULL)
        return QEP_OK;
    for (size_t i = 0; i < sizeof launchers / sizeof launchers[0]; i++) {
        const char *text = getenv(launchers[i].env);
        long size = text == NULL ? 0 : strtol(text, NULL, 10);
        if (size > 1)
            return qep_fail(QEP_ERR_UNAVAILABLE, "%s=%ld, but MPI sees 1 rank: %s",
                            launchers[i].env, size, launchers[i].remedy);
    }
    return QEP_OK;
}

static enum qep_status find_local_rank(struct mpi_comm *comm) {
    MPI_Comm local;
    QEP_TRY(mpi_check(MPI_Comm_split_type(comm->world, MPI_COMM_TYPE_SHARED, comm->base.rank,
                                          MPI_INFO_NULL, &local),
                      "MPI_Comm_split_type"));
    enum qep_status st = mpi_check(MPI_Comm_rank(local, &comm->base.local_rank), "MPI_Comm_rank");
    if (st == QEP_OK)
        st = mpi_check(MPI_Comm_size(local, &comm->base.num_local_ranks), "MPI_Comm_size");
    MPI_Comm_free(&local);
    return st;
}

static enum qep_status setup(struct mpi_comm *comm) {
    int num_ranks = 0;
    QEP_TRY(mpi_check(MPI_Comm_size(MPI_COMM_WORLD, &num_ranks), "MPI_Comm_size"));
    QEP_TRY(check_not_singleton(num_ranks));
    QEP_TRY(mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &comm->world), "MPI_Comm_dup"));
    MPI_Comm_set_errhandler(comm->world, MPI_ERRORS_RETURN);
    comm->base.ops = &mpi_ops;
    comm->base.num_ranks = num_ranks;
    comm->base.waiting_for = -1;
    QEP_TRY(mpi_check(MPI_Comm_rank(comm->world, &comm->base.rank), "MPI_Comm_rank"));
    QEP_TRY(find_local_rank(comm));
    comm->spins = qep_backoff_spins(comm->base.num_local_ranks);
    return QEP_OK;
}

enum qep_status qep_comm_mpi_create(struct qep_comm **out) {
    struct mpi_comm *comm = NULL;
    int was_up = 0, level = 0;
    *out = NULL;
    QEP_TRY(mpi_check(MPI_Initialized(&was_up), "MPI_Initialized"));
    if (was_up)
        return qep_fail(QEP_ERR_BUG, "MPI was initialised before");
    QEP_TRY(qep_calloc(1, sizeof *comm, "transport", (void **)&comm));
    comm->world = MPI_COMM_NULL;
    enum qep_status st =
        mpi_check(MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &level), "MPI_Init_thread");
    if (st == QEP_OK)
        st = setup(comm);
    if (st == QEP_OK && level < MPI_THREAD_MULTIPLE)
        st = qep_fail(QEP_ERR_UNAVAILABLE,
                      "this MPI has no MPI_THREAD_MULTIPLE, which the watchdog needs");
    if (st == QEP_OK) {
        *out = &comm->base;
        return QEP_OK;
    }
    if (comm->world != MPI_COMM_NULL)
        MPI_Comm_free(&comm->world);
    free(comm);
    MPI_Finalize();
    return st;
}

#endif

/* P ranks in one process. Every rank has a slot; an operation publishes its send buffer there under
 * the operation's number (all ranks count alike, as collectives come in the same order), receivers
 * copy straight out of it, and the sender returns when all who take something have taken it.
 *
 *   rank p: slot.view = {send, bytes, offsets}; slot.taken = 0; slot.op = n (release)
 *           for every q that sends to p: wait slot[q].op == n (acquire); copy; slot[q].taken += 1
 *           wait slot[p].taken == the number of takers */
#include "dist/comm.h"

#include "base/mem.h"
#include "dist/backoff.h"
#include "dist/comm_internal.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct slot {
    /* What this rank sends in operation `op`; written before op, read after it. */
    const char *send;
    const size_t *bytes;  /* per receiver; NULL: same_bytes to all */
    const size_t *offset; /* per receiver; NULL: 0 */
    size_t same_bytes;
    int tag;
    _Alignas(64) atomic_ulong op;
    _Alignas(64) atomic_int taken;
};

struct world {
    int num_ranks;
    int spins;
    atomic_int num_alive;
    struct slot *slots; /* [num_ranks] */
};

struct threads_comm {
    struct qep_comm base;
    struct world *world;
    unsigned long num_ops;
    int tag; /* of the present operation */
};

static void begin(struct threads_comm *comm, enum qep_comm_op op) {
    comm->num_ops++;
    comm->tag = qep_comm_op_tag(op, comm->num_ops);
}

static void wait_taken(struct threads_comm *comm, int num_takers) {
    struct slot *mine = &comm->world->slots[comm->base.rank];
    struct qep_backoff backoff;
    qep_backoff_init(&backoff, comm->world->spins);
    while (atomic_load_explicit(&mine->taken, memory_order_acquire) < num_takers)
        qep_backoff_wait(&backoff);
}

static void publish(struct threads_comm *comm, const void *send, const size_t *bytes,
                    const size_t *offset, size_t same_bytes) {
    struct slot *mine = &comm->world->slots[comm->base.rank];
    mine->send = send;
    mine->bytes = bytes;
    mine->offset = offset;
    mine->same_bytes = same_bytes;
    mine->tag = comm->tag;
    atomic_store_explicit(&mine->taken, 0, memory_order_relaxed);
    atomic_store_explicit(&mine->op, comm->num_ops, memory_order_release);
}

/* Copies what `peer` has for this rank in the present operation. */
static enum qep_status take(struct threads_comm *comm, int peer, char *recv, size_t expected) {
    struct slot *theirs = &comm->world->slots[peer];
    int me = comm->base.rank;
    struct qep_backoff backoff;
    qep_backoff_init(&backoff, comm->world->spins);
    unsigned long op;
    while ((op = atomic_load_explicit(&theirs->op, memory_order_acquire)) < comm->num_ops) {
        qep_backoff_wait(&backoff);
        if (qep_backoff_is_long(&backoff))
            qep_comm_set_waiting_for(&comm->base, peer);
    }
    qep_comm_set_waiting_for(&comm->base, -1);
    if (op > comm->num_ops) /* gone on: it had nothing for us */
        return qep_comm_size_mismatch(&comm->base, peer, 0, expected);
    size_t sent = theirs->bytes != NULL ? theirs->bytes[me] : theirs->same_bytes;
    size_t offset = theirs->offset != NULL ? theirs->offset[me] : 0;
    enum qep_status st = QEP_OK;
    if (theirs->tag != comm->tag)
        st = qep_comm_op_mismatch(&comm->base, peer, theirs->tag, comm->tag);
    else if (sent == expected)
        memcpy(recv, theirs->send + offset, expected);
    else
        st = qep_comm_size_mismatch(&comm->base, peer, sent, expected);
    if (sent > 0)
        atomic_fetch_add_explicit(&theirs->taken, 1, memory_order_release);
    return st;
}

static enum qep_status threads_alltoallv(struct qep_comm *base, const void *send,
                                         const size_t *send_bytes, const size_t *send_offset,
                                         void *recv, const size_t *recv_bytes,
                                         const size_t *recv_offset) {
    struct threads_comm *comm = (struct threads_comm *)base;
    int num_ranks = base->num_ranks, me = base->rank, num_takers = 0;
    begin(comm, QEP_COMM_ALLTOALLV);
    for (int p = 0; p < num_ranks; p++)
        num_takers += p != me && send_bytes[p] > 0;
    publish(comm, send, send_bytes, send_offset, 0);
    enum qep_status st =
        qep_comm_copy_self(base, send, send_bytes, send_offset, recv, recv_bytes, recv_offset);
    for (int i = 1; st == QEP_OK && i < num_ranks; i++) {
        int p = (me + i) % num_ranks; /* not all on the same sender at once */
        if (recv_bytes[p] > 0)
            st = take(comm, p, (char *)recv + recv_offset[p], recv_bytes[p]);
    }
    if (st == QEP_OK)
        wait_taken(comm, num_takers);
    return st;
}

static enum qep_status threads_allgather(struct qep_comm *base, const void *send, void *recv,
                                         size_t bytes) {
    struct threads_comm *comm = (struct threads_comm *)base;
    int num_ranks = base->num_ranks, me = base->rank;
    char *own = (char *)recv + (size_t)me * bytes;
    if (bytes == 0)
        return QEP_OK;
    begin(comm, QEP_COMM_ALLGATHER);
    publish(comm, send, NULL, NULL, bytes);
    if (own != send)
        memmove(own, send, bytes);
    for (int i = 1; i < num_ranks; i++) {
        int p = (me + i) % num_ranks;
        QEP_TRY(take(comm, p, (char *)recv + (size_t)p * bytes, bytes));
    }
    wait_taken(comm, num_ranks - 1);
    return QEP_OK;
}

static enum qep_status threads_bcast(struct qep_comm *base, void *buf, size_t bytes, int root) {
    struct threads_comm *comm = (struct threads_comm *)base;
    if (bytes == 0)
        return QEP_OK;
    begin(comm, QEP_COMM_BCAST);
    if (base->rank != root)
        return take(comm, root, buf, bytes);
    publish(comm, buf, NULL, NULL, bytes);
    wait_taken(comm, base->num_ranks - 1);
    return QEP_OK;
}

static void threads_abort(struct qep_comm *comm, int code) {
    (void)comm;
    qep_comm_flush_stdout();
    _exit(code);
}

static void world_destroy(struct world *world) {
    if (world != NULL)
        free(world->slots);
    free(world);
}

static void threads_destroy(struct qep_comm *base) {
    struct world *world = ((struct threads_comm *)base)->world;
    free(base);
    if (atomic_fetch_sub(&world->num_alive, 1) == 1)
        world_destroy(world);
}

static const struct qep_comm_ops threads_ops = {
    .name = "threads",
    .alltoallv = threads_alltoallv,
    .allgather = threads_allgather,
    .bcast = threads_bcast,
    .abort = threads_abort,
    .destroy = threads_destroy,
};

static enum qep_status world_create(int num_ranks, struct world **out) {
    struct world *world = NULL;
    enum qep_status st = QEP_OK;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof *world, "transport", (void **)&world));
    world->num_ranks = num_ranks;
    world->spins = qep_backoff_spins(num_ranks);
    atomic_init(&world->num_alive, num_ranks);
    QEP_TRY_GOTO(
        st, done,
        qep_calloc((size_t)num_ranks, sizeof *world->slots, "transport", (void **)&world->slots));
    for (int r = 0; r < num_ranks; r++) {
        atomic_init(&world->slots[r].op, 0);
        atomic_init(&world->slots[r].taken, 0);
    }
    *out = world;
    world = NULL;
done:
    world_destroy(world);
    return st;
}

enum qep_status qep_comm_threads_create(int num_ranks, struct qep_comm **out) {
    struct world *world = NULL;
    enum qep_status st = QEP_OK;
    for (int r = 0; r < num_ranks; r++)
        out[r] = NULL;
    if (num_ranks < 1)
        return qep_fail(QEP_ERR_USAGE, "the threads transport needs at least 1 rank, found %d",
                        num_ranks);
    QEP_TRY(world_create(num_ranks, &world));
    for (int r = 0; r < num_ranks; r++) {
        struct threads_comm *comm = NULL;
        QEP_TRY_GOTO(st, done, qep_calloc(1, sizeof *comm, "transport", (void **)&comm));
        comm->base = (struct qep_comm){.ops = &threads_ops,
                                       .rank = r,
                                       .num_ranks = num_ranks,
                                       .local_rank = r,
                                       .num_local_ranks = num_ranks,
                                       .waiting_for = -1};
        comm->world = world;
        out[r] = &comm->base;
    }
    return QEP_OK;
done:
    for (int r = 0; r < num_ranks; r++) {
        free(out[r]);
        out[r] = NULL;
    }
    world_destroy(world);
    return st;
}

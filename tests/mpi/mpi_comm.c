/* The transport table over MPI: run under mpirun with any number of ranks, exit 0 when all is well.
 * `mpi_comm huge` also sends more than one piece can hold (needs 4.5 GB at 2 ranks). */
#include "base/log.h"
#include "base/mem.h"
#include "dist/comm.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A failing rank ends the job: the others wait for it. */
#define REQUIRE(comm, cond)                                                                        \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            qep_error_line("rank %d of %d, line %d: %s (%s)", (comm)->rank, (comm)->num_ranks,     \
                           __LINE__, #cond, qep_last_error());                                     \
            (comm)->ops->abort((comm), 1);                                                         \
        }                                                                                          \
    } while (0)

struct pairs {
    size_t *send_bytes, *send_offset, *recv_bytes, *recv_offset;
    unsigned char *send, *recv;
};

static size_t pair_bytes(int from, int to, int round) {
    unsigned mix = (unsigned)from * 7919u + (unsigned)to * 104729u + (unsigned)round * 1299709u;
    mix ^= mix >> 7;
    switch (mix % 5) {
    case 0:
        return 0;
    case 1:
        return 1;
    case 2:
        return mix % 97;
    case 3:
        return 4000 + mix % 1000;
    default:
        return round % 16 == 0 ? 3000003 : 300;
    }
}

static unsigned char stamp(int from, int to, int round, size_t i) {
    return (unsigned char)(from * 31 + to * 17 + round * 7 + (int)(i % 251));
}

static void fill_pairs(struct qep_comm *comm, struct pairs *x, int round) {
    size_t n = (size_t)comm->num_ranks, num_send = 0, num_recv = 0;
    size_t **tables[] = {&x->send_bytes, &x->send_offset, &x->recv_bytes, &x->recv_offset};
    for (size_t i = 0; i < 4; i++)
        REQUIRE(comm, qep_calloc(n, sizeof(size_t), "test", (void **)tables[i]) == QEP_OK);
    for (int p = 0; p < comm->num_ranks; p++) {
        x->send_bytes[p] = pair_bytes(comm->rank, p, round);
        x->recv_bytes[p] = pair_bytes(p, comm->rank, round);
        x->send_offset[p] = num_send;
        x->recv_offset[p] = num_recv;
        num_send += x->send_bytes[p];
        num_recv += x->recv_bytes[p] + 1;
    }
    REQUIRE(comm, qep_calloc(num_send, 1, "test", (void **)&x->send) == QEP_OK);
    REQUIRE(comm, qep_calloc(num_recv, 1, "test", (void **)&x->recv) == QEP_OK);
    for (int p = 0; p < comm->num_ranks; p++)
        for (size_t i = 0; i < x->send_bytes[p]; i++)
            x->send[x->send_offset[p] + i] = stamp(comm->rank, p, round, i);
}

static void test_alltoallv(struct qep_comm *comm) {
    for (int round = 0; round < 64; round++) {
        struct pairs x;
        fill_pairs(comm, &x, round);
        REQUIRE(comm, comm->ops->alltoallv(comm, x.send, x.send_bytes, x.send_offset, x.recv,
                                           x.recv_bytes, x.recv_offset) == QEP_OK);
        for (int p = 0; p < comm->num_ranks; p++) {
            const unsigned char *from = x.recv + x.recv_offset[p];
            for (size_t i = 0; i < x.recv_bytes[p]; i++)
                REQUIRE(comm, from[i] == stamp(p, comm->rank, round, i));
            REQUIRE(comm, from[x.recv_bytes[p]] == 0);
        }
        free(x.send_bytes);
        free(x.send_offset);
        free(x.recv_bytes);
        free(x.recv_offset);
        free(x.send);
        free(x.recv);
    }
}

static void test_bcast_and_allgather(struct qep_comm *comm) {
    int *all = NULL;
    REQUIRE(comm,
            qep_alloc((size_t)comm->num_ranks, 2 * sizeof *all, "test", (void **)&all) == QEP_OK);
    for (int i = 0; i < 100; i++) {
        int root = i % comm->num_ranks, mine[2] = {comm->rank * 1000 + i, i};
        long word[2] = {comm->rank == root ? i : -1, 7};
        int *own = &all[2 * comm->rank];
        REQUIRE(comm, comm->ops->bcast(comm, word, sizeof word, root) == QEP_OK);
        REQUIRE(comm, word[0] == i && word[1] == 7);
        memcpy(own, mine, sizeof mine);
        REQUIRE(comm, comm->ops->allgather(comm, i % 2 ? own : mine, all, sizeof mine) == QEP_OK);
        for (int r = 0; r < comm->num_ranks; r++)
            REQUIRE(comm, all[2 * r] == r * 1000 + i && all[2 * r + 1] == i);
        REQUIRE(comm, comm->ops->bcast(comm, NULL, 0, root) == QEP_OK);
        REQUIRE(comm, qep_comm_barrier(comm) == QEP_OK);
    }
    free(all);
}

static void test_agreement(struct qep_comm *comm) {
    int last = comm->num_ranks - 1;
    char expected[64];
    REQUIRE(comm, qep_comm_agree(comm, QEP_OK) == QEP_OK && !comm->failure_shared);
    REQUIRE(comm, qep_comm_same(comm, "build", "1.0") == QEP_OK);
    enum qep_status st = QEP_OK;
    if (comm->rank == last)
        st = qep_fail(QEP_ERR_DATA, "bad");
    REQUIRE(comm, qep_comm_agree(comm, st) == QEP_ERR_DATA && comm->failure_shared);
    snprintf(expected, sizeof expected, "rank %d: bad", last);
    REQUIRE(comm, strcmp(qep_last_error(), last > 0 ? expected : "bad") == 0);
    st = qep_comm_same(comm, "recipe", comm->rank == last ? "q8" : "q4");
    REQUIRE(comm, st == (last > 0 ? QEP_ERR_USAGE : QEP_OK));
    comm->failure_shared = false;
}

static void test_local_ranks(struct qep_comm *comm) {
    REQUIRE(comm, strcmp(comm->ops->name, "mpi") == 0);
    REQUIRE(comm, comm->num_local_ranks >= 1 && comm->num_local_ranks <= comm->num_ranks);
    REQUIRE(comm, comm->local_rank >= 0 && comm->local_rank < comm->num_local_ranks);
    REQUIRE(comm, qep_comm_launched_by_mpi());
}

/* From rank 0 to the last, in several pieces. */
static void test_huge(struct qep_comm *comm) {
    size_t bytes = ((size_t)2 << 30) + 12345, zero[64] = {0}, sizes[64] = {0};
    unsigned char *data = NULL;
    int last = comm->num_ranks - 1;
    if (last == 0 || last >= 64)
        return;
    if (comm->rank == 0 || comm->rank == last)
        REQUIRE(comm, qep_calloc(bytes, 1, "test", (void **)&data) == QEP_OK);
    if (comm->rank == 0) {
        for (size_t i = 0; i < bytes; i++)
            data[i] = (unsigned char)(i * 2654435761u >> 11);
        sizes[last] = bytes;
        REQUIRE(comm, comm->ops->alltoallv(comm, data, sizes, zero, NULL, zero, zero) == QEP_OK);
    } else {
        sizes[0] = comm->rank == last ? bytes : 0;
        REQUIRE(comm, comm->ops->alltoallv(comm, NULL, zero, zero, data, sizes, zero) == QEP_OK);
        for (size_t i = 0; comm->rank == last && i < bytes; i++)
            REQUIRE(comm, data[i] == (unsigned char)(i * 2654435761u >> 11));
    }
    free(data);
}

int main(int argc, char **argv) {
    struct qep_comm *comm = NULL;
    if (qep_comm_mpi_create(&comm) != QEP_OK) {
        qep_error_line("%s", qep_last_error());
        return 1;
    }
    test_local_ranks(comm);
    test_alltoallv(comm);
    test_bcast_and_allgather(comm);
    test_agreement(comm);
    if (argc > 1 && strcmp(argv[1], "huge") == 0)
        test_huge(comm);
    qep_comm_destroy(comm);
    return 0;
}

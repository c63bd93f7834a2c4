#include "device_comm_support.h"

#include "base/mem.h"

#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INIT_TIMEOUT_S 100.0

static void *rank_main(void *p) {
    struct rank_arg *arg = p;
    arg->device->open(arg->comm->rank, &arg->memory);
    arg->body(arg);
    if (arg->failure != NULL) { /* the others wait for us: end here, with the reason */
        fprintf(stderr, "rank %d of %d: %s (%s)\n", arg->comm->rank, arg->comm->num_ranks,
                arg->failure, qep_last_error());
        abort();
    }
    arg->device->close(&arg->memory);
    qep_comm_destroy(arg->comm);
    return NULL;
}

static void *rank_main_with_comm(void *p) {
    struct rank_arg *arg = p;
    arg->device->open(arg->comm->rank, &arg->memory);
    if (qep_device_comm_create(arg->comm, &arg->memory, arg->transport, INIT_TIMEOUT_S, &arg->dc) !=
        QEP_OK)
        arg->failure = "qep_device_comm_create";
    else
        arg->body(arg);
    if (arg->failure == NULL && arg->dc->ops->wait(arg->dc) != QEP_OK)
        arg->failure = "wait";
    if (arg->failure != NULL) {
        fprintf(stderr, "rank %d of %d: %s (%s)\n", arg->comm->rank, arg->comm->num_ranks,
                arg->failure, qep_last_error());
        abort();
    }
    qep_device_comm_destroy(arg->dc);
    arg->device->close(&arg->memory);
    qep_comm_destroy(arg->comm);
    return NULL;
}

void run_ranks(int num_ranks, const struct test_device *device, enum qep_device_transport transport,
               bool create, void (*body)(struct rank_arg *arg)) {
    struct qep_comm *comms[MAX_TEST_RANKS];
    struct rank_arg args[MAX_TEST_RANKS];
    pthread_t threads[MAX_TEST_RANKS];
    ck_assert_int_eq(qep_comm_threads_create(num_ranks, comms), QEP_OK);
    for (int r = 0; r < num_ranks; r++) {
        args[r] = (struct rank_arg){
            .comm = comms[r], .device = device, .transport = transport, .body = body};
        ck_assert_int_eq(
            pthread_create(&threads[r], NULL, create ? rank_main_with_comm : rank_main, &args[r]),
            0);
    }
    for (int r = 0; r < num_ranks; r++)
        pthread_join(threads[r], NULL);
}

void *put_bytes(struct rank_arg *arg, const void *host, size_t bytes) {
    void *dev = arg->device->alloc(&arg->memory, bytes > 0 ? bytes : 1);
    if (bytes > 0)
        arg->device->put(&arg->memory, dev, host, bytes);
    return dev;
}

/* Bytes that rank `from` sends to rank `to` in a round: often none, sometimes a lot. */
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
        return 4096 + mix % 1000;
    default:
        return round % 8 == 0 ? 100003 : 300;
    }
}

static void fill(unsigned char *data, size_t bytes, int seed) {
    unsigned state = (unsigned)seed * 2654435761u + 12345u;
    for (size_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        data[i] = (unsigned char)(state >> 24);
    }
}

static unsigned char *filled(size_t bytes, int seed) {
    unsigned char *data = NULL;
    if (qep_alloc(bytes, 1, "test", (void **)&data) != QEP_OK)
        abort();
    fill(data, bytes, seed);
    return data;
}

/* Does device memory hold these bytes? Frees it. */
static bool take_and_compare(struct rank_arg *arg, void *dev, const unsigned char *expected,
                             size_t bytes) {
    unsigned char *found = filled(bytes, 0);
    if (bytes > 0)
        arg->device->get(&arg->memory, found, dev, bytes);
    bool same = memcmp(found, expected, bytes) == 0;
    free(found);
    arg->device->free(&arg->memory, dev);
    return same;
}

struct layout {
    size_t send_bytes[MAX_TEST_RANKS], send_offset[MAX_TEST_RANKS], send_total;
    size_t recv_bytes[MAX_TEST_RANKS], recv_offset[MAX_TEST_RANKS], recv_total;
};

/* Rounds alternate between parts without gaps, with gaps, and in reverse order. */
static struct layout lay_out(int me, int num_ranks, int round) {
    struct layout x = {.recv_total = 3};
    size_t gap = round % 3 == 0 ? 0 : 5;
    for (int i = 0; i < num_ranks; i++) {
        int p = round % 3 == 2 ? num_ranks - 1 - i : i;
        x.send_bytes[p] = pair_bytes(me, p, round);
        x.recv_bytes[p] = pair_bytes(p, me, round);
        x.send_offset[p] = x.send_total;
        x.recv_offset[p] = x.recv_total;
        x.send_total += x.send_bytes[p] + gap;
        x.recv_total += x.recv_bytes[p] + gap;
    }
    return x;
}

static bool alltoallv_round(struct rank_arg *arg, int round) {
    struct qep_comm *comm = arg->comm;
    struct layout x = lay_out(comm->rank, comm->num_ranks, round);
    unsigned char *send = filled(x.send_total, round * 100 + comm->rank);
    unsigned char *recv = filled(x.recv_total, -1);
    void *dev_send = put_bytes(arg, send, x.send_total);
    void *dev_recv = put_bytes(arg, recv, x.recv_total);
    bool ok = arg->dc->ops->alltoallv(arg->dc, dev_send, x.send_bytes, x.send_offset, dev_recv,
                                      x.recv_bytes, x.recv_offset) == QEP_OK;
    ok = ok && comm->ops->alltoallv(comm, send, x.send_bytes, x.send_offset, recv, x.recv_bytes,
                                    x.recv_offset) == QEP_OK;
    ok = ok && arg->dc->ops->wait(arg->dc) == QEP_OK;
    ok = ok && take_and_compare(arg, dev_recv, recv, x.recv_total);
    ok = ok && take_and_compare(arg, dev_send, send, x.send_total);
    free(send);
    free(recv);
    return ok;
}

void alltoallv_body(struct rank_arg *arg) {
    for (int round = 0; round < 24; round++)
        RANK_CHECK(alltoallv_round(arg, round));
}

void nothing_body(struct rank_arg *arg) {
    size_t zero[MAX_TEST_RANKS] = {0};
    for (int i = 0; i < 20; i++) {
        RANK_CHECK(arg->dc->ops->alltoallv(arg->dc, NULL, zero, zero, NULL, zero, zero) == QEP_OK);
        RANK_CHECK(arg->dc->ops->alltoall(arg->dc, NULL, NULL, 0) == QEP_OK);
        RANK_CHECK(arg->dc->ops->allgather(arg->dc, NULL, NULL, 0) == QEP_OK);
        RANK_CHECK(arg->dc->ops->poll_errors(arg->dc) == QEP_OK);
    }
}

static const size_t block_bytes[] = {1, 3, 16, 1000, 0, 4096, 100003};
enum { NUM_BLOCKS = sizeof block_bytes / sizeof block_bytes[0] };

static bool allgather_round(struct rank_arg *arg, size_t bytes, bool in_place) {
    struct qep_comm *comm = arg->comm;
    size_t total = bytes * (size_t)comm->num_ranks, own = bytes * (size_t)comm->rank;
    unsigned char *send = filled(bytes, comm->rank), *recv = filled(total, -1);
    memcpy(recv + own, send, bytes);
    void *dev_send = put_bytes(arg, send, bytes), *dev_recv = put_bytes(arg, recv, total);
    const void *from = in_place ? (const void *)((char *)dev_recv + own) : dev_send;
    bool ok = arg->dc->ops->allgather(arg->dc, from, dev_recv, bytes) == QEP_OK;
    ok = ok && comm->ops->allgather(comm, send, recv, bytes) == QEP_OK;
    ok = ok && arg->dc->ops->wait(arg->dc) == QEP_OK;
    ok = ok && take_and_compare(arg, dev_recv, recv, total);
    ok = ok && take_and_compare(arg, dev_send, send, bytes);
    free(send);
    free(recv);
    return ok;
}

void allgather_body(struct rank_arg *arg) {
    for (int i = 0; i < 2 * NUM_BLOCKS; i++)
        RANK_CHECK(allgather_round(arg, block_bytes[i / 2], i % 2 != 0));
}

static bool alltoall_round(struct rank_arg *arg, size_t bytes) {
    struct qep_comm *comm = arg->comm;
    size_t total = bytes * (size_t)comm->num_ranks;
    size_t equal[MAX_TEST_RANKS], offset[MAX_TEST_RANKS];
    unsigned char *send = filled(total, comm->rank), *recv = filled(total, -1);
    void *dev_send = put_bytes(arg, send, total), *dev_recv = put_bytes(arg, recv, total);
    for (int p = 0; p < comm->num_ranks; p++) {
        equal[p] = bytes;
        offset[p] = (size_t)p * bytes;
    }
    bool ok = arg->dc->ops->alltoall(arg->dc, dev_send, dev_recv, bytes) == QEP_OK;
    ok = ok && comm->ops->alltoallv(comm, send, equal, offset, recv, equal, offset) == QEP_OK;
    ok = ok && arg->dc->ops->wait(arg->dc) == QEP_OK;
    ok = ok && take_and_compare(arg, dev_recv, recv, total);
    ok = ok && take_and_compare(arg, dev_send, send, total);
    free(send);
    free(recv);
    return ok;
}

void alltoall_body(struct rank_arg *arg) {
    for (int i = 0; i < NUM_BLOCKS; i++)
        RANK_CHECK(alltoall_round(arg, block_bytes[i]));
}

/* Rank r's block after an all-to-all of an all-to-all is its own again; gathered, all blocks of
 * every rank follow, in rank order. */
void chain_body(struct rank_arg *arg) {
    enum { BYTES = 777, ROUNDS = 5 };
    struct qep_device_comm *dc = arg->dc;
    size_t num_ranks = (size_t)arg->comm->num_ranks, total = BYTES * num_ranks;
    unsigned char *all = filled(total * num_ranks, 0);
    for (size_t r = 0; r < num_ranks; r++)
        fill(all + r * total, total, (int)r);
    unsigned char *mine = all + (size_t)arg->comm->rank * total;
    void *a = put_bytes(arg, mine, total), *b = put_bytes(arg, mine, total);
    void *gathered[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) {
        gathered[i] = arg->device->alloc(&arg->memory, total * num_ranks);
        RANK_CHECK(dc->ops->alltoall(dc, a, b, BYTES) == QEP_OK);
        RANK_CHECK(dc->ops->alltoall(dc, b, a, BYTES) == QEP_OK);
        RANK_CHECK(dc->ops->allgather(dc, a, gathered[i], total) == QEP_OK);
    }
    RANK_CHECK(dc->ops->wait(dc) == QEP_OK);
    for (int i = 0; i < ROUNDS; i++)
        RANK_CHECK(take_and_compare(arg, gathered[i], all, total * num_ranks));
    RANK_CHECK(take_and_compare(arg, a, mine, total));
    arg->device->free(&arg->memory, b);
    free(all);
}

/* From every rank to every rank, and from every rank to all. */
void move_body(struct rank_arg *arg) {
    enum { BYTES = 777 };
    int me = arg->comm->rank, num_ranks = arg->comm->num_ranks;
    for (int from = 0; from < num_ranks; from++)
        for (int to = QEP_EVERY_RANK; to < num_ranks; to++) {
            unsigned char *sent = filled(BYTES, 31 * from + to), *mine = filled(BYTES, -1 - me);
            void *send = put_bytes(arg, me == from ? sent : mine, BYTES);
            void *recv = put_bytes(arg, mine, BYTES);
            RANK_CHECK(qep_device_move(arg->dc, from, to, send, recv, BYTES) == QEP_OK);
            RANK_CHECK(arg->dc->ops->wait(arg->dc) == QEP_OK);
            bool gets = to == QEP_EVERY_RANK || to == me;
            RANK_CHECK(take_and_compare(arg, recv, gets ? sent : mine, BYTES));
            RANK_CHECK(take_and_compare(arg, send, me == from ? sent : mine, BYTES));
            free(sent);
            free(mine);
        }
}

void warm_up_body(struct rank_arg *arg) {
    size_t bytes = QEP_DEVICE_WARM_UP_BYTES * (size_t)arg->comm->num_ranks;
    unsigned char *host = filled(bytes, 1);
    void *scratch = put_bytes(arg, host, bytes);
    free(host);
    RANK_CHECK(arg->dc->ops->warm_up(arg->dc, scratch) == QEP_OK);
    RANK_CHECK(alltoallv_round(arg, 3));
    arg->device->free(&arg->memory, scratch);
}

/* Transports on device memory over a device of plain memory whose transfers run as late as they
 * may: at a sync, or one by one when the stream is asked about. */
#include "device_comm_support.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_QUEUED = 4096 };

struct transfer {
    void *dst;
    const void *src;
    size_t bytes;
};

struct plain {
    struct transfer queue[MAX_QUEUED];
    int head, tail;
    long num_host_blocks;
};

static void run_one(struct plain *d) {
    struct transfer *t = &d->queue[d->head++];
    memmove(t->dst, t->src, t->bytes);
}

static enum qep_status plain_sync(void *ctx) {
    struct plain *d = ctx;
    while (d->head < d->tail)
        run_one(d);
    d->head = d->tail = 0;
    return QEP_OK;
}

static enum qep_status plain_query(void *ctx, bool *idle) {
    struct plain *d = ctx;
    if (d->head < d->tail)
        run_one(d);
    *idle = d->head == d->tail;
    return QEP_OK;
}

static enum qep_status enqueue(void *ctx, void *dst, const void *src, size_t bytes) {
    struct plain *d = ctx;
    if (d->tail == MAX_QUEUED)
        plain_sync(d);
    d->queue[d->tail++] = (struct transfer){dst, src, bytes};
    return QEP_OK;
}

/* The host may not read what a download brings before a sync. */
static enum qep_status plain_download(void *ctx, void *host, const void *dev, size_t bytes) {
    memset(host, 0xA5, bytes);
    return enqueue(ctx, host, dev, bytes);
}

static enum qep_status plain_host_alloc(void *ctx, size_t bytes, void **host) {
    ((struct plain *)ctx)->num_host_blocks++;
    *host = malloc(bytes);
    return *host != NULL ? QEP_OK : qep_fail(QEP_ERR_SYSTEM, "out of memory");
}

static void plain_host_free(void *ctx, void *host) {
    ((struct plain *)ctx)->num_host_blocks -= host != NULL;
    free(host);
}

static void plain_open(int rank, struct qep_device_memory *memory) {
    *memory = (struct qep_device_memory){
        .ctx = calloc(1, sizeof(struct plain)),
        .uuid = {(unsigned char)(rank + 1)},
        .upload = enqueue,
        .download = plain_download,
        .copy = enqueue,
        .sync = plain_sync,
        .query = plain_query,
        .host_alloc = plain_host_alloc,
        .host_free = plain_host_free,
    };
    ck_assert_ptr_nonnull(memory->ctx);
}

static void plain_close(struct qep_device_memory *memory) {
    struct plain *d = memory->ctx;
    ck_assert_int_eq(d->head, d->tail);
    ck_assert_int_eq(d->num_host_blocks, 0);
    free(d);
}

static void *plain_alloc(struct qep_device_memory *memory, size_t bytes) {
    (void)memory;
    return malloc(bytes);
}

static void plain_free(struct qep_device_memory *memory, void *dev) {
    plain_sync(memory->ctx);
    free(dev);
}

static void plain_put(struct qep_device_memory *memory, void *dev, const void *host, size_t bytes) {
    plain_sync(memory->ctx);
    memcpy(dev, host, bytes);
}

static void plain_get(struct qep_device_memory *memory, void *host, const void *dev, size_t bytes) {
    plain_sync(memory->ctx);
    memcpy(host, dev, bytes);
}

static const struct test_device plain_device = {plain_open, plain_close, plain_alloc,
                                                plain_free, plain_put,   plain_get};

static const int rank_counts[] = {1, 2, 3, 4, 7};
enum { NUM_RANK_COUNTS = sizeof rank_counts / sizeof rank_counts[0] };

static void (*const bodies[])(struct rank_arg *) = {alltoallv_body, nothing_body, allgather_body,
                                                    alltoall_body,  chain_body,   warm_up_body};
enum { NUM_BODIES = sizeof bodies / sizeof bodies[0] };

START_TEST(staged_moves_what_the_host_transport_moves) {
    run_ranks(rank_counts[_i % NUM_RANK_COUNTS], &plain_device, QEP_DEVICE_TRANSPORT_STAGED, true,
              bodies[_i / NUM_RANK_COUNTS]);
}
END_TEST

static void choice_body(struct rank_arg *arg) {
    bool alone = arg->comm->num_ranks == 1;
    RANK_CHECK(strcmp(arg->dc->ops->name, alone ? "self" : "staged") == 0);
    RANK_CHECK(arg->dc->capturable == alone);
    RANK_CHECK(alone || strstr(arg->dc->detail, "threads") != NULL);
}

START_TEST(one_rank_needs_no_transport) {
    run_ranks(1, &plain_device, QEP_DEVICE_TRANSPORT_NCCL, true, choice_body);
    run_ranks(2, &plain_device, QEP_DEVICE_TRANSPORT_STAGED, true, choice_body);
}
END_TEST

/* rank:        0 1 2 3
 * device here: 1 2 3 2 */
static void shared_body(struct rank_arg *arg) {
    int first = 0, second = 0;
    RANK_CHECK(qep_device_duplicates(arg->comm, arg->memory.uuid, &first, &second) == QEP_OK);
    RANK_CHECK(first == -1 && second == -1);
    if (arg->comm->rank == 3)
        arg->memory.uuid[0] = 2;
    RANK_CHECK(qep_device_duplicates(arg->comm, arg->memory.uuid, &first, &second) == QEP_OK);
    RANK_CHECK(first == 1 && second == 3);
    RANK_CHECK(qep_device_comm_create(arg->comm, &arg->memory, QEP_DEVICE_TRANSPORT_AUTO, 5.0,
                                      &arg->dc) == QEP_OK);
    RANK_CHECK(strcmp(arg->dc->ops->name, "staged") == 0);
    RANK_CHECK(strstr(arg->dc->detail, "not NCCL: ") == arg->dc->detail);
    RANK_CHECK(!arg->comm->failure_shared);
    qep_device_comm_destroy(arg->dc);
}

START_TEST(ranks_that_share_a_device_are_found) {
    run_ranks(4, &plain_device, QEP_DEVICE_TRANSPORT_AUTO, false, shared_body);
}
END_TEST

static void own_size_body(struct rank_arg *arg) {
    size_t bytes[MAX_TEST_RANKS] = {0}, offset[MAX_TEST_RANKS] = {0}, none[MAX_TEST_RANKS] = {0};
    char byte = 0;
    bytes[arg->comm->rank] = 1;
    RANK_CHECK(arg->dc->ops->alltoallv(arg->dc, &byte, bytes, offset, &byte, none, offset) ==
               QEP_ERR_BUG);
    RANK_CHECK(strstr(qep_last_error(), "sends itself 1 bytes but expects 0") != NULL);
}

START_TEST(own_sizes_must_agree) {
    run_ranks(1, &plain_device, QEP_DEVICE_TRANSPORT_STAGED, true, own_size_body);
    run_ranks(2, &plain_device, QEP_DEVICE_TRANSPORT_STAGED, true, own_size_body);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("device_comm");
    TCase *tcase = tcase_create("device_comm");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, staged_moves_what_the_host_transport_moves, 0,
                        NUM_BODIES * NUM_RANK_COUNTS);
    tcase_add_test(tcase, one_rank_needs_no_transport);
    tcase_add_test(tcase, ranks_that_share_a_device_are_found);
    tcase_add_test(tcase, own_sizes_must_agree);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed > 0;
}

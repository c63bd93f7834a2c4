/* NCCL with one rank on a device: the library is loaded, a communicator comes up without blocking,
 * every collective moves its bytes, also from within a graph, and the communicator ends well. Over
 * the emulator with the fake library, on a device with the real one. */
#include "device_comm_support.h"
#include "device_support.h"
#include "engine/engine_internal.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* memory->ctx is the backend. */
static void open_memory(int rank, struct qep_device_memory *memory) {
    struct qep_cuda_device gpu;
    struct qep_backend *be = open_cuda();
    (void)rank;
    ok(qep_backend_cuda_device(be, &gpu));
    *memory = engine_device_memory(be, &gpu);
}

static void close_memory(struct qep_device_memory *memory) {
    close_cuda(memory->ctx);
}

static void *alloc(struct qep_device_memory *memory, size_t bytes) {
    return dev_put(memory->ctx, NULL, bytes);
}

static void release(struct qep_device_memory *memory, void *dev) {
    struct qep_backend *be = memory->ctx;
    be->ops->free(be, dev);
}

static void put(struct qep_device_memory *memory, void *dev, const void *host, size_t bytes) {
    struct qep_backend *be = memory->ctx;
    ok(be->ops->upload(be, dev, host, bytes));
    ok(be->ops->sync(be));
}

static void get(struct qep_device_memory *memory, void *host, const void *dev, size_t bytes) {
    dev_get(memory->ctx, host, dev, bytes);
}

static const struct test_device device = {open_memory, close_memory, alloc, release, put, get};

static void name_body(struct rank_arg *arg) {
    RANK_CHECK(strcmp(arg->dc->ops->name, "nccl") == 0);
    RANK_CHECK(arg->dc->capturable);
    printf("%s\n", arg->dc->detail);
}

/* One after the other: a communicator comes up where one has ended before. */
START_TEST(collectives_move_bytes) {
    static void (*const bodies[])(struct rank_arg *) = {
        name_body,      nothing_body, allgather_body, alltoall_body,
        alltoallv_body, chain_body,   move_body,      warm_up_body};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++)
        run_ranks(1, &device, QEP_DEVICE_TRANSPORT_NCCL, true, bodies[i]);
}
END_TEST

/* in -> all-gather -> all-to-all -> out, recorded once and launched with new bytes. */
static void graph_body(struct rank_arg *arg) {
    enum { BYTES = 4096, LAUNCHES = 4 };
    struct qep_backend *be = arg->memory.ctx;
    const struct qep_device_comm_ops *ops = arg->dc->ops;
    struct qep_graph *graph = NULL;
    unsigned char host[BYTES], found[BYTES];
    void *in = alloc(&arg->memory, BYTES), *between = alloc(&arg->memory, BYTES);
    void *out = alloc(&arg->memory, BYTES);
    warm_up_body(arg);
    RANK_CHECK(arg->failure == NULL);
    RANK_CHECK(be->device->capture_begin(be) == QEP_OK);
    enum qep_status st = ops->allgather(arg->dc, in, between, BYTES);
    if (st == QEP_OK)
        st = ops->alltoall(arg->dc, between, out, BYTES);
    RANK_CHECK(be->device->capture_end(be, &graph) == QEP_OK);
    RANK_CHECK(st == QEP_OK);
    for (int i = 0; i < LAUNCHES; i++) {
        for (int j = 0; j < BYTES; j++)
            host[j] = (unsigned char)(i + j * 7);
        put(&arg->memory, in, host, BYTES);
        RANK_CHECK(be->device->graph_launch(be, graph) == QEP_OK);
        RANK_CHECK(ops->wait(arg->dc) == QEP_OK);
        get(&arg->memory, found, out, BYTES);
        RANK_CHECK(memcmp(found, host, BYTES) == 0);
    }
    be->device->graph_destroy(be, graph);
    release(&arg->memory, in);
    release(&arg->memory, between);
    release(&arg->memory, out);
}

START_TEST(collectives_run_within_graphs) {
    run_ranks(1, &device, QEP_DEVICE_TRANSPORT_NCCL, true, graph_body);
}
END_TEST

static int look_for_library(void) {
    if (qep_nccl_load() == QEP_OK)
        return 0;
    printf("skipped: %s\n", qep_last_error());
    return SKIPPED;
}

int main(void) {
    Suite *suite = suite_create("cuda nccl");
    TCase *tc = device_case(suite, "nccl", 120);
    tcase_add_test(tc, collectives_move_bytes);
    tcase_add_test(tc, collectives_run_within_graphs);
    int missing = in_child(look_for_library);
    if (missing == 0)
        return run_device_suite(suite);
    srunner_free(srunner_create(suite));
    return missing;
}

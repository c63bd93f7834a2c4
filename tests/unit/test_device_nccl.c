/* Transports on device memory over the emulator: staged, and NCCL with the fake library, whose
 * faults must come back as messages. */
#include "cuda_emu/fake_nccl.h"
#include "cuda_emu/nccl.h"
#include "device_comm_support.h"

#include "base/clock.h"
#include "dist/watchdog.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHORT_TIMEOUT_S 0.5

#define CUDA_OK(call) ck_assert_int_eq((call), cudaSuccess)

static enum qep_status cuda_status(cudaError_t error, const char *call) {
    if (error == cudaSuccess)
        return QEP_OK;
    return qep_fail(QEP_ERR_UNAVAILABLE, "%s: %s", call, cudaGetErrorString(error));
}

static enum qep_status emu_upload(void *ctx, void *dev, const void *host, size_t bytes) {
    return cuda_status(cudaMemcpyAsync(dev, host, bytes, cudaMemcpyHostToDevice, ctx), "upload");
}

static enum qep_status emu_download(void *ctx, void *host, const void *dev, size_t bytes) {
    return cuda_status(cudaMemcpyAsync(host, dev, bytes, cudaMemcpyDeviceToHost, ctx), "download");
}

static enum qep_status emu_copy(void *ctx, void *dst, const void *src, size_t bytes) {
    return cuda_status(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, ctx), "copy");
}

static enum qep_status emu_sync(void *ctx) {
    return cuda_status(cudaStreamSynchronize(ctx), "cudaStreamSynchronize");
}

static enum qep_status emu_query(void *ctx, bool *idle) {
    cudaError_t error = cudaStreamQuery(ctx);
    *idle = error == cudaSuccess;
    return cuda_status(error == cudaErrorNotReady ? cudaSuccess : error, "cudaStreamQuery");
}

static enum qep_status emu_host_alloc(void *ctx, size_t bytes, void **host) {
    (void)ctx;
    return cuda_status(cudaMallocHost(host, bytes), "cudaMallocHost");
}

static void emu_host_free(void *ctx, void *host) {
    (void)ctx;
    cudaFreeHost(host);
}

static void emu_open(int rank, struct qep_device_memory *memory) {
    struct cudaDeviceProp prop;
    cudaStream_t stream;
    CUDA_OK(cudaSetDevice(rank));
    CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_OK(cudaGetDeviceProperties(&prop, rank));
    *memory = (struct qep_device_memory){
        .ctx = stream,
        .stream = stream,
        .upload = emu_upload,
        .download = emu_download,
        .copy = emu_copy,
        .sync = emu_sync,
        .query = emu_query,
        .host_alloc = emu_host_alloc,
        .host_free = emu_host_free,
    };
    memcpy(memory->uuid, prop.uuid.bytes, sizeof memory->uuid);
}

static void emu_close(struct qep_device_memory *memory) {
    CUDA_OK(cudaStreamDestroy(memory->stream));
    ck_assert_int_eq(emu_errors(), 0);
}

static void *emu_alloc(struct qep_device_memory *memory, size_t bytes) {
    void *dev = NULL;
    (void)memory;
    CUDA_OK(cudaMalloc(&dev, bytes));
    return dev;
}

static void emu_free(struct qep_device_memory *memory, void *dev) {
    (void)memory;
    CUDA_OK(cudaFree(dev));
}

/* Through the stream, as everything else: the stream does not wait for the legacy one. */
static void emu_put(struct qep_device_memory *memory, void *dev, const void *host, size_t bytes) {
    CUDA_OK(cudaMemcpyAsync(dev, host, bytes, cudaMemcpyHostToDevice, memory->stream));
    CUDA_OK(cudaStreamSynchronize(memory->stream));
}

static void emu_get(struct qep_device_memory *memory, void *host, const void *dev, size_t bytes) {
    CUDA_OK(cudaMemcpyAsync(host, dev, bytes, cudaMemcpyDeviceToHost, memory->stream));
    CUDA_OK(cudaStreamSynchronize(memory->stream));
}

static const struct test_device emulated = {emu_open, emu_close, emu_alloc,
                                            emu_free, emu_put,   emu_get};

static const int rank_counts[] = {1, 2, 3, 4, 7};
enum { NUM_RANK_COUNTS = sizeof rank_counts / sizeof rank_counts[0] };

static void (*const bodies[])(struct rank_arg *) = {alltoallv_body, nothing_body, allgather_body,
                                                    alltoall_body,  chain_body,   move_body,
                                                    warm_up_body};
enum { NUM_BODIES = sizeof bodies / sizeof bodies[0] };

START_TEST(staged_moves_what_the_host_transport_moves) {
    run_ranks(rank_counts[_i % NUM_RANK_COUNTS], &emulated, QEP_DEVICE_TRANSPORT_STAGED, true,
              bodies[_i / NUM_RANK_COUNTS]);
}
END_TEST

START_TEST(nccl_moves_what_the_host_transport_moves) {
    run_ranks(rank_counts[_i % NUM_RANK_COUNTS], &emulated, QEP_DEVICE_TRANSPORT_NCCL, true,
              bodies[_i / NUM_RANK_COUNTS]);
}
END_TEST

static void auto_body(struct rank_arg *arg) {
    RANK_CHECK(strcmp(arg->dc->ops->name, "nccl") == 0);
    RANK_CHECK(arg->dc->capturable);
    RANK_CHECK(strcmp(arg->dc->detail, "NCCL 2.28.9") == 0);
}

START_TEST(auto_takes_nccl_where_every_rank_has_a_gpu) {
    run_ranks(3, &emulated, QEP_DEVICE_TRANSPORT_AUTO, true, auto_body);
}
END_TEST

/* --- graphs ------------------------------------------------------------------------------- */

enum { BLOCK = 64, LAUNCHES = 4 };

struct graph_buffers {
    unsigned char *in, *gathered, *swapped;
};

/* in -> gathered [P blocks] -> swapped: block p of rank r's swapped is block r of p's gathered,
 * which is rank r's in. */
static enum qep_status record(struct rank_arg *arg, struct graph_buffers *x,
                              cudaGraphExec_t *exec) {
    struct qep_device_comm *dc = arg->dc;
    cudaStream_t stream = arg->memory.stream;
    cudaGraph_t graph;
    QEP_TRY(cuda_status(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin"));
    QEP_TRY(dc->ops->allgather(dc, x->in, x->gathered, BLOCK));
    QEP_TRY(dc->ops->alltoall(dc, x->gathered, x->swapped, BLOCK));
    QEP_TRY(cuda_status(cudaStreamEndCapture(stream, &graph), "end"));
    QEP_TRY(cuda_status(cudaGraphInstantiate(exec, graph, 0), "instantiate"));
    return cuda_status(cudaGraphDestroy(graph), "cudaGraphDestroy");
}

static void warm_up(struct rank_arg *arg) {
    size_t bytes = QEP_DEVICE_WARM_UP_BYTES * (size_t)arg->comm->num_ranks;
    void *scratch = emu_alloc(&arg->memory, bytes);
    CUDA_OK(cudaMemsetAsync(scratch, 0, bytes, arg->memory.stream));
    RANK_CHECK(arg->dc->ops->warm_up(arg->dc, scratch) == QEP_OK);
    emu_free(&arg->memory, scratch);
}

static bool launch_and_compare(struct rank_arg *arg, struct graph_buffers *x, cudaGraphExec_t exec,
                               int value) {
    unsigned char in[BLOCK], gathered[BLOCK * MAX_TEST_RANKS], swapped[BLOCK * MAX_TEST_RANKS];
    size_t total = BLOCK * (size_t)arg->comm->num_ranks;
    bool ok = true;
    memset(in, value + arg->comm->rank, sizeof in);
    emu_put(&arg->memory, x->in, in, sizeof in);
    CUDA_OK(cudaGraphLaunch(exec, arg->memory.stream));
    ok = arg->dc->ops->wait(arg->dc) == QEP_OK;
    emu_get(&arg->memory, gathered, x->gathered, total);
    emu_get(&arg->memory, swapped, x->swapped, total);
    for (size_t i = 0; i < total; i++)
        ok = ok && gathered[i] == value + (int)(i / BLOCK) && swapped[i] == in[0];
    return ok;
}

static void graph_body(struct rank_arg *arg) {
    size_t total = BLOCK * (size_t)arg->comm->num_ranks;
    struct graph_buffers x = {emu_alloc(&arg->memory, BLOCK), emu_alloc(&arg->memory, total),
                              emu_alloc(&arg->memory, total)};
    cudaGraphExec_t exec;
    warm_up(arg);
    RANK_CHECK(arg->failure == NULL);
    RANK_CHECK(record(arg, &x, &exec) == QEP_OK);
    for (int i = 0; i < LAUNCHES; i++)
        RANK_CHECK(launch_and_compare(arg, &x, exec, 10 * i));
    CUDA_OK(cudaGraphExecDestroy(exec));
    emu_free(&arg->memory, x.in);
    emu_free(&arg->memory, x.gathered);
    emu_free(&arg->memory, x.swapped);
}

START_TEST(collectives_run_within_graphs) {
    run_ranks(rank_counts[_i], &emulated, QEP_DEVICE_TRANSPORT_NCCL, true, graph_body);
}
END_TEST

static void cold_capture_body(struct rank_arg *arg) {
    size_t total = BLOCK * (size_t)arg->comm->num_ranks;
    struct graph_buffers x = {emu_alloc(&arg->memory, BLOCK), emu_alloc(&arg->memory, total),
                              emu_alloc(&arg->memory, total)};
    cudaGraphExec_t exec;
    cudaGraph_t graph;
    RANK_CHECK(record(arg, &x, &exec) == QEP_ERR_UNAVAILABLE);
    RANK_CHECK(strstr(qep_last_error(), "first time within a capture") != NULL);
    CUDA_OK(cudaStreamEndCapture(arg->memory.stream, &graph));
    CUDA_OK(cudaGraphDestroy(graph));
    emu_free(&arg->memory, x.in);
    emu_free(&arg->memory, x.gathered);
    emu_free(&arg->memory, x.swapped);
}

START_TEST(the_fake_refuses_connecting_within_a_capture) {
    run_ranks(2, &emulated, QEP_DEVICE_TRANSPORT_NCCL, true, cold_capture_body);
}
END_TEST

/* --- coming up ---------------------------------------------------------------------------- */

static bool fails(struct rank_arg *arg, double timeout_s, enum qep_status st, const char *text) {
    enum qep_status found = qep_device_comm_create(arg->comm, &arg->memory,
                                                   QEP_DEVICE_TRANSPORT_NCCL, timeout_s, &arg->dc);
    if (found == st && strstr(qep_last_error(), text) != NULL && arg->dc == NULL)
        return true;
    fprintf(stderr, "rank %d: expected %d '%s'\n", arg->comm->rank, (int)st, text);
    return false;
}

static void duplicate_body(struct rank_arg *arg) {
    if (arg->comm->rank == 2) {
        arg->device->close(&arg->memory);
        arg->device->open(1, &arg->memory);
    }
    RANK_CHECK(fails(arg, 5.0, QEP_ERR_UNAVAILABLE, "ranks 1 and 2 share one GPU (GPU-"));
    RANK_CHECK(qep_device_comm_create(arg->comm, &arg->memory, QEP_DEVICE_TRANSPORT_AUTO, 5.0,
                                      &arg->dc) == QEP_OK);
    RANK_CHECK(strcmp(arg->dc->ops->name, "staged") == 0);
    RANK_CHECK(strcmp(arg->dc->detail, "not NCCL: ranks 1 and 2 share one GPU") == 0);
    chain_body(arg);
    qep_device_comm_destroy(arg->dc);
}

START_TEST(ranks_that_share_a_gpu_are_named_or_staged) {
    run_ranks(3, &emulated, QEP_DEVICE_TRANSPORT_NCCL, false, duplicate_body);
}
END_TEST

/* What the library itself says of two ranks on a device, should the UUIDs not tell. */
static void undetected_body(struct rank_arg *arg) {
    if (arg->comm->rank == 1) {
        arg->device->close(&arg->memory);
        arg->device->open(0, &arg->memory);
        arg->memory.uuid[0] ^= 1;
    }
    RANK_CHECK(fails(arg, 5.0, QEP_ERR_UNAVAILABLE, "Duplicate GPU detected"));
}

START_TEST(what_nccl_refuses_is_said_in_its_words) {
    run_ranks(2, &emulated, QEP_DEVICE_TRANSPORT_NCCL, false, undetected_body);
}
END_TEST

static void version_body(struct rank_arg *arg) {
    if (arg->comm->rank == 1)
        fake_nccl_set_thread_version(22703);
    RANK_CHECK(fails(arg, 5.0, QEP_ERR_USAGE, "rank 1: NCCL version differs: '2.27.3', rank 0"));
}

START_TEST(versions_must_agree) {
    run_ranks(3, &emulated, QEP_DEVICE_TRANSPORT_NCCL, false, version_body);
}
END_TEST

static void old_version_body(struct rank_arg *arg) {
    RANK_CHECK(fails(arg, 5.0, QEP_ERR_UNAVAILABLE, "NCCL is too old"));
}

START_TEST(libraries_without_nonblocking_communicators_are_refused) {
    fake_nccl_configure("version=21303");
    run_ranks(2, &emulated, QEP_DEVICE_TRANSPORT_NCCL, false, old_version_body);
}
END_TEST

static void hang_body(struct rank_arg *arg) {
    double start_s = qep_now_s();
    RANK_CHECK(fails(arg, SHORT_TIMEOUT_S, QEP_ERR_INTERRUPTED,
                     "no progress for 0.5 s in ncclCommInitRankConfig: not all ranks joined"));
    RANK_CHECK(qep_now_s() - start_s < 60.0);
}

START_TEST(a_rank_that_does_not_join_is_a_message_after_the_deadline) {
    fake_nccl_configure("init_hang=1");
    run_ranks(3, &emulated, QEP_DEVICE_TRANSPORT_NCCL, false, hang_body);
}
END_TEST

static void init_fail_body(struct rank_arg *arg) {
    RANK_CHECK(fails(arg, SHORT_TIMEOUT_S, QEP_ERR_UNAVAILABLE,
                     "rank 2: ncclCommInitRankConfig failed: unhandled system error"));
    RANK_CHECK(strstr(qep_last_error(), "fault asked for in initialisation") != NULL);
}

START_TEST(the_rank_that_failed_speaks_not_those_that_waited) {
    fake_nccl_configure("init_fail=2");
    run_ranks(4, &emulated, QEP_DEVICE_TRANSPORT_NCCL, false, init_fail_body);
}
END_TEST

START_TEST(slow_starts_and_connections_are_waited_for) {
    fake_nccl_configure("init_polls=300,progress_polls=50");
    run_ranks(3, &emulated, QEP_DEVICE_TRANSPORT_NCCL, true, chain_body);
    run_ranks(3, &emulated, QEP_DEVICE_TRANSPORT_NCCL, true, alltoallv_body);
}
END_TEST

/* --- faults while running: the ranks do not clean up, the process ends ---------------------- */

static void *zeroed(struct rank_arg *arg, size_t bytes) {
    unsigned char zeros[1024] = {0};
    void *dev = emu_alloc(&arg->memory, bytes);
    emu_put(&arg->memory, dev, zeros, bytes);
    return dev;
}

static enum qep_status gather_and_wait(struct rank_arg *arg, int times) {
    size_t bytes = 16;
    void *in = zeroed(arg, bytes), *out = zeroed(arg, bytes * (size_t)arg->comm->num_ranks);
    for (int i = 0; i < times; i++) {
        QEP_TRY(arg->dc->ops->allgather(arg->dc, in, out, bytes));
        QEP_TRY(arg->dc->ops->wait(arg->dc));
    }
    return QEP_OK;
}

/* All ranks have looked at what they found; ends the process well. */
static void leave(struct rank_arg *arg) {
    RANK_CHECK(qep_comm_barrier(arg->comm) == QEP_OK);
    if (arg->comm->rank == 0)
        _Exit(0);
    qep_sleep_us(60 * 1000 * 1000);
}

static void lost_body(struct rank_arg *arg) {
    if (arg->comm->rank != 1) {
        RANK_CHECK(gather_and_wait(arg, 5) == QEP_ERR_UNAVAILABLE);
        RANK_CHECK(strstr(qep_last_error(), "failed: remote process exited or there was a network "
                                            "error: connection to rank 1 closed") != NULL);
        RANK_CHECK(arg->dc->ops->poll_errors(arg->dc) == QEP_ERR_UNAVAILABLE);
    } else { /* gone in its third operation */
        void *in = zeroed(arg, 16), *out = zeroed(arg, 64);
        RANK_CHECK(gather_and_wait(arg, 2) == QEP_OK);
        RANK_CHECK(arg->dc->ops->allgather(arg->dc, in, out, 16) == QEP_OK);
        RANK_CHECK(cudaStreamQuery(arg->memory.stream) == cudaErrorNotReady);
    }
    leave(arg);
}

START_TEST(a_lost_rank_is_an_error_of_the_others) {
    fake_nccl_configure("lost_rank=1,lost_op=3");
    run_ranks(3, &emulated, QEP_DEVICE_TRANSPORT_NCCL, true, lost_body);
}
END_TEST

static void own_fault_body(struct rank_arg *arg) {
    if (arg->comm->rank == 1) {
        RANK_CHECK(gather_and_wait(arg, 5) == QEP_ERR_UNAVAILABLE);
        RANK_CHECK(strstr(qep_last_error(), "fault asked for in operation 4") != NULL);
    } else {
        void *in = zeroed(arg, 16), *out = zeroed(arg, 64);
        RANK_CHECK(gather_and_wait(arg, 3) == QEP_OK);
        RANK_CHECK(arg->dc->ops->allgather(arg->dc, in, out, 16) == QEP_OK);
    }
    leave(arg);
}

START_TEST(an_asynchronous_error_is_found_while_waiting) {
    fake_nccl_configure("fail_rank=1,fail_op=4");
    run_ranks(2, &emulated, QEP_DEVICE_TRANSPORT_NCCL, true, own_fault_body);
}
END_TEST

static void watched_body(struct rank_arg *arg) {
    struct qep_watchdog *dog = NULL;
    RANK_CHECK(qep_watchdog_create(arg->comm, SHORT_TIMEOUT_S, &dog) == QEP_OK);
    qep_watchdog_stamp(dog, "dispatch", 3, 7);
    gather_and_wait(arg, 5);
    arg->failure = "the watchdog is silent";
}

START_TEST(a_peer_that_hangs_is_the_watchdogs_to_end) {
    fake_nccl_configure("stuck_rank=1,stuck_op=3");
    run_ranks(3, &emulated, QEP_DEVICE_TRANSPORT_NCCL, true, watched_body);
}
END_TEST

static void mismatch_body(struct rank_arg *arg) {
    void *in = zeroed(arg, 64), *out = zeroed(arg, 256);
    size_t bytes = arg->comm->rank == 0 ? 16 : 32;
    enum qep_status st = arg->dc->ops->allgather(arg->dc, in, out, bytes);
    if (st == QEP_OK) /* the peer may have been there first */
        st = arg->dc->ops->wait(arg->dc);
    RANK_CHECK(st == QEP_ERR_UNAVAILABLE);
    RANK_CHECK(strstr(qep_last_error(), "which expects") != NULL);
    leave(arg);
}

START_TEST(the_fake_finds_sizes_that_differ) {
    run_ranks(2, &emulated, QEP_DEVICE_TRANSPORT_NCCL, true, mismatch_body);
}
END_TEST

static void order_body(struct rank_arg *arg) {
    void *in = zeroed(arg, 64), *out = zeroed(arg, 256);
    size_t equal[2] = {16, 16}, offset[2] = {0, 16};
    enum qep_status st = arg->comm->rank == 0 ? arg->dc->ops->allgather(arg->dc, in, out, 16)
                                              : arg->dc->ops->alltoallv(arg->dc, in, equal, offset,
                                                                        out, equal, offset);
    if (st == QEP_OK)
        st = arg->dc->ops->wait(arg->dc);
    RANK_CHECK(st == QEP_ERR_UNAVAILABLE);
    RANK_CHECK(strstr(qep_last_error(), "by ncclAllGather") != NULL);
    RANK_CHECK(strstr(qep_last_error(), "by ncclSend/ncclRecv") != NULL);
    leave(arg);
}

START_TEST(the_fake_finds_collectives_in_another_order) {
    run_ranks(2, &emulated, QEP_DEVICE_TRANSPORT_NCCL, true, order_body);
}
END_TEST

/* --- the fake itself ------------------------------------------------------------------------ */

static void fake_alone(int blocking) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t async = ncclSuccess;
    ncclUniqueId id;
    ncclComm_t comm;
    cudaStream_t stream;
    unsigned char data[16] = {1, 2, 3}, back[16] = {0};
    void *in, *out;
    config.blocking = blocking;
    CUDA_OK(cudaStreamCreate(&stream));
    CUDA_OK(cudaMalloc(&in, sizeof data));
    CUDA_OK(cudaMalloc(&out, sizeof data));
    CUDA_OK(cudaMemcpyAsync(in, data, sizeof data, cudaMemcpyHostToDevice, stream));
    ck_assert_int_eq(ncclGetUniqueId(&id), ncclSuccess);
    ck_assert_int_eq(ncclCommInitRankConfig(&comm, 1, id, 0, &config),
                     blocking ? ncclSuccess : ncclInProgress);
    if (!blocking) {
        ck_assert_int_eq(ncclAllGather(in, out, 16, ncclUint8, comm, stream), ncclInvalidUsage);
        do
            ck_assert_int_eq(ncclCommGetAsyncError(comm, &async), ncclSuccess);
        while (async == ncclInProgress);
    }
    ck_assert_int_eq(async, ncclSuccess);
    ck_assert_int_eq(ncclGroupEnd(), ncclInvalidUsage);
    ck_assert_int_eq(ncclGroupStart(), ncclSuccess);
    ck_assert_int_eq(ncclSend(in, 4, ncclFloat32, 0, comm, stream), ncclSuccess);
    ck_assert_int_eq(ncclRecv(out, 4, ncclFloat32, 0, comm, stream), ncclSuccess);
    ck_assert_int_eq(ncclGroupEnd(), blocking ? ncclSuccess : ncclInProgress);
    do
        ck_assert_int_eq(ncclCommGetAsyncError(comm, &async), ncclSuccess);
    while (async == ncclInProgress);
    ck_assert_int_eq(ncclCommDestroy(comm), ncclInvalidUsage); /* still under way */
    CUDA_OK(cudaMemcpyAsync(back, out, sizeof back, cudaMemcpyDeviceToHost, stream));
    CUDA_OK(cudaStreamSynchronize(stream));
    ck_assert_mem_eq(back, data, sizeof data);
    ck_assert_int_eq(fake_nccl_num_operations(), 1);
    ck_assert_int_eq(ncclCommAbort(comm), ncclSuccess);
    ck_assert_int_eq(ncclCommAbort(comm), ncclInvalidArgument);
    CUDA_OK(cudaStreamDestroy(stream));
    CUDA_OK(cudaFree(in));
    CUDA_OK(cudaFree(out));
}

START_TEST(the_fake_keeps_the_rules) {
    fake_nccl_configure("");
    fake_alone(_i);
}
END_TEST

static void add_faults(TCase *tcase) {
    tcase_add_test(tcase, ranks_that_share_a_gpu_are_named_or_staged);
    tcase_add_test(tcase, what_nccl_refuses_is_said_in_its_words);
    tcase_add_test(tcase, versions_must_agree);
    tcase_add_test(tcase, libraries_without_nonblocking_communicators_are_refused);
    tcase_add_test(tcase, a_rank_that_does_not_join_is_a_message_after_the_deadline);
    tcase_add_test(tcase, the_rank_that_failed_speaks_not_those_that_waited);
    tcase_add_test(tcase, slow_starts_and_connections_are_waited_for);
    tcase_add_exit_test(tcase, a_lost_rank_is_an_error_of_the_others, 0);
    tcase_add_exit_test(tcase, an_asynchronous_error_is_found_while_waiting, 0);
    tcase_add_exit_test(tcase, a_peer_that_hangs_is_the_watchdogs_to_end, QEP_ERR_INTERRUPTED);
    tcase_add_exit_test(tcase, the_fake_finds_sizes_that_differ, 0);
    tcase_add_exit_test(tcase, the_fake_finds_collectives_in_another_order, 0);
}

int main(void) {
    Suite *suite = suite_create("device_nccl");
    TCase *tcase = tcase_create("device_nccl");
    setenv("QEP_EMU_DEVICES", "8", 1);
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, staged_moves_what_the_host_transport_moves, 0,
                        NUM_BODIES * NUM_RANK_COUNTS);
    tcase_add_loop_test(tcase, nccl_moves_what_the_host_transport_moves, 0,
                        NUM_BODIES * NUM_RANK_COUNTS);
    tcase_add_test(tcase, auto_takes_nccl_where_every_rank_has_a_gpu);
    tcase_add_loop_test(tcase, collectives_run_within_graphs, 0, NUM_RANK_COUNTS);
    tcase_add_test(tcase, the_fake_refuses_connecting_within_a_capture);
    tcase_add_loop_test(tcase, the_fake_keeps_the_rules, 0, 2);
    add_faults(tcase);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed > 0;
}

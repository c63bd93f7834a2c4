/* GPUs at start-up: whether `--backend auto` means them, the device of this rank, and the transport
 * between their memories. */
#include "engine/engine_internal.h"

#include "base/log.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

/* `auto` is cuda when every rank has a GPU. */
enum qep_status engine_choose_backend(struct qep_engine *e) {
    const char *wanted = e->options.backend;
    bool all = false;
    e->facts.backend = strcmp(wanted, "auto") == 0 ? "cpu" : wanted;
    if (strcmp(wanted, "auto") == 0 && strcmp(e->options.activations, "int8") != 0 &&
        strcmp(e->options.activations, "fp32") != 0 && strcmp(e->options.isa, "auto") == 0) {
        QEP_TRY(engine_agree_all(e->comm, qep_cuda_present(), &all));
        if (all)
            e->facts.backend = "cuda";
    }
    e->on_gpu = strcmp(e->facts.backend, "cuda") == 0;
    if (!e->on_gpu && strcmp(e->options.device_transport, "nccl") == 0)
        return qep_comm_agree(e->comm,
                              qep_fail(QEP_ERR_UNAVAILABLE,
                                       "--transport nccl is between GPUs, the backend is %s",
                                       e->facts.backend));
    return QEP_OK;
}

enum qep_status engine_start_gpu(struct qep_engine *e) {
    QEP_TRY(qep_backend_cuda_create(e->team, -1, e->comm->local_rank, &e->be));
    QEP_TRY(qep_backend_cuda_device(e->be, &e->gpu));
    e->gpu_sharers = 1;
    if (e->facts.activations != NULL && strcmp(e->facts.activations, "auto") == 0)
        e->facts.activations = "bf16";
    return QEP_OK;
}

/* ---- qep_device_memory over the backend's tables ---- */

static enum qep_status memory_upload(void *ctx, void *dev, const void *host, size_t bytes) {
    struct qep_backend *be = ctx;
    return be->ops->upload(be, dev, host, bytes);
}

static enum qep_status memory_download(void *ctx, void *host, const void *dev, size_t bytes) {
    struct qep_backend *be = ctx;
    return be->ops->download(be, host, dev, bytes);
}

static enum qep_status memory_copy(void *ctx, void *dst, const void *src, size_t bytes) {
    struct qep_backend *be = ctx;
    return be->device->copy(be, dst, src, bytes);
}

static enum qep_status memory_sync(void *ctx) {
    struct qep_backend *be = ctx;
    return be->ops->sync(be);
}

static enum qep_status memory_query(void *ctx, bool *idle) {
    struct qep_backend *be = ctx;
    return be->device->query(be, idle);
}

static enum qep_status memory_host_alloc(void *ctx, size_t bytes, void **host) {
    struct qep_backend *be = ctx;
    return be->device->host_alloc(be, bytes, host);
}

static void memory_host_free(void *ctx, void *host) {
    struct qep_backend *be = ctx;
    be->device->host_free(be, host);
}

struct qep_device_memory engine_device_memory(struct qep_backend *be,
                                              const struct qep_cuda_device *gpu) {
    struct qep_device_memory memory = {.ctx = be,
                                       .stream = be->device->stream(be),
                                       .upload = memory_upload,
                                       .download = memory_download,
                                       .copy = memory_copy,
                                       .sync = memory_sync,
                                       .query = memory_query,
                                       .host_alloc = memory_host_alloc,
                                       .host_free = memory_host_free};
    memcpy(memory.uuid, gpu->uuid, sizeof memory.uuid);
    return memory;
}

enum qep_status qep_engine_profile_begin(struct qep_engine *e) {
    if (!e->on_gpu)
        return qep_fail(QEP_ERR_USAGE, "the %s backend has no launches to time", e->facts.backend);
    return e->be->device->profile_begin(e->be);
}

enum qep_status qep_engine_profile_end(struct qep_engine *e, struct qep_launch_time **times,
                                       size_t *num) {
    return e->be->device->profile_end(e->be, times, num);
}

/* How many ranks have this rank's GPU. */
static enum qep_status count_sharers(struct qep_engine *e) {
    size_t ranks = (size_t)e->comm->num_ranks, bytes = sizeof e->gpu.uuid;
    unsigned char *all = NULL;
    QEP_TRY(qep_comm_gather(e->comm, e->gpu.uuid, bytes, "GPU ids", (void **)&all));
    e->gpu_sharers = 0;
    for (size_t p = 0; p < ranks; p++)
        e->gpu_sharers += memcmp(all + p * bytes, e->gpu.uuid, bytes) == 0;
    free(all);
    return QEP_OK;
}

static enum qep_status warm_up(struct qep_engine *e) {
    void *scratch = NULL;
    size_t bytes = (size_t)QEP_DEVICE_WARM_UP_BYTES * (size_t)e->comm->num_ranks;
    QEP_TRY(qep_comm_agree(e->comm, e->be->ops->alloc(e->be, bytes, "warm-up", &scratch)));
    enum qep_status st = e->dc->ops->warm_up(e->dc, scratch);
    e->be->ops->free(e->be, scratch);
    return st;
}

static enum qep_status wait_with_transport(void *ctx, qep_query_fn *query, void *query_ctx) {
    return qep_device_wait_until(ctx, query, query_ctx);
}

enum qep_status engine_connect_gpus(struct qep_engine *e) {
    const char *wanted = e->options.device_transport;
    enum qep_device_transport transport = strcmp(wanted, "nccl") == 0 ? QEP_DEVICE_TRANSPORT_NCCL
                                          : strcmp(wanted, "staged") == 0
                                              ? QEP_DEVICE_TRANSPORT_STAGED
                                              : QEP_DEVICE_TRANSPORT_AUTO;
    if (!e->on_gpu)
        return QEP_OK;
    QEP_TRY(count_sharers(e));
    struct qep_device_memory memory = engine_device_memory(e->be, &e->gpu);
    qep_watchdog_rest(e->dog); /* joining has a deadline of its own */
    QEP_TRY(qep_device_comm_create(e->comm, &memory, transport, e->options.timeout_s, &e->dc));
    qep_watchdog_stamp(e->dog, "connecting GPUs", -1, 0);
    if (strcmp(e->dc->ops->name, "self") != 0)
        QEP_TRY(warm_up(e));
    if (strcmp(e->dc->ops->name, "nccl") == 0) {
        e->be->device->set_wait(e->be, wait_with_transport, e->dc);
        e->facts.transport = "nccl";
        /* Its buffers are there now: what is free is less. */
        QEP_TRY(qep_comm_agree(e->comm, qep_backend_cuda_device(e->be, &e->gpu)));
    }
    qep_watchdog_rest(e->dog); /* loading takes its time */
    if (e->comm->rank == 0 && strcmp(e->dc->ops->name, "self") != 0)
        qep_info("between GPUs: %s (%s)", e->dc->ops->name, e->dc->detail);
    return QEP_OK;
}

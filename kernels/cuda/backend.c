/* The CUDA backend: its table, the choice of the device, and what is said when there is none. */
#include "base/mem.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/deltanet.h"
#include "kernels/cuda/device_entries.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Compute capability 8.0 has that much shared memory, 8.6 and 8.9 have not. */
enum { MIN_COMPUTE_CAPABILITY = 80, MIN_SHARED_BYTES = 163 << 10 };

static void cuda_destroy(struct qep_backend *base) {
    struct cuda_backend *be = cuda_backend_of(base);
    if (be->stream != NULL && cuda_enter(be) == QEP_OK) {
        (void)cudaStreamSynchronize(be->stream);
        cuda_profile_destroy(be);
        if (be->copy_stream != NULL) {
            (void)cudaStreamSynchronize(be->copy_stream);
            (void)cudaStreamDestroy(be->copy_stream);
        }
        cuda_memory_destroy(be);
        (void)cudaStreamDestroy(be->stream);
    }
    pthread_mutex_destroy(&be->lock);
    free(be);
}

static const struct qep_backend_ops cuda_ops = {
    .name = "cuda",
    .alloc = cuda_alloc,
    .free = cuda_free,
    .upload = cuda_upload,
    .download = cuda_download,
    .zero = cuda_zero,
    .sync = cuda_sync,
    .weight_create = cuda_weight_create,
    .weight_destroy = cuda_weight_destroy,
    .supports = cuda_supports,
    .embed = cuda_embed,
    .rms_norm = cuda_rms_norm,
    .act_convert = cuda_act_convert,
    .matmul = cuda_matmul,
    .swiglu = cuda_swiglu,
    .attention_kv = cuda_attention_kv,
    .attention = cuda_attention,
    .delta_conv = cuda_delta_conv,
    .delta = cuda_delta,
    .delta_norm = cuda_delta_norm,
    .router_topk = cuda_router_topk,
    .experts = cuda_experts,
    .tree_sum = cuda_tree_sum,
    .destroy = cuda_destroy,
};

static enum qep_status cuda_check_dims(struct qep_backend *be,
                                       const struct qep_attention_dims *attention,
                                       const struct qep_delta_dims *delta) {
    (void)be;
    if (attention->num_heads > 0)
        QEP_TRY(cuda_attention_limits(attention));
    return delta->num_value_heads > 0 ? cuda_delta_limits(delta) : QEP_OK;
}

static void *cuda_stream(struct qep_backend *be) {
    return cuda_backend_of(be)->stream;
}

static void cuda_set_wait(struct qep_backend *be, qep_wait_fn *fn, void *ctx) {
    cuda_backend_of(be)->wait = fn;
    cuda_backend_of(be)->wait_ctx = ctx;
}

const struct qep_device_ops cuda_device_ops = {
    .block_bytes = cuda_block_bytes,
    .weight_bytes = cuda_weight_bytes,
    .workspace_bytes = cuda_workspace_bytes,
    .held_bytes = cuda_held_bytes,
    .check_dims = cuda_check_dims,
    .delta_decode = cuda_delta_decode,
    .expert_set_create = cuda_expert_set_create,
    .expert_set_destroy = cuda_expert_set_destroy,
    .routed = cuda_routed,
    .combine = cuda_combine,
    .route_lists = cuda_route_lists,
    .pack = cuda_pack,
    .gather_rows = cuda_gather_rows,
    .mark_seen = cuda_mark_seen,
    .sample_candidates = cuda_sample_candidates,
    .sample_final = cuda_sample_final,
    .advance = cuda_advance,
    .host_alloc = cuda_host_alloc,
    .host_free = cuda_host_free,
    .event_create = cuda_event_create,
    .event_destroy = cuda_event_destroy,
    .download_async = cuda_download_async,
    .event_wait = cuda_event_wait,
    .capture_begin = cuda_capture_begin,
    .capture_end = cuda_capture_end,
    .graph_launch = cuda_graph_launch,
    .graph_destroy = cuda_graph_destroy,
    .profile_begin = cuda_profile_begin,
    .profile_end = cuda_profile_end,
    .stream = cuda_stream,
    .copy = cuda_copy,
    .query = cuda_query,
    .set_wait = cuda_set_wait,
};

/* The number of devices, or why there is none. */
static enum qep_status count_devices(int *count) {
    cudaError_t error = cudaGetDeviceCount(count);
    if (error == cudaErrorInsufficientDriver) {
        int driver = 0, runtime = 0;
        (void)cudaDriverGetVersion(&driver);
        (void)cudaRuntimeGetVersion(&runtime);
        if (driver == 0)
            return qep_fail(QEP_ERR_UNAVAILABLE, "cuda: no NVIDIA driver on this machine");
        return qep_fail(QEP_ERR_UNAVAILABLE,
                        "cuda: the driver is for CUDA %d.%d, this build needs %d.%d", driver / 1000,
                        driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
    if (error == cudaErrorNoDevice || (error == cudaSuccess && *count == 0))
        return qep_fail(QEP_ERR_UNAVAILABLE, "cuda: no GPU found (is CUDA_VISIBLE_DEVICES empty?)");
    return cuda_check(error, "cudaGetDeviceCount");
}

/* Whether open_device would take it; without a context. */
static bool suits(int device) {
    int major = 0, shared = 0;
    return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
               cudaSuccess &&
           10 * major >= MIN_COMPUTE_CAPABILITY && shared >= MIN_SHARED_BYTES;
}

bool qep_cuda_present(void) {
    int count = 0;
    bool all = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
    for (int i = 0; all && i < count; i++)
        all = suits(i);
    return all;
}

static enum qep_status open_device(struct cuda_backend *be, int device, int local_rank) {
    int count = 0;
    struct cudaDeviceProp prop;
    QEP_TRY(count_devices(&count));
    if (device >= count)
        return qep_fail(QEP_ERR_UNAVAILABLE, "cuda: device %d of %d", device, count);
    be->device = device >= 0 ? device : local_rank % count;
    QEP_TRY(cuda_enter(be));
    QEP_TRY(cuda_check(cudaGetDeviceProperties(&prop, be->device), "cudaGetDeviceProperties"));
    be->compute_capability = prop.major * 10 + prop.minor;
    be->num_sms = prop.multiProcessorCount;
    if (be->compute_capability < MIN_COMPUTE_CAPABILITY)
        return qep_fail(QEP_ERR_UNAVAILABLE,
                        "cuda: %s has compute capability %d.%d, at least 8.0 is needed", prop.name,
                        prop.major, prop.minor);
    if (prop.sharedMemPerBlockOptin < MIN_SHARED_BYTES)
        return qep_fail(QEP_ERR_UNAVAILABLE,
                        "cuda: %s has %zu KB of shared memory for a thread block, at least %d are "
                        "needed",
                        prop.name, prop.sharedMemPerBlockOptin >> 10, (int)MIN_SHARED_BYTES >> 10);
#ifdef QEP_CUDA_EMU
    snprintf(be->isa, sizeof be->isa, "emulator");
#else
    snprintf(be->isa, sizeof be->isa, "sm_%d", be->compute_capability);
#endif
    be->base.isa = be->isa;
    return cuda_check(cudaStreamCreateWithFlags(&be->stream, cudaStreamNonBlocking),
                      "cudaStreamCreate");
}

/* A first op, so that a build without code for this GPU is found before weights are read. */
static enum qep_status try_kernel(struct cuda_backend *be) {
    float one = 1.0f;
    uint16_t got[8] = {0};
    void *dev = NULL;
    QEP_TRY(cuda_alloc(&be->base, 2 * sizeof got, "probe", &dev));
    enum qep_status st = cuda_upload(&be->base, dev, &one, sizeof one);
    if (st == QEP_OK)
        st = cuda_act_convert(&be->base, (char *)dev + sizeof got, sizeof got, QEP_ACT_BF16, dev, 1,
                              1);
    if (st == QEP_OK)
        st = cuda_download(&be->base, got, (char *)dev + sizeof got, sizeof got);
    if (st == QEP_OK && got[0] != qep_f32_to_bf16(one))
        st = qep_fail(QEP_ERR_UNAVAILABLE, "cuda: a first kernel gave %g instead of 1",
                      (double)qep_bf16_to_f32(got[0]));
    cuda_free(&be->base, dev);
    return st;
}

enum qep_status qep_backend_cuda_create(struct qep_team *team, int device, int local_rank,
                                        struct qep_backend **out) {
    void *mem = NULL;
    (void)team; /* loading comes in on its threads */
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof(struct cuda_backend), "cuda backend", &mem));
    struct cuda_backend *be = mem;
    be->base.ops = &cuda_ops;
    be->base.device = &cuda_device_ops;
    be->base.joins_planes = true;
    pthread_mutex_init(&be->lock, NULL);
    enum qep_status st = open_device(be, device, local_rank);
    if (st == QEP_OK)
        st = cuda_memory_create(be);
    if (st == QEP_OK)
        st = try_kernel(be);
    if (st == QEP_OK)
        *out = &be->base;
    else
        cuda_destroy(&be->base);
    return st;
}

enum qep_status qep_backend_cuda_device(const struct qep_backend *base,
                                        struct qep_cuda_device *out) {
    const struct cuda_backend *be = (const struct cuda_backend *)base;
    struct cudaDeviceProp prop;
    size_t left = 0, total = 0;
    memset(out, 0, sizeof *out);
    QEP_TRY(cuda_enter(be));
    QEP_TRY(cuda_check(cudaGetDeviceProperties(&prop, be->device), "cudaGetDeviceProperties"));
    QEP_TRY(cuda_check(cudaMemGetInfo(&left, &total), "cudaMemGetInfo"));
    snprintf(out->name, sizeof out->name, "%.63s", prop.name);
    memcpy(out->uuid, &prop.uuid, sizeof out->uuid);
    out->compute_capability = be->compute_capability;
    out->total_bytes = total;
    out->free_bytes = left;
    return QEP_OK;
}

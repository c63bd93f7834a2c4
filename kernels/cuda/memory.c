/* Device memory and copies. Uploads go through rings of page-locked slots: small ones on the ops'
 * stream, others (weights) on two copy streams, so that a loader's threads fill slots while earlier
 * ones travel. Locking pages takes long, so a ring is made when an upload first wants its size.
 * Whatever the way, an upload takes effect in call order: a copy stream first waits for the ops
 * before it, and the ops after it wait for the copy. */
#include "base/mem.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/pool.h"

#include <stdlib.h>
#include <string.h>

enum { NUM_COPY_STREAMS = 2, NUM_RINGS = 3 };

struct ring_size {
    size_t slot_bytes;
    int num_slots;
};

/* SOURCE_STEP: cudaMalloc rounds to multiples of it. */
#ifdef QEP_CUDA_EMU
/* Every block an allocation of its own, so that the emulator sees its bounds. */
enum { SLAB_BYTES = 0, SOURCE_STEP = 512 };
static const struct ring_size ring_sizes[NUM_RINGS] = {{4096, 8}, {8192, 4}, {32768, 4}};
#else
enum { SLAB_BYTES = 64 << 20, SOURCE_STEP = 2 << 20 };
static const struct ring_size ring_sizes[NUM_RINGS] = {
    {32 << 10, 64}, {512 << 10, 12}, {8 << 20, 12}};
#endif

/* Slots that are handed out in turn. */
struct ring {
    char *memory; /* NULL: not made yet */
    size_t slot_bytes;
    int num_slots, next;
    bool *taken;        /* [num_slots] a thread fills the slot */
    cudaEvent_t *sent;  /* [num_slots] the slot's last copy is done */
    cudaEvent_t *fence; /* [num_slots] the ops before the copy are done */
};

struct cuda_staging {
    struct ring rings[NUM_RINGS]; /* the first: on the ops' stream */
    cudaStream_t streams[NUM_COPY_STREAMS];
    pthread_cond_t returned;
};

enum qep_status cuda_check(cudaError_t error, const char *what) {
    if (error == cudaSuccess)
        return QEP_OK;
    if (error == cudaErrorMemoryAllocation)
        return qep_fail(QEP_ERR_SYSTEM, "cuda: %s: out of memory", what);
    return qep_fail(QEP_ERR_UNAVAILABLE, "cuda: %s: %s (%s)", what, cudaGetErrorString(error),
                    cudaGetErrorName(error));
}

enum qep_status cuda_enter(const struct cuda_backend *be) {
    static _Thread_local int current = -1;
    if (current == be->device)
        return QEP_OK;
    QEP_TRY(cuda_check(cudaSetDevice(be->device), "cudaSetDevice"));
    current = be->device;
    return QEP_OK;
}

static enum qep_status refuse_capture(const struct cuda_backend *be, const char *what) {
    return be->capturing ? qep_fail(QEP_ERR_BUG, "cuda: %s during capture", what) : QEP_OK;
}

/* ---- blocks ---- */

static enum qep_status source_alloc(void *ctx, size_t bytes, void **out) {
    (void)ctx;
    cudaError_t error = cudaMalloc(out, bytes);
    if (error != cudaErrorMemoryAllocation)
        return cuda_check(error, "cudaMalloc");
    size_t left = 0, total = 0;
    (void)cudaGetLastError();
    (void)cudaMemGetInfo(&left, &total);
    return qep_fail(QEP_ERR_SYSTEM, "out of GPU memory: %zu bytes wanted, %zu of %zu free", bytes,
                    left, total);
}

static void source_free(void *ctx, void *block) {
    const struct cuda_backend *be = ctx;
    (void)cudaStreamSynchronize(be->stream);
    (void)cudaFree(block);
}

enum qep_status cuda_alloc(struct qep_backend *base, size_t bytes, const char *what, void **dev) {
    struct cuda_backend *be = cuda_backend_of(base);
    *dev = NULL;
    QEP_TRY(refuse_capture(be, what));
    QEP_TRY(cuda_enter(be));
    pthread_mutex_lock(&be->lock);
    enum qep_status st = cuda_pool_alloc(be->pool, bytes, dev);
    if (st == QEP_OK)
        st = cuda_check(cudaMemsetAsync(*dev, 0, bytes > 0 ? bytes : 1, be->stream), what);
    pthread_mutex_unlock(&be->lock);
    return st;
}

void cuda_free(struct qep_backend *base, void *dev) {
    struct cuda_backend *be = cuda_backend_of(base);
    if (dev == NULL || cuda_enter(be) != QEP_OK)
        return;
    pthread_mutex_lock(&be->lock);
    cuda_pool_free(be->pool, dev);
    pthread_mutex_unlock(&be->lock);
}

uint64_t cuda_block_bytes(const struct qep_backend *base, size_t bytes) {
    size_t taken = cuda_pool_block_bytes(((const struct cuda_backend *)base)->pool, bytes);
    return taken > SLAB_BYTES / 4 ? (taken + SOURCE_STEP - 1) / SOURCE_STEP * SOURCE_STEP : taken;
}

/* Slabs keep what loading gave back, and blocks that were outgrown; some are not full. */
uint64_t cuda_held_bytes(const struct qep_backend *base, uint64_t staying, uint64_t loading,
                         uint64_t later) {
    const uint64_t slabs = (uint64_t)4 * SLAB_BYTES;
    (void)base;
    if (slabs > 0)
        return staying + loading + later + slabs;
    return staying + (loading > later ? loading : later);
}

size_t cuda_workspace_grown(size_t bytes) {
    return bytes + bytes / 4 + CUDA_POOL_ALIGN;
}

enum qep_status cuda_reserve(struct cuda_backend *be, enum cuda_workspace id, size_t bytes,
                             void **dev) {
    if (bytes > be->workspace[id].bytes || be->workspace[id].data == NULL) {
        size_t grown = cuda_workspace_grown(bytes);
        QEP_TRY(refuse_capture(be, "workspace"));
        be->base.generation++;
        cuda_free(&be->base, be->workspace[id].data);
        be->workspace[id].data = NULL;
        be->workspace[id].bytes = 0;
        QEP_TRY(cuda_alloc(&be->base, grown, "workspace", &be->workspace[id].data));
        be->workspace[id].bytes = grown;
    }
    *dev = be->workspace[id].data;
    return QEP_OK;
}

/* ---- staging ---- */

static void ring_destroy(struct ring *ring) {
    for (int i = 0; ring->sent != NULL && i < ring->num_slots; i++)
        if (ring->sent[i] != NULL)
            (void)cudaEventDestroy(ring->sent[i]);
    for (int i = 0; ring->fence != NULL && i < ring->num_slots; i++)
        if (ring->fence[i] != NULL)
            (void)cudaEventDestroy(ring->fence[i]);
    if (ring->memory != NULL)
        (void)cudaFreeHost(ring->memory);
    free(ring->sent);
    free(ring->fence);
    free(ring->taken);
    memset(ring, 0, sizeof *ring);
}

static enum qep_status create_events(cudaEvent_t *events, int count) {
    for (int i = 0; i < count; i++)
        QEP_TRY(cuda_check(cudaEventCreateWithFlags(&events[i], cudaEventDisableTiming),
                           "cudaEventCreate"));
    return QEP_OK;
}

static enum qep_status ring_fill(struct ring *ring, const struct ring_size *size) {
    size_t n = (size_t)size->num_slots;
    ring->slot_bytes = size->slot_bytes;
    ring->num_slots = size->num_slots;
    QEP_TRY(qep_calloc(n, sizeof *ring->sent, "staging", (void **)&ring->sent));
    QEP_TRY(qep_calloc(n, sizeof *ring->fence, "staging", (void **)&ring->fence));
    QEP_TRY(qep_calloc(n, sizeof *ring->taken, "staging", (void **)&ring->taken));
    QEP_TRY(create_events(ring->sent, ring->num_slots));
    QEP_TRY(create_events(ring->fence, ring->num_slots));
    return cuda_check(cudaMallocHost((void **)&ring->memory, n * ring->slot_bytes),
                      "page-locked ring");
}

/* The ring of uploads of `bytes`, made if this is its first. */
static enum qep_status open_ring(struct cuda_backend *be, size_t bytes, struct ring **out) {
    int i = 0;
    enum qep_status st = QEP_OK;
    while (i < NUM_RINGS - 1 && bytes > ring_sizes[i].slot_bytes)
        i++;
    *out = &be->staging->rings[i];
    pthread_mutex_lock(&be->lock);
    if ((*out)->memory == NULL)
        st = ring_fill(*out, &ring_sizes[i]);
    if (st != QEP_OK)
        ring_destroy(*out);
    pthread_mutex_unlock(&be->lock);
    return st;
}

static int take_slot(struct cuda_backend *be, struct ring *ring) {
    pthread_mutex_lock(&be->lock);
    int slot = ring->next;
    ring->next = (ring->next + 1) % ring->num_slots;
    while (ring->taken[slot])
        pthread_cond_wait(&be->staging->returned, &be->lock);
    ring->taken[slot] = true;
    pthread_mutex_unlock(&be->lock);
    return slot;
}

static void return_slot(struct cuda_backend *be, struct ring *ring, int slot) {
    pthread_mutex_lock(&be->lock);
    ring->taken[slot] = false;
    pthread_cond_broadcast(&be->staging->returned);
    pthread_mutex_unlock(&be->lock);
}

/* Under the lock: the copy of one filled slot, in order with the ops around it. */
static enum qep_status send_slot(struct cuda_backend *be, struct ring *ring, int slot, void *dev,
                                 size_t bytes) {
    bool aside = ring != be->staging->rings;
    cudaStream_t stream = aside ? be->staging->streams[slot % NUM_COPY_STREAMS] : be->stream;
    if (aside) {
        QEP_TRY(cuda_check(cudaEventRecord(ring->fence[slot], be->stream), "upload"));
        QEP_TRY(cuda_check(cudaStreamWaitEvent(stream, ring->fence[slot], 0), "upload"));
    }
    const char *from = ring->memory + (size_t)slot * ring->slot_bytes;
    QEP_TRY(
        cuda_check(cudaMemcpyAsync(dev, from, bytes, cudaMemcpyHostToDevice, stream), "upload"));
    QEP_TRY(cuda_check(cudaEventRecord(ring->sent[slot], stream), "upload"));
    return aside ? cuda_check(cudaStreamWaitEvent(be->stream, ring->sent[slot], 0), "upload")
                 : QEP_OK;
}

static enum qep_status upload_part(struct cuda_backend *be, struct ring *ring, void *dev,
                                   const void *host, size_t bytes) {
    int slot = take_slot(be, ring);
    enum qep_status st = cuda_check(cudaEventSynchronize(ring->sent[slot]), "upload");
    if (st == QEP_OK) {
        memcpy(ring->memory + (size_t)slot * ring->slot_bytes, host, bytes);
        pthread_mutex_lock(&be->lock);
        st = send_slot(be, ring, slot, dev, bytes);
        pthread_mutex_unlock(&be->lock);
    }
    return_slot(be, ring, slot);
    return st;
}

enum qep_status cuda_upload(struct qep_backend *base, void *dev, const void *host, size_t bytes) {
    struct cuda_backend *be = cuda_backend_of(base);
    struct ring *ring = NULL;
    QEP_TRY(refuse_capture(be, "upload"));
    QEP_TRY(cuda_enter(be));
    QEP_TRY(open_ring(be, bytes, &ring));
    for (size_t at = 0; at < bytes; at += ring->slot_bytes) {
        size_t n = bytes - at < ring->slot_bytes ? bytes - at : ring->slot_bytes;
        QEP_TRY(upload_part(be, ring, (char *)dev + at, (const char *)host + at, n));
    }
    return QEP_OK;
}

/* QEP_CUDA_SLABS=off: an allocation of its own for every block, so that memcheck sees its bounds.
 */
static size_t slab_bytes(void) {
    const char *text = getenv("QEP_CUDA_SLABS");
    return text != NULL && strcmp(text, "off") == 0 ? 0 : (size_t)SLAB_BYTES;
}

enum qep_status cuda_memory_create(struct cuda_backend *be) {
    const struct cuda_pool_source source = {source_alloc, source_free, be};
    QEP_TRY(cuda_pool_create(slab_bytes(), source, &be->pool));
    QEP_TRY(qep_calloc(1, sizeof *be->staging, "staging", (void **)&be->staging));
    pthread_cond_init(&be->staging->returned, NULL);
    for (int i = 0; i < NUM_COPY_STREAMS; i++)
        QEP_TRY(cuda_check(
            cudaStreamCreateWithFlags(&be->staging->streams[i], cudaStreamNonBlocking), "stream"));
    return QEP_OK;
}

void cuda_memory_destroy(struct cuda_backend *be) {
    for (int i = 0; i < CUDA_WS_COUNT; i++)
        cuda_free(&be->base, be->workspace[i].data);
    if (be->staging != NULL) {
        for (int i = 0; i < NUM_COPY_STREAMS; i++)
            if (be->staging->streams[i] != NULL)
                (void)cudaStreamDestroy(be->staging->streams[i]);
        for (int i = 0; i < NUM_RINGS; i++)
            ring_destroy(&be->staging->rings[i]);
        pthread_cond_destroy(&be->staging->returned);
    }
    free(be->staging);
    cuda_pool_destroy(be->pool);
}

/* ---- copies and waiting ---- */

static enum qep_status is_idle(void *ctx, bool *idle) {
    struct cuda_backend *be = ctx;
    return cuda_query(&be->base, idle);
}

/* Where somebody wants to look at other things meanwhile. */
static enum qep_status wait_for_ops(struct cuda_backend *be) {
    return be->wait == NULL ? QEP_OK : be->wait(be->wait_ctx, is_idle, be);
}

enum qep_status cuda_download(struct qep_backend *base, void *host, const void *dev, size_t bytes) {
    struct cuda_backend *be = cuda_backend_of(base);
    if (bytes == 0)
        return QEP_OK;
    QEP_TRY(refuse_capture(be, "download"));
    QEP_TRY(cuda_enter(be));
    /* A copy to pageable memory blocks until the ops before it are done. */
    QEP_TRY(wait_for_ops(be));
    QEP_TRY(cuda_check(cudaMemcpyAsync(host, dev, bytes, cudaMemcpyDeviceToHost, be->stream),
                       "download"));
    return cuda_sync(base);
}

enum qep_status cuda_zero(struct qep_backend *base, void *dev, size_t bytes) {
    struct cuda_backend *be = cuda_backend_of(base);
    return bytes == 0 ? QEP_OK : cuda_check(cudaMemsetAsync(dev, 0, bytes, be->stream), "zero");
}

enum qep_status cuda_copy(struct qep_backend *base, void *dst, const void *src, size_t bytes) {
    struct cuda_backend *be = cuda_backend_of(base);
    if (bytes == 0 || dst == src)
        return QEP_OK;
    return cuda_check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, be->stream),
                      "copy");
}

enum qep_status cuda_query(struct qep_backend *base, bool *idle) {
    cudaError_t error = cudaStreamQuery(cuda_backend_of(base)->stream);
    *idle = error == cudaSuccess;
    if (error != cudaErrorNotReady)
        return cuda_check(error, "stream");
    (void)cudaGetLastError(); /* not an error by the manual; a launch must not find it */
    return QEP_OK;
}

enum qep_status cuda_sync(struct qep_backend *base) {
    struct cuda_backend *be = cuda_backend_of(base);
    QEP_TRY(refuse_capture(be, "sync"));
    QEP_TRY(wait_for_ops(be));
    cudaError_t error = cudaStreamSynchronize(be->stream);
    if (error == cudaSuccess)
        return QEP_OK;
    return qep_fail(QEP_ERR_UNAVAILABLE,
                    "cuda: an op before this one failed: %s (%s); with CUDA_LAUNCH_BLOCKING=1 and "
                    "--cuda-graphs off it is named",
                    cudaGetErrorString(error), cudaGetErrorName(error));
}

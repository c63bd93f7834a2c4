/* Copies to the host beside the ops, and captured steps. A copy runs on a stream of its own behind
 * the op that was last called; the ops called after it do not wait for it, so its source must stay
 * unchanged until the event is waited for (callers keep two). cuda_sync waits for ops, not for
 * copies. */
#include "base/mem.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_entries.h"

#include <stdlib.h>

struct qep_event {
    cudaEvent_t ready; /* on the ops' stream: the source is written */
    cudaEvent_t done;  /* on the copy stream: the copy is there */
};

struct qep_graph {
    cudaGraphExec_t exec;
};

static enum qep_status refuse_capture(struct qep_backend *be, const char *what) {
    if (!cuda_backend_of(be)->capturing)
        return QEP_OK;
    return qep_fail(QEP_ERR_BUG, "cuda: %s during capture", what);
}

/* ---- host memory and events ---- */

enum qep_status cuda_host_alloc(struct qep_backend *be, size_t bytes, void **host) {
    *host = NULL;
    QEP_TRY(refuse_capture(be, "host_alloc"));
    cudaError_t error = cudaHostAlloc(host, bytes ? bytes : 1, cudaHostAllocDefault);
    if (error != cudaErrorMemoryAllocation)
        return cuda_check(error, "cudaHostAlloc");
    (void)cudaGetLastError();
    return qep_fail(QEP_ERR_SYSTEM, "out of page-locked host memory: %zu bytes", bytes);
}

void cuda_host_free(struct qep_backend *be, void *host) {
    (void)be;
    if (host)
        (void)cudaFreeHost(host);
}

enum qep_status cuda_event_create(struct qep_backend *be, struct qep_event **out) {
    struct qep_event *event = NULL;
    enum qep_status st = QEP_OK;
    *out = NULL;
    QEP_TRY_GOTO(st, fail, refuse_capture(be, "event_create"));
    QEP_TRY_GOTO(st, fail, qep_calloc(1, sizeof *event, "event", (void **)&event));
    QEP_TRY_GOTO(st, fail,
                 cuda_check(cudaEventCreateWithFlags(&event->ready, cudaEventDisableTiming),
                            "cudaEventCreate"));
    QEP_TRY_GOTO(st, fail,
                 cuda_check(cudaEventCreateWithFlags(&event->done, cudaEventDisableTiming),
                            "cudaEventCreate"));
    *out = event;
    return QEP_OK;
fail:
    cuda_event_destroy(be, event);
    return st;
}

void cuda_event_destroy(struct qep_backend *be, struct qep_event *event) {
    (void)be;
    if (!event)
        return;
    if (event->ready)
        (void)cudaEventDestroy(event->ready);
    if (event->done)
        (void)cudaEventDestroy(event->done);
    free(event);
}

static enum qep_status copy_stream(struct cuda_backend *cu, cudaStream_t *out) {
    if (!cu->copy_stream)
        QEP_TRY(cuda_check(cudaStreamCreateWithFlags(&cu->copy_stream, cudaStreamNonBlocking),
                           "cudaStreamCreate"));
    *out = cu->copy_stream;
    return QEP_OK;
}

enum qep_status cuda_download_async(struct qep_backend *be, void *pinned, const void *dev,
                                    size_t bytes, struct qep_event *done) {
    struct cuda_backend *cu = cuda_backend_of(be);
    cudaStream_t copies = NULL;
    QEP_TRY(refuse_capture(be, "download_async"));
    QEP_TRY(copy_stream(cu, &copies));
    QEP_TRY(cuda_check(cudaEventRecord(done->ready, cu->stream), "cudaEventRecord"));
    QEP_TRY(cuda_check(cudaStreamWaitEvent(copies, done->ready, 0), "cudaStreamWaitEvent"));
    QEP_TRY(cuda_check(cudaMemcpyAsync(pinned, dev, bytes, cudaMemcpyDeviceToHost, copies),
                       "download_async"));
    return cuda_check(cudaEventRecord(done->done, copies), "cudaEventRecord");
}

static enum qep_status is_done(void *ctx, bool *done) {
    const struct qep_event *event = ctx;
    cudaError_t error = cudaEventQuery(event->done);
    *done = error == cudaSuccess;
    if (error != cudaErrorNotReady)
        return cuda_check(error, "event_wait");
    (void)cudaGetLastError(); /* not an error by the manual; a launch must not find it */
    return QEP_OK;
}

enum qep_status cuda_event_wait(struct qep_backend *be, struct qep_event *event) {
    const struct cuda_backend *cu = cuda_backend_of(be);
    QEP_TRY(refuse_capture(be, "event_wait"));
    if (cu->wait != NULL)
        QEP_TRY(cu->wait(cu->wait_ctx, is_done, event));
    return cuda_check(cudaEventSynchronize(event->done), "event_wait");
}

/* ---- graphs ---- */

enum qep_status cuda_capture_begin(struct qep_backend *be) {
    struct cuda_backend *cu = cuda_backend_of(be);
    QEP_TRY(refuse_capture(be, "capture_begin"));
    /* Other threads of the process may go on allocating and copying. */
    QEP_TRY(cuda_check(cudaStreamBeginCapture(cu->stream, cudaStreamCaptureModeThreadLocal),
                       "capture_begin"));
    cu->capturing = true;
    return QEP_OK;
}

/* The stream leaves capture whatever happens, also when an op in between has failed. */
enum qep_status cuda_capture_end(struct qep_backend *be, struct qep_graph **out) {
    struct cuda_backend *cu = cuda_backend_of(be);
    struct qep_graph *graph = NULL;
    cudaGraph_t recorded = NULL;
    enum qep_status st = QEP_OK;
    *out = NULL;
    if (!cu->capturing)
        return qep_fail(QEP_ERR_BUG, "cuda: capture_end without capture_begin");
    cu->capturing = false;
    QEP_TRY_GOTO(st, done, cuda_check(cudaStreamEndCapture(cu->stream, &recorded), "capture_end"));
    QEP_TRY_GOTO(st, done, qep_calloc(1, sizeof *graph, "graph", (void **)&graph));
    QEP_TRY_GOTO(st, done,
                 cuda_check(cudaGraphInstantiate(&graph->exec, recorded, 0), "capture_end"));
    *out = graph;
    graph = NULL;
done:
    if (st != QEP_OK)
        (void)cudaGetLastError(); /* or the next launch would report it again */
    if (recorded)
        (void)cudaGraphDestroy(recorded);
    cuda_graph_destroy(be, graph);
    return st;
}

enum qep_status cuda_graph_launch(struct qep_backend *be, struct qep_graph *graph) {
    QEP_TRY(refuse_capture(be, "graph_launch"));
    return cuda_check(cudaGraphLaunch(graph->exec, cuda_backend_of(be)->stream), "graph_launch");
}

void cuda_graph_destroy(struct qep_backend *be, struct qep_graph *graph) {
    (void)be;
    if (!graph)
        return;
    if (graph->exec)
        (void)cudaGraphExecDestroy(graph->exec);
    free(graph);
}

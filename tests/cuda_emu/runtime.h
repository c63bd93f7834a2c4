/* The CUDA runtime API's names over the emulator: what host code calls when it is built without a
 * GPU. C17 and C++17. Behaves like CUDA where CUDA promises something, and as unfavourably as it
 * may where CUDA does not:
 *
 *   device memory   addresses the host cannot touch (a host access faults); fresh memory is
 *                   uninitialised; see emu_host_view for code that plays a device
 *   streams         queues; nothing runs before something waits (a sync, a query, a blocking copy),
 *                   then heads of queues are taken in random order, held back only by events
 *   async copies    read their source when they run; a copy to the host fills its target with 0xA5
 *                   until then
 *   capture         nothing runs; a graph keeps each stream's order and the event edges, and every
 *                   launch replays it in another order that these allow
 *
 * Environment: QEP_EMU_SEED (of all random choices), QEP_EMU_ABORT=1 (abort at the first error),
 * QEP_EMU_TRACE=1 (reports name the source lines they come from), QEP_EMU_DEVICES (1),
 * QEP_EMU_MEMORY (bytes a device has, 8 GiB), QEP_EMU_SMS (4). */
#ifndef QEP_CUDA_EMU_RUNTIME_H
#define QEP_CUDA_EMU_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define EMU_DEFAULT(value) = value
extern "C" {
#else
#define EMU_DEFAULT(value)
#endif

#define CUDART_VERSION 12080

enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidMemcpyDirection = 21,
    cudaErrorInsufficientDriver = 35,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchOutOfResources = 701,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotPermitted = 800,
    cudaErrorNotSupported = 801,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureUnmatched = 903,
    cudaErrorStreamCaptureUnjoined = 904,
    cudaErrorStreamCaptureIsolation = 905,
    cudaErrorStreamCaptureImplicit = 906,
    cudaErrorCapturedEvent = 907,
    cudaErrorStreamCaptureWrongThread = 908,
    cudaErrorUnknown = 999
};
typedef enum cudaError cudaError_t;

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;
typedef struct CUgraphNode_st *cudaGraphNode_t;
typedef void (*cudaHostFn_t)(void *user);

enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4
};

enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal = 0,
    cudaStreamCaptureModeThreadLocal = 1,
    cudaStreamCaptureModeRelaxed = 2
};

enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone = 0,
    cudaStreamCaptureStatusActive = 1,
    cudaStreamCaptureStatusInvalidated = 2
};

enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};

enum {
    cudaStreamDefault = 0,
    cudaStreamNonBlocking = 1,
    cudaEventDefault = 0,
    cudaEventBlockingSync = 1,
    cudaEventDisableTiming = 2,
    cudaHostAllocDefault = 0,
    cudaHostAllocPortable = 1,
    cudaHostAllocMapped = 2,
    cudaHostAllocWriteCombined = 4,
    cudaEventWaitDefault = 0,
    cudaEventRecordDefault = 0,
    cudaGraphInstantiateFlagAutoFreeOnLaunch = 1
};

typedef struct CUuuid_st {
    char bytes[16];
} cudaUUID_t;

struct cudaDeviceProp {
    char name[256];
    cudaUUID_t uuid;
    size_t totalGlobalMem;
    size_t sharedMemPerBlock;
    size_t sharedMemPerBlockOptin;
    size_t sharedMemPerMultiprocessor;
    int regsPerBlock;
    int warpSize;
    int maxThreadsPerBlock;
    int maxThreadsPerMultiProcessor;
    int major;
    int minor;
    int multiProcessorCount;
    int l2CacheSize;
    int persistingL2CacheMaxSize;
    int pciBusID;
    int pciDeviceID;
    int pciDomainID;
    int integrated;
    int concurrentKernels;
    int unifiedAddressing;
};

const char *cudaGetErrorString(cudaError_t error);
const char *cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);

cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device);
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaDeviceSynchronize(void);
/* Drops the device's work and its sticky error; memory stays. */
cudaError_t cudaDeviceReset(void);

cudaError_t cudaMalloc(void **dev, size_t bytes);
cudaError_t cudaFree(void *dev);
cudaError_t cudaMallocHost(void **host, size_t bytes);
cudaError_t cudaHostAlloc(void **host, size_t bytes, unsigned int flags);
cudaError_t cudaFreeHost(void *host);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream EMU_DEFAULT(0));
cudaError_t cudaMemset(void *dev, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *dev, int value, size_t bytes, cudaStream_t stream EMU_DEFAULT(0));

cudaError_t cudaStreamCreate(cudaStream_t *stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
                                unsigned int flags EMU_DEFAULT(0));
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *user);

cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream EMU_DEFAULT(0));
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags EMU_DEFAULT(0));
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count);

cudaError_t cudaFuncGetName(const char **name, const void *kernel);
cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attr, int value);
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel,
                                                          int block_size, size_t shared);

/* What the emulator has beyond CUDA. */

/* How many errors were reported since the start or the last emu_clear_errors. */
int emu_errors(void);
/* Forgets the errors of all devices: for tests that want one. */
void emu_clear_errors(void);
/* The text of the last report ("" when there is none); valid until the next one. */
const char *emu_last_report(void);
/* 1: reports are counted and kept, not printed. */
void emu_quiet(int quiet);
/* All later random choices follow from this seed. */
void emu_set_seed(uint64_t seed);

/* The operations of the last capture that ended well, on any thread: the nodes of its graph. */
size_t emu_captured_nodes(void);
/* The most memory that was allocated on a device at once, as it is charged against QEP_EMU_MEMORY.
 */
size_t emu_most_used(int device);

/* For pools that hand out parts of one cudaMalloc. The three wait for the device's work first; ptr
 * is aligned to 16 and [ptr, ptr + bytes) lies within one allocation.
 *   emu_poison     uninitialised from now on
 *   emu_protect    given back (or not handed out yet): no access; a part handed out before in that
 *                  range is freed
 *   emu_unprotect  handed out: an allocation of its own, bounds and all, uninitialised */
void emu_poison(const void *ptr, size_t bytes);
void emu_protect(const void *ptr, size_t bytes);
void emu_unprotect(const void *ptr, size_t bytes);

/* Where the host finds device memory, for code that plays a device (a fake NCCL) from within
 * emu_stream_enqueue_poll's fn; NULL and a report when the range is no live allocation. writing:
 * the bytes count as initialised from now on; otherwise uninitialised bytes are an error. A pointer
 * that is no device memory comes back as it is. */
void *emu_host_view(const void *ptr, size_t bytes, bool writing);

/* An operation of a stream that is done when fn returns true; it is called again and again, by
 * whichever host thread waits, under the emulator's lock (released between calls; fn must not call
 * the runtime). A captured one runs once for each launch of its graph: after true, the next call
 * begins anew. destroy (may be NULL) gets ctx when nothing can call fn any more. */
cudaError_t emu_stream_enqueue_poll(cudaStream_t stream, bool (*fn)(void *ctx),
                                    void (*destroy)(void *ctx), void *ctx);

#ifdef __cplusplus
}

template <class T> static inline cudaError_t cudaMalloc(T **dev, size_t bytes) {
    return cudaMalloc(reinterpret_cast<void **>(dev), bytes);
}
template <class T> static inline cudaError_t cudaMallocHost(T **host, size_t bytes) {
    return cudaMallocHost(reinterpret_cast<void **>(host), bytes);
}
template <class T>
static inline cudaError_t cudaHostAlloc(T **host, size_t bytes, unsigned int flags) {
    return cudaHostAlloc(reinterpret_cast<void **>(host), bytes, flags);
}
template <class... P>
static inline cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attr,
                                               int value) {
    return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), attr, value);
}
template <class... P>
static inline cudaError_t
cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void (*kernel)(P...), int block_size,
                                              size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks, reinterpret_cast<const void *>(kernel), block_size, shared);
}
#endif
#endif

#include "cuda_emu/device.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace emu {
namespace {

thread_local int chosen_device;
thread_local cudaError_t last_error;

size_t number_from(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    size_t n = text ? strtoull(text, nullptr, 0) : 0;
    return n ? n : otherwise;
}

int sm_count() {
    return static_cast<int>(number_from("QEP_EMU_SMS", 4));
}

enum : int { shared_default = 48 * 1024, shared_per_sm = 228 * 1024 };

} // namespace

int device_count() {
    static const char *const text = getenv("QEP_EMU_DEVICES");
    static const int n = text ? static_cast<int>(strtol(text, nullptr, 0)) : 1; /* 0: none */
    return n;
}

int shared_optin() {
    static const int bytes = static_cast<int>(number_from("QEP_EMU_SHARED", 227 * 1024));
    return bytes;
}

size_t device_bytes() {
    return number_from("QEP_EMU_MEMORY", size_t{8} << 30);
}

device &device_at(int id) {
    static auto &all = *new std::vector<device>(static_cast<size_t>(device_count()));
    return all[static_cast<size_t>(id)];
}

int current_id() {
    return chosen_device;
}

device &current() {
    return device_at(chosen_device);
}

cudaError_t noted(cudaError_t error) {
    if (error != cudaSuccess)
        last_error = error;
    return error;
}

void fail_device(int id, cudaError_t error) {
    device &d = device_at(id);
    if (d.sticky == cudaSuccess)
        d.sticky = error;
}

} // namespace emu

using namespace emu;

namespace {

struct named_error {
    cudaError_t error;
    const char *name, *text;
};

const named_error error_names[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection",
     "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources",
     "too many resources requested for launch"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotPermitted, "cudaErrorNotPermitted", "operation not permitted"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not initiated in this stream"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

const named_error *find_error(cudaError_t error) {
    for (const named_error &e : error_names)
        if (e.error == error)
            return &e;
    return nullptr;
}

bool valid(int id) {
    return id >= 0 && id < device_count();
}

} // namespace

extern "C" {

const char *cudaGetErrorString(cudaError_t error) {
    const named_error *e = find_error(error);
    return e ? e->text : "unrecognized error code";
}

const char *cudaGetErrorName(cudaError_t error) {
    const named_error *e = find_error(error);
    return e ? e->name : "unrecognized error code";
}

cudaError_t cudaPeekAtLastError(void) {
    guard hold(lock);
    return current().sticky != cudaSuccess ? current().sticky : last_error;
}

cudaError_t cudaGetLastError(void) {
    cudaError_t error = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = device_count();
    return *count > 0 ? cudaSuccess : noted(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int id) {
    if (!valid(id))
        return noted(cudaErrorInvalidDevice);
    chosen_device = id;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *id) {
    *id = chosen_device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int id) {
    if (!valid(id))
        return noted(cudaErrorInvalidDevice);
    *prop = {};
    snprintf(prop->name, sizeof prop->name, "CUDA emulator %d", id);
    memcpy(prop->uuid.bytes, "qep-cuda-emu\0\0\0\0", 16);
    prop->uuid.bytes[15] = static_cast<char>(id);
    prop->totalGlobalMem = device_bytes();
    prop->sharedMemPerBlock = shared_default;
    prop->sharedMemPerBlockOptin = static_cast<size_t>(shared_optin());
    prop->sharedMemPerMultiprocessor = shared_per_sm;
    prop->regsPerBlock = 65536;
    prop->warpSize = 32;
    prop->maxThreadsPerBlock = max_threads;
    prop->maxThreadsPerMultiProcessor = 2048;
    prop->major = 9;
    prop->multiProcessorCount = sm_count();
    prop->l2CacheSize = 50 << 20;
    prop->pciBusID = id + 1;
    prop->concurrentKernels = prop->unifiedAddressing = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int id) {
    struct cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, id);
    if (error != cudaSuccess)
        return error;
    switch (attr) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = p.maxThreadsPerBlock;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = shared_default;
        break;
    case cudaDevAttrWarpSize:
        *value = p.warpSize;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        break;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = p.maxThreadsPerMultiProcessor;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = shared_per_sm;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = shared_optin();
        break;
    default:
        return noted(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *, enum cudaFuncAttribute attr, int value) {
    if (attr == cudaFuncAttributeMaxDynamicSharedMemorySize &&
        (value < 0 || value > shared_optin()))
        return noted(cudaErrorInvalidValue);
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int block_size,
                                                          size_t shared) {
    if (block_size < 1 || block_size > static_cast<int>(max_threads))
        return noted(cudaErrorInvalidValue);
    size_t by_threads = 2048u / static_cast<size_t>(block_size);
    size_t by_shared = shared_per_sm / (shared + 1024);
    *blocks = static_cast<int>(std::min({by_threads, by_shared, size_t{32}}));
    return cudaSuccess;
}

void emu_clear_errors(void) {
    guard hold(lock);
    for (int i = 0; i < device_count(); i++)
        device_at(i).sticky = cudaSuccess;
    last_error = cudaSuccess;
    clear_reports();
}
}

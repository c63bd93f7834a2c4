/* Launches, copies, fills and allocations of the fake runtime. */
#include "cuda_emu/device.h"
#include "cuda_emu/launch.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <string>

namespace emu {
namespace {

/* QEP_EMU_FAIL_LAUNCH=N: the N-th launch of the process ends as if it had touched bad memory. */
bool told_to_fail() {
    static const char *const text = getenv("QEP_EMU_FAIL_LAUNCH");
    static long left = text ? strtol(text, nullptr, 0) : 0;
    return left > 0 && --left == 0;
}

struct kernel_op : operation {
    kernel_call call;
    int device = 0;
    bool run() override {
        if (told_to_fail())
            fail_device(device, cudaErrorIllegalAddress);
        else if (!run_kernel(call))
            fail_device(device, cudaErrorLaunchFailure);
        return true;
    }
};

/* A range of device memory: `a` within bounds of what is handed out, or NULL and a report. */
struct range {
    allocation *a;
    size_t off;
};

range device_range(const char *what, const void *ptr, size_t bytes) {
    allocation *a = allocation_of(ptr);
    size_t off = reinterpret_cast<uintptr_t>(ptr) - a->lo;
    if (off <= a->limit && bytes <= a->limit - off)
        return {a, off};
    report("%s of %zu bytes out of bounds at %s", what, bytes,
           describe(*a, static_cast<intptr_t>(off)));
    return {nullptr, 0};
}

struct copy_op : operation {
    void *dst;
    const void *src;
    size_t bytes;
    bool to_device, from_device;
    int device;

    bool run() override {
        if (!copied())
            fail_device(device, cudaErrorIllegalAddress);
        return true;
    }
    void enqueued() override {
        if (!to_device)
            memset(dst, 0xa5, bytes);
    }

  private:
    bool copied() const {
        range to = {}, from = {};
        if (to_device && !(to = device_range("a copy", dst, bytes)).a)
            return false;
        if (from_device && !(from = device_range("a copy", src, bytes)).a)
            return false;
        if (to.a && from.a) {
            memmove(to.a->data + to.off, from.a->data + from.off, bytes);
            copy_initialised(*to.a, to.off, *from.a, from.off, bytes);
        } else if (to.a) {
            memcpy(to.a->data + to.off, src, bytes);
            mark_initialised(*to.a, to.off, bytes, true);
        } else if (from.a) {
            download(*from.a, from.off, dst, bytes);
        } else {
            memmove(dst, src, bytes);
        }
        return true;
    }
};

struct fill_op : operation {
    void *dst;
    int value;
    size_t bytes;
    int device;
    bool run() override {
        range to = device_range("a memset", dst, bytes);
        if (!to.a) {
            fail_device(device, cudaErrorIllegalAddress);
            return true;
        }
        memset(to.a->data + to.off, value, bytes);
        mark_initialised(*to.a, to.off, bytes, true);
        return true;
    }
};

/* The kernel's name: the first argument of launch(...) as it was written. */
/* As all the emulator's state, outlives static destructors. */
auto &kernel_names = *new std::map<const void *, std::string>;

std::string first_argument(const char *text) {
    int depth = 0;
    const char *end = text;
    for (; *end && (*end != ',' || depth); end++)
        depth += (*end == '<' || *end == '(') - (*end == '>' || *end == ')');
    return std::string(text, end);
}

bool valid_shape(const dim3 &grid, const dim3 &block) {
    size_t threads = size_t{block.x} * block.y * block.z;
    return grid.x && grid.y && grid.z && grid.x <= INT32_MAX && grid.y <= 65535 &&
           grid.z <= 65535 && threads && threads <= max_threads && block.z <= 64;
}

bool kind_fits(cudaMemcpyKind kind, bool to_device, bool from_device) {
    switch (kind) {
    case cudaMemcpyHostToHost:
        return !to_device && !from_device;
    case cudaMemcpyHostToDevice:
        return to_device && !from_device;
    case cudaMemcpyDeviceToHost:
        return !to_device && from_device;
    case cudaMemcpyDeviceToDevice:
        return to_device && from_device;
    default:
        return true;
    }
}

cudaError_t enqueue_copy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                         cudaStream_t stream) {
    auto op = std::make_shared<copy_op>();
    op->dst = dst;
    op->src = src;
    op->bytes = bytes;
    op->to_device = is_device(dst);
    op->from_device = is_device(src);
    op->device = current_id();
    if (!kind_fits(kind, op->to_device, op->from_device)) {
        report("a copy of kind %d from %s to %s memory", static_cast<int>(kind),
               op->from_device ? "device" : "host", op->to_device ? "device" : "host");
        return noted(cudaErrorInvalidValue);
    }
    return bytes ? enqueue(stream, op) : cudaSuccess;
}

cudaError_t finish_legacy() {
    held hold(lock);
    int id = current_id();
    completion_ptr tail = tail_of(resolved(nullptr));
    return wait_until(hold, id, [tail] { return tail->done; });
}

} // namespace

void name_kernel(const void *kernel, const char *text) {
    guard hold(lock);
    std::string &name = kernel_names[kernel];
    if (name.empty())
        name = first_argument(text);
}

cudaError_t enqueue_kernel(std::function<void()> body, const char *text, site at, dim3 grid,
                           dim3 block, size_t shared, cudaStream_t stream) {
    auto op = std::make_shared<kernel_op>();
    op->call = {std::move(body),
                first_argument(text) + " (launched at " + at.file + ":" + std::to_string(at.line) +
                    ")",
                grid, block, shared};
    op->device = current_id();
    if (!valid_shape(grid, block))
        return noted(cudaErrorInvalidConfiguration);
    if (shared > static_cast<size_t>(shared_optin()))
        return noted(cudaErrorInvalidValue);
    return enqueue(stream, op);
}

} // namespace emu

using namespace emu;

extern "C" {

cudaError_t cudaFuncGetName(const char **name, const void *kernel) {
    guard hold(lock);
    auto found = kernel_names.find(kernel);
    if (found == kernel_names.end())
        return noted(cudaErrorInvalidDeviceFunction);
    *name = found->second.c_str();
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **dev, size_t bytes) {
    *dev = nullptr;
    cudaError_t error = unsafe_in_capture();
    guard hold(lock);
    device &d = current();
    if (error == cudaSuccess)
        error = d.sticky;
    if (error != cudaSuccess || !bytes)
        return error;
    size_t charged = (bytes + 511) / 512 * 512;
    if (charged < bytes || charged > device_bytes() - std::min(d.used, device_bytes()))
        return noted(cudaErrorMemoryAllocation);
    allocation *a = allocate(bytes, allocation::device_memory, current_id());
    if (!a)
        return noted(cudaErrorMemoryAllocation);
    d.used += charged;
    d.most_used = std::max(d.most_used, d.used);
    *dev = reinterpret_cast<void *>(a->lo);
    return cudaSuccess;
}

cudaError_t cudaFree(void *dev) {
    cudaError_t error = unsafe_in_capture();
    if (error != cudaSuccess)
        return error;
    finish_device_work();
    guard hold(lock);
    if (!dev)
        return current().sticky;
    allocation *a = allocation_of(dev)->root;
    if (!a->data || a->lo != reinterpret_cast<uintptr_t>(dev) ||
        a->kind != allocation::device_memory) {
        report("cudaFree(%p): no live allocation begins there", dev);
        return noted(cudaErrorInvalidValue);
    }
    device_at(a->device).used -= (a->size + 511) / 512 * 512;
    release(*a);
    return current().sticky;
}

cudaError_t cudaHostAlloc(void **host, size_t bytes, unsigned int) {
    *host = nullptr;
    cudaError_t error = unsafe_in_capture();
    guard hold(lock);
    if (error == cudaSuccess)
        error = current().sticky;
    if (error != cudaSuccess || !bytes)
        return error;
    allocation *a = allocate(bytes, allocation::host_memory, current_id());
    if (!a)
        return noted(cudaErrorMemoryAllocation);
    *host = reinterpret_cast<void *>(a->lo);
    memset(*host, 0xa5, bytes);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **host, size_t bytes) {
    return cudaHostAlloc(host, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void *host) {
    cudaError_t error = unsafe_in_capture();
    if (error != cudaSuccess)
        return error;
    finish_device_work();
    guard hold(lock);
    if (!host)
        return current().sticky;
    allocation *a = allocation_of(host);
    if (!a->data || a->lo != reinterpret_cast<uintptr_t>(host) ||
        a->kind != allocation::host_memory) {
        report("cudaFreeHost(%p): no pinned memory begins there", host);
        return noted(cudaErrorInvalidValue);
    }
    release(*a);
    return current().sticky;
}

size_t emu_most_used(int device) {
    guard hold(lock);
    return device_at(device).most_used;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    guard hold(lock);
    *total_bytes = device_bytes();
    *free_bytes = *total_bytes - std::min(current().used, *total_bytes);
    return current().sticky;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
    guard hold(lock);
    return enqueue_copy(dst, src, bytes, kind, stream);
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind) {
    cudaError_t error = unsafe_in_capture();
    if (error == cudaSuccess)
        error = cudaMemcpyAsync(dst, src, bytes, kind, nullptr);
    return error == cudaSuccess ? finish_legacy() : error;
}

cudaError_t cudaMemsetAsync(void *dev, int value, size_t bytes, cudaStream_t stream) {
    guard hold(lock);
    if (!bytes)
        return cudaSuccess;
    auto op = std::make_shared<fill_op>();
    op->dst = dev;
    op->value = value;
    op->bytes = bytes;
    op->device = current_id();
    return enqueue(stream, op);
}

cudaError_t cudaMemset(void *dev, int value, size_t bytes) {
    cudaError_t error = unsafe_in_capture();
    return error == cudaSuccess ? cudaMemsetAsync(dev, value, bytes, nullptr) : error;
}
}

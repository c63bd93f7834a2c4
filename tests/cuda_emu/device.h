/* The fake runtime's insides: devices, queues, operations, graphs. */
#ifndef QEP_CUDA_EMU_DEVICE_H
#define QEP_CUDA_EMU_DEVICE_H

#include "cuda_emu/internal.h"

#include <deque>

namespace emu {

/* memory.cpp */
allocation *allocate(size_t bytes, allocation::kind_t kind, int device);
void release(allocation &a);
void forget_cells();
void copy_initialised(allocation &to, size_t to_off, const allocation &from, size_t from_off,
                      size_t bytes);
/* Device to host; uninitialised bytes arrive as 0xA5. */
void download(const allocation &a, size_t off, void *host, size_t bytes);

/* What a queue or a graph holds. A captured one runs once per launch of its graph. */
struct operation {
    virtual ~operation() = default;
    virtual bool ready() {
        return true;
    }
    /* false: not done, to be called again. */
    virtual bool run() = 0;
    /* It was put in a queue to run (also as part of a graph). */
    virtual void enqueued() {
    }
    /* The device failed before it could run. */
    virtual void dropped() {
    }
};
using operation_ptr = std::shared_ptr<operation>;

/* One recording of an event. */
struct completion {
    bool done = false;
    double seconds = 0;
};
using completion_ptr = std::shared_ptr<completion>;

struct capture;
struct graph_body;

struct device {
    cudaError_t sticky = cudaSuccess;
    size_t used = 0, most_used = 0;
    cudaStream_t legacy = nullptr;
};

/* device.cpp */
int device_count();
int shared_optin(); /* most bytes of shared memory of a block */
size_t device_bytes();
device &device_at(int id);
device &current();
int current_id();
/* Remembers an error for cudaGetLastError and hands it on. */
cudaError_t noted(cudaError_t error);
/* The running operation's device fails. */
void fail_device(int id, cudaError_t error);

/* stream.cpp */
using held = std::unique_lock<std::recursive_mutex>;
/* The stream itself, or the current device's legacy stream. NULL: not a stream. */
cudaStream_t resolved(cudaStream_t stream);
cudaError_t enqueue(cudaStream_t stream, operation_ptr op);
/* Runs work until `done`; hold is this thread's only hold of the lock. */
cudaError_t wait_until(held &hold, int device_id, const std::function<bool()> &done);
completion_ptr tail_of(cudaStream_t stream);
operation_ptr wait_for(completion_ptr what);
operation_ptr record(completion_ptr what);
/* All work of the current device, as cudaFree waits for it. */
void finish_device_work();

/* graph.cpp */
/* An error when this thread may not make calls that could disturb a capture; ends the capture. */
cudaError_t unsafe_in_capture();
void add_node(CUstream_st &stream, operation_ptr op);
void invalidate(capture &c);
bool legacy_forbidden(int device_id);

} // namespace emu

struct CUstream_st {
    int device = 0;
    bool blocking = true, destroyed = false;
    std::deque<emu::operation_ptr> queue;
    std::shared_ptr<emu::capture> capturing;
    std::vector<size_t> frontier; /* nodes the next captured one follows */
};

struct CUevent_st {
    emu::completion_ptr latest; /* NULL: never recorded */
    std::shared_ptr<emu::capture> captured;
    std::vector<size_t> frontier;
    bool timed = true;
};

#endif

/* Streams: queues of operations that run when somebody waits, heads in random order. */
#include "cuda_emu/device.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace emu {
namespace {

auto &streams = *new std::vector<cudaStream_t>; /* live ones and destroyed ones not yet empty */

double now() {
    auto t = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(t).count();
}

struct record_op : operation {
    completion_ptr what;
    explicit record_op(completion_ptr w) : what(std::move(w)) {
    }
    bool run() override {
        what->done = true;
        what->seconds = now();
        return true;
    }
    void dropped() override {
        run();
    }
};

struct wait_op : operation {
    completion_ptr what;
    explicit wait_op(completion_ptr w) : what(std::move(w)) {
    }
    bool ready() override {
        return what->done;
    }
    bool run() override {
        return true;
    }
};

struct host_fn_op : operation {
    cudaHostFn_t fn;
    void *user;
    host_fn_op(cudaHostFn_t f, void *u) : fn(f), user(u) {
    }
    bool run() override {
        fn(user);
        return true;
    }
};

struct poll_op : operation {
    bool (*fn)(void *);
    void (*destroy)(void *);
    void *ctx;
    poll_op(bool (*f)(void *), void (*d)(void *), void *c) : fn(f), destroy(d), ctx(c) {
    }
    ~poll_op() override {
        if (destroy)
            destroy(ctx);
    }
    bool run() override {
        return fn(ctx);
    }
};

bool is_legacy(const CUstream_st &s) {
    return &s == device_at(s.device).legacy;
}

void drop_if_over(cudaStream_t s) {
    if (!s->destroyed || !s->queue.empty())
        return;
    streams.erase(std::find(streams.begin(), streams.end(), s));
    delete s;
}

/* The legacy stream and blocking ones wait for each other. */
void order_with_legacy(CUstream_st &s) {
    if (!s.blocking)
        return;
    for (cudaStream_t other : streams) {
        bool pair = is_legacy(s) || is_legacy(*other);
        if (other != &s && other->device == s.device && other->blocking && pair &&
            !other->queue.empty())
            s.queue.push_back(wait_for(tail_of(other)));
    }
}

/* True when the head is done (and gone). */
bool run_head(cudaStream_t s) {
    operation_ptr op = s->queue.front();
    bool done = true;
    running_device = s->device;
    if (device_at(s->device).sticky != cudaSuccess)
        op->dropped();
    else
        done = op->run();
    if (!done)
        return false;
    s->queue.pop_front();
    drop_if_over(s);
    return true;
}

enum progress { ran, nothing, polling };

bool runnable(const CUstream_st &s) {
    return !s.queue.empty() &&
           (s.queue.front()->ready() || device_at(s.device).sticky != cudaSuccess);
}

/* One operation: the heads of this device's streams (-1: of all) in random order until one is
 * done. */
progress step(int device_id) {
    std::vector<cudaStream_t> heads;
    for (cudaStream_t s : streams)
        if ((device_id < 0 || s->device == device_id) && runnable(*s))
            heads.push_back(s);
    progress p = heads.empty() ? nothing : polling;
    while (!heads.empty()) {
        size_t i = random_below(static_cast<uint32_t>(heads.size()));
        if (run_head(heads[i]))
            return ran;
        heads[i] = heads.back();
        heads.pop_back();
    }
    return p;
}

cudaError_t state_of(int device_id) {
    return device_at(device_id).sticky;
}

/* Makes some progress, as time would; then says whether the stream is empty. */
void some_steps(int device_id) {
    for (uint32_t n = 1 + random_below(3); n; n--)
        if (step(device_id) != ran)
            step(-1);
}

} // namespace

cudaStream_t resolved(cudaStream_t stream) {
    if (stream)
        return std::find(streams.begin(), streams.end(), stream) == streams.end() ||
                       stream->destroyed
                   ? nullptr
                   : stream;
    device &d = current();
    if (!d.legacy) {
        d.legacy = new CUstream_st;
        d.legacy->device = current_id();
        streams.push_back(d.legacy);
    }
    return d.legacy;
}

completion_ptr tail_of(cudaStream_t stream) {
    completion_ptr c = std::make_shared<completion>();
    if (stream->queue.empty())
        c->done = true;
    else
        stream->queue.push_back(record(c));
    return c;
}

operation_ptr record(completion_ptr what) {
    return std::make_shared<record_op>(std::move(what));
}

operation_ptr wait_for(completion_ptr what) {
    return std::make_shared<wait_op>(std::move(what));
}

cudaError_t enqueue(cudaStream_t stream, operation_ptr op) {
    guard hold(lock);
    cudaStream_t s = resolved(stream);
    if (!s)
        return noted(cudaErrorInvalidResourceHandle);
    if (state_of(s->device) != cudaSuccess)
        return state_of(s->device);
    if (s->capturing) {
        add_node(*s, std::move(op));
        return cudaSuccess;
    }
    if (is_legacy(*s) && legacy_forbidden(s->device))
        return noted(cudaErrorStreamCaptureImplicit);
    order_with_legacy(*s);
    op->enqueued();
    s->queue.push_back(std::move(op));
    return cudaSuccess;
}

/* Lets other threads have the lock: whoever an operation waits for is one of them. */
static void nap(held &hold) {
    hold.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    hold.lock();
}

cudaError_t wait_until(held &hold, int device_id, const std::function<bool()> &done) {
    while (!done()) {
        progress p = step(device_id);
        if (p != ran)
            p = std::min(p, step(-1), [](progress a, progress b) {
                return a == ran || (a == polling && b == nothing);
            });
        if (p == polling) {
            nap(hold);
        } else if (p == nothing && !done()) {
            report("a wait that nothing can end");
            return noted(cudaErrorUnknown);
        }
    }
    return state_of(device_id);
}

void finish_device_work() {
    held hold(lock);
    int id = current_id();
    wait_until(hold, id, [id] {
        return std::all_of(streams.begin(), streams.end(),
                           [id](cudaStream_t s) { return s->device != id || s->queue.empty(); });
    });
}

} // namespace emu

using namespace emu;

extern "C" {

cudaError_t cudaDeviceSynchronize(void) {
    cudaError_t error = unsafe_in_capture();
    if (error != cudaSuccess)
        return error;
    finish_device_work();
    guard hold(lock);
    return current().sticky;
}

cudaError_t cudaDeviceReset(void) {
    guard hold(lock);
    for (cudaStream_t s : std::vector<cudaStream_t>(streams))
        if (s->device == current_id()) {
            s->queue.clear();
            drop_if_over(s);
        }
    current().sticky = cudaSuccess;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags) {
    guard hold(lock);
    if (current().sticky != cudaSuccess)
        return current().sticky;
    *stream = new CUstream_st;
    (*stream)->device = current_id();
    (*stream)->blocking = !(flags & cudaStreamNonBlocking);
    streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}

/* As CUDA's: work already in it still runs. */
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    guard hold(lock);
    cudaStream_t s = stream ? resolved(stream) : nullptr;
    if (!s)
        return noted(cudaErrorInvalidResourceHandle);
    if (s->capturing)
        invalidate(*s->capturing);
    s->capturing.reset();
    s->destroyed = true;
    drop_if_over(s);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    held hold(lock);
    cudaStream_t s = resolved(stream);
    if (!s)
        return noted(cudaErrorInvalidResourceHandle);
    if (s->capturing) {
        invalidate(*s->capturing);
        return noted(cudaErrorStreamCaptureUnsupported);
    }
    int id = s->device;
    completion_ptr tail = tail_of(s);
    return wait_until(hold, id, [tail] { return tail->done; });
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    guard hold(lock);
    cudaStream_t s = resolved(stream);
    if (!s)
        return noted(cudaErrorInvalidResourceHandle);
    if (s->capturing) {
        invalidate(*s->capturing);
        return noted(cudaErrorStreamCaptureUnsupported);
    }
    int id = s->device;
    some_steps(id);
    if (state_of(id) != cudaSuccess)
        return state_of(id);
    return s->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *user) {
    return enqueue(stream, std::make_shared<host_fn_op>(fn, user));
}

cudaError_t emu_stream_enqueue_poll(cudaStream_t stream, bool (*fn)(void *ctx),
                                    void (*destroy)(void *ctx), void *ctx) {
    return enqueue(stream, std::make_shared<poll_op>(fn, destroy, ctx));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags) {
    *event = new CUevent_st;
    (*event)->timed = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    guard hold(lock);
    if (!event)
        return noted(cudaErrorInvalidResourceHandle);
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    guard hold(lock);
    cudaStream_t s = resolved(stream);
    if (!event || !s)
        return noted(cudaErrorInvalidResourceHandle);
    if (s->capturing) {
        event->captured = s->capturing;
        event->frontier = s->frontier;
        return cudaSuccess;
    }
    event->captured.reset();
    event->latest = std::make_shared<completion>();
    return enqueue(stream, record(event->latest));
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    guard hold(lock);
    if (!event)
        return noted(cudaErrorInvalidResourceHandle);
    if (event->captured)
        return noted(cudaErrorCapturedEvent);
    int id = current_id();
    some_steps(id);
    if (state_of(id) != cudaSuccess)
        return state_of(id);
    return !event->latest || event->latest->done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    held hold(lock);
    if (!event)
        return noted(cudaErrorInvalidResourceHandle);
    if (event->captured)
        return noted(cudaErrorCapturedEvent);
    completion_ptr c = event->latest;
    return wait_until(hold, current_id(), [c] { return !c || c->done; });
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    guard hold(lock);
    if (!start || !end || !start->timed || !end->timed || !start->latest || !end->latest)
        return noted(cudaErrorInvalidResourceHandle);
    if (!start->latest->done || !end->latest->done)
        return noted(cudaErrorNotReady);
    *ms = static_cast<float>((end->latest->seconds - start->latest->seconds) * 1e3);
    return cudaSuccess;
}
}

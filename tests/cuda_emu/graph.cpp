/* Capture and replay: a graph is a list of operations, each after the ones it names; a launch runs
 * them in a random order that this allows. */
#include "cuda_emu/device.h"

#include <algorithm>

namespace emu {

struct graph_node {
    operation_ptr op;
    std::vector<size_t> after;
};

struct graph_body {
    std::vector<graph_node> nodes;
    const void *running = nullptr; /* launches of one graph do not overlap */
};

struct capture {
    cudaStream_t origin = nullptr;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    bool valid = true, ended = false;
    int device = 0;
    std::shared_ptr<graph_body> body = std::make_shared<graph_body>();
    std::vector<cudaStream_t> members;
};

namespace {

auto &captures = *new std::vector<std::shared_ptr<capture>>;
thread_local std::vector<std::weak_ptr<capture>> mine;
size_t captured_nodes;

class graph_op : public operation {
  public:
    explicit graph_op(std::shared_ptr<graph_body> body) : body_(std::move(body)) {
        for (const graph_node &n : body_->nodes)
            missing_.push_back(n.after.size());
        left_ = missing_.size();
        for (size_t i = 0; i < missing_.size(); i++)
            if (!missing_[i])
                ready_.push_back(i);
    }
    bool ready() override {
        return !body_->running || body_->running == this;
    }
    void enqueued() override {
        for (const graph_node &n : body_->nodes)
            n.op->enqueued();
    }
    bool run() override {
        body_->running = this;
        while (left_ && one_node() && !failed())
            continue;
        if (left_ && !failed())
            return false;
        body_->running = nullptr;
        return true;
    }
    void dropped() override {
        body_->running = nullptr;
    }
    int device = 0;

  private:
    bool failed() const {
        return device_at(device).sticky != cudaSuccess;
    }
    /* Runs one that can; false: none could be finished now. */
    bool one_node() {
        std::vector<size_t> tries = ready_;
        while (!tries.empty()) {
            size_t i = random_below(static_cast<uint32_t>(tries.size()));
            if (body_->nodes[tries[i]].op->run()) {
                finished(tries[i]);
                return true;
            }
            tries.erase(tries.begin() + static_cast<ptrdiff_t>(i));
        }
        return false;
    }
    void finished(size_t node) {
        left_--;
        ready_.erase(std::find(ready_.begin(), ready_.end(), node));
        for (size_t i = 0; i < missing_.size(); i++) {
            const std::vector<size_t> &after = body_->nodes[i].after;
            if (std::find(after.begin(), after.end(), node) != after.end() && --missing_[i] == 0)
                ready_.push_back(i);
        }
    }
    std::shared_ptr<graph_body> body_;
    std::vector<size_t> missing_, ready_;
    size_t left_;
};

void leave_capture(CUstream_st &s) {
    s.capturing.reset();
    s.frontier.clear();
}

void end(capture &c) {
    c.ended = true;
    for (cudaStream_t s : c.members)
        if (resolved(s) && s->capturing.get() == &c)
            leave_capture(*s);
    captures.erase(std::find_if(captures.begin(), captures.end(),
                                [&](const auto &p) { return p.get() == &c; }));
}

void merge(std::vector<size_t> &into, const std::vector<size_t> &more) {
    for (size_t n : more)
        if (std::find(into.begin(), into.end(), n) == into.end())
            into.push_back(n);
}

/* Whether every node comes before the origin's last ones. */
bool joined(const capture &c) {
    const auto &nodes = c.body->nodes;
    std::vector<bool> seen(nodes.size());
    std::vector<size_t> todo = c.origin->frontier;
    while (!todo.empty()) {
        size_t n = todo.back();
        todo.pop_back();
        if (seen[n])
            continue;
        seen[n] = true;
        todo.insert(todo.end(), nodes[n].after.begin(), nodes[n].after.end());
    }
    return std::all_of(seen.begin(), seen.end(), [](bool b) { return b; });
}

} // namespace

void invalidate(capture &c) {
    c.valid = false;
}

cudaError_t unsafe_in_capture() {
    guard hold(lock);
    bool disturbed = false;
    for (const auto &weak : mine)
        if (auto c = weak.lock(); c && !c->ended && c->mode != cudaStreamCaptureModeRelaxed) {
            invalidate(*c);
            disturbed = true;
        }
    for (const auto &c : captures)
        if (c->mode == cudaStreamCaptureModeGlobal) {
            invalidate(*c);
            disturbed = true;
        }
    return disturbed ? noted(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

bool legacy_forbidden(int device_id) {
    for (const auto &c : captures)
        if (c->device == device_id && c->mode != cudaStreamCaptureModeRelaxed)
            for (cudaStream_t s : c->members)
                if (s->blocking) {
                    invalidate(*c);
                    return true;
                }
    return false;
}

void add_node(CUstream_st &stream, operation_ptr op) {
    auto &nodes = stream.capturing->body->nodes;
    nodes.push_back({std::move(op), stream.frontier});
    stream.frontier = {nodes.size() - 1};
}

} // namespace emu

struct CUgraph_st {
    std::shared_ptr<emu::graph_body> body;
};

struct CUgraphExec_st {
    std::shared_ptr<emu::graph_body> body;
};

using namespace emu;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    guard hold(lock);
    cudaStream_t s = stream ? resolved(stream) : nullptr;
    if (!s)
        return noted(stream ? cudaErrorInvalidResourceHandle : cudaErrorStreamCaptureUnsupported);
    if (s->capturing)
        return noted(cudaErrorInvalidValue);
    auto c = std::make_shared<capture>();
    c->origin = s;
    c->mode = mode;
    c->device = s->device;
    c->members.push_back(s);
    captures.push_back(c);
    mine.erase(std::remove_if(mine.begin(), mine.end(), [](auto &w) { return w.expired(); }),
               mine.end());
    mine.push_back(c);
    s->capturing = c;
    s->frontier.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    guard hold(lock);
    cudaStream_t s = resolved(stream);
    if (!s)
        return noted(cudaErrorInvalidResourceHandle);
    *status = !s->capturing         ? cudaStreamCaptureStatusNone
              : s->capturing->valid ? cudaStreamCaptureStatusActive
                                    : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    guard hold(lock);
    *graph = nullptr;
    cudaStream_t s = stream ? resolved(stream) : nullptr;
    if (!s)
        return noted(cudaErrorInvalidResourceHandle);
    std::shared_ptr<capture> c = s->capturing;
    if (!c)
        return noted(cudaErrorInvalidValue);
    if (c->origin != s)
        return noted(cudaErrorStreamCaptureUnmatched);
    bool owner = std::any_of(mine.begin(), mine.end(), [&](auto &w) { return w.lock() == c; });
    if (!owner && c->mode != cudaStreamCaptureModeRelaxed)
        return noted(cudaErrorStreamCaptureWrongThread);
    bool whole = joined(*c), valid = c->valid;
    end(*c);
    if (!valid)
        return noted(cudaErrorStreamCaptureInvalidated);
    if (!whole)
        return noted(cudaErrorStreamCaptureUnjoined);
    *graph = new CUgraph_st{c->body};
    captured_nodes = c->body->nodes.size();
    return cudaSuccess;
}

size_t emu_captured_nodes(void) {
    guard hold(lock);
    return captured_nodes;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
    guard hold(lock);
    cudaStream_t s = resolved(stream);
    if (!s || !event)
        return noted(cudaErrorInvalidResourceHandle);
    if (event->captured) {
        const std::shared_ptr<capture> &c = event->captured;
        if (c->ended || (s->capturing && s->capturing != c))
            return noted(cudaErrorStreamCaptureIsolation);
        if (!s->capturing) {
            s->capturing = c;
            c->members.push_back(s);
        }
        merge(s->frontier, event->frontier);
        return cudaSuccess;
    }
    if (s->capturing) {
        invalidate(*s->capturing);
        return noted(cudaErrorStreamCaptureIsolation);
    }
    return event->latest ? enqueue(stream, wait_for(event->latest)) : cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    guard hold(lock);
    if (!graph)
        return noted(cudaErrorInvalidValue);
    auto body = std::make_shared<graph_body>();
    body->nodes = graph->body->nodes;
    *exec = new CUgraphExec_st{body};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    guard hold(lock);
    cudaStream_t s = resolved(stream);
    if (!exec || !s)
        return noted(cudaErrorInvalidValue);
    if (s->capturing) /* a graph within a graph */
        return noted(cudaErrorNotSupported);
    auto op = std::make_shared<graph_op>(exec->body);
    op->device = s->device;
    return enqueue(stream, op);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    guard hold(lock);
    if (!exec)
        return noted(cudaErrorInvalidValue);
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    guard hold(lock);
    if (!graph)
        return noted(cudaErrorInvalidValue);
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    guard hold(lock);
    if (!graph || nodes)
        return noted(graph ? cudaErrorNotSupported : cudaErrorInvalidValue);
    *count = graph->body->nodes.size();
    return cudaSuccess;
}
}

// NCCL for ranks that are threads of one process, over the emulator's streams.
//
// Every collective is a set of messages between pairs. An operation that reaches the head of its
// stream puts what it sends on its wires, takes what it expects from the others', in order, and is
// done when all it expects has come and all it sent was taken:
//
//   wire [from, to]   message, message, ...   kind, bytes, where the data lies
//
// Two sides that disagree about the kind or the size of a message both get an asynchronous error
// where the real library hangs or corrupts. One lock guards everything; it is taken inside the
// emulator's own (steps run under that), so no runtime call is made while holding it.
#include "cuda_emu/fake_nccl.h"
#include "cuda_emu/nccl.h"

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <sched.h>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

enum kind { point_to_point, all_gather, all_to_all };
const char *const kind_names[] = {"ncclSend/ncclRecv", "ncclAllGather", "ncclAlltoAll"};

struct knob_set {
    long version = NCCL_VERSION_CODE;
    long init_polls = 2, init_fail = -1, init_hang = -1, progress_polls = 1;
    long fail_rank = -1, fail_op = 1, lost_rank = -1, lost_op = 1, stuck_rank = -1, stuck_op = 1;
};

struct message {
    kind what;
    const void *data;
    size_t bytes;
    bool taken;
};

struct clique { // the ranks of one unique id
    int num_ranks = 0, num_joined = 0;
    std::vector<ncclComm *> ranks;
    std::vector<std::deque<std::shared_ptr<message>>> wires; // [from * num_ranks + to]
};

struct part { // of an operation: to or from a peer
    int peer;
    const void *send;
    void *recv;
    size_t bytes;
};

struct operation {
    std::shared_ptr<ncclComm> comm;
    cudaStream_t stream = nullptr;
    kind what = point_to_point;
    std::vector<part> sends, recvs;
    bool captured = false;
    // Of the present execution.
    bool started = false;
    std::vector<std::shared_ptr<message>> posted;
    std::vector<bool> received;
};

std::mutex lock;
knob_set knobs;
bool knobs_known = false;
long num_operations = 0;
std::map<std::string, std::shared_ptr<clique>> cliques;
std::map<ncclComm *, std::shared_ptr<ncclComm>> communicators;

thread_local long thread_version = 0;
thread_local std::string last_error;

struct open_group {
    int depth = 0;
    ncclResult_t error = ncclSuccess;
    std::vector<std::unique_ptr<operation>> operations; // one per communicator and stream
    ~open_group() {
        if (depth == 0)
            return;
        fprintf(stderr, "fake NCCL: a thread ends within ncclGroupStart\n");
        abort();
    }
};
thread_local open_group group;

} // namespace

struct ncclComm : std::enable_shared_from_this<ncclComm> {
    std::shared_ptr<clique> of;
    int rank = 0;
    bool blocking = false;
    std::array<char, 16> uuid{};
    ncclResult_t state = ncclInProgress;
    std::string error;
    bool up = false, finalizing = false, stuck = false;
    long polls_left = 0;
    std::vector<std::unique_ptr<operation>> pending; // enqueued when no longer in progress
    std::set<std::pair<kind, int>> connected;
    long num_operations = 0, in_flight = 0;
};

namespace {

__attribute__((format(printf, 2, 3))) ncclResult_t refuse(ncclResult_t r, const char *format, ...) {
    char text[400];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    last_error = text;
    return r;
}

void parse_knobs(const char *text) {
    struct {
        const char *name;
        long knob_set::*value;
    } const names[] = {{"version", &knob_set::version},
                       {"init_polls", &knob_set::init_polls},
                       {"init_fail", &knob_set::init_fail},
                       {"init_hang", &knob_set::init_hang},
                       {"fail_rank", &knob_set::fail_rank},
                       {"fail_op", &knob_set::fail_op},
                       {"lost_rank", &knob_set::lost_rank},
                       {"lost_op", &knob_set::lost_op},
                       {"stuck_rank", &knob_set::stuck_rank},
                       {"stuck_op", &knob_set::stuck_op},
                       {"progress_polls", &knob_set::progress_polls}};
    knobs = knob_set();
    knobs_known = true;
    while (text != nullptr && *text != '\0') {
        size_t length = strcspn(text, "=");
        auto *known = std::find_if(std::begin(names), std::end(names), [&](const auto &n) {
            return strlen(n.name) == length && strncmp(n.name, text, length) == 0;
        });
        if (known == std::end(names) || text[length] != '=') {
            fprintf(stderr, "fake NCCL: unknown knob in '%s'\n", text);
            abort();
        }
        char *end;
        knobs.*known->value = strtol(text + length + 1, &end, 10);
        text = *end == ',' ? end + 1 : end;
    }
}

void need_knobs() {
    if (!knobs_known)
        parse_knobs(getenv("QEP_FAKE_NCCL"));
}

// An asynchronous error; the first one stays.
void break_comm(ncclComm *comm, ncclResult_t r, const std::string &why) {
    if (comm == nullptr || (comm->state != ncclSuccess && comm->state != ncclInProgress))
        return;
    comm->state = r;
    comm->error = why;
}

bool is_broken(const ncclComm *comm) {
    return comm->state != ncclSuccess && comm->state != ncclInProgress;
}

// --- operations, as steps of a stream -------------------------------------------------------

void lose_rank(ncclComm *comm) {
    for (ncclComm *other : comm->of->ranks)
        if (other != comm)
            break_comm(other, ncclRemoteError,
                       "connection to rank " + std::to_string(comm->rank) + " closed");
}

// The faults asked for at the start of an execution: true when the operation ends here.
bool fault(ncclComm *comm) {
    long n = comm->num_operations;
    if (comm->rank == knobs.fail_rank && n == knobs.fail_op)
        break_comm(comm, ncclSystemError, "fault asked for in operation " + std::to_string(n));
    if (comm->rank == knobs.lost_rank && n == knobs.lost_op) {
        comm->stuck = true;
        lose_rank(comm);
    }
    if (comm->rank == knobs.stuck_rank && n == knobs.stuck_op)
        comm->stuck = true;
    return is_broken(comm);
}

void start(operation *op) {
    ncclComm *comm = op->comm.get();
    op->started = true;
    op->received.assign(op->recvs.size(), false);
    op->posted.clear();
    for (const part &p : op->sends) {
        op->posted.push_back(std::make_shared<message>(message{op->what, p.send, p.bytes, false}));
        comm->of->wires[comm->rank * comm->of->num_ranks + p.peer].push_back(op->posted.back());
    }
}

void disagree(ncclComm *comm, const operation *op, const part &p, const message &m) {
    char text[200];
    snprintf(text, sizeof text, "rank %d sends rank %d %zu bytes by %s, which expects %zu by %s",
             p.peer, comm->rank, m.bytes, kind_names[m.what], p.bytes, kind_names[op->what]);
    break_comm(comm, ncclInvalidUsage, text);
    break_comm(comm->of->ranks[p.peer], ncclInvalidUsage, text);
}

// Copies the first message on the wire; false when it breaks the communicator.
bool take(operation *op, const part &p, message &m) {
    ncclComm *comm = op->comm.get();
    if (m.what != op->what || m.bytes != p.bytes) {
        disagree(comm, op, p, m);
        return false;
    }
    if (p.bytes > 0 && p.recv != m.data) {
        const void *from = emu_host_view(m.data, p.bytes, false);
        void *to = emu_host_view(p.recv, p.bytes, true);
        if (from == nullptr || to == nullptr) {
            break_comm(comm, ncclUnhandledCudaError, "illegal address");
            return false;
        }
        memcpy(to, from, p.bytes);
    }
    m.taken = true;
    return true;
}

// Takes what has come; true when nothing is missing, or the communicator is broken.
bool take_all(operation *op) {
    ncclComm *comm = op->comm.get();
    clique &of = *comm->of;
    std::vector<bool> blocked(static_cast<size_t>(of.num_ranks), false);
    bool missing = false;
    for (size_t i = 0; i < op->recvs.size(); i++) {
        const part &p = op->recvs[i];
        auto &wire = of.wires[p.peer * of.num_ranks + comm->rank];
        if (op->received[i])
            continue;
        if (blocked[p.peer] || wire.empty()) {
            blocked[p.peer] = missing = true; // messages of a pair keep their order
            continue;
        }
        if (!take(op, p, *wire.front()))
            return true;
        wire.pop_front();
        op->received[i] = true;
    }
    for (const auto &m : op->posted)
        missing = missing || !m->taken;
    return !missing;
}

void finish(operation *op) {
    op->started = false;
    op->posted.clear();
    op->comm->in_flight--;
    num_operations++;
}

// One poll of the stream. A broken communicator drains its streams.
bool step(void *ctx) {
    operation *op = static_cast<operation *>(ctx);
    std::lock_guard<std::mutex> guard(lock);
    ncclComm *comm = op->comm.get();
    if (comm->stuck)
        return false;
    if (!op->started) {
        comm->num_operations++;
        comm->in_flight += op->captured; // others count from their call on
        if (!is_broken(comm) && !fault(comm) && comm->stuck)
            return false;
        if (is_broken(comm)) {
            finish(op);
            return true;
        }
        start(op);
    }
    if (!is_broken(comm) && !take_all(op))
        return false;
    finish(op);
    return true;
}

void drop(void *ctx) {
    delete static_cast<operation *>(ctx);
}

// --- calls ----------------------------------------------------------------------------------

ncclResult_t enqueue(std::unique_ptr<operation> op) {
    cudaStream_t stream = op->stream;
    std::shared_ptr<ncclComm> comm = op->comm;
    bool captured = op->captured;
    {
        std::lock_guard<std::mutex> guard(lock);
        comm->in_flight += !captured;
    }
    operation *raw = op.release();
    if (emu_stream_enqueue_poll(stream, step, drop, raw) != cudaSuccess)
        return refuse(ncclUnhandledCudaError, "cannot enqueue: %s", emu_last_report());
    return ncclSuccess;
}

// Does the operation use a connection for the first time? Makes it.
bool connect(const operation *op) {
    auto &connected = op->comm->connected;
    size_t before = connected.size();
    if (op->what != point_to_point)
        connected.insert({op->what, -1});
    else
        for (const auto *parts : {&op->sends, &op->recvs})
            for (const part &p : *parts)
                connected.insert({point_to_point, p.peer});
    return connected.size() > before;
}

ncclResult_t check_ready(ncclComm *comm) {
    if (communicators.find(comm) == communicators.end())
        return refuse(ncclInvalidArgument, "no such communicator");
    if (comm->finalizing)
        return refuse(ncclInvalidUsage, "the communicator is finalized");
    if (!comm->up || comm->state == ncclInProgress)
        return refuse(ncclInvalidUsage, "called while the communicator is still in progress");
    if (is_broken(comm))
        return refuse(comm->state, "%s", comm->error.c_str());
    return ncclSuccess;
}

ncclResult_t submit(std::unique_ptr<operation> op) {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(op->stream, &capture) != cudaSuccess)
        return refuse(ncclUnhandledCudaError, "cudaStreamIsCapturing");
    op->captured = capture == cudaStreamCaptureStatusActive;
    {
        std::lock_guard<std::mutex> guard(lock);
        ncclComm *comm = op->comm.get();
        ncclResult_t r = check_ready(comm);
        if (r != ncclSuccess)
            return r;
        bool first_use = connect(op.get());
        if (first_use && op->captured)
            return refuse(ncclInvalidUsage, "%s used for the first time within a capture",
                          kind_names[op->what]);
        if (first_use && !comm->blocking) {
            comm->state = ncclInProgress;
            comm->polls_left = knobs.progress_polls;
            comm->pending.push_back(std::move(op));
            return ncclInProgress;
        }
    }
    return enqueue(std::move(op));
}

std::unique_ptr<operation> new_operation(ncclComm_t comm, kind what, cudaStream_t stream) {
    auto op = std::make_unique<operation>();
    std::lock_guard<std::mutex> guard(lock);
    auto known = communicators.find(comm);
    if (known == communicators.end())
        return nullptr;
    op->comm = known->second;
    op->what = what;
    op->stream = stream;
    return op;
}

size_t type_bytes(ncclDataType_t type) {
    static const size_t bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    return static_cast<unsigned>(type) < ncclNumTypes ? bytes[type] : 0;
}

ncclResult_t check_buffer(const void *send, const void *recv, size_t bytes, ncclDataType_t type) {
    if (type_bytes(type) == 0)
        return refuse(ncclInvalidArgument, "unknown data type %d", static_cast<int>(type));
    if (bytes > 0 && (send == nullptr || recv == nullptr))
        return refuse(ncclInvalidArgument, "NULL buffer");
    return ncclSuccess;
}

ncclResult_t in_group(ncclResult_t r) {
    if (group.depth > 0 && r != ncclSuccess && r != ncclInProgress && group.error == ncclSuccess)
        group.error = r;
    return r;
}

// The group's operation on this communicator and stream, or a fresh one.
operation *group_operation(ncclComm_t comm, cudaStream_t stream) {
    for (auto &op : group.operations)
        if (op->comm.get() == comm && op->stream == stream)
            return op.get();
    auto op = new_operation(comm, point_to_point, stream);
    if (op == nullptr)
        return nullptr;
    group.operations.push_back(std::move(op));
    return group.operations.back().get();
}

ncclResult_t add_part(ncclComm_t comm, cudaStream_t stream, bool sending, const part &p,
                      ncclDataType_t type) {
    const void *buffer = sending ? p.send : p.recv;
    ncclResult_t r = check_buffer(buffer, buffer, p.bytes, type);
    if (r != ncclSuccess)
        return r;
    operation *op = group_operation(comm, stream);
    if (op == nullptr)
        return refuse(ncclInvalidArgument, "no such communicator");
    if (p.peer < 0 || p.peer >= op->comm->of->num_ranks)
        return refuse(ncclInvalidArgument, "no rank %d", p.peer);
    (sending ? op->sends : op->recvs).push_back(p);
    return ncclSuccess;
}

ncclResult_t point_to_point_call(ncclComm_t comm, cudaStream_t stream, bool sending, const part &p,
                                 ncclDataType_t type) {
    ncclGroupStart();
    in_group(add_part(comm, stream, sending, p, type));
    ncclResult_t r = group.error;
    ncclResult_t end = ncclGroupEnd();
    return r != ncclSuccess ? r : end;
}

ncclResult_t collective(ncclComm_t comm, kind what, cudaStream_t stream, const char *send,
                        char *recv, size_t bytes, ncclDataType_t type) {
    ncclResult_t r = check_buffer(send, recv, bytes, type);
    if (r != ncclSuccess)
        return r;
    if (group.depth > 0)
        return refuse(ncclInvalidUsage, "%s within a group: not in this fake", kind_names[what]);
    auto op = new_operation(comm, what, stream);
    if (op == nullptr)
        return refuse(ncclInvalidArgument, "no such communicator");
    int num_ranks = op->comm->of->num_ranks;
    size_t step_bytes = what == all_to_all ? bytes : 0, all_bytes = bytes * num_ranks;
    if (what == all_to_all && send < recv + all_bytes && recv < send + all_bytes)
        return refuse(ncclInvalidArgument, "ncclAlltoAll in place");
    for (int p = 0; p < num_ranks; p++) {
        op->sends.push_back({p, send + p * step_bytes, nullptr, bytes});
        op->recvs.push_back({p, nullptr, recv + p * bytes, bytes});
    }
    return submit(std::move(op));
}

// --- coming up ------------------------------------------------------------------------------

void check_devices(clique &of) {
    for (int a = 0; a < of.num_ranks; a++)
        for (int b = a + 1; b < of.num_ranks; b++)
            if (of.ranks[a] != nullptr && of.ranks[b] != nullptr &&
                of.ranks[a]->uuid == of.ranks[b]->uuid)
                for (ncclComm *comm : of.ranks)
                    break_comm(comm, ncclInvalidUsage,
                               "Duplicate GPU detected : rank " + std::to_string(a) + " and rank " +
                                   std::to_string(b) + " both on the same CUDA device");
}

void advance_init(ncclComm *comm) {
    if (comm->state != ncclInProgress || comm->up || comm->stuck ||
        comm->of->num_joined < comm->of->num_ranks || comm->polls_left-- > 0)
        return;
    check_devices(*comm->of);
    comm->up = true;
    if (comm->state == ncclInProgress)
        comm->state = ncclSuccess;
}

ncclResult_t join(ncclComm *comm, int num_ranks, const ncclUniqueId &id) {
    auto known = cliques.find(std::string(id.internal, sizeof id.internal));
    if (known == cliques.end())
        return refuse(ncclInvalidArgument, "unknown unique id");
    clique &of = *known->second;
    if (of.num_ranks == 0) {
        of.num_ranks = num_ranks;
        of.ranks.resize(static_cast<size_t>(num_ranks));
        of.wires.resize(static_cast<size_t>(num_ranks) * static_cast<size_t>(num_ranks));
    }
    if (of.num_ranks != num_ranks || of.ranks[comm->rank] != nullptr)
        return refuse(ncclInvalidUsage, "rank %d of %d does not fit its unique id", comm->rank,
                      num_ranks);
    comm->of = known->second;
    comm->polls_left = knobs.init_polls;
    comm->stuck = comm->rank == knobs.init_hang;
    if (comm->rank == knobs.init_fail) {
        break_comm(comm, ncclSystemError, "fault asked for in initialisation");
        return ncclSuccess;
    }
    of.ranks[comm->rank] = comm;
    of.num_joined += !comm->stuck;
    return ncclSuccess;
}

ncclResult_t wait_until_up(ncclComm *comm) {
    for (;;) {
        {
            std::lock_guard<std::mutex> guard(lock);
            advance_init(comm);
            if (comm->state != ncclInProgress)
                return comm->state;
        }
        sched_yield();
    }
}

ncclResult_t forget(ncclComm_t comm) {
    if (communicators.find(comm) == communicators.end())
        return refuse(ncclInvalidArgument, "no such communicator");
    if (comm->of != nullptr && comm->of->ranks[comm->rank] == comm)
        comm->of->ranks[comm->rank] = nullptr;
    comm->pending.clear(); // they hold the communicator
    communicators.erase(comm);
    return ncclSuccess;
}

} // namespace

extern "C" {

void fake_nccl_configure(const char *text) {
    std::lock_guard<std::mutex> guard(lock);
    parse_knobs(text);
    num_operations = 0;
}

void fake_nccl_set_thread_version(int code) {
    thread_version = code;
}

long fake_nccl_num_operations(void) {
    std::lock_guard<std::mutex> guard(lock);
    return num_operations;
}

ncclResult_t ncclGetVersion(int *version) {
    std::lock_guard<std::mutex> guard(lock);
    need_knobs();
    *version = static_cast<int>(thread_version != 0 ? thread_version : knobs.version);
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static long num_ids = 0;
    std::lock_guard<std::mutex> guard(lock);
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "fake NCCL %ld", ++num_ids);
    cliques[std::string(id->internal, sizeof id->internal)] = std::make_shared<clique>();
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int num_ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config) {
    cudaDeviceProp prop;
    int device;
    *out = nullptr;
    if (config == nullptr || config->size != sizeof *config || config->magic != 0xcafebeef)
        return refuse(ncclInvalidArgument, "ncclConfig_t is not initialised");
    if (rank < 0 || rank >= num_ranks)
        return refuse(ncclInvalidArgument, "rank %d of %d", rank, num_ranks);
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaGetDeviceProperties(&prop, device) != cudaSuccess)
        return refuse(ncclUnhandledCudaError, "no device");
    auto comm = std::make_shared<ncclComm>();
    comm->rank = rank;
    comm->blocking = config->blocking != 0;
    std::copy_n(prop.uuid.bytes, comm->uuid.size(), comm->uuid.begin());
    {
        std::lock_guard<std::mutex> guard(lock);
        need_knobs();
        ncclResult_t r = join(comm.get(), num_ranks, id);
        if (r != ncclSuccess)
            return r;
        communicators[comm.get()] = comm;
        *out = comm.get();
    }
    return comm->blocking ? wait_until_up(comm.get()) : ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *async) {
    std::vector<std::unique_ptr<operation>> ready;
    {
        std::lock_guard<std::mutex> guard(lock);
        if (communicators.find(comm) == communicators.end())
            return refuse(ncclInvalidArgument, "no such communicator");
        advance_init(comm);
        if (comm->up && comm->state == ncclInProgress) {
            if (comm->finalizing && comm->in_flight == 0)
                comm->state = ncclSuccess;
            else if (!comm->pending.empty() && comm->polls_left-- <= 0)
                ready.swap(comm->pending);
        }
        *async = comm->state;
    }
    if (ready.empty())
        return ncclSuccess;
    ncclResult_t r = ncclSuccess;
    for (auto &op : ready)
        r = r == ncclSuccess ? enqueue(std::move(op)) : r;
    std::lock_guard<std::mutex> guard(lock);
    if (comm->state == ncclInProgress)
        comm->state = r;
    *async = comm->state;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    std::lock_guard<std::mutex> guard(lock);
    ncclResult_t r = check_ready(comm);
    if (r != ncclSuccess)
        return r;
    comm->finalizing = true;
    comm->state = ncclInProgress;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    std::lock_guard<std::mutex> guard(lock);
    if (communicators.find(comm) != communicators.end() && comm->in_flight > 0)
        return refuse(ncclInvalidUsage, "ncclCommDestroy with %ld operations under way",
                      comm->in_flight);
    return forget(comm);
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
    std::lock_guard<std::mutex> guard(lock);
    if (communicators.find(comm) != communicators.end()) {
        comm->stuck = false;
        break_comm(comm, ncclInternalError, "aborted");
    }
    return forget(comm);
}

const char *ncclGetErrorString(ncclResult_t r) {
    static const char *const text[] = {
        "no error",
        "unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        "unhandled system error (run with NCCL_DEBUG=INFO for details)",
        "internal error - please report this issue to the NCCL developers",
        "invalid argument (run with NCCL_DEBUG=WARN for details)",
        "invalid usage (run with NCCL_DEBUG=WARN for details)",
        "remote process exited or there was a network error",
        "NCCL operation in progress",
    };
    return static_cast<unsigned>(r) < ncclNumResults ? text[r] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t comm) {
    std::lock_guard<std::mutex> guard(lock);
    if (communicators.find(comm) != communicators.end() && !comm->error.empty())
        return comm->error.c_str();
    return last_error.c_str();
}

ncclResult_t ncclGroupStart(void) {
    group.depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    if (group.depth == 0)
        return refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group.depth > 0)
        return ncclSuccess;
    auto operations = std::move(group.operations);
    ncclResult_t result = std::exchange(group.error, ncclSuccess);
    group.operations.clear();
    for (auto &op : operations)
        if (result == ncclSuccess || result == ncclInProgress) {
            ncclResult_t r = submit(std::move(op));
            result = r == ncclSuccess ? result : r;
        }
    return result;
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
    return point_to_point_call(comm, stream, true, {peer, send, nullptr, count * type_bytes(type)},
                               type);
}

ncclResult_t ncclRecv(void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return point_to_point_call(comm, stream, false, {peer, nullptr, recv, count * type_bytes(type)},
                               type);
}

ncclResult_t ncclAllGather(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
    return collective(comm, all_gather, stream, static_cast<const char *>(send),
                      static_cast<char *>(recv), count * type_bytes(type), type);
}

#ifndef FAKE_NCCL_OLD // ncclAlltoAll came with 2.28
ncclResult_t ncclAlltoAll(const void *send, void *recv, size_t count, ncclDataType_t type,
                          ncclComm_t comm, cudaStream_t stream) {
    return collective(comm, all_to_all, stream, static_cast<const char *>(send),
                      static_cast<char *>(recv), count * type_bytes(type), type);
}
#endif

} // extern "C"

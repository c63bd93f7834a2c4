/* Runs one launch: some blocks resident together, a random warp of a random block at a time, its
 * lanes in random order. */
#include "cuda_emu/internal.h"
#include "cuda_emu/pointers.h"

#include <algorithm>
#include <cstdlib>

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emu {

const kernel_call *running;
thread_local bool inside_kernel;
int running_device;

namespace {

enum : uint32_t { resident_blocks = 12, resident_threads = 640, max_blocks = 1u << 22 };
/* A loop around an atomic that waits for a block that is not resident would never end. */
enum : uint32_t { endless_atomics = 20000000 };

/* Blocks and threads (their stacks) outlive launches and, as all the emulator's state, static
 * destructors, which may still use it. */
auto &block_pool = *new std::vector<block *>;
auto &thread_pool = *new std::vector<thread *>;
bool failed;
uint64_t idle_atomics; /* since a block came or went */

void thread_main() {
    running->body();
    thread_exit();
}

void fill_threads(block &b, uint32_t total) {
    while (b.threads.size() < total) {
        if (thread_pool.empty())
            thread_pool.push_back(new thread);
        b.threads.push_back(thread_pool.back());
        thread_pool.pop_back();
    }
    while (b.threads.size() > total) {
        thread_pool.push_back(b.threads.back());
        b.threads.pop_back();
    }
}

void start_thread(block &b, uint32_t i) {
    thread &t = *b.threads[i];
    dim3 d = running->block;
    t.who = b.id << 10 | i;
    t.linear = i;
    t.lane = i % warp_size;
    t.in = &b.warps[i / warp_size];
    t.index = {i % d.x, i / d.x % d.y, i / d.x / d.y};
    t.op = {};
    t.last = {nullptr, 0};
    t.copies.clear();
    t.group = t.fence_tick = t.fence_base = t.fence_warp = 0;
    t.stack.start(thread_main);
}

void start_warp(block &b, uint32_t i) {
    warp &w = b.warps[i];
    uint32_t lanes = std::min<uint32_t>(warp_size, b.total - i * warp_size);
    w.in = &b;
    w.lanes = &b.threads[i * warp_size];
    w.exists = lanes == warp_size ? full_mask : (1u << lanes) - 1;
    w.runnable = w.exists;
    w.in_op = w.at_barrier = 0;
    w.base = b.base;
    b.runnable_warps |= 1u << i;
}

void start_shared(block &b, size_t bytes) {
    size_t words = (bytes + 15) / 16 * 4;
    if (b.shared_cells.size() < words) {
        b.shared_data.resize(words * 4);
        b.shared_init.resize(words / 2);
        b.shared_cells.resize(words);
        b.shared_byte_cells.clear();
    }
    std::fill(b.shared_data.begin(), b.shared_data.end(), uint8_t{0xa5});
    std::fill(b.shared_init.begin(), b.shared_init.end(), uint8_t{0});
    b.pending.assign(words / 4, 0);
    b.shared.kind = allocation::shared_memory;
    b.shared.limit = b.shared.size = bytes;
    b.shared.data = b.shared_data.data();
    b.shared.init = b.shared_init.data();
    b.shared.cells = b.shared_cells.data();
    b.shared.byte_cells = b.shared_byte_cells.empty() ? nullptr : b.shared_byte_cells.data();
    b.shared.in_block = &b;
    b.arrays.clear();
}

void start_block(block &b, uint32_t id) {
    const kernel_call &call = *running;
    b.id = id;
    b.index = {id % call.grid.x, id / call.grid.x % call.grid.y, id / call.grid.x / call.grid.y};
    b.total = call.block.x * call.block.y * call.block.z;
    b.exited = b.waiting = b.runnable_warps = 0;
    b.start = b.base = ++m.tick;
    b.fenced = false;
    b.fence_base = 0;
    b.fence_ticks.clear();
    b.predicate[0] = b.predicate[2] = 0;
    b.predicate[1] = 1;
    fill_threads(b, b.total);
    b.warps.resize((b.total + warp_size - 1) / warp_size);
    for (uint32_t i = 0; i < b.total; i++)
        start_thread(b, i);
    for (uint32_t i = 0; i < b.warps.size(); i++)
        start_warp(b, i);
    start_shared(b, call.shared);
}

/* Blocks not yet resident, in the random order they will be. */
class admission {
  public:
    explicit admission(uint32_t count) : rest_(count) {
        for (uint32_t i = 0; i < count; i++)
            rest_[i] = i;
    }
    bool empty() const {
        return rest_.empty();
    }
    uint32_t next() {
        uint32_t i = random_below(static_cast<uint32_t>(rest_.size()));
        uint32_t id = rest_[i];
        rest_[i] = rest_.back();
        rest_.pop_back();
        return id;
    }

  private:
    std::vector<uint32_t> rest_;
};

/* A warp's turn: every runnable lane once, from a random one on with a random odd stride. */
struct {
    warp *of;
    uint32_t lane, stride, left;
} turn;

void run_warp(warp &w) {
    uint32_t bits = static_cast<uint32_t>(random_bits() >> 40);
    turn = {&w, bits & 31, (bits >> 5 & 31) | 1, warp_size};
    while (thread *t = failed ? nullptr : next_of_turn())
        t->stack.enter();
    m.self = nullptr;
    m.here = nullptr;
}

/* A random runnable warp, for a while: staying with one keeps its stacks in the cache. */
void run_slice(block &b) {
    uint32_t n = random_below(static_cast<uint32_t>(__builtin_popcount(b.runnable_warps)));
    uint32_t warps = b.runnable_warps;
    while (n--)
        warps &= warps - 1;
    warp &w = b.warps[static_cast<size_t>(__builtin_ctz(warps))];
    do
        run_warp(w);
    while (!failed && w.runnable && (random_bits() >> 32 & 15));
}

uint32_t resident_limit(uint32_t threads) {
    return std::clamp<uint32_t>(resident_threads / threads, 2, resident_blocks);
}

void run_blocks(admission &waiting, uint32_t limit) {
    std::vector<block *> resident;
    std::vector<block *> idle;
    while (block_pool.size() < limit)
        block_pool.push_back(new block);
    for (uint32_t i = 0; i < limit; i++)
        idle.push_back(block_pool[i]);
    while (!failed && (!resident.empty() || !waiting.empty())) {
        while (!idle.empty() && !waiting.empty()) {
            start_block(*idle.back(), waiting.next());
            resident.push_back(idle.back());
            idle.pop_back();
            idle_atomics = 0;
        }
        block *&b = resident[random_below(static_cast<uint32_t>(resident.size()))];
        run_slice(*b);
        if (failed || b->runnable_warps)
            continue;
        if (b->exited < b->total) {
            dead_block(*b);
            failed = true;
        }
        idle_atomics = 0;
        idle.push_back(b);
        b = resident.back();
        resident.pop_back();
    }
}

} // namespace

thread *next_of_turn() {
    warp &w = *turn.of;
    while (turn.left) {
        turn.left--;
        uint32_t lane = turn.lane;
        turn.lane = (lane + turn.stride) & 31;
        if (w.runnable >> lane & 1) {
            thread *t = w.lanes[lane];
            m.self = t;
            m.here = w.in;
            threadIdx = t->index;
            blockIdx = w.in->index;
            return t;
        }
    }
    return nullptr;
}

void forget_block_cells() {
    for (block *b : block_pool) {
        b->shared_cells.clear();
        b->shared_byte_cells.clear();
        b->warps.clear();
    }
}

void note_atomic() {
    if (++idle_atomics > endless_atomics)
        fail("waits for ever: %u million atomics and no block came to its end",
             endless_atomics / 1000000);
}

void abandon() {
    if (!m.self)
        abort();
    failed = true;
    m.self->stack.leave(true);
    __builtin_unreachable();
}

bool run_kernel(const kernel_call &call) {
    uint32_t threads = call.block.x * call.block.y * call.block.z;
    size_t blocks = size_t{call.grid.x} * call.grid.y * call.grid.z;
    if (blocks > max_blocks) {
        report("kernel %s: the emulator takes at most %u blocks", call.name.c_str(), max_blocks);
        return false;
    }
    if (m.tick > UINT32_MAX / 2)
        restart_time();
    failed = false;
    idle_atomics = 0;
    running = &call;
    inside_kernel = true;
    blockDim = call.block;
    gridDim = call.grid;
    m.launch_base = ++m.tick;
    admission waiting(static_cast<uint32_t>(blocks));
    run_blocks(waiting, resident_limit(threads));
    forget_order();
    running = nullptr;
    inside_kernel = false;
    return !failed;
}

} // namespace emu

emu::allocation *shared_arena::take_bytes(size_t bytes) {
    emu::block &b = *emu::m.here;
    size_t lo = at;
    at += (bytes + 15) / 16 * 16;
    if (lo + bytes > b.shared.size)
        emu::fail("takes %zu bytes of shared memory at %zu, but the launch has %zu", bytes, lo,
                  b.shared.size);
    for (auto &a : b.arrays)
        if (a->lo == lo && a->limit == bytes)
            return a.get();
    auto a = std::make_unique<emu::allocation>();
    a->kind = emu::allocation::shared_memory;
    a->lo = lo;
    a->limit = a->size = bytes;
    a->data = b.shared.data + lo;
    a->init = b.shared.init + lo / 8;
    a->cells = b.shared.cells + lo / 4;
    a->root = &b.shared;
    b.arrays.push_back(std::move(a));
    return b.arrays.back().get();
}

/* A block's threads: warps' collective operations, barriers, and what happens when they cannot be
 * completed. */
#include "cuda_emu/internal.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emu {

machine m;

namespace {

constexpr uint32_t bit(uint32_t lane) {
    return 1u << lane;
}

void sleep_now(thread &t) {
    warp &w = *t.in;
    w.runnable &= ~bit(t.lane);
    if (!w.runnable)
        w.in->runnable_warps &= ~bit(static_cast<uint32_t>(&w - w.in->warps.data()));
    leave();
}

void wake(warp &w, uint32_t lanes) {
    w.runnable |= lanes;
    w.in->runnable_warps |= bit(static_cast<uint32_t>(&w - w.in->warps.data()));
}

/* Whether all lanes wait in this operation. One that waits in another may still come: a lane has
 * passed the operations of smaller masks before. */
bool all_in(const warp &w, uint32_t lanes, const warp_op &op) {
    if ((w.in_op & lanes) != lanes)
        return false;
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        const warp_op &other = w.lanes[__builtin_ctz(rest)]->op;
        if (other.mask != op.mask || (other.name != op.name && strcmp(other.name, op.name)))
            return false;
        if (op.aligned && other.at.line != op.at.line)
            fail("divergent warp: %s at %s:%d, but lane %d is at line %d", op.name, op.at.file,
                 op.at.line, __builtin_ctz(rest), other.at.line);
    }
    return true;
}

void release_barrier(block &b) {
    b.base = ++m.tick;
    barrier_passed(b);
    b.waiting = 0;
    for (int i = 0; i < 3; i++)
        b.predicate_out[i] = b.predicate[i];
    b.predicate[0] = b.predicate[2] = 0;
    b.predicate[1] = 1;
    for (warp &w : b.warps) {
        if (w.at_barrier)
            wake(w, w.at_barrier);
        w.at_barrier = 0;
    }
}

} // namespace

void collective(const char *name, uint32_t mask, bool aligned, site at, void *payload,
                complete_fn *complete) {
    if (!m.self)
        fail("%s outside a kernel", name);
    thread &t = *m.self;
    warp &w = *t.in;
    t.last = at;
    t.op = {name, mask, aligned, at, payload};
    if (!(mask & bit(t.lane)))
        fail("%s with mask %08x, which leaves out the caller (lane %u)", name, mask, t.lane);
    if (aligned && w.exists != full_mask)
        fail("%s in a warp of fewer than 32 threads", name);
    uint32_t lanes = mask & w.exists;
    if (!w.in_op) {
        w.leader = t.op;
        w.alike = 0;
    }
    if (name == w.leader.name && mask == w.leader.mask && at.line == w.leader.at.line)
        w.alike |= bit(t.lane);
    w.in_op |= bit(t.lane);
    if ((w.alike & lanes) != lanes && !all_in(w, lanes, t.op)) {
        sleep_now(t);
        return;
    }
    complete(w, lanes);
    w.in_op &= ~lanes;
    w.alike &= ~lanes;
    wake(w, lanes);
}

void block_barrier(site at) {
    if (!m.self)
        fail("__syncthreads outside a kernel");
    thread &t = *m.self;
    warp &w = *t.in;
    block &b = *w.in;
    t.last = at;
    if (w.at_barrier) {
        const thread &other = *w.lanes[__builtin_ctz(w.at_barrier)];
        if (other.last.line != at.line)
            fail("divergent __syncthreads: %s:%d, but lane %u of the warp waits at line %d",
                 at.file, at.line, other.lane, other.last.line);
    }
    w.at_barrier |= bit(t.lane);
    b.waiting++;
    if (b.waiting + b.exited == b.total)
        release_barrier(b);
    else
        sleep_now(t);
}

namespace {

/* Each of these lanes knows now what any of them knew, and all that any of them did. */
void join_lanes(warp &w, uint32_t lanes) {
    uint32_t all[warp_size] = {};
    for (uint32_t rest = lanes; rest; rest &= rest - 1)
        for (uint32_t i = 0; i < warp_size; i++)
            all[i] = max(all[i], w.known[__builtin_ctz(rest)][i]);
    ++m.tick;
    for (uint32_t i = 0; i < warp_size; i++)
        if (lanes & bit(i))
            all[i] = m.tick;
    for (uint32_t rest = lanes; rest; rest &= rest - 1)
        memcpy(w.known[__builtin_ctz(rest)], all, sizeof all);
}

void synced(warp &w, uint32_t lanes) {
    if (lanes == w.exists)
        w.base = ++m.tick;
    else
        join_lanes(w, lanes);
}

} // namespace

void warp_barrier(uint32_t mask, site at) {
    collective("__syncwarp", mask, false, at, nullptr, synced);
}

void may_yield() {
    if (m.self && (random_bits() & 3) == 0)
        leave();
}

void leave() {
    fiber &from = m.self->stack;
    if (thread *next = next_of_turn())
        from.pass_to(next->stack);
    else
        from.leave();
}

void thread_exit() {
    thread &t = *m.self;
    warp &w = *t.in;
    block &b = *w.in;
    w.runnable &= ~bit(t.lane);
    if (!w.runnable)
        b.runnable_warps &= ~bit(static_cast<uint32_t>(&w - b.warps.data()));
    b.exited++;
    if (b.waiting && b.waiting + b.exited == b.total)
        release_barrier(b);
    t.stack.leave(true);
}

} // namespace emu

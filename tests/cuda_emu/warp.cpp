#include "cuda_emu/warp.h"

namespace emu {
namespace {

struct exchange {
    uint64_t v;
    uint32_t from;
    uint64_t out;
};

void complete_shuffle(warp &w, uint32_t lanes) {
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        const thread &t = *w.lanes[__builtin_ctz(rest)];
        exchange &mine = *static_cast<exchange *>(t.op.payload);
        if (!(lanes >> mine.from & 1))
            fail("%s at %s:%d: lane %u reads lane %u, which takes no part (mask %08x)", t.op.name,
                 t.op.at.file, t.op.at.line, t.lane, mine.from, t.op.mask);
        mine.out = static_cast<const exchange *>(w.lanes[mine.from]->op.payload)->v;
    }
}

struct vote {
    bool yes;
    uint32_t ballot;
};

void complete_vote(warp &w, uint32_t lanes) {
    uint32_t ballot = 0;
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        if (static_cast<const vote *>(w.lanes[lane]->op.payload)->yes)
            ballot |= 1u << lane;
    }
    for (uint32_t rest = lanes; rest; rest &= rest - 1)
        static_cast<vote *>(w.lanes[__builtin_ctz(rest)]->op.payload)->ballot = ballot;
}

uint32_t vote_of(const char *name, uint32_t mask, int predicate, site at) {
    vote v = {predicate != 0, 0};
    collective(name, mask, false, at, &v, complete_vote);
    return v.ballot;
}

uint32_t width_of(int width) {
    if (width < 1 || width > 32 || (width & (width - 1)))
        fail("a shuffle of width %d", width);
    return static_cast<uint32_t>(width);
}

struct reduction {
    uint32_t v;
    uint32_t (*op)(uint32_t, uint32_t);
};

void complete_reduction(warp &w, uint32_t lanes) {
    bool first = true;
    uint32_t all = 0;
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        const auto &r = *static_cast<const reduction *>(w.lanes[__builtin_ctz(rest)]->op.payload);
        all = first ? r.v : r.op(all, r.v);
        first = false;
    }
    for (uint32_t rest = lanes; rest; rest &= rest - 1)
        static_cast<reduction *>(w.lanes[__builtin_ctz(rest)]->op.payload)->v = all;
}

} // namespace

uint64_t shuffle(const char *name, uint32_t mask, uint64_t v, uint32_t from, site at) {
    exchange e = {v, from, 0};
    collective(name, mask, false, at, &e, complete_shuffle);
    return e.out;
}

/* As PTX's shfl: lanes are read within segments of `width`; out of one, a lane reads itself. */
uint32_t shuffle_index(int lane, int width) {
    uint32_t w = width_of(width), self = m.self->lane;
    return (self & ~(w - 1)) | (static_cast<uint32_t>(lane) & (w - 1));
}

uint32_t shuffle_xor(int lanes, int width) {
    uint32_t w = width_of(width), self = m.self->lane, from = self ^ static_cast<uint32_t>(lanes);
    return from <= (self | (w - 1)) ? from : self;
}

uint32_t shuffle_up(unsigned int delta, int width) {
    uint32_t w = width_of(width), self = m.self->lane;
    return (self & (w - 1)) >= delta ? self - delta : self;
}

uint32_t shuffle_down(unsigned int delta, int width) {
    uint32_t w = width_of(width), self = m.self->lane;
    return (self & (w - 1)) + delta < w ? self + delta : self;
}

uint32_t reduce(const char *name, uint32_t mask, uint32_t v, uint32_t (*op)(uint32_t, uint32_t),
                site at) {
    reduction r = {v, op};
    collective(name, mask, false, at, &r, complete_reduction);
    return r.v;
}

} // namespace emu

unsigned int __ballot_sync(unsigned int mask, int predicate, emu::site at) {
    return emu::vote_of("__ballot_sync", mask, predicate, at);
}

int __any_sync(unsigned int mask, int predicate, emu::site at) {
    return emu::vote_of("__any_sync", mask, predicate, at) != 0;
}

int __all_sync(unsigned int mask, int predicate, emu::site at) {
    uint32_t lanes = mask & emu::m.self->in->exists;
    return emu::vote_of("__all_sync", mask, predicate, at) == lanes;
}

/* Any subset of the lanes that may be together is allowed; the caller alone is the hardest. */
unsigned int __activemask() {
    return 1u << emu::m.self->lane;
}

namespace {

int block_vote(int which, int predicate, emu::site at) {
    emu::block &b = *emu::m.here;
    int &all = b.predicate[which];
    all = which == 0 ? all + (predicate != 0) : which == 1 ? all && predicate : all || predicate;
    emu::block_barrier(at);
    return b.predicate_out[which];
}

uint32_t add(uint32_t a, uint32_t b) {
    return a + b;
}
uint32_t larger(uint32_t a, uint32_t b) {
    return max(a, b);
}
uint32_t smaller(uint32_t a, uint32_t b) {
    return min(a, b);
}
uint32_t larger_int(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(max(static_cast<int>(a), static_cast<int>(b)));
}
uint32_t smaller_int(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(min(static_cast<int>(a), static_cast<int>(b)));
}
uint32_t either(uint32_t a, uint32_t b) {
    return a | b;
}

} // namespace

int __syncthreads_count(int predicate, emu::site at) {
    return block_vote(0, predicate, at);
}
int __syncthreads_and(int predicate, emu::site at) {
    return block_vote(1, predicate, at);
}
int __syncthreads_or(int predicate, emu::site at) {
    return block_vote(2, predicate, at);
}

unsigned int __reduce_add_sync(unsigned int mask, unsigned int v, emu::site at) {
    return emu::reduce("__reduce_add_sync", mask, v, add, at);
}
int __reduce_add_sync(unsigned int mask, int v, emu::site at) {
    return static_cast<int>(
        emu::reduce("__reduce_add_sync", mask, static_cast<uint32_t>(v), add, at));
}
unsigned int __reduce_max_sync(unsigned int mask, unsigned int v, emu::site at) {
    return emu::reduce("__reduce_max_sync", mask, v, larger, at);
}
int __reduce_max_sync(unsigned int mask, int v, emu::site at) {
    return static_cast<int>(
        emu::reduce("__reduce_max_sync", mask, static_cast<uint32_t>(v), larger_int, at));
}
unsigned int __reduce_min_sync(unsigned int mask, unsigned int v, emu::site at) {
    return emu::reduce("__reduce_min_sync", mask, v, smaller, at);
}
int __reduce_min_sync(unsigned int mask, int v, emu::site at) {
    return static_cast<int>(
        emu::reduce("__reduce_min_sync", mask, static_cast<uint32_t>(v), smaller_int, at));
}
unsigned int __reduce_or_sync(unsigned int mask, unsigned int v, emu::site at) {
    return emu::reduce("__reduce_or_sync", mask, v, either, at);
}

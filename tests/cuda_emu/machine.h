/* What a kernel's thread sees of the emulator: who it is, its warp and block, and the checks its
 * accesses go through. Included by the words kernels use; nothing here is for kernels themselves.
 *
 * Time is one counter, `tick`, raised at every synchronisation. A recorded access carries the tick
 * of its moment; it is ordered before everything that follows a later synchronisation both sides
 * took part in. */
#ifndef QEP_CUDA_EMU_MACHINE_H
#define QEP_CUDA_EMU_MACHINE_H

#include "cuda_emu/fiber.h"
#include "cuda_emu/words.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace emu {

enum : uint32_t { full_mask = 0xffffffffu, warp_size = 32, max_threads = 1024 };

/* A place in a kernel's source; the default argument of every word that synchronises. */
struct site {
    const char *file;
    int line;
    static constexpr site here(const char *f = __builtin_FILE(), int l = __builtin_LINE()) {
        return {f, l};
    }
};
#define EMU_HERE emu::site::here()

/* Who accessed a word last (race.cpp). `who` is block << 10 | thread. */
struct cell {
    uint32_t write_tick, writer;
    uint32_t read_tick, read_lanes;
    uint32_t read_warp : 27; /* block << 5 | warp */
    uint32_t many_warps : 1; /* readers of several warps of that block */
    uint32_t many_blocks : 1;
    uint32_t split : 1;  /* bytes differ: they have cells of their own */
    uint32_t joined : 1; /* a chunk's first word: stands for all four, theirs are out of date */
    uint32_t atomic : 1; /* the last write was one */
};

struct warp;
struct block;

/* A range of device or pinned memory, or a block's shared memory. A part of another allocation that
 * a pool handed out is an allocation too, whose pointers lead into the root's arrays. */
struct allocation {
    uintptr_t lo = 0; /* as kernels see it */
    size_t limit = 0; /* accessible bytes: 0 once freed or protected */
    uint8_t *data = nullptr;
    uint8_t *init = nullptr; /* a bit per byte */
    cell *cells = nullptr;   /* one per 4 bytes */
    allocation *root = this;
    cell *byte_cells = nullptr; /* of the root: 4 per cell, made when first needed */
    size_t size = 0;
    const char *state = "live";
    enum kind_t { device_memory, host_memory, shared_memory } kind = device_memory;
    int device = 0;
    block *in_block = nullptr; /* of shared memory */
};

/* What a lane brings to a warp's collective operation. */
struct warp_op {
    const char *name = nullptr;
    uint32_t mask = 0;
    bool aligned = false; /* all lanes at the same place of the source */
    site at = {nullptr, 0};
    void *payload = nullptr; /* on the lane's stack */
};

struct async_copy {
    uint32_t to; /* offset in shared memory */
    allocation *from;
    uintptr_t address;
    uint32_t bytes;
    uint32_t group;
    uint8_t issued[16]; /* what the source held then; it must not change until the wait */
};

struct thread {
    fiber stack;
    uint32_t who = 0, linear = 0, lane = 0;
    warp *in = nullptr;
    uint3 index = {};
    warp_op op;
    site last = {nullptr, 0}; /* newest synchronisation, for reports */
    std::vector<async_copy> copies;
    uint32_t group = 0;      /* of cp.async, the open one */
    uint32_t fence_tick = 0; /* own accesses before this are fenced */
    uint32_t fence_base = 0; /* and those of the block before this */
    uint32_t fence_warp = 0; /* and those of the warp before this */
};

struct warp {
    warp_op leader;     /* what most lanes in an operation are in */
    uint32_t alike = 0; /* those */
    block *in = nullptr;
    thread **lanes = nullptr;
    uint32_t exists = 0, runnable = 0, in_op = 0, at_barrier = 0;
    uint32_t base = 0;    /* accesses of this warp before this tick are ordered for all its lanes */
    uint32_t partial = 0; /* tick of the newest __syncwarp of some lanes only */
    uint32_t known[warp_size][warp_size] = {}; /* [a][b]: b's accesses before this, ordered for a */
};

struct block {
    uint32_t id = 0;
    uint3 index = {};
    uint32_t start = 0; /* tick */
    uint32_t base = 0;  /* accesses of this block before this tick are ordered for all threads */
    uint32_t total = 0, exited = 0, waiting = 0;
    uint32_t runnable_warps = 0;
    std::vector<warp> warps;
    std::vector<thread *> threads;
    allocation shared;
    std::vector<std::unique_ptr<allocation>> arrays; /* handed out of shared memory */
    std::vector<uint8_t> shared_data, shared_init;
    std::vector<cell> shared_cells, shared_byte_cells;
    std::vector<uint32_t> pending; /* per 16 bytes: 1 + the thread whose cp.async is under way */
    bool fenced = false;           /* by some thread since the newest barrier */
    std::vector<uint32_t> fence_ticks; /* of each thread's newest fence before that */
    uint32_t fence_base = 0;
    int predicate[3] = {}; /* __syncthreads_count/and/or */
    int predicate_out[3] = {};
};

struct machine {
    thread *self = nullptr; /* NULL outside kernels */
    block *here = nullptr;
    uint32_t tick = 1;
    uint32_t launch_base = 1; /* accesses before this belong to earlier launches */
};
extern machine m;

/* Reports an error of the running kernel and ends the launch. */
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The allocation this address lies in; never NULL (a dead one without bytes). */
allocation *allocation_of(const void *address);
/* The same, if a kernel of the current (running) device can reach it. */
allocation *reachable(const void *address);

[[noreturn]] void out_of_bounds(const allocation &a, intptr_t off, size_t size, const char *what);

/* Initialised? ordered? of one aligned access of 1, 2, 4, 8 or 16 bytes within bounds. */
void check_read(allocation &a, size_t off, size_t size);
void check_write(allocation &a, size_t off, size_t size);
void check_atomic(allocation &a, size_t off, size_t size);

/* Any size; aligned to `align` (a power of two up to 16). */
void read_bytes(allocation &a, intptr_t off, void *to, size_t size, size_t align);
void write_bytes(allocation &a, intptr_t off, const void *from, size_t size, size_t align);

template <class T> inline T read(allocation &a, intptr_t off) {
    T v;
    if constexpr (sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0 &&
                  alignof(T) == sizeof(T)) {
        if (__builtin_expect(off < 0 || static_cast<size_t>(off) + sizeof(T) > a.limit ||
                                 ((a.lo + static_cast<uintptr_t>(off)) & (sizeof(T) - 1)),
                             0))
            out_of_bounds(a, off, sizeof(T), "reads");
        check_read(a, static_cast<size_t>(off), sizeof(T));
        memcpy(&v, a.data + off, sizeof(T));
    } else {
        read_bytes(a, off, &v, sizeof(T), alignof(T));
    }
    return v;
}

template <class T> inline void write(allocation &a, intptr_t off, const T &v) {
    if constexpr (sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0 &&
                  alignof(T) == sizeof(T)) {
        if (__builtin_expect(off < 0 || static_cast<size_t>(off) + sizeof(T) > a.limit ||
                                 ((a.lo + static_cast<uintptr_t>(off)) & (sizeof(T) - 1)),
                             0))
            out_of_bounds(a, off, sizeof(T), "writes");
        check_write(a, static_cast<size_t>(off), sizeof(T));
        memcpy(a.data + off, &v, sizeof(T));
    } else {
        write_bytes(a, off, &v, sizeof(T), alignof(T));
    }
}

/* block.cpp */
typedef void complete_fn(warp &w, uint32_t lanes);
/* Waits for all lanes of mask with the same operation; the last one runs complete over their
 * payloads. */
void collective(const char *name, uint32_t mask, bool aligned, site at, void *payload,
                complete_fn *complete);
void block_barrier(site at);
void warp_barrier(uint32_t mask, site at);
void device_fence();
/* Another thread may run now (before an atomic). */
void may_yield();

} // namespace emu
#endif

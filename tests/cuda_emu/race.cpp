/* The checks behind every access: initialised bytes, no cp.async under way, and an order between
 * this access and what other threads did to the same bytes. */
#include "cuda_emu/internal.h"

#include <sys/mman.h>

namespace emu {
namespace {

/* What was recorded before this tick belongs to earlier launches (shared memory: to the blocks that
 * had this piece before). Set at the start of each check. */
uint32_t horizon;

bool warp_ordered(uint32_t tick, uint32_t lane) {
    const warp &w = *m.self->in;
    return tick < w.base || tick < w.known[m.self->lane][lane];
}

/* Whether what thread `who` did at `tick` comes before what this thread does now. */
inline bool ordered(uint32_t tick, uint32_t who) {
    const thread &t = *m.self;
    if (tick < horizon || who == t.who)
        return true;
    if (who >> 10 != t.who >> 10)
        return acquired(tick, who);
    return tick < m.here->base || (who >> 5 == t.who >> 5 && warp_ordered(tick, who & 31));
}

bool readers_ordered(const cell &c) {
    const thread &t = *m.self;
    if (c.read_tick < horizon)
        return true;
    if (c.many_blocks)
        return false;
    uint32_t warp_id = c.read_warp;
    bool same_block = warp_id >> 5 == t.who >> 10;
    if (!same_block)
        return acquired_block(c.read_tick, warp_id >> 5);
    if (c.read_tick < m.here->base)
        return true;
    if (c.many_warps || warp_id != t.who >> 5)
        return false;
    for (uint32_t lanes = c.read_lanes & ~(1u << t.lane); lanes; lanes &= lanes - 1)
        if (!warp_ordered(c.read_tick, static_cast<uint32_t>(__builtin_ctz(lanes))))
            return false;
    return true;
}

inline void note_read(cell &c) {
    const thread &t = *m.self;
    uint32_t warp_id = t.who >> 5, lane = 1u << t.lane;
    bool stale = c.read_tick < horizon;
    if (!stale && c.many_blocks)
        return;
    if (stale || readers_ordered(c)) {
        c.read_warp = warp_id & 0x7ffffffu;
        c.read_lanes = lane;
        c.many_warps = c.many_blocks = 0;
    } else if (c.read_warp == warp_id) {
        c.read_lanes |= lane;
    } else if (uint32_t{c.read_warp} >> 5 == warp_id >> 5) {
        c.many_warps = 1;
    } else {
        c.many_blocks = 1;
    }
    c.read_tick = m.tick;
}

void note_write(cell &c, bool atomic) {
    c.write_tick = m.tick;
    c.writer = m.self->who;
    c.atomic = atomic;
    c.read_tick = 0;
}

[[noreturn]] void race(const allocation &a, size_t off, const char *now, const char *before,
                       uint32_t block_id, int thread_id) {
    char other[64];
    if (thread_id < 0)
        snprintf(other, sizeof other, "other threads");
    else
        snprintf(other, sizeof other, "thread %d of block %u", thread_id, block_id);
    fail("race: %s at %s, which %s %s with no synchronisation between", now,
         describe(a, static_cast<intptr_t>(off)), other, before);
}

inline void read_cell(const allocation &a, size_t off, cell &c) {
    if (!ordered(c.write_tick, c.writer))
        race(a, off, "reads", c.atomic ? "changed by an atomic" : "wrote", c.writer >> 10,
             static_cast<int>(c.writer & 1023u));
    note_read(c);
}

inline void write_cell(const allocation &a, size_t off, cell &c, bool atomic) {
    if (!(atomic && c.atomic) && !ordered(c.write_tick, c.writer))
        race(a, off, atomic ? "an atomic" : "writes", c.atomic ? "changed by an atomic" : "wrote",
             c.writer >> 10, static_cast<int>(c.writer & 1023u));
    if (!readers_ordered(c)) {
        bool one = !c.many_blocks && !c.many_warps && !(c.read_lanes & (c.read_lanes - 1));
        race(a, off, atomic ? "an atomic" : "writes", "read", c.read_warp >> 5,
             one ? static_cast<int>((c.read_warp & 31u) * 32u +
                                    static_cast<uint32_t>(__builtin_ctz(c.read_lanes)))
                 : -1);
    }
    note_write(c, atomic);
}

enum mode { reading, writing, atomically };

inline void one_cell(const allocation &a, size_t off, cell &c, mode how) {
    if (how == reading)
        read_cell(a, off, c);
    else
        write_cell(a, off, c, how == atomically);
}

/* The four cells of a word's bytes; the word is marked split. */
cell *bytes_of(allocation &a, cell &word) {
    allocation &root = *a.root;
    if (!root.byte_cells)
        root.byte_cells = make_byte_cells(root);
    cell *bytes = root.byte_cells + 4 * (&word - root.cells);
    if (!word.split) {
        for (int i = 0; i < 4; i++)
            bytes[i] = word;
        word.split = 1;
    }
    return bytes;
}

void check_word(allocation &a, size_t off, size_t size, mode how) {
    cell &word = a.cells[off / 4];
    if (!word.split && size == 4) {
        one_cell(a, off, word, how);
        return;
    }
    cell *bytes = bytes_of(a, word);
    for (size_t i = off % 4; i < off % 4 + size; i++)
        one_cell(a, off, bytes[i], how);
    if (size == 4 && how != reading) {
        word.split = 0;
        note_write(word, how == atomically);
    }
}

void separate(cell *words) {
    words[0].joined = 0;
    words[1] = words[2] = words[3] = words[0];
}

/* 16 bytes are mostly read and written as one: then one cell does for them. */
void check_chunk(allocation &a, size_t off, mode how) {
    cell *words = a.cells + off / 4;
    if (words[0].joined) {
        one_cell(a, off, words[0], how);
        return;
    }
    for (size_t i = 0; i < 4; i++)
        check_word(a, off + 4 * i, 4, how);
    bool same =
        !memcmp(words, words + 1, sizeof *words) && !memcmp(words, words + 2, 2 * sizeof *words);
    words[0].joined = same && !words[0].split;
}

void check_order(allocation &a, size_t off, size_t size, mode how) {
    if (size == 16) {
        check_chunk(a, off, how);
        return;
    }
    cell *words = a.cells + off / 16 * 4;
    if (words[0].joined)
        separate(words);
    if (size < 4)
        check_word(a, off, size, how);
    else
        for (size_t i = 0; i < size; i += 4)
            check_word(a, off + i, 4, how);
}

inline bool initialised(const allocation &a, size_t off, size_t size) {
    uint16_t bits;
    memcpy(&bits, a.init + off / 16 * 2, 2);
    uint32_t want = ((1u << size) - 1) << (off & 15u);
    return (bits & want) == want;
}

inline void set_initialised(allocation &a, size_t off, size_t size) {
    uint16_t bits;
    memcpy(&bits, a.init + off / 16 * 2, 2);
    bits = static_cast<uint16_t>(bits | ((1u << size) - 1) << (off & 15u));
    memcpy(a.init + off / 16 * 2, &bits, 2);
}

__attribute__((always_inline)) inline void begin(const allocation &a, size_t off,
                                                 const char *what) {
    if (__builtin_expect(!m.self, 0))
        fail("%s memory of a kernel outside a kernel", what);
    horizon = m.launch_base;
    if (a.kind != allocation::shared_memory)
        return;
    horizon = m.here->start;
    uint32_t pending = m.here->pending[(a.lo + off) / 16];
    if (pending)
        fail("%s %s while thread %u's cp.async to it is not waited for", what,
             describe(a, static_cast<intptr_t>(off)), pending - 1);
}

} // namespace

void check_read(allocation &a, size_t off, size_t size) {
    begin(a, off, "reads");
    if (__builtin_expect(!initialised(a, off, size), 0))
        fail("reads uninitialised %s (%zu bytes)", describe(a, static_cast<intptr_t>(off)), size);
    check_order(a, off, size, reading);
}

void check_write(allocation &a, size_t off, size_t size) {
    begin(a, off, "writes");
    check_order(a, off, size, writing);
    set_initialised(a, off, size);
}

void check_atomic(allocation &a, size_t off, size_t size) {
    begin(a, off, "an atomic on");
    if (__builtin_expect(!initialised(a, off, size), 0))
        fail("an atomic on uninitialised %s", describe(a, static_cast<intptr_t>(off)));
    check_order(a, off, size, atomically);
}

namespace {

/* Pieces of at most 16 bytes, none wider than the alignment allows. */
template <class F>
void pieces(allocation &a, intptr_t off, size_t size, size_t align, const char *what, F each) {
    size_t step = align < 16 ? align : 16;
    if (off < 0 || static_cast<size_t>(off) + size > a.limit ||
        (a.lo + static_cast<uintptr_t>(off)) % step)
        out_of_bounds(a, off, size, what);
    for (size_t i = 0; i < size; i += step)
        each(static_cast<size_t>(off) + i, i, size - i < step ? size - i : step);
}

} // namespace

void read_bytes(allocation &a, intptr_t off, void *to, size_t size, size_t align) {
    pieces(a, off, size, align, "reads", [&](size_t at, size_t i, size_t n) {
        check_read(a, at, n);
        memcpy(static_cast<char *>(to) + i, a.data + at, n);
    });
}

void write_bytes(allocation &a, intptr_t off, const void *from, size_t size, size_t align) {
    pieces(a, off, size, align, "writes", [&](size_t at, size_t i, size_t n) {
        check_write(a, at, n);
        memcpy(a.data + at, static_cast<const char *>(from) + i, n);
    });
}

void out_of_bounds(const allocation &a, intptr_t off, size_t size, const char *what) {
    bool within = off >= 0 && static_cast<size_t>(off) + size <= a.limit;
    fail("%s %zu bytes %s %s", what, size, within ? "misaligned at" : "out of bounds at",
         describe(a, off));
}

} // namespace emu

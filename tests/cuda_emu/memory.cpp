/* Device and pinned memory. Device addresses lie in a region that is only reserved: a host access
 * faults, and an address is not given out again soon. The bytes, their initialised bits and their
 * cells are mapped beside it. */
#include "cuda_emu/device.h"
#include "cuda_emu/sanitizers.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <sys/mman.h>

namespace emu {

std::recursive_mutex lock;

namespace {

#if defined(EMU_TSAN)
constexpr size_t region_bytes = size_t{1} << 38;
#else
constexpr size_t region_bytes = size_t{1} << 42;
#endif
constexpr size_t granule = 256, gap = 64 * 1024;

using table = std::map<uintptr_t, std::unique_ptr<allocation>>;
table &roots = *new table, &parts = *new table;
auto &dead =
    *new std::vector<std::unique_ptr<allocation>>; /* a kernel's arguments may still name them */
uintptr_t region, next_address;

void *mapped(size_t bytes, int protection) {
    void *p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
}

size_t rounded(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

size_t bits_bytes(const allocation &a) {
    return rounded(a.size, 16) / 8;
}

size_t cells_bytes(const allocation &a) {
    return rounded(a.size, 16) / 4 * sizeof(cell);
}

/* The entry that begins at or before the address; whether it reaches that far is the caller's. */
allocation *before(const table &t, uintptr_t address) {
    auto next = t.upper_bound(address);
    return next == t.begin() ? nullptr : std::prev(next)->second.get();
}

allocation *holding(const table &t, uintptr_t address) {
    allocation *a = before(t, address);
    return a && address - a->lo < a->size ? a : nullptr;
}

void bury(table &t, table::iterator at) {
    dead.push_back(std::move(at->second));
    t.erase(at);
}

/* Addresses for that many bytes; those of freed memory only when all others were used. */
uintptr_t place(size_t bytes) {
    if (!region) {
        region = reinterpret_cast<uintptr_t>(mapped(region_bytes, PROT_NONE));
        if (!region) {
            perror("cuda_emu: reserving addresses");
            abort();
        }
        next_address = region + gap;
    }
    size_t need = rounded(bytes, granule) + gap;
    for (int wraps = 0; wraps < 2;) {
        if (next_address + need > region + region_bytes) {
            next_address = region + gap;
            wraps++;
            continue;
        }
        allocation *in_the_way = before(roots, next_address + need);
        if (!in_the_way || in_the_way->lo + in_the_way->size <= next_address) {
            uintptr_t at = next_address;
            next_address += need;
            return at;
        }
        if (in_the_way->limit || in_the_way->data)
            next_address = rounded(in_the_way->lo + in_the_way->size + gap, granule);
        else
            bury(roots, roots.find(in_the_way->lo));
    }
    return 0;
}

bool map_arrays(allocation &a) {
    if (!a.data)
        a.data = static_cast<uint8_t *>(mapped(rounded(a.size, 16), PROT_READ | PROT_WRITE));
    a.init = static_cast<uint8_t *>(mapped(bits_bytes(a), PROT_READ | PROT_WRITE));
    a.cells = static_cast<cell *>(mapped(cells_bytes(a), PROT_READ | PROT_WRITE));
    return a.data && a.init && a.cells;
}

void unmap_arrays(allocation &a) {
    munmap(a.data, rounded(a.size, 16));
    munmap(a.init, bits_bytes(a));
    munmap(a.cells, cells_bytes(a));
    if (a.byte_cells)
        munmap(a.byte_cells, 4 * cells_bytes(a));
    a.data = a.init = nullptr;
    a.cells = a.byte_cells = nullptr;
}

void give_back_parts(uintptr_t lo, size_t bytes) {
    for (auto at = parts.begin(); at != parts.end();) {
        allocation &a = *at->second;
        auto here = at++;
        if (a.lo < lo + bytes && lo < a.lo + a.size) {
            a.limit = 0;
            a.state = "given back to its pool";
            bury(parts, here);
        }
    }
}

/* The root a pool's range lies in, or NULL and a report. */
allocation *pool_root(const char *what, const void *ptr, size_t bytes) {
    uintptr_t lo = reinterpret_cast<uintptr_t>(ptr);
    allocation *root = holding(roots, lo);
    if (root && root->data && lo % 16 == 0 && bytes <= root->size - (lo - root->lo))
        return root;
    report("%s(%p, %zu): no aligned range of a live allocation", what, ptr, bytes);
    return nullptr;
}

allocation &nothing(const char *what) {
    allocation *a = new allocation;
    a->state = what;
    return *a;
}

} // namespace

allocation *allocation_of(const void *address) {
    static allocation &nowhere = nothing("no device memory");
    /* A kernel's thread runs under the scheduler's hold; its own would be another stack's. */
    std::unique_lock<std::recursive_mutex> hold(lock, std::defer_lock);
    if (!inside_kernel)
        hold.lock();
    uintptr_t at = reinterpret_cast<uintptr_t>(address);
    allocation *a = holding(parts, at);
    if (!a)
        a = holding(roots, at);
    return a ? a : &nowhere;
}

allocation *reachable(const void *address) {
    static allocation &elsewhere = nothing("memory of another device");
    allocation *a = allocation_of(address);
    int device_id = inside_kernel ? running_device : current_id();
    if (a->kind != allocation::device_memory || !a->size || a->device == device_id)
        return a;
    return &elsewhere;
}

bool is_device(const void *address) {
    guard hold(lock);
    return region && reinterpret_cast<uintptr_t>(address) - region < region_bytes;
}

allocation *allocate(size_t bytes, allocation::kind_t kind, int device) {
    guard hold(lock);
    auto a = std::make_unique<allocation>();
    a->size = bytes;
    a->kind = kind;
    a->device = device;
    if (!map_arrays(*a))
        return nullptr;
    a->lo = kind == allocation::device_memory ? place(bytes) : reinterpret_cast<uintptr_t>(a->data);
    if (!a->lo)
        return nullptr;
    a->limit = bytes;
    if (kind == allocation::host_memory)
        mark_initialised(*a, 0, bytes, true);
    return (roots[a->lo] = std::move(a)).get();
}

void release(allocation &a) {
    guard hold(lock);
    give_back_parts(a.lo, a.size);
    unmap_arrays(a);
    a.limit = 0;
    a.state = "freed";
    if (a.kind == allocation::host_memory) /* the address is the system's again */
        bury(roots, roots.find(a.lo));
}

cell *make_byte_cells(allocation &root) {
    if (root.kind == allocation::shared_memory) {
        block &b = *root.in_block;
        b.shared_byte_cells.resize(4 * b.shared_cells.size());
        return b.shared_byte_cells.data();
    }
    void *p = mapped(4 * cells_bytes(root), PROT_READ | PROT_WRITE);
    if (!p) {
        perror("cuda_emu: cells of bytes");
        abort();
    }
    return static_cast<cell *>(p);
}

void forget_cells() {
    for (auto &[lo, a] : roots) {
        if (a->cells)
            madvise(a->cells, cells_bytes(*a), MADV_DONTNEED);
        if (a->byte_cells)
            madvise(a->byte_cells, 4 * cells_bytes(*a), MADV_DONTNEED);
    }
}

namespace {

bool bit_of(const allocation &a, size_t i) {
    return a.init[i / 8] >> (i % 8) & 1;
}

void set_bit(allocation &a, size_t i, bool on) {
    uint8_t one = static_cast<uint8_t>(1u << (i % 8));
    a.init[i / 8] = static_cast<uint8_t>(on ? a.init[i / 8] | one : a.init[i / 8] & ~one);
}

} // namespace

void mark_initialised(allocation &a, size_t off, size_t bytes, bool on) {
    size_t end = off + bytes;
    for (; off < end && off % 8; off++)
        set_bit(a, off, on);
    memset(a.init + off / 8, on ? 0xff : 0, (end - off) / 8);
    for (off += (end - off) / 8 * 8; off < end; off++)
        set_bit(a, off, on);
}

bool all_initialised(const allocation &a, size_t off, size_t bytes) {
    size_t end = off + bytes;
    while (off < end) {
        if (off % 8 == 0 && end - off >= 8) {
            if (a.init[off / 8] != 0xff)
                return false;
            off += 8;
        } else if (!bit_of(a, off++)) {
            return false;
        }
    }
    return true;
}

void copy_initialised(allocation &to, size_t to_off, const allocation &from, size_t from_off,
                      size_t bytes) {
    if (all_initialised(from, from_off, bytes))
        mark_initialised(to, to_off, bytes, true);
    else
        for (size_t i = 0; i < bytes; i++)
            set_bit(to, to_off + i, bit_of(from, from_off + i));
}

void download(const allocation &a, size_t off, void *host, size_t bytes) {
    memcpy(host, a.data + off, bytes);
    if (!all_initialised(a, off, bytes))
        for (size_t i = 0; i < bytes; i++)
            if (!bit_of(a, off + i))
                static_cast<uint8_t *>(host)[i] = 0xa5;
}

} // namespace emu

using namespace emu;

extern "C" {

void emu_poison(const void *ptr, size_t bytes) {
    finish_device_work();
    guard hold(lock);
    if (allocation *root = pool_root("emu_poison", ptr, bytes))
        mark_initialised(*root, reinterpret_cast<uintptr_t>(ptr) - root->lo, bytes, false);
}

void emu_protect(const void *ptr, size_t bytes) {
    finish_device_work();
    guard hold(lock);
    allocation *root = pool_root("emu_protect", ptr, bytes);
    if (!root)
        return;
    give_back_parts(reinterpret_cast<uintptr_t>(ptr), bytes);
    root->limit = 0;
    root->state = "of a pool, not handed out";
}

void emu_unprotect(const void *ptr, size_t bytes) {
    finish_device_work();
    guard hold(lock);
    allocation *root = pool_root("emu_unprotect", ptr, bytes);
    if (!root || !bytes)
        return;
    uintptr_t lo = reinterpret_cast<uintptr_t>(ptr);
    give_back_parts(lo, bytes);
    size_t off = lo - root->lo;
    mark_initialised(*root, off, bytes, false);
    auto a = std::make_unique<allocation>();
    a->lo = lo;
    a->limit = a->size = bytes;
    a->data = root->data + off;
    a->init = root->init + off / 8;
    a->cells = root->cells + off / 4;
    a->root = root;
    a->kind = root->kind;
    a->device = root->device;
    parts[lo] = std::move(a);
}

void *emu_host_view(const void *ptr, size_t bytes, bool writing) {
    guard hold(lock);
    if (!is_device(ptr))
        return const_cast<void *>(ptr);
    allocation &a = *allocation_of(ptr);
    size_t off = reinterpret_cast<uintptr_t>(ptr) - a.lo;
    if (off > a.limit || bytes > a.limit - off) {
        report("emu_host_view of %zu bytes out of bounds at %s", bytes,
               describe(a, static_cast<intptr_t>(off)));
        return nullptr;
    }
    if (writing) {
        mark_initialised(a, off, bytes, true);
    } else if (!all_initialised(a, off, bytes)) {
        report("emu_host_view of %zu bytes, some uninitialised, at %s", bytes,
               describe(a, static_cast<intptr_t>(off)));
        return nullptr;
    }
    return a.data + off;
}
}

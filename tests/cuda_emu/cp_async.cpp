/* cp.async: the target is unreadable and unwritable from the issue on; the bytes move at the wait,
 * the latest moment they may. */
#include "cuda_emu/internal.h"
#include "cuda_emu/ptx.h"

#include <algorithm>

namespace emu {
namespace {

void read_source(const async_copy &c, uint8_t (&bytes)[16]) {
    memset(bytes, 0, sizeof bytes);
    if (c.bytes)
        read_bytes(*c.from, static_cast<intptr_t>(c.address - c.from->lo), bytes, c.bytes,
                   c.bytes == 16 ? 16 : 4);
}

void finish(const async_copy &c) {
    block &b = *m.here;
    uint8_t bytes[16];
    read_source(c, bytes);
    if (memcmp(bytes, c.issued, sizeof bytes) != 0)
        fail("cp_async16: its source, %s, changed before the wait",
             describe(*c.from, static_cast<intptr_t>(c.address - c.from->lo)));
    b.pending[c.to / 16] = 0;
    check_write(b.shared, c.to, 16);
    memcpy(b.shared.data + c.to, bytes, 16);
}

} // namespace

void cp_async(allocation &to, intptr_t to_off, allocation &from, intptr_t from_off, int bytes) {
    if (!m.self)
        fail("cp_async16 outside a kernel");
    if (bytes < 0 || bytes > 16)
        fail("cp_async16 of %d bytes", bytes);
    if (to_off < 0 || static_cast<size_t>(to_off) + 16 > to.limit || to_off % 16)
        out_of_bounds(to, to_off, 16, "cp_async16 writes");
    uintptr_t address = from.lo + static_cast<uintptr_t>(from_off);
    if (bytes && address % 16)
        out_of_bounds(from, from_off, 16, "cp_async16 reads");
    thread &t = *m.self;
    uint32_t at = static_cast<uint32_t>(to.lo + static_cast<uintptr_t>(to_off));
    async_copy c = {at, &from, address, static_cast<uint32_t>(bytes), t.group, {}};
    read_source(c, c.issued); /* it may happen at once */
    check_write(to, static_cast<size_t>(to_off), 16);
    memset(to.data + to_off, 0xa5, 16);
    m.here->pending[at / 16] = 1 + t.linear;
    t.copies.push_back(c);
}

void cp_async_commit() {
    m.self->group++;
}

void cp_async_wait(uint32_t pending) {
    thread &t = *m.self;
    auto rest = std::stable_partition(t.copies.begin(), t.copies.end(), [&](const async_copy &c) {
        return c.group < t.group && c.group + pending < t.group;
    });
    for (auto c = t.copies.begin(); c != rest; ++c)
        finish(*c);
    t.copies.erase(t.copies.begin(), rest);
}

} // namespace emu

#include "cuda_emu/internal.h"

#include <cstdlib>

namespace emu {
namespace {

uint64_t first_seed() {
    const char *text = getenv("QEP_EMU_SEED");
    return text ? strtoull(text, nullptr, 0) : 1;
}

uint64_t seed = first_seed();

uint64_t mixed(uint64_t v) {
    v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9u;
    v = (v ^ v >> 27) * 0x94d049bb133111ebu;
    return (v ^ v >> 31) | 1;
}

uint64_t state = mixed(seed + 0x9e3779b97f4a7c15u);

} // namespace

uint64_t random_bits() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

uint32_t random_below(uint32_t n) {
    return static_cast<uint32_t>((random_bits() >> 32) * n >> 32);
}

uint64_t seed_in_use() {
    return seed;
}

} // namespace emu

extern "C" void emu_set_seed(uint64_t seed) {
    emu::guard hold(emu::lock);
    emu::seed = seed;
    emu::state = emu::mixed(seed + 0x9e3779b97f4a7c15u);
}

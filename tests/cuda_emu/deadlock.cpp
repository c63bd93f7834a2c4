/* What the threads of a block wait for when none can go on. */
#include "cuda_emu/internal.h"

#include <map>
#include <string>

namespace emu {
namespace {

struct group {
    uint32_t threads = 0, first = 0;
};
using groups = std::map<std::string, group>;

void add(groups &all, const std::string &what, const thread &t) {
    group &g = all[what];
    if (!g.threads++)
        g.first = t.linear;
}

std::string place(const site &at) {
    return std::string(" at ") + at.file + ":" + std::to_string(at.line);
}

void add_waiting(groups &all, const warp &w) {
    for (uint32_t lane = 0; lane < warp_size; lane++) {
        if (w.in_op >> lane & 1) {
            const warp_op &op = w.lanes[lane]->op;
            char mask[32];
            snprintf(mask, sizeof mask, " mask %08x", op.mask);
            add(all, op.name + std::string(mask) + place(op.at), *w.lanes[lane]);
        } else if (w.at_barrier >> lane & 1) {
            add(all, "__syncthreads" + place(w.lanes[lane]->last), *w.lanes[lane]);
        }
    }
}

} // namespace

void dead_block(const block &b) {
    groups all;
    for (const warp &w : b.warps)
        add_waiting(all, w);
    std::string text;
    int shown = 0;
    for (const auto &[what, g] : all)
        if (shown++ < 4)
            text += "; " + std::to_string(g.threads) + " threads (" + std::to_string(g.first) +
                    ", ...) wait in " + what;
    report("divergent block (%u, %u, %u), deadlock: %u of %u threads exited%s", b.index.x,
           b.index.y, b.index.z, b.exited, b.total, text.c_str());
}

} // namespace emu

/* Order between blocks of one launch. A thread's fence makes bytes visible device-wide: its own,
 * and what its block (warp) did before the newest barrier. An atomic publishes, at its word, what
 * the fences before it covered; who later does an atomic on that word, and whoever a barrier puts
 * behind that, may touch those bytes. Nothing else orders blocks. */
#include "cuda_emu/internal.h"

#include <algorithm>
#include <unordered_map>

namespace emu {

struct sync_word;

/* An atomic of thread `who` at `tick` saw the first `upto` releases of a word. */
struct acquisition {
    const sync_word *word;
    size_t upto;
    uint32_t who, tick;
};

/* What one atomic published: for each thread of its block, accesses before that tick. */
struct release {
    std::vector<uint32_t> bounds;
    std::vector<acquisition> inherited; /* and what its block had acquired itself */
};

struct sync_word {
    std::vector<release> log;
    std::unordered_map<uint32_t, std::vector<size_t>> of_block; /* entries of the log */
    std::vector<size_t> inheriting;
};

namespace {

std::unordered_map<const uint8_t *, sync_word> words;
std::unordered_map<uint32_t, std::vector<acquisition>> acquisitions; /* by block */
bool fenced;                                                         /* since the launch began */

/* Whether a moment of another thread of this block comes before what this thread does now. */
bool before_self(uint32_t who, uint32_t tick) {
    const thread &t = *m.self;
    return who == t.who || tick < m.here->base || (who >> 5 == t.who >> 5 && tick < t.in->base);
}

uint32_t bound_of(const thread &other) {
    const thread &t = *m.self;
    const block &b = *m.here;
    uint32_t bound = std::max(t.fence_base, b.fence_base);
    if (other.in == t.in)
        bound = std::max(bound, t.fence_warp);
    if (!b.fence_ticks.empty())
        bound = std::max(bound, b.fence_ticks[other.linear]);
    if (before_self(other.who, other.fence_tick))
        bound = std::max(bound, other.fence_tick);
    return bound;
}

void publish(sync_word &word, std::vector<acquisition> seen) {
    release r;
    bool any = false;
    for (const thread *other : m.here->threads) {
        r.bounds.push_back(bound_of(*other));
        any |= r.bounds.back() != 0;
    }
    if (!any)
        return;
    uint32_t own = r.bounds[m.self->linear];
    for (const acquisition &a : seen)
        if (before_self(a.who, a.tick) && a.tick < own)
            r.inherited.push_back(a);
    if (!r.inherited.empty())
        word.inheriting.push_back(word.log.size());
    word.of_block[m.here->id].push_back(word.log.size());
    word.log.push_back(std::move(r));
}

void acquire(const sync_word &word) {
    if (word.log.empty())
        return;
    acquisition now = {&word, word.log.size(), m.self->who, m.tick};
    for (acquisition &a : acquisitions[m.here->id])
        if (a.word == &word && a.who == now.who) {
            a = now;
            return;
        }
    acquisitions[m.here->id].push_back(now);
}

template <class F>
bool published(const acquisition &a, uint32_t block_id, const F &covers, int depth) {
    auto entries = a.word->of_block.find(block_id);
    if (entries != a.word->of_block.end())
        for (size_t i : entries->second)
            if (i < a.upto && covers(a.word->log[i].bounds))
                return true;
    if (depth == 0)
        return false;
    for (size_t i : a.word->inheriting)
        if (i < a.upto)
            for (const acquisition &deeper : a.word->log[i].inherited)
                if (published(deeper, block_id, covers, depth - 1))
                    return true;
    return false;
}

template <class F> bool acquired_if(uint32_t block_id, const F &covers) {
    auto mine = acquisitions.find(m.here->id);
    if (mine == acquisitions.end())
        return false;
    return std::any_of(mine->second.begin(), mine->second.end(), [&](const acquisition &a) {
        return before_self(a.who, a.tick) && published(a, block_id, covers, 8);
    });
}

} // namespace

bool acquired(uint32_t tick, uint32_t who) {
    return acquired_if(who >> 10, [&](const std::vector<uint32_t> &bounds) {
        return tick < bounds[who & (max_threads - 1)];
    });
}

bool acquired_block(uint32_t tick, uint32_t block_id) {
    return acquired_if(block_id, [&](const std::vector<uint32_t> &bounds) {
        return tick < *std::min_element(bounds.begin(), bounds.end());
    });
}

void atomic_order(const allocation &a, size_t off) {
    if (!fenced || a.kind == allocation::shared_memory)
        return;
    sync_word &word = words[a.data + off];
    auto mine = acquisitions.find(m.here->id);
    publish(word, mine == acquisitions.end() ? std::vector<acquisition>() : mine->second);
    acquire(word);
}

void device_fence() {
    if (!m.self)
        fail("__threadfence outside a kernel");
    thread &t = *m.self;
    fenced = true;
    t.fence_base = m.here->base;
    t.fence_warp = t.in->base;
    t.fence_tick = ++m.tick;
    m.here->fenced = true;
}

void barrier_passed(block &b) {
    if (!b.fenced)
        return;
    b.fenced = false;
    b.fence_ticks.resize(b.total);
    for (const thread *t : b.threads) {
        b.fence_ticks[t->linear] = t->fence_tick;
        b.fence_base = std::max(b.fence_base, t->fence_base);
    }
}

void forget_order() {
    words.clear();
    acquisitions.clear();
    fenced = false;
}

} // namespace emu

/* Sampling, second launch: a block per row makes the candidates of the range from the lists of its
 * chunks. Lists descend, so entry j of the list whose head is r-th can be among the best 64 only
 * when r + j < 64. */
#include "kernels/cuda/sample_device.h"

#include <stddef.h>

namespace {

constexpr int BEST = QEP_SAMPLE_CANDIDATES;
constexpr int MAX_SURVIVORS = BEST * (BEST + 1) / 2;

/* One row's part of struct sample_lists. */
struct row_lists {
    gptr<const uint64_t> keys;
    gptr<const int32_t> ids;
    gptr<const double> weights;
    gptr<const int32_t> info;
    int num_chunks;
    __device__ __forceinline__ int32_t word(int chunk, int which) const {
        return info[chunk * SAMPLE_INFO + which];
    }
    __device__ __forceinline__ entry at(int chunk, int i) const {
        entry e = {keys[chunk * BEST + i], ids[chunk * BEST + i]};
        return e;
    }
};

/* One row of struct qep_row_candidates. */
struct row_out {
    gptr<double> doubles;
    gptr<int32_t> words;
};
#define PUT_DOUBLE(out, field, i, v)                                                               \
    (out).doubles[offsetof(qep_row_candidates, field) / sizeof(double) + (i)] = (v)
#define PUT_WORD(out, field, i, v)                                                                 \
    (out).words[offsetof(qep_row_candidates, field) / sizeof(int32_t) + (i)] = (v)

struct summary {
    entry best;
    int32_t drawable, flags;
    double max, weight;
};

__device__ summary sum_up(const row_lists &lists, const block_scratch &scratch,
                          const qep_device_draw &d, bool weigh) {
    summary s = {{0, static_cast<int32_t>(threadIdx.x)}, 0, 0, 0, 0};
    for (int c = static_cast<int>(threadIdx.x); c < lists.num_chunks; c += SAMPLE_THREADS) {
        s.drawable += lists.word(c, SAMPLE_DRAWABLE);
        s.flags |= lists.word(c, SAMPLE_FLAGS) & SAMPLE_NAN;
        if (lists.word(c, SAMPLE_NUM) > 0)
            s.best = join_entry()(s.best, lists.at(c, 0));
    }
    s.best = block_join(s.best, scratch.entries, join_entry());
    s.drawable = block_join(s.drawable, scratch.ints, join_sum());
    s.flags = block_join(s.flags, scratch.ints, join_or());
    s.max = value_of(s.best.key);
    if (!weigh || s.drawable == 0 || s.best.key == SAMPLE_KEY_INF)
        return s;
    for (int c = static_cast<int>(threadIdx.x); c < lists.num_chunks; c += SAMPLE_THREADS) {
        if (lists.word(c, SAMPLE_NUM) == 0)
            continue;
        double below = value_of(lists.at(c, 0).key) - s.max, weight = lists.weights[c];
        s.weight += weight * exp(below / d.temperature);
    }
    s.weight = block_join(s.weight, scratch.doubles, join_sum());
    return s;
}

__device__ void put_summary(const row_out &out, const summary &s, int num, bool tied) {
    if (threadIdx.x != 0)
        return;
    PUT_DOUBLE(out, max, 0, s.drawable > 0 ? s.max : minus_inf());
    PUT_DOUBLE(out, weight, 0, s.weight);
    PUT_WORD(out, num, 0, num);
    PUT_WORD(out, num_ids, 0, s.drawable);
    PUT_WORD(out, has_nan, 0, s.flags & SAMPLE_NAN ? 1 : 0);
    PUT_WORD(out, tied, 0, tied ? 1 : 0);
}

__device__ void put_race(const row_out &out, int32_t id, double value, double score, bool close) {
    if (threadIdx.x != 0)
        return;
    PUT_WORD(out, best_id, 0, id);
    PUT_DOUBLE(out, best_value, 0, value);
    PUT_DOUBLE(out, best_score, 0, score);
    PUT_WORD(out, close, 0, close ? 1 : 0);
}

__device__ void put_entry(const row_out &out, int i, const entry &e) {
    PUT_DOUBLE(out, value, i, value_of(e.key));
    PUT_WORD(out, id, i, e.id);
}

/* ---- the race of all ids ---- */

/* Every chunk's winner again, relative to the row's largest value. */
__device__ void merge_races(const row_lists &lists, const block_scratch &scratch,
                            const row_out &out, const summary &s, const qep_device_draw &d) {
    race own = race_of(-1, minus_inf());
    double own_value = 0;
    bool own_close = false;
    for (int c = static_cast<int>(threadIdx.x); c < lists.num_chunks; c += SAMPLE_THREADS) {
        if (lists.word(c, SAMPLE_NUM) < 2)
            continue;
        entry e = lists.at(c, 1);
        double value = value_of(e.key);
        race other = race_of(e.id, (value - s.max) / d.temperature + noise_of(d, e.id));
        own = race_join(own, other);
        if (own.id == e.id) {
            own_value = value;
            own_close = lists.word(c, SAMPLE_FLAGS) & SAMPLE_CLOSE;
        }
    }
    race best = block_join(own, scratch.races, join_race());
    bool won = own.id >= 0 && own.id == best.id; /* one thread's */
    double value = block_join(won ? own_value : 0.0, scratch.doubles, join_sum());
    int close = block_join(won && own_close ? 1 : 0, scratch.ints, join_or());
    put_race(out, best.id, value, best.score, close || race_close(best));
}

/* ---- the best 64 ---- */

struct merge_space {
    entry_list heads, survivors;
    sptr<int32_t> head_rank, count;
    sptr<uint64_t> bound_key, last_key;
    sptr<int32_t> bound_id;
    __device__ __forceinline__ merge_space(shared_arena &arena, int num_chunks)
        : heads(arena, num_chunks), survivors(arena, MAX_SURVIVORS) {
        head_rank = arena.take<int32_t>(num_chunks);
        count = arena.take<int32_t>(1);
        bound_key = arena.take<uint64_t>(1);
        last_key = arena.take<uint64_t>(1);
        bound_id = arena.take<int32_t>(1);
    }
};

/* The 64th best head bounds the 64th best entry from below. */
__device__ void rank_heads(const merge_space &s, const row_lists &lists) {
    for (int c = static_cast<int>(threadIdx.x); c < lists.num_chunks; c += SAMPLE_THREADS) {
        entry head = {0, c};
        if (lists.word(c, SAMPLE_NUM) > 0)
            head = lists.at(c, 0);
        s.heads.keys[c] = head.key;
        s.heads.ids[c] = head.id;
    }
    if (threadIdx.x == 0) {
        s.count[0] = 0;
        s.bound_key[0] = 0;
        s.bound_id[0] = 0;
        s.last_key[0] = 0;
    }
    __syncthreads();
    for (int c = static_cast<int>(threadIdx.x); c < lists.num_chunks; c += SAMPLE_THREADS) {
        uint64_t key = s.heads.keys[c];
        int32_t id = s.heads.ids[c];
        int rank = rank_in(s.heads, lists.num_chunks, key, id);
        s.head_rank[c] = rank;
        if (rank == BEST - 1) {
            s.bound_key[0] = key;
            s.bound_id[0] = id;
        }
    }
    __syncthreads();
}

__device__ void gather_survivors(const merge_space &s, const row_lists &lists) {
    uint64_t bound_key = s.bound_key[0];
    int32_t bound_id = s.bound_id[0];
    for (int at = static_cast<int>(threadIdx.x); at < lists.num_chunks * BEST;
         at += SAMPLE_THREADS) {
        int c = at / BEST, i = at % BEST;
        if (s.head_rank[c] + i >= BEST || i >= lists.word(c, SAMPLE_NUM))
            continue;
        entry e = lists.at(c, i);
        if (before(bound_key, bound_id, e.key, e.id))
            continue;
        int to = atomicAdd(s.count, 1);
        s.survivors.keys[to] = e.key;
        s.survivors.ids[to] = e.id;
    }
    __syncthreads();
}

__device__ int put_best(const merge_space &s, const row_out &out) {
    int count = s.count[0];
    for (int i = static_cast<int>(threadIdx.x); i < count; i += SAMPLE_THREADS) {
        entry e = {s.survivors.keys[i], s.survivors.ids[i]};
        int rank = rank_in(s.survivors, count, e.key, e.id);
        if (rank >= BEST)
            continue;
        put_entry(out, rank, e);
        if (rank == BEST - 1)
            s.last_key[0] = e.key;
    }
    __syncthreads();
    return count < BEST ? count : BEST;
}

/* Whether an id of the last candidate's value was left out, here or already in its chunk. */
__device__ bool is_tied(const merge_space &s, const row_lists &lists,
                        const block_scratch &scratch) {
    uint64_t last = s.last_key[0];
    int reach = 0, left = 0;
    for (int at = static_cast<int>(threadIdx.x); at < lists.num_chunks * BEST;
         at += SAMPLE_THREADS) {
        int c = at / BEST, i = at % BEST, num = lists.word(c, SAMPLE_NUM);
        if (i >= num || s.heads.keys[c] < last || lists.at(c, i).key < last)
            continue;
        reach++;
        left |= i == num - 1 && (lists.word(c, SAMPLE_FLAGS) & SAMPLE_TIED);
    }
    reach = block_join(reach, scratch.ints, join_sum());
    left = block_join(left, scratch.ints, join_or());
    return left || reach > BEST;
}

__global__ void sample_merge(gptr<qep_row_candidates> out_rows, gptr<const uint64_t> keys,
                             gptr<const int32_t> ids, gptr<const double> weights,
                             gptr<const int32_t> info, int num_chunks, int32_t num_ids,
                             gptr<const qep_device_draw> draws) {
    int64_t row = blockIdx.x, first = row * num_chunks;
    qep_device_draw d = draws[row];
    row_out out = {gptr<double>(out_rows + row), gptr<int32_t>(out_rows + row)};
    put_race(out, -1, 0, 0, false);
    if (d.slot < 0) {
        put_summary(out, {{0, 0}, 0, 0, 0, 0}, 0, false);
        return;
    }
    shared_arena arena;
    block_scratch scratch(arena);
    merge_space space(arena, num_chunks);
    row_lists lists = {keys + first * BEST, ids + first * BEST, weights + first,
                       info + first * SAMPLE_INFO, num_chunks};
    sample_kind kind = kind_of(d, num_ids);
    summary s = sum_up(lists, scratch, d, kind == SAMPLE_FILTERED && d.top_p < 1);
    int num = s.drawable > 0 ? 1 : 0;
    bool tied = false;
    if (kind == SAMPLE_FILTERED && num && s.best.key != SAMPLE_KEY_INF) {
        rank_heads(space, lists);
        gather_survivors(space, lists);
        num = put_best(space, out);
        tied = num == BEST && is_tied(space, lists, scratch);
    } else if (num) {
        if (threadIdx.x == 0)
            put_entry(out, 0, s.best);
        if (kind == SAMPLE_UNFILTERED && s.best.key != SAMPLE_KEY_INF)
            merge_races(lists, scratch, out, s, d);
    }
    put_summary(out, s, num, tied);
}

size_t shared_bytes(int num_chunks) {
    size_t chunks = (static_cast<size_t>(num_chunks) + 3) / 4 * 4;
    return SAMPLE_SCRATCH_BYTES + chunks * (SAMPLE_ENTRY_BYTES + sizeof(int32_t)) +
           (MAX_SURVIVORS * SAMPLE_ENTRY_BYTES + 16) + 4 * 16;
}

} // namespace

cudaError_t cuda_launch_sample_merge(const struct sample_shape *shape,
                                     const struct sample_lists *lists,
                                     struct qep_row_candidates *out, int32_t n,
                                     const struct qep_device_draw *draws, cudaStream_t stream) {
    return launch(sample_merge, dim3(static_cast<unsigned int>(n)), dim3(SAMPLE_THREADS),
                  shared_bytes(shape->num_chunks), stream, out, lists->keys, lists->ids,
                  lists->weights, lists->info, shape->num_chunks, shape->num_ids, draws);
}

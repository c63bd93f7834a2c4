/* Device code of the three sampling kernels. A value is a double after mask and penalties; its
 * order key compares as it does, with 0 for what cannot be drawn. Everything is exact, or compared
 * with room for the rounding in which exp, log and sums may differ from the host's. */
#ifndef QEP_KERNELS_CUDA_SAMPLE_DEVICE_H
#define QEP_KERNELS_CUDA_SAMPLE_DEVICE_H

#include "kernels/cuda/cu.h"
#include "kernels/cuda/sample.h"
#include "kernels/philox.h"

/* Two scores closer than this may fall the other way on the host. */
#define SAMPLE_CLOSE_SCORES 1e-9

enum sample_kind {
    SAMPLE_GREEDY,     /* the lowest id of the largest value */
    SAMPLE_UNFILTERED, /* Gumbel-max over all ids */
    SAMPLE_FILTERED
};

__device__ __forceinline__ sample_kind kind_of(const qep_device_draw &d, int32_t num_ids) {
    if (d.greedy || d.temperature <= 0)
        return SAMPLE_GREEDY;
    if (d.top_p >= 1 && d.min_p <= 0 && (d.top_k == 0 || d.top_k >= num_ids))
        return SAMPLE_UNFILTERED;
    return SAMPLE_FILTERED;
}

/* ---- values and their order ---- */

#define SAMPLE_KEY_INF 0xfff0000000000000ull /* of +inf */

__device__ __forceinline__ double minus_inf() {
    return __longlong_as_double(static_cast<long long>(0xfff0000000000000ull));
}

__device__ __forceinline__ uint64_t order_key(double value) {
    uint64_t bits = static_cast<uint64_t>(__double_as_longlong(value + 0.0)); /* -0 becomes 0 */
    uint64_t key = bits >> 63 ? ~bits : bits | 1ull << 63;
    return value < -1.7976931348623157e308 ? 0 : key;
}

__device__ __forceinline__ double value_of(uint64_t key) {
    uint64_t bits = key >> 63 ? key & ~(1ull << 63) : ~key;
    return key ? __longlong_as_double(static_cast<long long>(bits)) : minus_inf();
}

struct entry {
    uint64_t key;
    int32_t id;
};

__device__ __forceinline__ bool before(uint64_t key, int32_t id, uint64_t key2, int32_t id2) {
    return key > key2 || (key == key2 && id < id2);
}

/* ---- noise ---- */

__device__ __forceinline__ void philox_quad(const qep_device_draw &d, int32_t id,
                                            uint32_t (&words)[4]) {
    uint32_t key[2] = {static_cast<uint32_t>(d.seed), static_cast<uint32_t>(d.seed >> 32)};
    uint32_t counter[4] = {static_cast<uint32_t>(id) / 4, static_cast<uint32_t>(d.position),
                           static_cast<uint32_t>(d.position >> 32), d.choice};
    qep_philox4x32(key, counter, words);
}

__device__ __forceinline__ double gumbel(uint32_t word) {
    return -log(-log(qep_philox_uniform(word)));
}

__device__ __forceinline__ double noise_of(const qep_device_draw &d, int32_t id) {
    uint32_t w[4];
    philox_quad(d, id, w);
    uint32_t low = id & 1 ? w[1] : w[0], high = id & 1 ? w[3] : w[2];
    return gumbel(id & 2 ? high : low);
}

/* The best score so far and the next one. */
struct race {
    double score, second;
    int32_t id; /* -1: none */
};

__device__ __forceinline__ race race_of(int32_t id, double score) {
    race r = {score, minus_inf(), id};
    return r;
}

/* Of equal scores the lower id wins; none (-1) loses to all. */
__device__ __forceinline__ race race_join(const race &a, const race &b) {
    bool first = a.score > b.score ||
                 (a.score == b.score && static_cast<uint32_t>(a.id) < static_cast<uint32_t>(b.id));
    race win = first ? a : b;
    double other = first ? b.score : a.score;
    win.second = win.second > other ? win.second : other;
    return win;
}

__device__ __forceinline__ bool race_close(const race &r) {
    return r.id >= 0 && r.second >= r.score - SAMPLE_CLOSE_SCORES;
}

/* ---- reductions over a block; the result is every thread's ---- */

__device__ __forceinline__ int32_t from_lane(int32_t v, int mask) {
    return __shfl_xor_sync(0xffffffffu, v, mask);
}
__device__ __forceinline__ double from_lane(double v, int mask) {
    return __shfl_xor_sync(0xffffffffu, v, mask);
}
__device__ __forceinline__ entry from_lane(const entry &v, int mask) {
    entry r;
    r.key = __shfl_xor_sync(0xffffffffu, static_cast<unsigned long long>(v.key), mask);
    r.id = __shfl_xor_sync(0xffffffffu, v.id, mask);
    return r;
}
__device__ __forceinline__ race from_lane(const race &v, int mask) {
    race r = {from_lane(v.score, mask), from_lane(v.second, mask), from_lane(v.id, mask)};
    return r;
}

struct join_sum {
    template <class T> __device__ __forceinline__ T operator()(T a, T b) const {
        return a + b;
    }
};
struct join_or {
    __device__ __forceinline__ int32_t operator()(int32_t a, int32_t b) const {
        return a | b;
    }
};
struct join_entry {
    __device__ __forceinline__ entry operator()(const entry &a, const entry &b) const {
        return before(a.key, a.id, b.key, b.id) ? a : b;
    }
};
struct join_race {
    __device__ __forceinline__ race operator()(const race &a, const race &b) const {
        return race_join(a, b);
    }
};

constexpr int SAMPLE_WARPS = SAMPLE_THREADS / 32;

/* Sums have one order. scratch: SAMPLE_WARPS elements, free again on return. */
template <class T, class Join>
__device__ __forceinline__ T block_join(T v, sptr<T> scratch, Join join) {
    for (int mask = 16; mask > 0; mask >>= 1)
        v = join(v, from_lane(v, mask));
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = scratch[0];
    for (int warp = 1; warp < SAMPLE_WARPS; warp++) {
        T other = scratch[warp];
        v = join(v, other);
    }
    __syncthreads();
    return v;
}

struct block_scratch {
    sptr<int32_t> ints;
    sptr<double> doubles;
    sptr<entry> entries;
    sptr<race> races;
    __device__ __forceinline__ explicit block_scratch(shared_arena &arena) {
        ints = arena.take<int32_t>(SAMPLE_WARPS);
        doubles = arena.take<double>(SAMPLE_WARPS);
        entries = arena.take<entry>(SAMPLE_WARPS);
        races = arena.take<race>(SAMPLE_WARPS);
    }
};
constexpr size_t SAMPLE_SCRATCH_BYTES =
    SAMPLE_WARPS * (sizeof(int32_t) + sizeof(double) + sizeof(entry) + sizeof(race));
static_assert(SAMPLE_WARPS % 4 == 0, "each array of the scratch is whole 16 bytes");

/* Entries in shared memory. */
struct entry_list {
    sptr<uint64_t> keys;
    sptr<int32_t> ids;
    __device__ __forceinline__ entry_list(shared_arena &arena, int count) {
        keys = arena.take<uint64_t>(count);
        ids = arena.take<int32_t>(count);
    }
};
constexpr size_t SAMPLE_ENTRY_BYTES = sizeof(uint64_t) + sizeof(int32_t);

/* How many of the first n come before (key, id). */
__device__ __forceinline__ int rank_in(const entry_list &list, int n, uint64_t key, int32_t id) {
    int rank = 0;
    for (int i = 0; i < n; i++) {
        uint64_t other = list.keys[i];
        int32_t other_id = list.ids[i];
        rank += before(other, other_id, key, id);
    }
    return rank;
}

#endif

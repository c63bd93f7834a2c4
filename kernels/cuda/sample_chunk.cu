/* Sampling, first launch: a block looks at one chunk of one row. Its best 64 are found without
 * sorting: the 64th largest of the threads' own best bounds the chunk's 64th largest from below,
 * few values reach that bound, and counting who is before whom puts those in order. */
#include "kernels/cuda/sample_device.h"

namespace {

/* -ln(-ln u) lies above this for every word, and ln 2 below LN2_UP, whose excess covers the
 * rounding of a score. */
#define GUMBEL_DOWN -3.2
#define LN2_UP 0.693148

/* One thread's part of the chunk: quads threadIdx.x + i * SAMPLE_THREADS. */
struct chunk {
    int32_t first_id; /* of quad 0 */
    int units;
    sptr<uint64_t> keys; /* value e of quad q at e * quads + q */
    __device__ __forceinline__ int quads() const {
        return units * SAMPLE_THREADS;
    }
    __device__ __forceinline__ int quad(int i) const {
        return static_cast<int>(threadIdx.x) + i * SAMPLE_THREADS;
    }
    __device__ __forceinline__ int32_t id(int i, int e) const {
        return first_id + SAMPLE_QUAD * quad(i) + e;
    }
    __device__ __forceinline__ uint64_t key(int i, int e) const {
        return keys[e * quads() + quad(i)];
    }
};

struct row_source {
    gptr<const float> logits;
    gptr<const uint8_t> allowed, seen; /* seen: of the row's slot */
    sample_shape shape;
};

__device__ __forceinline__ bool has_penalty(const qep_device_draw &d) {
    return d.repetition_penalty != 1 || d.presence_penalty != 0;
}

__device__ double penalised(const qep_device_draw &d, uint8_t seen, double value) {
    if (seen && d.repetition_penalty != 1)
        value = value < 0 ? value * d.repetition_penalty : value / d.repetition_penalty;
    if ((seen & 1) && d.presence_penalty != 0)
        value -= d.presence_penalty;
    return value;
}

struct tally {
    entry best;
    int32_t drawable, flags;
};

__device__ uint64_t load_key(const row_source &row, const qep_device_draw &d, int32_t id,
                             int32_t *flags) {
    if (id < row.shape.first_id || id >= row.shape.end_id)
        return 0;
    if (row.allowed != nullptr && !row.allowed[id])
        return 0;
    float logit = row.logits[id - row.shape.first_id];
    if (!(logit - logit == 0)) { /* NaN or infinite */
        *flags |= SAMPLE_NAN;
        return 0;
    }
    double value = logit;
    if (has_penalty(d))
        value = penalised(d, row.seen[id], value);
    return order_key(value);
}

/* Fills the thread's keys. */
__device__ tally load_keys(const chunk &c, const row_source &row, const qep_device_draw &d) {
    tally t = {{0, c.id(0, 0)}, 0, 0};
    for (int i = 0; i < c.units; i++) {
        for (int e = 0; e < SAMPLE_QUAD; e++) {
            uint64_t key = load_key(row, d, c.id(i, e), &t.flags);
            c.keys[e * c.quads() + c.quad(i)] = key;
            t.drawable += key != 0;
            if (key > t.best.key) /* ids ascend */
                t.best = {key, c.id(i, e)};
        }
    }
    return t;
}

__device__ double weight_of(const chunk &c, double max, double temperature) {
    double sum = 0;
    for (int i = 0; i < c.units; i++) {
        for (int e = 0; e < SAMPLE_QUAD; e++) {
            uint64_t key = c.key(i, e);
            if (key)
                sum += exp((value_of(key) - max) / temperature);
        }
    }
    return sum;
}

/* At least gumbel(word), by -ln u >= 1 - u and the leading one bits of the word. */
__device__ __forceinline__ double gumbel_bound(uint32_t word) {
    return LN2_UP * (word == 0xffffffffu ? 33 : 1 + __clz(static_cast<int>(~word)));
}

__device__ race run_race(const chunk &c, const qep_device_draw &d, double max) {
    race r = race_of(-1, minus_inf());
    for (int i = 0; i < c.units; i++) {
        uint32_t words[SAMPLE_QUAD];
        philox_quad(d, c.id(i, 0), words);
#pragma unroll
        for (int e = 0; e < SAMPLE_QUAD; e++) {
            uint64_t key = c.key(i, e);
            double value = (value_of(key) - max) / d.temperature; /* the chunk's best has 0 */
            double bound = value + gumbel_bound(words[e]);
            if (key == 0 || bound < GUMBEL_DOWN || bound < r.score - SAMPLE_CLOSE_SCORES)
                continue;
            r = race_join(r, race_of(c.id(i, e), value + gumbel(words[e])));
        }
    }
    return r;
}

/* Where this chunk of this row writes. */
struct chunk_out {
    gptr<uint64_t> keys;
    gptr<int32_t> ids;
};

struct select_space {
    entry_list tops, survivors;
    sptr<int32_t> count; /* of survivors */
    sptr<uint64_t> bound_key, last_key;
    sptr<int32_t> bound_id;
    __device__ __forceinline__ select_space(shared_arena &arena, int units)
        : tops(arena, SAMPLE_THREADS), survivors(arena, SAMPLE_THREADS * units) {
        count = arena.take<int32_t>(1);
        bound_key = arena.take<uint64_t>(1);
        last_key = arena.take<uint64_t>(1);
        bound_id = arena.take<int32_t>(1);
    }
};
static_assert(QEP_SAMPLE_CANDIDATES * SAMPLE_QUAD == SAMPLE_THREADS, "room for survivors");

/* The 64th best of the threads' best ones; at most 64 threads reach it. */
__device__ void find_bound(const select_space &s, const entry &top) {
    s.tops.keys[threadIdx.x] = top.key;
    s.tops.ids[threadIdx.x] = top.id;
    if (threadIdx.x == 0)
        s.count[0] = 0;
    __syncthreads();
    if (rank_in(s.tops, SAMPLE_THREADS, top.key, top.id) == QEP_SAMPLE_CANDIDATES - 1) {
        s.bound_key[0] = top.key;
        s.bound_id[0] = top.id;
    }
    __syncthreads();
}

__device__ void gather_survivors(const select_space &s, const chunk &c) {
    uint64_t bound_key = s.bound_key[0];
    int32_t bound_id = s.bound_id[0];
    for (int i = 0; i < c.units; i++) {
        for (int e = 0; e < SAMPLE_QUAD; e++) {
            uint64_t key = c.key(i, e);
            if (key == 0 || before(bound_key, bound_id, key, c.id(i, e)))
                continue;
            int at = atomicAdd(s.count, 1);
            s.survivors.keys[at] = key;
            s.survivors.ids[at] = c.id(i, e);
        }
    }
    __syncthreads();
}

/* Writes the best in order; how many. */
__device__ int write_best(const select_space &s, const chunk_out &out) {
    int count = s.count[0];
    for (int i = static_cast<int>(threadIdx.x); i < count; i += SAMPLE_THREADS) {
        uint64_t key = s.survivors.keys[i];
        int32_t id = s.survivors.ids[i];
        int rank = rank_in(s.survivors, count, key, id);
        if (rank >= QEP_SAMPLE_CANDIDATES)
            continue;
        out.keys[rank] = key;
        out.ids[rank] = id;
        if (rank == QEP_SAMPLE_CANDIDATES - 1)
            s.last_key[0] = key;
    }
    __syncthreads();
    return count < QEP_SAMPLE_CANDIDATES ? count : QEP_SAMPLE_CANDIDATES;
}

/* Whether the chunk has more ids of the last one's value than it wrote. */
__device__ bool is_tied(const select_space &s, const chunk &c, const block_scratch &scratch) {
    uint64_t last = s.last_key[0];
    int reach = 0;
    for (int i = 0; i < c.units; i++)
        for (int e = 0; e < SAMPLE_QUAD; e++)
            reach += c.key(i, e) >= last;
    return block_join(reach, scratch.ints, join_sum()) > QEP_SAMPLE_CANDIDATES;
}

__device__ int write_one(const chunk_out &out, uint64_t key, int32_t id) {
    if (key == 0 || id < 0)
        return 0;
    if (threadIdx.x == 0) {
        out.keys[0] = key;
        out.ids[0] = id;
    }
    return 1;
}

/* The list of an unfiltered draw: the largest value, then the winner. */
__device__ int write_race(const chunk_out &out, const chunk &c, const entry &best, const race &r) {
    if (threadIdx.x == 0) {
        int at = r.id - c.first_id;
        out.keys[0] = best.key;
        out.ids[0] = best.id;
        out.keys[1] = c.keys[at % SAMPLE_QUAD * c.quads() + at / SAMPLE_QUAD];
        out.ids[1] = r.id;
    }
    return 2;
}

__global__ void sample_chunks(sample_shape shape, gptr<uint64_t> keys, gptr<int32_t> ids,
                              gptr<double> weights, gptr<int32_t> info, gptr<const float> logits,
                              gptr<const uint8_t> allowed, gptr<const uint8_t> seen,
                              gptr<const qep_device_draw> draws) {
    qep_device_draw d = draws[blockIdx.y];
    if (d.slot < 0)
        return;
    shared_arena arena;
    block_scratch scratch(arena);
    chunk c = {shape.chunk0 +
                   static_cast<int32_t>(blockIdx.x) * shape.chunk_units * SAMPLE_CHUNK_UNIT,
               shape.chunk_units, arena.take<uint64_t>(shape.chunk_units * SAMPLE_CHUNK_UNIT)};
    select_space space(arena, c.units);
    row_source row = {logits + static_cast<int64_t>(blockIdx.y) * shape.num_vocab, allowed,
                      seen + static_cast<int64_t>(d.slot) * shape.vocab_size, shape};
    int64_t place = static_cast<int64_t>(blockIdx.y) * shape.num_chunks + blockIdx.x;
    chunk_out out = {keys + place * QEP_SAMPLE_CANDIDATES, ids + place * QEP_SAMPLE_CANDIDATES};

    tally own = load_keys(c, row, d);
    entry best = block_join(own.best, scratch.entries, join_entry());
    int drawable = block_join(own.drawable, scratch.ints, join_sum());
    int flags = block_join(own.flags, scratch.ints, join_or());
    sample_kind kind = kind_of(d, shape.num_ids);
    double max = value_of(best.key), weight = 0;
    int num = 0;
    if (drawable == 0 || kind == SAMPLE_GREEDY || best.key == SAMPLE_KEY_INF) {
        num = write_one(out, best.key, best.id); /* +inf wins whatever the settings */
    } else if (kind == SAMPLE_UNFILTERED) {
        race r = block_join(run_race(c, d, max), scratch.races, join_race());
        flags |= race_close(r) ? SAMPLE_CLOSE : 0;
        num = write_race(out, c, best, r);
    } else {
        if (d.top_p < 1)
            weight = block_join(weight_of(c, max, d.temperature), scratch.doubles, join_sum());
        find_bound(space, own.best);
        gather_survivors(space, c);
        num = write_best(space, out);
        if (num == QEP_SAMPLE_CANDIDATES && is_tied(space, c, scratch))
            flags |= SAMPLE_TIED;
    }
    if (threadIdx.x == 0) {
        weights[place] = weight;
        info[place * SAMPLE_INFO + SAMPLE_NUM] = num;
        info[place * SAMPLE_INFO + SAMPLE_DRAWABLE] = drawable;
        info[place * SAMPLE_INFO + SAMPLE_FLAGS] = flags;
    }
}

size_t shared_bytes(int units) {
    size_t keys = static_cast<size_t>(units) * SAMPLE_CHUNK_UNIT * sizeof(uint64_t);
    size_t lists = static_cast<size_t>(1 + units) * SAMPLE_THREADS * SAMPLE_ENTRY_BYTES;
    return SAMPLE_SCRATCH_BYTES + keys + lists + 4 * 16;
}

} // namespace

cudaError_t cuda_launch_sample_chunks(const struct sample_shape *shape,
                                      const struct sample_lists *lists, const float *logits,
                                      int32_t n, const uint8_t *allowed, const uint8_t *seen,
                                      const struct qep_device_draw *draws, cudaStream_t stream) {
    dim3 grid(static_cast<unsigned int>(shape->num_chunks), static_cast<unsigned int>(n));
    return launch(sample_chunks, grid, dim3(SAMPLE_THREADS), shared_bytes(shape->chunk_units),
                  stream, *shape, lists->keys, lists->ids, lists->weights, lists->info, logits,
                  allowed, seen, draws);
}

/* Sampling, third launch: a block per row draws from the candidates of all ranges, as
 * src/engine/sampler.c does from all ids, or says that they do not decide the draw. An id that no
 * range sent has at most its range's last value; what lies above all those is certain, and every
 * filter must find its boundary there. */
#include "kernels/cuda/sample_device.h"

#include <stddef.h>

namespace {

constexpr int BEST = QEP_SAMPLE_CANDIDATES;
constexpr int MAX_LIST = 16 * BEST; /* more candidates than this are not looked at */

/* Room for the rounding of sums and of exp where a boundary is compared with them, relative. */
#define SUM_ROOM 1e-10
#define WEIGHT_ROOM 1e-13
/* As on the host: slack of top-p's boundary, and the smallest normal double. */
#define TOP_P_SLACK 1e-9
#define SMALLEST 2.2250738585072014e-308

/* The ranges' candidates of one row. */
struct row_ranges {
    gptr<const qep_row_candidates> rows; /* [num][n], at the row */
    int num, n;
    __device__ __forceinline__ double number(int range, size_t offset, int i) const {
        gptr<const double> p = gptr<const double>(rows + static_cast<int64_t>(range) * n);
        return p[offset / sizeof(double) + static_cast<size_t>(i)];
    }
    __device__ __forceinline__ int32_t word(int range, size_t offset, int i) const {
        gptr<const int32_t> p = gptr<const int32_t>(rows + static_cast<int64_t>(range) * n);
        return p[offset / sizeof(int32_t) + static_cast<size_t>(i)];
    }
    __device__ __forceinline__ entry at(int range, int i) const {
        entry e = {order_key(number(range, offsetof(qep_row_candidates, value), i)),
                   word(range, offsetof(qep_row_candidates, id), i)};
        return e;
    }
    __device__ __forceinline__ int count(int range) const {
        return word(range, offsetof(qep_row_candidates, num), 0);
    }
    __device__ __forceinline__ int drawable(int range) const {
        return word(range, offsetof(qep_row_candidates, num_ids), 0);
    }
};

struct facts {
    entry best;
    double max;
    int32_t drawable, num; /* over all ranges: ids that can be drawn, candidates */
    bool has_nan;
};

__device__ facts find_facts(const row_ranges &r, const block_scratch &scratch) {
    facts f = {{0, static_cast<int32_t>(threadIdx.x)}, 0, 0, 0, false};
    int nan = 0;
    for (int i = static_cast<int>(threadIdx.x); i < r.num; i += SAMPLE_THREADS) {
        f.drawable += r.drawable(i);
        f.num += r.count(i);
        nan |= r.word(i, offsetof(qep_row_candidates, has_nan), 0);
        if (r.count(i) > 0)
            f.best = join_entry()(f.best, r.at(i, 0));
    }
    f.best = block_join(f.best, scratch.entries, join_entry());
    f.drawable = block_join(f.drawable, scratch.ints, join_sum());
    f.num = block_join(f.num, scratch.ints, join_sum());
    f.has_nan = block_join(nan, scratch.ints, join_or()) != 0;
    f.max = value_of(f.best.key);
    return f;
}

/* ---- settings without filters ---- */

__device__ int32_t draw_unfiltered(const row_ranges &r, const facts &f, const qep_device_draw &d,
                                   const block_scratch &scratch) {
    race own = race_of(-1, minus_inf());
    int own_close = 0;
    for (int i = static_cast<int>(threadIdx.x); i < r.num; i += SAMPLE_THREADS) {
        int32_t id = r.word(i, offsetof(qep_row_candidates, best_id), 0);
        if (id < 0)
            continue;
        double value = r.number(i, offsetof(qep_row_candidates, best_value), 0);
        double score = (value - f.max) / d.temperature + noise_of(d, id);
        own = race_join(own, race_of(id, score));
        if (own.id == id)
            own_close = r.word(i, offsetof(qep_row_candidates, close), 0);
    }
    race best = block_join(own, scratch.races, join_race());
    int close = block_join(own.id == best.id ? own_close : 0, scratch.ints, join_or());
    return close || best.id < 0 || race_close(best) ? QEP_TOKEN_FLAGGED : best.id;
}

/* ---- settings with filters ---- */

/* All candidates in order, and their weights: exp of the distance to the largest value. */
struct ordered {
    entry_list list;
    sptr<double> weights;
    sptr<int32_t> kept;
    __device__ __forceinline__ explicit ordered(shared_arena &arena) : list(arena, MAX_LIST) {
        weights = arena.take<double>(MAX_LIST);
        kept = arena.take<int32_t>(1);
    }
};

/* How many entries of a range come before e. */
__device__ int rank_in_range(const row_ranges &r, int range, const entry &e) {
    int low = 0, high = r.count(range);
    while (low < high) {
        int mid = (low + high) / 2;
        entry other = r.at(range, mid);
        if (before(other.key, other.id, e.key, e.id))
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

__device__ void order_all(const ordered &o, const row_ranges &r) {
    for (int at = static_cast<int>(threadIdx.x); at < r.num * BEST; at += SAMPLE_THREADS) {
        int range = at / BEST, rank = at % BEST;
        if (rank >= r.count(range))
            continue;
        entry e = r.at(range, rank);
        for (int other = 0; other < r.num; other++)
            if (other != range)
                rank += rank_in_range(r, other, e);
        if (rank >= MAX_LIST)
            continue;
        o.list.keys[rank] = e.key;
        o.list.ids[rank] = e.id;
    }
    __syncthreads();
}

/* The lowest key from which on every id is among the candidates. */
__device__ uint64_t certain_from(const ordered &o, const row_ranges &r, const facts &f,
                                 const block_scratch &scratch) {
    entry floor = {0, 0};
    for (int i = static_cast<int>(threadIdx.x); i < r.num; i += SAMPLE_THREADS) {
        int num = r.count(i);
        if (num == 0 || num >= r.drawable(i))
            continue;
        uint64_t tied = r.word(i, offsetof(qep_row_candidates, tied), 0) ? 1 : 0;
        uint64_t key = r.at(i, num - 1).key + tied;
        floor.key = key > floor.key ? key : floor.key;
    }
    floor = block_join(floor, scratch.entries, join_entry());
    if (f.num > MAX_LIST && o.list.keys[MAX_LIST - 1] >= floor.key)
        floor.key = o.list.keys[MAX_LIST - 1] + 1;
    return floor.key;
}

/* Fills the weights of the certain candidates; how many there are. */
__device__ int weigh(const ordered &o, const facts &f, const qep_device_draw &d, uint64_t floor,
                     const block_scratch &scratch) {
    int num = f.num < MAX_LIST ? f.num : MAX_LIST, certain = 0;
    for (int i = static_cast<int>(threadIdx.x); i < num; i += SAMPLE_THREADS) {
        uint64_t key = o.list.keys[i];
        if (key < floor)
            continue;
        o.weights[i] = exp((value_of(key) - f.max) / d.temperature);
        certain++;
    }
    return block_join(certain, scratch.ints, join_sum());
}

__device__ double weigh_all_ids(const row_ranges &r, const facts &f, const qep_device_draw &d,
                                const block_scratch &scratch) {
    double sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < r.num; i += SAMPLE_THREADS) {
        double weight = r.number(i, offsetof(qep_row_candidates, weight), 0);
        double max = r.number(i, offsetof(qep_row_candidates, max), 0);
        if (r.drawable(i) > 0)
            sum += weight * exp((max - f.max) / d.temperature);
    }
    return block_join(sum, scratch.doubles, join_sum());
}

/* The filters, one thread: the first `kept` of the certain candidates stay; while `open`, so may
 * ids that no range sent. A false return: undecided. */
struct filter {
    int kept;
    bool open;
};

__device__ bool filter_top_k(const ordered &o, filter *f, const qep_device_draw &d, int32_t num_ids,
                             int32_t drawable) {
    if (d.top_k == 0 || d.top_k >= num_ids || d.top_k >= drawable)
        return true;
    if (d.top_k > f->kept)
        return false;
    int kept = static_cast<int>(d.top_k);
    uint64_t last = o.list.keys[kept - 1];
    while (kept < f->kept && o.list.keys[kept] == last)
        kept++;
    f->kept = kept;
    f->open = false;
    return true;
}

/* Whether a and the next candidate differ in value but perhaps not in weight. */
__device__ bool blurred(const ordered &o, int a) {
    double weight = o.weights[a], next = o.weights[a + 1];
    return o.list.keys[a] != o.list.keys[a + 1] && weight - next <= WEIGHT_ROOM * weight;
}

/* The host orders by weight, then id: that is our order unless weights are blurred next to the
 * values at the boundary, before which `kept` candidates of f lie. */
__device__ bool boundary_is_sharp(const ordered &o, const filter &f, int kept) {
    int first = kept - 1, last = kept - 1;
    while (first > 0 && o.list.keys[first - 1] == o.list.keys[first])
        first--;
    while (last + 1 < f.kept && o.list.keys[last + 1] == o.list.keys[last])
        last++;
    if (first > 0 && blurred(o, first - 1))
        return false;
    return last + 1 < f.kept ? !blurred(o, last) : !f.open;
}

__device__ bool filter_top_p(const ordered &o, filter *f, const qep_device_draw &d,
                             double weight_of_all) {
    if (d.top_p >= 1)
        return true;
    double total = 0, share = d.top_p - TOP_P_SLACK, above = 0, before_last = 0;
    for (int i = 0; i < f->kept && !f->open; i++)
        total += o.weights[i];
    total = f->open ? weight_of_all : total;
    double target = (share > SMALLEST ? share : SMALLEST) * total;
    int kept = 0;
    while (kept < f->kept && above < target) {
        before_last = above;
        above += o.weights[kept++];
    }
    bool near = above - target <= SUM_ROOM * total ||
                (kept > 1 && target - before_last <= SUM_ROOM * total);
    if (kept == 0 || near || !boundary_is_sharp(o, *f, kept))
        return false;
    f->kept = kept;
    f->open = false;
    return true;
}

__device__ bool filter_min_p(const ordered &o, filter *f, const qep_device_draw &d) {
    if (d.min_p <= 0)
        return true;
    double room = WEIGHT_ROOM * d.min_p + SMALLEST * WEIGHT_ROOM;
    int kept = 0;
    for (; kept < f->kept; kept++) {
        double over = o.weights[kept] - d.min_p;
        if (o.list.keys[kept] != o.list.keys[0] && over <= room && over >= -room)
            return false;
        if (over < 0)
            break;
    }
    if (kept == f->kept && f->open)
        return false;
    f->kept = kept;
    f->open = false;
    return true;
}

__device__ int32_t draw_filtered(const row_ranges &r, const facts &f, const qep_device_draw &d,
                                 int32_t num_ids, const ordered &o, const block_scratch &scratch) {
    order_all(o, r);
    uint64_t floor = certain_from(o, r, f, scratch);
    int certain = weigh(o, f, d, floor, scratch);
    double weight_of_all = d.top_p < 1 ? weigh_all_ids(r, f, d, scratch) : 0;
    if (threadIdx.x == 0) {
        filter left = {certain, certain < f.drawable};
        bool decided = filter_top_k(o, &left, d, num_ids, f.drawable) &&
                       filter_top_p(o, &left, d, weight_of_all) && filter_min_p(o, &left, d);
        o.kept[0] = decided && !left.open ? left.kept : 0;
    }
    __syncthreads();
    int kept = o.kept[0];
    race own = race_of(-1, minus_inf());
    for (int i = static_cast<int>(threadIdx.x); i < kept; i += SAMPLE_THREADS) {
        int32_t id = o.list.ids[i];
        double value = (value_of(o.list.keys[i]) - f.max) / d.temperature;
        own = race_join(own, race_of(id, value + noise_of(d, id)));
    }
    race best = block_join(own, scratch.races, join_race());
    return best.id < 0 || race_close(best) ? QEP_TOKEN_FLAGGED : best.id;
}

__global__ void sample_final(gptr<int32_t> tokens, gptr<const qep_row_candidates> candidates,
                             int32_t num_ranks, int32_t n, int32_t vocab_size, int32_t num_ids,
                             gptr<uint8_t> seen, gptr<const qep_device_draw> draws) {
    int row = static_cast<int>(blockIdx.x);
    qep_device_draw d = draws[row];
    if (d.slot < 0) {
        if (threadIdx.x == 0)
            tokens[row] = -1;
        return;
    }
    shared_arena arena;
    block_scratch scratch(arena);
    ordered space(arena);
    row_ranges ranges = {candidates + row, num_ranks, n};
    facts f = find_facts(ranges, scratch);
    sample_kind kind = kind_of(d, num_ids);
    int32_t token;
    if (f.has_nan || f.drawable == 0 || f.best.key == SAMPLE_KEY_INF)
        token = QEP_TOKEN_FLAGGED; /* the host finds the words for it */
    else if (kind == SAMPLE_GREEDY)
        token = f.best.id;
    else if (kind == SAMPLE_UNFILTERED)
        token = draw_unfiltered(ranges, f, d, scratch);
    else
        token = draw_filtered(ranges, f, d, num_ids, space, scratch);
    if (threadIdx.x != 0)
        return;
    tokens[row] = token;
    if (token >= 0) {
        int64_t at = static_cast<int64_t>(d.slot) * vocab_size + token;
        uint8_t flags = seen[at];
        seen[at] = static_cast<uint8_t>(flags | 1);
    }
}

constexpr size_t SHARED_BYTES =
    SAMPLE_SCRATCH_BYTES + MAX_LIST * (SAMPLE_ENTRY_BYTES + sizeof(double)) + 16;

} // namespace

cudaError_t cuda_launch_sample_final(int32_t *tokens, const struct qep_row_candidates *candidates,
                                     int32_t num_ranks, int32_t n, int32_t vocab_size,
                                     int32_t num_ids, uint8_t *seen,
                                     const struct qep_device_draw *draws, cudaStream_t stream) {
    return launch(sample_final, dim3(static_cast<unsigned int>(n)), dim3(SAMPLE_THREADS),
                  SHARED_BYTES, stream, tokens, candidates, num_ranks, n, vocab_size, num_ids, seen,
                  draws);
}

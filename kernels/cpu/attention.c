/* Full attention. A unit of work is a tile of up to four consecutive rows of one sequence and some
 * query heads of one KV head; it walks the KV blocks in ascending order with a running maximum. A
 * block of K and V is widened to fp32 once and serves all heads and rows of the tile. Scores are
 * dot products in 16 partial sums, P V sums run over positions ascending, so decode and prefill
 * rows have one arithmetic. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/tile.h"
#include "kernels/mathfn.h"
#include "kernels/rope.h"

#include <assert.h>
#include <math.h>

enum { TILE_POSITIONS = 4 }; /* consecutive rows of one sequence in a unit */

struct rope_row {
    float cosines[QEP_ROPE_MAX_PAIRS], sines[QEP_ROPE_MAX_PAIRS];
};

static void norm_and_rotate(const struct qep_attention_dims *dims, float *out, const float *x,
                            const float *w, const struct rope_row *rope) {
    int32_t n = dims->head_dim;
    float inv = 1.0f / qep_norm_rootf(dot16(x, x, n) / (float)n + dims->eps);
    for (int32_t i = 0; i < n; i++)
        out[i] = x[i] * inv * w[i];
    qep_rope_rotate(out, dims->rotary_dim / 2, rope->cosines, rope->sines);
}

/* ---- the cache ---- */

/* Index of the scale of (K or V, position, head); times head_dim, of its first element. */
static size_t kv_idx(const struct qep_attention_dims *dims, size_t which, size_t in_block,
                     size_t head) {
    return (which * QEP_KV_BLOCK + in_block) * (size_t)dims->num_kv_heads + head;
}

static size_t kv_scales_offset(const struct qep_attention_dims *dims) {
    return 2 * (size_t)QEP_KV_BLOCK * (size_t)dims->num_kv_heads * (size_t)dims->head_dim;
}

static void store_int8(int8_t *quants, float *scale_out, const float *x, size_t n) {
    float scale = qep_int8_scale(x, n);
    for (size_t i = 0; i < n; i++) {
        float q = scale > 0.0f ? x[i] / scale : 0.0f;
        q = q > 127.0f ? 127.0f : q;
        q = q < -127.0f ? -127.0f : q;
        quants[i] = (int8_t)qep_round_even_int(q);
    }
    *scale_out = scale;
}

static void kv_store(const struct qep_attention_dims *dims, void *block, size_t which,
                     size_t in_block, size_t head, const float *x) {
    size_t n = (size_t)dims->head_dim, idx = kv_idx(dims, which, in_block, head);
    if (dims->kv_type == QEP_KV_F32) {
        memcpy((float *)block + idx * n, x, n * sizeof *x);
    } else if (dims->kv_type == QEP_KV_BF16) {
        uint16_t *dst = (uint16_t *)block + idx * n;
        for (size_t i = 0; i < n; i++)
            dst[i] = qep_f32_to_bf16(x[i]);
    } else {
        float *scales = (float *)(void *)((char *)block + kv_scales_offset(dims));
        store_int8((int8_t *)block + idx * n, scales + idx, x, n);
    }
}

/* Rows [0, count) of K or V of one head as fp32 [count][width], width = head_dim padded with 0. */
static void kv_widen(const struct qep_attention_dims *dims, const void *block, size_t which,
                     size_t head, size_t count, size_t width, float *out) {
    size_t n = (size_t)dims->head_dim;
    const float *scales =
        (const float *)(const void *)((const char *)block + kv_scales_offset(dims));
    for (size_t p = 0; p < count; p++, out += width) {
        size_t idx = kv_idx(dims, which, p, head);
        if (dims->kv_type == QEP_KV_F32) {
            memcpy(out, (const float *)block + idx * n, n * sizeof *out);
        } else if (dims->kv_type == QEP_KV_BF16) {
            const uint16_t *bits = (const uint16_t *)block + idx * n;
            for (size_t i = 0; i < n; i++)
                out[i] = qep_bf16_to_f32(bits[i]);
        } else {
            const int8_t *quants = (const int8_t *)block + idx * n;
            float scale = scales[idx];
            for (size_t i = 0; i < n; i++)
                out[i] = (float)quants[i] * scale;
        }
        for (size_t i = n; i < width; i++)
            out[i] = 0.0f;
    }
}

/* ---- the two ops ---- */

/* Consecutive rows of one sequence. */
struct row_tile {
    int32_t row0, num_rows, slot, position;
};

struct attention_job {
    const struct qep_attention_dims *dims;
    const struct row_tile *tiles;
    size_t num_tiles, heads_per_unit, width, thread_floats;
    const float *qg, *k, *v, *norm;
    float *out, *scratch;
    void *const *blocks;
    float freq[QEP_ROPE_MAX_PAIRS];
};

static size_t count_tiles(const struct qep_batch *batch) {
    size_t count = 0;
    for (int32_t s = 0; s < batch->num_spans; s++)
        count += (size_t)(batch->spans[s].num_rows + TILE_POSITIONS - 1) / TILE_POSITIONS;
    return count;
}

static void list_tiles(const struct qep_batch *batch, struct row_tile *tiles) {
    for (int32_t s = 0; s < batch->num_spans; s++) {
        const struct qep_span *span = &batch->spans[s];
        for (int32_t i = 0; i < span->num_rows; i += TILE_POSITIONS) {
            int32_t left = span->num_rows - i;
            *tiles++ =
                (struct row_tile){span->row0 + i, left < TILE_POSITIONS ? left : TILE_POSITIONS,
                                  span->slot, span->position + i};
        }
    }
}

static void write_kv_tiles(void *arg, int thread_idx, int num_threads) {
    const struct attention_job *job = arg;
    const struct qep_attention_dims *dims = job->dims;
    size_t heads = (size_t)dims->num_kv_heads, head_dim = (size_t)dims->head_dim, begin, end;
    float *buf = job->scratch + (size_t)thread_idx * job->thread_floats;
    struct rope_row rope;
    qep_team_split(job->num_tiles, 1, thread_idx, num_threads, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        const struct row_tile *tile = &job->tiles[t];
        for (int32_t i = 0; i < tile->num_rows; i++) {
            int32_t position = tile->position + i;
            size_t in_block = (size_t)(position % QEP_KV_BLOCK);
            void *block =
                job->blocks[tile->slot * (ptrdiff_t)dims->max_blocks + position / QEP_KV_BLOCK];
            qep_rope_angles(job->freq, dims->rotary_dim / 2, position, rope.cosines, rope.sines);
            for (size_t h = 0; h < heads; h++) {
                size_t at = ((size_t)(tile->row0 + i) * heads + h) * head_dim;
                norm_and_rotate(dims, buf, job->k + at, job->norm, &rope);
                kv_store(dims, block, 0, in_block, h, buf);
                kv_store(dims, block, 1, in_block, h, job->v + at);
            }
        }
    }
}

static enum qep_status init_job(struct qep_backend *be, const struct qep_attention_dims *dims,
                                const struct qep_batch *batch, size_t thread_floats,
                                struct attention_job *job) {
    struct cpu_arena arena;
    size_t threads = (size_t)cpu_num_threads(be);
    assert(dims->rotary_dim / 2 <= QEP_ROPE_MAX_PAIRS && dims->rotary_dim <= dims->head_dim);
    assert(dims->num_heads % dims->num_kv_heads == 0);
    job->num_tiles = count_tiles(batch);
    job->thread_floats = cpu_padded(thread_floats * sizeof(float)) / sizeof(float);
    size_t tile_bytes = cpu_padded(job->num_tiles * sizeof(struct row_tile));
    size_t scratch_bytes = threads * job->thread_floats * sizeof(float);
    QEP_TRY(cpu_arena_init(be, &arena, tile_bytes + scratch_bytes));
    struct row_tile *tiles = cpu_arena_take(&arena, tile_bytes);
    job->scratch = cpu_arena_take(&arena, scratch_bytes);
    list_tiles(batch, tiles);
    job->tiles = tiles;
    qep_rope_frequencies(dims->rope_theta, dims->rotary_dim, job->freq);
    return QEP_OK;
}

enum qep_status CPU(attention_kv)(struct qep_backend *be, const struct qep_attention_dims *dims,
                                  const struct qep_batch *batch, const float *k, const float *v,
                                  const float *k_norm, void *const *blocks) {
    struct attention_job job = {.dims = dims, .k = k, .v = v, .norm = k_norm, .blocks = blocks};
    QEP_TRY(init_job(be, dims, batch, (size_t)dims->head_dim, &job));
    size_t row_work = (size_t)dims->num_kv_heads * (size_t)dims->head_dim;
    cpu_run(be, (size_t)batch->num_rows * row_work * 2, write_kv_tiles, &job);
    return QEP_OK;
}

/* ---- one unit ---- */

/* Scratch of a thread: the widened block, and per row and head q, the running sum and its state. */
struct unit {
    size_t heads, width; /* heads of this unit; floats of a padded head */
    float *k, *v;        /* [64][width] */
    float *q, *acc;      /* [TILE_POSITIONS * heads][width] */
    float *max, *sum;    /* [TILE_POSITIONS * heads] */
    float *scores;       /* [heads][64] */
};

static size_t unit_floats(size_t heads, size_t width) {
    size_t rows = TILE_POSITIONS * heads;
    return 2 * QEP_KV_BLOCK * width + 2 * rows * width + 2 * rows + heads * QEP_KV_BLOCK;
}

static void unit_init(struct unit *unit, size_t heads, size_t width, float *scratch) {
    size_t rows = TILE_POSITIONS * heads;
    unit->heads = heads;
    unit->width = width;
    unit->k = scratch;
    unit->v = unit->k + QEP_KV_BLOCK * width;
    unit->q = unit->v + QEP_KV_BLOCK * width;
    unit->acc = unit->q + rows * width;
    unit->scores = unit->acc + rows * width;
    unit->max = unit->scores + heads * QEP_KV_BLOCK;
    unit->sum = unit->max + rows;
}

/* M heads x two positions: each is a dot product in 16 partial sums. */
INLINE void score_tile(const int M, const float *q, const float *k, size_t width, float scale,
                       float *scores) {
    enum { MOST = 8 };
    vf acc[MOST][2][PARTS];
    for (int m = 0; m < M; m++)
        for (int p = 0; p < PARTS; p++)
            acc[m][0][p] = acc[m][1][p] = (vf){0};
    for (size_t i = 0; i < width; i += 16)
        for (int p = 0; p < PARTS; p++) {
            size_t at = i + (size_t)(p * VL);
            vf first = vf_load(k + at), second = vf_load(k + width + at);
            for (int m = 0; m < M; m++) {
                vf x = vf_load(q + (size_t)m * width + at);
                acc[m][0][p] += x * first;
                acc[m][1][p] += x * second;
            }
        }
    for (int m = 0; m < M; m++) {
        scores[m * QEP_KV_BLOCK] = fold16(acc[m][0]) * scale;
        scores[m * QEP_KV_BLOCK + 1] = fold16(acc[m][1]) * scale;
    }
}

/* scores[heads][64] of one row; positions from `visible` on get -inf. */
static void score_block(const struct unit *unit, const float *q, size_t visible, float scale) {
    for (size_t p = 0; p < visible; p += 2) {
        const float *k = unit->k + p * unit->width;
        size_t h = 0;
#if defined(__AVX512F__)
        for (; h + 8 <= unit->heads; h += 8)
            score_tile(8, q + h * unit->width, k, unit->width, scale,
                       unit->scores + h * QEP_KV_BLOCK + p);
#endif
        for (; h + 2 <= unit->heads; h += 2)
            score_tile(2, q + h * unit->width, k, unit->width, scale,
                       unit->scores + h * QEP_KV_BLOCK + p);
        for (; h < unit->heads; h++)
            score_tile(1, q + h * unit->width, k, unit->width, scale,
                       unit->scores + h * QEP_KV_BLOCK + p);
    }
    for (size_t h = 0; h < unit->heads; h++)
        for (size_t p = visible; p < QEP_KV_BLOCK; p++)
            unit->scores[h * QEP_KV_BLOCK + p] = -INFINITY;
}

/* Turns the 64 scores of a head into exp(score - max) and brings max and sum up to date; returns
 * the factor for what was summed before. */
static float softmax_block(float *scores, float *max, float *sum) {
    float new_max = *max;
    vf lanes[PARTS];
    for (int i = 0; i < QEP_KV_BLOCK; i++)
        new_max = scores[i] > new_max ? scores[i] : new_max;
    float correction = qep_expf(*max - new_max);
    for (int i = 0; i < QEP_KV_BLOCK; i++)
        scores[i] = qep_expf(scores[i] - new_max);
    for (int p = 0; p < PARTS; p++) {
        const float *s = scores + p * VL;
        lanes[p] = ((vf_load(s) + vf_load(s + 16)) + vf_load(s + 32)) + vf_load(s + 48);
    }
    *sum = *sum * correction + fold16(lanes);
    *max = new_max;
    return correction;
}

/* acc = acc * correction + P V, for all heads of one row. */
static void add_values(const struct unit *unit, float *acc, const float *correction,
                       size_t visible) {
    for (size_t c = 0; c < unit->width; c += 16) {
        struct tile_w panel = {unit->v + c, false, unit->width};
        for (size_t h = 0; h < unit->heads;) {
            int heads = tile_rows((int32_t)(unit->heads - h));
            const float *x[TILE_ROWS];
            vf part[TILE_ROWS][PARTS];
            for (int m = 0; m < heads; m++)
                x[m] = unit->scores + (h + (size_t)m) * QEP_KV_BLOCK;
            tile(heads, &panel, false, x, (int32_t)visible, part);
            for (int m = 0; m < heads; m++) {
                float *dst = acc + (h + (size_t)m) * unit->width + c;
                float factor = correction[h + (size_t)m];
                for (int p = 0; p < PARTS; p++)
                    vf_store(dst + p * VL, vf_load(dst + p * VL) * factor + part[m][p]);
            }
            h += (size_t)heads;
        }
    }
}

static void attend_block(struct unit *unit, size_t row, size_t visible, float scale) {
    enum { MOST_HEADS = 64 };
    float correction[MOST_HEADS];
    size_t first = row * unit->heads;
    assert(unit->heads <= MOST_HEADS);
    score_block(unit, unit->q + first * unit->width, visible, scale);
    for (size_t h = 0; h < unit->heads; h++)
        correction[h] = softmax_block(unit->scores + h * QEP_KV_BLOCK, &unit->max[first + h],
                                      &unit->sum[first + h]);
    add_values(unit, unit->acc + first * unit->width, correction, visible);
}

static void start_rows(const struct attention_job *job, struct unit *unit,
                       const struct row_tile *tile, size_t head0) {
    const struct qep_attention_dims *dims = job->dims;
    size_t head_dim = (size_t)dims->head_dim, num_heads = (size_t)dims->num_heads;
    struct rope_row rope;
    for (size_t i = 0; i < (size_t)tile->num_rows; i++) {
        qep_rope_angles(job->freq, dims->rotary_dim / 2, tile->position + (int32_t)i, rope.cosines,
                        rope.sines);
        for (size_t h = 0; h < unit->heads; h++) {
            size_t r = i * unit->heads + h;
            size_t at = ((size_t)tile->row0 + i) * num_heads + head0 + h;
            float *q = unit->q + r * unit->width;
            norm_and_rotate(dims, q, job->qg + 2 * at * head_dim, job->norm, &rope);
            memset(q + head_dim, 0, (unit->width - head_dim) * sizeof *q);
            memset(unit->acc + r * unit->width, 0, unit->width * sizeof *unit->acc);
            unit->max[r] = -INFINITY;
            unit->sum[r] = 0.0f;
        }
    }
}

static void finish_rows(const struct attention_job *job, const struct unit *unit,
                        const struct row_tile *tile, size_t head0) {
    size_t head_dim = (size_t)job->dims->head_dim, num_heads = (size_t)job->dims->num_heads;
    for (size_t i = 0; i < (size_t)tile->num_rows; i++)
        for (size_t h = 0; h < unit->heads; h++) {
            size_t at = (((size_t)tile->row0 + i) * num_heads + head0 + h) * head_dim;
            size_t r = i * unit->heads + h;
            const float *acc = unit->acc + r * unit->width, *gate = job->qg + 2 * at + head_dim;
            float inv = 1.0f / unit->sum[r];
            for (size_t c = 0; c < head_dim; c++)
                job->out[at + c] = acc[c] * inv * qep_sigmoidf(gate[c]);
        }
}

static void attend_tile(const struct attention_job *job, struct unit *unit,
                        const struct row_tile *tile, size_t head0) {
    const struct qep_attention_dims *dims = job->dims;
    size_t kv_head = head0 / (size_t)(dims->num_heads / dims->num_kv_heads);
    void *const *blocks = job->blocks + tile->slot * (ptrdiff_t)dims->max_blocks;
    int32_t last = tile->position + tile->num_rows; /* one past */
    float scale = 1.0f / sqrtf((float)dims->head_dim);
    start_rows(job, unit, tile, head0);
    for (int32_t start = 0; start < last; start += QEP_KV_BLOCK) {
        const void *block = blocks[start / QEP_KV_BLOCK];
        size_t count = last - start < QEP_KV_BLOCK ? (size_t)(last - start) : QEP_KV_BLOCK;
        kv_widen(dims, block, 0, kv_head, count, unit->width, unit->k);
        kv_widen(dims, block, 1, kv_head, count, unit->width, unit->v);
        if (count % 2 != 0) /* scores go by pairs */
            memset(unit->k + count * unit->width, 0, unit->width * sizeof *unit->k);
        for (int32_t i = 0; i < tile->num_rows; i++) {
            int32_t visible = tile->position + i + 1 - start;
            if (visible > 0)
                attend_block(unit, (size_t)i,
                             visible < QEP_KV_BLOCK ? (size_t)visible : QEP_KV_BLOCK, scale);
        }
    }
    finish_rows(job, unit, tile, head0);
}

/* Units go round the threads in turn, because later rows of a sequence see more positions. */
static void attend_units(void *arg, int thread_idx, int num_threads) {
    const struct attention_job *job = arg;
    struct unit unit;
    size_t units_per_tile = (size_t)job->dims->num_heads / job->heads_per_unit;
    unit_init(&unit, job->heads_per_unit, job->width,
              job->scratch + (size_t)thread_idx * job->thread_floats);
    for (size_t u = (size_t)thread_idx; u < job->num_tiles * units_per_tile;
         u += (size_t)num_threads)
        attend_tile(job, &unit, &job->tiles[u / units_per_tile],
                    u % units_per_tile * job->heads_per_unit);
}

enum qep_status CPU(attention)(struct qep_backend *be, const struct qep_attention_dims *dims,
                               const struct qep_batch *batch, struct qep_rows_out out,
                               const float *qg, const float *q_norm, void *const *blocks) {
    size_t heads = (size_t)(dims->num_heads / dims->num_kv_heads);
    size_t tiles = count_tiles(batch), threads = (size_t)cpu_num_threads(be), work = 0;
    struct attention_job job = {.dims = dims,
                                .qg = qg,
                                .norm = q_norm,
                                .out = out.f32,
                                .blocks = blocks,
                                .width = ((size_t)dims->head_dim + 15) / 16 * 16};
    /* All heads of a KV head together read it once; fewer where threads would be idle. */
    while (heads % 2 == 0 && tiles * (size_t)dims->num_heads / heads < threads)
        heads /= 2;
    job.heads_per_unit = heads;
    QEP_TRY(init_job(be, dims, batch, unit_floats(heads, job.width), &job));
    for (int32_t s = 0; s < batch->num_spans; s++)
        work += (size_t)batch->spans[s].num_rows * (size_t)(batch->spans[s].position + 16);
    cpu_run(be, work * (size_t)dims->num_heads * job.width / 8, attend_units, &job);
    return CPU(finish_rows)(be, &out, batch->num_rows, dims->num_heads * dims->head_dim);
}

/* Gated DeltaNet: the convolution over channels, and the delta rule over (sequence, value head)
 * units: decode spans in one step, prefill spans in chunks (delta_chunk.c). */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/simd.h"
#include "kernels/mathfn.h"

#include <assert.h>
#include <math.h>

static size_t num_channels(const struct qep_delta_dims *dims) {
    return 2 * (size_t)dims->num_key_heads * (size_t)dims->key_head_dim +
           (size_t)dims->num_value_heads * (size_t)dims->value_head_dim;
}

/* ---- convolution ---- */

/* Channels of a unit: enough for rows, which lie a whole batch row apart, to be read in long
 * pieces. */
enum { CONV_LANES = 128, CONV_MAX_KERNEL = 8 };

struct conv_job {
    const struct qep_batch *batch;
    float *out;
    const float *qkv, *weight;
    float *state;
    size_t channels;
    int32_t kernel;
};

/* Some channels of one span, a lane each. */
struct conv_unit {
    float taps[CONV_MAX_KERNEL][CONV_LANES];
    const float *rows; /* of the span, at the first channel */
    float *state;      /* of its slot, likewise */
    size_t stride;
    int32_t kernel, position; /* of the span's first row */
};

static float *conv_past(const struct conv_unit *unit, int32_t t) {
    return unit->state + (size_t)qep_conv_row(unit->position + t, unit->kernel) * unit->stride;
}

/* The inputs `t` rows after the span's start; before it, from the state. */
static const float *conv_input(const struct conv_unit *unit, int32_t t) {
    return t < 0 ? conv_past(unit, t) : unit->rows + (size_t)t * unit->stride;
}

/* By itself: inlined below, gcc 12 does not vectorise it. */
__attribute__((noinline)) static void silu_lanes(float *restrict out, const float *restrict x,
                                                 size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = qep_siluf(x[i]);
}

static void conv_lanes(const struct conv_job *job, const struct qep_span *span, size_t channel,
                       size_t lanes) {
    struct conv_unit unit;
    int32_t kernel = job->kernel;
    size_t at = (size_t)span->row0 * job->channels + channel;
    unit.rows = job->qkv + at;
    unit.state = job->state + (size_t)span->slot * job->channels * (size_t)kernel + channel;
    unit.stride = job->channels;
    unit.kernel = kernel;
    unit.position = span->position;
    for (size_t l = 0; l < lanes; l++)
        for (int32_t j = 0; j < kernel; j++)
            unit.taps[j][l] = job->weight[(channel + l) * (size_t)kernel + (size_t)j];
    for (int32_t i = 0; i < span->num_rows; i++) {
        float sum[CONV_LANES] = {0}, *restrict out = job->out + at + (size_t)i * job->channels;
        for (int32_t j = 0; j < kernel; j++) {
            const float *x = conv_input(&unit, i - (kernel - 1 - j));
            for (size_t l = 0; l < lanes; l++)
                sum[l] += unit.taps[j][l] * x[l];
        }
        silu_lanes(out, sum, lanes);
    }
    for (int32_t i = span->num_rows > kernel ? span->num_rows - kernel : 0; i < span->num_rows; i++)
        memcpy(conv_past(&unit, i), conv_input(&unit, i), lanes * sizeof(float));
}

static void conv_channels(void *arg, int thread_idx, int num_threads) {
    const struct conv_job *job = arg;
    size_t begin, end;
    qep_team_split(job->channels, CONV_LANES, thread_idx, num_threads, &begin, &end);
    for (int32_t s = 0; s < job->batch->num_spans; s++)
        for (size_t c = begin; c < end; c += CONV_LANES)
            conv_lanes(job, &job->batch->spans[s], c, end - c < CONV_LANES ? end - c : CONV_LANES);
}

enum qep_status CPU(delta_conv)(struct qep_backend *be, const struct qep_delta_dims *dims,
                                const struct qep_batch *batch, float *out, const float *qkv,
                                const float *weight, float *conv_state) {
    struct conv_job job = {
        batch, out, qkv, weight, conv_state, num_channels(dims), dims->conv_kernel_dim};
    assert(dims->conv_kernel_dim >= 1 && dims->conv_kernel_dim <= CONV_MAX_KERNEL);
    cpu_run(be, (size_t)batch->num_rows * job.channels, conv_channels, &job);
    return QEP_OK;
}

/* ---- delta rule ---- */

struct delta_job {
    const struct qep_delta_dims *dims;
    const struct qep_batch *batch;
    float *out;
    const float *qkv, *a, *b, *A_log, *dt_bias;
    float *state, *scratch;
    size_t thread_floats;
};

static void l2_normalise(float *out, const float *x, int32_t n, float factor) {
    float inv = factor / qep_norm_rootf(dot16(x, x, n) + 1e-6f);
    for (int32_t i = 0; i < n; i++)
        out[i] = x[i] * inv;
}

/* Normalised q and k of one row, its log decay and beta. */
static void load_row(const struct delta_job *job, size_t row, size_t head, float *q, float *k,
                     float *g, float *beta) {
    const struct qep_delta_dims *dims = job->dims;
    size_t value_heads = (size_t)dims->num_value_heads, key_heads = (size_t)dims->num_key_heads;
    size_t key_dim = (size_t)dims->key_head_dim, key_head = head / (value_heads / key_heads);
    const float *x = job->qkv + row * num_channels(dims);
    l2_normalise(q, x + key_head * key_dim, dims->key_head_dim, 1.0f / sqrtf((float)key_dim));
    l2_normalise(k, x + (key_heads + key_head) * key_dim, dims->key_head_dim, 1.0f);
    *g = -qep_expf(job->A_log[head]) *
         qep_softplusf(job->a[row * value_heads + head] + job->dt_bias[head]);
    *beta = qep_sigmoidf(job->b[row * value_heads + head]);
}

static const float *row_values(const struct delta_job *job, size_t row, size_t head) {
    const struct qep_delta_dims *dims = job->dims;
    size_t keys = 2 * (size_t)dims->num_key_heads * (size_t)dims->key_head_dim;
    return job->qkv + row * num_channels(dims) + keys + head * (size_t)dims->value_head_dim;
}

static float *row_out(const struct delta_job *job, size_t row, size_t head) {
    return job->out +
           (row * (size_t)job->dims->num_value_heads + head) * (size_t)job->dims->value_head_dim;
}

/* p = S^T k and r = S^T q in one pass over the state, then S = decay S + k delta^T in another:
 * o = decay r + (k . q) delta. */
static void decode_step(const struct delta_job *job, size_t row, size_t head, float *S,
                        float *scratch) {
    size_t key_dim = (size_t)job->dims->key_head_dim, width = (size_t)job->dims->value_head_dim;
    float *q = scratch, *k = q + key_dim, *p = k + key_dim, *r = p + width, g, beta;
    const float *v = row_values(job, row, head);
    float *out = row_out(job, row, head);
    load_row(job, row, head, q, k, &g, &beta);
    float decay = qep_expf(g), overlap = dot16(k, q, (int32_t)key_dim);
    memset(p, 0, 2 * width * sizeof *p);
    for (size_t i = 0; i < key_dim; i++) {
        const float *restrict from = S + i * width;
        float *restrict to_p = p, *restrict to_r = r;
        const float ki = k[i], qi = q[i];
        for (size_t j = 0; j < width; j++) {
            to_p[j] += from[j] * ki;
            to_r[j] += from[j] * qi;
        }
    }
    for (size_t j = 0; j < width; j++) {
        float delta = beta * (v[j] - decay * p[j]);
        out[j] = decay * r[j] + overlap * delta;
        p[j] = delta;
    }
    for (size_t i = 0; i < key_dim; i++) {
        float *restrict to = S + i * width;
        const float *restrict delta = p;
        const float ki = k[i];
        for (size_t j = 0; j < width; j++)
            to[j] = to[j] * decay + ki * delta[j];
    }
}

/* Room of a prefill unit: q and k of a chunk, g and beta, the padded state, the chunk's own. */
struct prefill_room {
    float *q, *k, *g, *beta, *state, *rest;
    size_t width; /* value_head_dim padded to 16 */
};

static size_t prefill_floats(const struct qep_delta_dims *dims) {
    size_t key_dim = (size_t)dims->key_head_dim;
    size_t width = ((size_t)dims->value_head_dim + 15) / 16 * 16;
    return 2 * QEP_DELTA_CHUNK * key_dim + 2 * QEP_DELTA_CHUNK + key_dim * width +
           CPU(delta_chunk_scratch)(dims->key_head_dim, dims->value_head_dim);
}

static struct prefill_room prefill_room_at(const struct qep_delta_dims *dims, float *scratch) {
    struct prefill_room room;
    size_t key_dim = (size_t)dims->key_head_dim;
    room.width = ((size_t)dims->value_head_dim + 15) / 16 * 16;
    room.state = scratch;
    room.q = room.state + key_dim * room.width;
    room.k = room.q + QEP_DELTA_CHUNK * key_dim;
    room.g = room.k + QEP_DELTA_CHUNK * key_dim;
    room.beta = room.g + QEP_DELTA_CHUNK;
    room.rest = room.beta + QEP_DELTA_CHUNK;
    return room;
}

static void prefill_chunk(const struct delta_job *job, size_t row0, int32_t num_rows, size_t head,
                          const struct prefill_room *room) {
    const struct qep_delta_dims *dims = job->dims;
    size_t key_dim = (size_t)dims->key_head_dim;
    for (size_t i = 0; i < (size_t)num_rows; i++)
        load_row(job, row0 + i, head, room->q + i * key_dim, room->k + i * key_dim, &room->g[i],
                 &room->beta[i]);
    struct cpu_delta_chunk chunk = {.num_rows = num_rows,
                                    .key_dim = dims->key_head_dim,
                                    .value_dim = dims->value_head_dim,
                                    .q = room->q,
                                    .k = room->k,
                                    .v = row_values(job, row0, head),
                                    .v_stride = num_channels(dims),
                                    .out = row_out(job, row0, head),
                                    .out_stride = (size_t)dims->num_value_heads *
                                                  (size_t)dims->value_head_dim,
                                    .g = room->g,
                                    .beta = room->beta,
                                    .state = room->state,
                                    .scratch = room->rest};
    CPU(delta_chunk)(&chunk);
}

/* Chunks end at multiples of 64 positions, whatever the span's length. */
static void prefill_span(const struct delta_job *job, const struct qep_span *span, size_t head,
                         float *S, float *scratch) {
    const struct qep_delta_dims *dims = job->dims;
    size_t key_dim = (size_t)dims->key_head_dim, value_dim = (size_t)dims->value_head_dim;
    struct prefill_room room = prefill_room_at(dims, scratch);
    memset(room.state, 0, key_dim * room.width * sizeof(float));
    for (size_t i = 0; i < key_dim; i++)
        memcpy(room.state + i * room.width, S + i * value_dim, value_dim * sizeof *S);
    for (int32_t i = 0; i < span->num_rows;) {
        int32_t to_edge = QEP_DELTA_CHUNK - (span->position + i) % QEP_DELTA_CHUNK;
        int32_t left = span->num_rows - i, num_rows = left < to_edge ? left : to_edge;
        prefill_chunk(job, (size_t)(span->row0 + i), num_rows, head, &room);
        i += num_rows;
    }
    for (size_t i = 0; i < key_dim; i++)
        memcpy(S + i * value_dim, room.state + i * room.width, value_dim * sizeof *S);
}

static void delta_units(void *arg, int thread_idx, int num_threads) {
    const struct delta_job *job = arg;
    size_t heads = (size_t)job->dims->num_value_heads;
    size_t head_floats = (size_t)job->dims->key_head_dim * (size_t)job->dims->value_head_dim;
    float *scratch = job->scratch + (size_t)thread_idx * job->thread_floats;
    for (size_t u = (size_t)thread_idx; u < heads * (size_t)job->batch->num_spans;
         u += (size_t)num_threads) {
        const struct qep_span *span = &job->batch->spans[u / heads];
        size_t head = u % heads;
        float *S = job->state + ((size_t)span->slot * heads + head) * head_floats;
        if (!span->decode)
            prefill_span(job, span, head, S, scratch);
        else
            for (int32_t i = 0; i < span->num_rows; i++)
                decode_step(job, (size_t)(span->row0 + i), head, S, scratch);
    }
}

enum qep_status CPU(delta)(struct qep_backend *be, const struct qep_delta_dims *dims,
                           const struct qep_batch *batch, float *out, const float *qkv,
                           const float *a, const float *b, const float *A_log, const float *dt_bias,
                           float *state) {
    struct cpu_arena arena;
    struct delta_job job = {dims, batch, out, qkv, a, b, A_log, dt_bias, state, NULL, 0};
    size_t decode_floats = 2 * (size_t)dims->key_head_dim + 2 * (size_t)dims->value_head_dim;
    size_t floats = prefill_floats(dims), threads = (size_t)cpu_num_threads(be);
    assert(dims->num_value_heads % dims->num_key_heads == 0);
    floats = floats > decode_floats ? floats : decode_floats;
    job.thread_floats = cpu_padded(floats * sizeof(float)) / sizeof(float);
    QEP_TRY(cpu_arena_init(be, &arena, threads * job.thread_floats * sizeof(float)));
    job.scratch = cpu_arena_take(&arena, threads * job.thread_floats * sizeof(float));
    size_t head_work = (size_t)dims->key_head_dim * (size_t)dims->value_head_dim / 4;
    cpu_run(be, (size_t)batch->num_rows * (size_t)dims->num_value_heads * head_work, delta_units,
            &job);
    return QEP_OK;
}

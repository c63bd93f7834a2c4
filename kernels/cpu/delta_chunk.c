/* The delta rule over one chunk of C <= 64 rows of one head, in the UT form. With the log decays g,
 *
 *   D_ij = exp(g_{j+1} + ... + g_i) for i >= j, e_i = exp(g_0 + ... + g_i)
 *   A    = strictly lower part of beta_i (k_i . k_j) D_ij
 *   (I + A) N = beta (V - e K S)          solved by forward substitution
 *   O    = e Q S + lower part of ((Q K^T) D) N
 *   S    = e_{C-1} S + (D_{C-1,j} k_j)^T N
 *
 * Sums of g run from j + 1 rather than being differences of one long cumulative sum: after a strong
 * decay such a difference has no digits left. Only exp of sums of decays is taken, never of their
 * negatives. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/tile.h"
#include "kernels/mathfn.h"

enum { C = QEP_DELTA_CHUNK };

struct chunk_room {
    size_t width;          /* value_dim padded to 16 */
    float *k_t;            /* [key_dim][C] */
    float *kk, *qk;        /* [C][C]: k . k and q . k, then A and the lower part with decays */
    float *decay;          /* [C][C]: D */
    float *from_start;     /* [C]: e */
    float *news, *carried; /* [C][width]: N; Q S */
};

size_t CPU(delta_chunk_scratch)(int32_t key_dim, int32_t value_dim) {
    size_t width = ((size_t)value_dim + 15) / 16 * 16;
    return (size_t)key_dim * C + 3 * C * C + C + 2 * C * width;
}

static struct chunk_room room_at(const struct cpu_delta_chunk *chunk) {
    struct chunk_room room;
    room.width = ((size_t)chunk->value_dim + 15) / 16 * 16;
    room.k_t = chunk->scratch;
    room.kk = room.k_t + (size_t)chunk->key_dim * C;
    room.qk = room.kk + C * C;
    room.decay = room.qk + C * C;
    room.from_start = room.decay + C * C;
    room.news = room.from_start + C;
    room.carried = room.news + C * room.width;
    return room;
}

/* D, upper part 0, and e. Columns from num_rows on are 0 too. */
static void fill_decays(const struct cpu_delta_chunk *chunk, const struct chunk_room *room) {
    float sums[C] = {0}, since_start = 0.0f;
    for (int32_t i = 0; i < chunk->num_rows; i++) {
        float *row = room->decay + i * C;
        since_start += chunk->g[i];
        room->from_start[i] = qep_expf(since_start);
        for (int32_t j = 0; j < i; j++)
            sums[j] += chunk->g[i];
        for (int32_t j = 0; j < C; j++)
            row[j] = qep_expf(sums[j]);
        for (int32_t j = i; j < C; j++)
            row[j] = j == i ? 1.0f : 0.0f;
    }
}

static void transpose_keys(const struct cpu_delta_chunk *chunk, const struct chunk_room *room) {
    for (int32_t d = 0; d < chunk->key_dim; d++)
        for (int32_t i = 0; i < C; i++)
            room->k_t[d * C + i] = i < chunk->num_rows ? chunk->k[i * chunk->key_dim + d] : 0.0f;
}

/* kk becomes A, qk its lower part with decays. */
static void apply_decays(const struct cpu_delta_chunk *chunk, const struct chunk_room *room) {
    for (int32_t i = 0; i < chunk->num_rows; i++) {
        const float *decay = room->decay + i * C;
        float *a = room->kk + i * C, *lower = room->qk + i * C;
        for (int32_t j = 0; j < C; j++) {
            a[j] = chunk->beta[i] * a[j] * decay[j];
            lower[j] = lower[j] * decay[j];
        }
    }
}

/* news holds K S; makes it beta (V - e K S), then solves row by row. */
static void solve_news(const struct cpu_delta_chunk *chunk, const struct chunk_room *room) {
    size_t width = room->width, value_dim = (size_t)chunk->value_dim;
    for (size_t i = 0; i < (size_t)chunk->num_rows; i++) {
        float *restrict row = room->news + i * width;
        const float *v = chunk->v + i * chunk->v_stride, *a = room->kk + i * C;
        for (size_t c = 0; c < value_dim; c++)
            row[c] = chunk->beta[i] * (v[c] - room->from_start[i] * row[c]);
        for (size_t j = 0; j < i; j++) {
            const float *restrict earlier = room->news + j * width;
            for (size_t c = 0; c < width; c++)
                row[c] -= a[j] * earlier[c];
        }
    }
}

/* carried holds Q S; out = e Q S + lower N. */
static void write_out(const struct cpu_delta_chunk *chunk, const struct chunk_room *room) {
    size_t width = room->width, value_dim = (size_t)chunk->value_dim;
    for (size_t i = 0; i < (size_t)chunk->num_rows; i++) {
        float *row = room->carried + i * width;
        for (size_t c = 0; c < width; c++)
            row[c] *= room->from_start[i];
        /* Only up to i: the bits of a row do not depend on later ones. */
        small_gemm(row, width, room->qk + i * C, C, room->news, width, 1, (int32_t)width,
                   (int32_t)i + 1, true);
        memcpy(chunk->out + i * chunk->out_stride, row, value_dim * sizeof *row);
    }
}

static void update_state(const struct cpu_delta_chunk *chunk, const struct chunk_room *room) {
    size_t width = room->width, last = (size_t)chunk->num_rows - 1;
    float whole = room->from_start[last];
    const float *to_end = room->decay + last * C;
    for (size_t d = 0; d < (size_t)chunk->key_dim; d++) {
        float *keys = room->k_t + d * C, *row = chunk->state + d * width;
        for (size_t j = 0; j < C; j++)
            keys[j] *= to_end[j];
        for (size_t c = 0; c < width; c++)
            row[c] *= whole;
    }
    small_gemm(chunk->state, width, room->k_t, C, room->news, width, chunk->key_dim, (int32_t)width,
               chunk->num_rows, true);
}

void CPU(delta_chunk)(const struct cpu_delta_chunk *chunk) {
    struct chunk_room room = room_at(chunk);
    size_t key_dim = (size_t)chunk->key_dim, width = room.width;
    int32_t rows = chunk->num_rows, wide = (int32_t)width;
    fill_decays(chunk, &room);
    transpose_keys(chunk, &room);
    small_gemm(room.kk, C, chunk->k, key_dim, room.k_t, C, rows, C, chunk->key_dim, false);
    small_gemm(room.qk, C, chunk->q, key_dim, room.k_t, C, rows, C, chunk->key_dim, false);
    apply_decays(chunk, &room);
    small_gemm(room.news, width, chunk->k, key_dim, chunk->state, width, rows, wide, chunk->key_dim,
               0);
    small_gemm(room.carried, width, chunk->q, key_dim, chunk->state, width, rows, wide,
               chunk->key_dim, false);
    solve_news(chunk, &room);
    write_out(chunk, &room);
    update_state(chunk, &room);
}

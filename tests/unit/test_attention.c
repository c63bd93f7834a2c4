/* Full attention: all backends against a float64 form, over KV types, positions around block edges,
 * head counts and slots; equal bits over levels, threads, neighbours, decode and prefill. RoPE
 * against double. */
#include "kernels_support.h"

#include "kernels/rope.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct variant variants[MAX_VARIANTS];
static int num_variants;

static void setup(void) {
    num_variants = open_variants(variants);
}

static void teardown(void) {
    close_variants(variants, num_variants);
}

enum { NUM_SLOTS = 3, MAX_BLOCKS = 4 };

static const struct qep_attention_dims dims_list[] = {
    {2, 1, 16, 8, 1e4f, 1e-6f, QEP_KV_F32, MAX_BLOCKS},
    {6, 2, 20, 4, 1e7f, 1e-6f, QEP_KV_F32, MAX_BLOCKS},
    {9, 1, 32, 32, 1e7f, 1e-6f, QEP_KV_F32, MAX_BLOCKS},
    {16, 2, 64, 16, 1e7f, 1e-6f, QEP_KV_F32, MAX_BLOCKS}};

enum { NUM_DIMS = sizeof dims_list / sizeof dims_list[0] };

struct inputs {
    int32_t n;
    float *qg, *k, *v, *q_norm, *k_norm;
};

static struct inputs make_inputs(struct rng *rng, const struct qep_attention_dims *d, int32_t n) {
    size_t rows = (size_t)n, head_dim = (size_t)d->head_dim;
    return (struct inputs){n,
                           random_floats(rng, rows * (size_t)d->num_heads * 2 * head_dim, 2.0f),
                           random_floats(rng, rows * (size_t)d->num_kv_heads * head_dim, 1.0f),
                           random_floats(rng, rows * (size_t)d->num_kv_heads * head_dim, 1.0f),
                           random_floats(rng, head_dim, 1.5f),
                           random_floats(rng, head_dim, 1.5f)};
}

static void free_inputs(struct inputs *in) {
    free(in->qg);
    free(in->k);
    free(in->v);
    free(in->q_norm);
    free(in->k_norm);
}

static void norm_rope_double(const struct qep_attention_dims *d, const float *x, const float *w,
                             int32_t position, double *out) {
    double sum = 0.0;
    int32_t n = d->head_dim, pairs = d->rotary_dim / 2;
    for (int32_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    for (int32_t i = 0; i < n; i++)
        out[i] = (double)x[i] / sqrt(sum / n + (double)d->eps) * (double)w[i];
    for (int32_t j = 0; j < pairs; j++) {
        double freq = (double)(float)pow((double)d->rope_theta, -2.0 * j / d->rotary_dim);
        double a = out[j], b = out[j + pairs], angle = freq * position;
        out[j] = a * cos(angle) - b * sin(angle);
        out[j + pairs] = b * cos(angle) + a * sin(angle);
    }
}

/* What a KV type makes of a vector. */
static void round_kv(enum qep_kv_type type, double *x, int32_t n) {
    double absmax = 0.0;
    for (int32_t i = 0; i < n; i++)
        absmax = fmax(absmax, fabs(x[i]));
    for (int32_t i = 0; i < n; i++)
        if (type == QEP_KV_BF16)
            x[i] = (double)qep_bf16_to_f32(qep_f32_to_bf16((float)x[i]));
        else if (type == QEP_KV_INT8)
            x[i] = rint(x[i] / (absmax / 127.0)) * (absmax / 127.0);
}

/* One sequence from position 0, in float64. */
static void attention_double(const struct qep_attention_dims *d, const struct inputs *in,
                             float *out) {
    size_t head_dim = (size_t)d->head_dim, kv_heads = (size_t)d->num_kv_heads;
    size_t kv_len = (size_t)in->n * kv_heads * head_dim;
    double *k = must_alloc(kv_len * sizeof *k), *v = must_alloc(kv_len * sizeof *v);
    double q[64], *p = must_alloc((size_t)in->n * sizeof *p);
    for (size_t i = 0; i < (size_t)in->n * kv_heads; i++) {
        norm_rope_double(d, in->k + i * head_dim, in->k_norm, (int32_t)(i / kv_heads),
                         k + i * head_dim);
        for (size_t c = 0; c < head_dim; c++)
            v[i * head_dim + c] = (double)in->v[i * head_dim + c];
        round_kv(d->kv_type, k + i * head_dim, d->head_dim);
        round_kv(d->kv_type, v + i * head_dim, d->head_dim);
    }
    for (size_t t = 0; t < (size_t)in->n; t++)
        for (size_t h = 0; h < (size_t)d->num_heads; h++) {
            size_t at = (t * (size_t)d->num_heads + h) * head_dim;
            size_t kv_head = h / ((size_t)d->num_heads / kv_heads);
            double sum = 0.0, max = -INFINITY;
            norm_rope_double(d, in->qg + 2 * at, in->q_norm, (int32_t)t, q);
            for (size_t s = 0; s <= t; s++) {
                p[s] = 0.0;
                for (size_t c = 0; c < head_dim; c++)
                    p[s] += q[c] * k[(s * kv_heads + kv_head) * head_dim + c];
                p[s] /= sqrt((double)head_dim);
                max = fmax(max, p[s]);
            }
            for (size_t s = 0; s <= t; s++)
                sum += p[s] = exp(p[s] - max);
            for (size_t c = 0; c < head_dim; c++) {
                double y = 0.0, gate = (double)in->qg[2 * at + head_dim + c];
                for (size_t s = 0; s <= t; s++)
                    y += p[s] / sum * v[(s * kv_heads + kv_head) * head_dim + c];
                out[at + c] = (float)(y / (1.0 + exp(-gate)));
            }
        }
    free(k);
    free(v);
    free(p);
}

/* A cache of NUM_SLOTS slots whose blocks lie out of order. */
struct cache {
    char *memory;
    size_t bytes;
    void *blocks[NUM_SLOTS * MAX_BLOCKS];
};

static void cache_init(struct cache *cache, const struct qep_attention_dims *d) {
    size_t block = qep_kv_block_bytes(d->kv_type, d->num_kv_heads, d->head_dim);
    cache->bytes = NUM_SLOTS * MAX_BLOCKS * block;
    cache->memory = must_alloc(cache->bytes);
    for (size_t i = 0; i < NUM_SLOTS * MAX_BLOCKS; i++)
        cache->blocks[i] = cache->memory + i * 7 % (NUM_SLOTS * MAX_BLOCKS) * block;
}

static void run_spans(struct qep_backend *be, const struct qep_attention_dims *d,
                      const struct inputs *in, const struct qep_batch *batch, size_t first_row,
                      const struct cache *cache, float *out) {
    size_t q_row = (size_t)(d->num_heads * d->head_dim),
           kv_row = (size_t)(d->num_kv_heads * d->head_dim);
    ck_assert_int_eq(be->ops->attention_kv(be, d, batch, in->k + first_row * kv_row,
                                           in->v + first_row * kv_row, in->k_norm, cache->blocks),
                     QEP_OK);
    size_t stride = qep_act_row_bytes(QEP_ACT_BF16, (int32_t)q_row);
    size_t bytes = (size_t)batch->num_rows * stride;
    char *act = must_alloc(bytes), *want = must_alloc(bytes);
    struct qep_rows_out rows = {out + first_row * q_row, act, stride, QEP_ACT_BF16};
    ck_assert_int_eq(be->ops->attention(be, d, batch, rows, in->qg + first_row * 2 * q_row,
                                        in->q_norm, cache->blocks),
                     QEP_OK);
    be->ops->act_convert(be, want, stride, QEP_ACT_BF16, rows.f32, batch->num_rows, (int32_t)q_row);
    assert_same_bits(act, want, bytes, "activation rows");
    free(act);
    free(want);
}

/* A sequence in `slot` as prefill spans of `span` rows, or row by row as decode (span 1). */
static void run_sequence(struct qep_backend *be, const struct qep_attention_dims *d,
                         const struct inputs *in, int32_t slot, int32_t span,
                         const struct cache *cache, float *out) {
    for (int32_t i = 0; i < in->n; i += span) {
        int32_t rows = in->n - i < span ? in->n - i : span;
        struct qep_span s = {0, rows, slot, i, span == 1};
        struct qep_batch batch = qep_batch_of(rows, 1, &s, NULL);
        run_spans(be, d, in, &batch, (size_t)i, cache, out);
    }
}

START_TEST(attention_agrees) {
    static const int32_t lengths[] = {1, 2, 63, 64, 65, 131}, spans[] = {256, 64, 128, 1};
    struct qep_attention_dims d = dims_list[_i / 3];
    struct rng rng = {(uint64_t)_i + 11};
    d.kv_type = (enum qep_kv_type)(_i % 3);
    for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++) {
        struct inputs in = make_inputs(&rng, &d, lengths[l]);
        size_t outs = (size_t)(in.n * d.num_heads * d.head_dim);
        float *want = must_alloc(outs * 4), *got = must_alloc(outs * 4);
        float *first = must_alloc(outs * 4);
        struct cache cache, first_cache;
        cache_init(&cache, &d);
        cache_init(&first_cache, &d);
        attention_double(&d, &in, want);
        for (int v = 0; v < num_variants; v++)
            for (int s = 0; s < 4; s++) {
                char what[128];
                snprintf(what, sizeof what, "%.31s kv %d, %d rows by %d", variants[v].name,
                         (int)d.kv_type, in.n, spans[s]);
                memset(cache.memory, 0, cache.bytes);
                run_sequence(variants[v].be, &d, &in, 1, spans[s], &cache, got);
                /* A rounding edge may fall the other way in fp32: one step of the KV type. */
                assert_close(got, want, outs,
                             d.kv_type == QEP_KV_F32    ? 1e-5
                             : d.kv_type == QEP_KV_BF16 ? 4e-3
                                                        : 1e-2,
                             what);
                if (v == 1 && s == 0) {
                    memcpy(first, got, outs * 4);
                    memcpy(first_cache.memory, cache.memory, cache.bytes);
                } else if (v > 0) {
                    assert_same_bits(got, first, outs * 4, what);
                    assert_same_bits(cache.memory, first_cache.memory, cache.bytes, what);
                }
            }
        free(cache.memory);
        free(first_cache.memory);
        free(want);
        free(got);
        free(first);
        free_inputs(&in);
    }
}
END_TEST

/* Slot 2 is used, then reused by a shorter sequence; its prefill, its decode and other slots' rows
 * share batches. Everything equals the sequence alone in a fresh cache. */
START_TEST(attention_slots_are_reused_and_do_not_meet) {
    struct qep_attention_dims d = dims_list[_i / 3];
    struct rng rng = {(uint64_t)_i + 300};
    d.kv_type = (enum qep_kv_type)(_i % 3);
    enum { OLD = 150, ROWS = 70 };
    struct inputs old = make_inputs(&rng, &d, OLD), in = make_inputs(&rng, &d, ROWS);
    struct inputs both = make_inputs(&rng, &d, 1 + ROWS);
    size_t q_row = (size_t)(d.num_heads * d.head_dim);
    size_t kv_row = (size_t)(d.num_kv_heads * d.head_dim);
    float *scrap = must_alloc(OLD * q_row * 4), *alone = must_alloc(ROWS * q_row * 4);
    float *got = must_alloc((1 + ROWS) * q_row * 4);
    memcpy(both.qg + 2 * q_row, in.qg, ROWS * 2 * q_row * 4);
    memcpy(both.k + kv_row, in.k, ROWS * kv_row * 4);
    memcpy(both.v + kv_row, in.v, ROWS * kv_row * 4);
    memcpy(in.q_norm, both.q_norm, (size_t)d.head_dim * 4);
    memcpy(in.k_norm, both.k_norm, (size_t)d.head_dim * 4);
    for (int v = 0; v < num_variants; v++) {
        struct cache cache, fresh;
        const struct qep_span spans[] = {{0, 1, 0, OLD, 1}, {1, ROWS, 2, 0, 0}};
        const struct qep_batch batch = qep_batch_of(1 + ROWS, 2, spans, NULL);
        cache_init(&cache, &d);
        cache_init(&fresh, &d);
        run_sequence(variants[v].be, &d, &in, 0, 64, &fresh, alone);
        run_sequence(variants[v].be, &d, &old, 2, 64, &cache, scrap);
        run_sequence(variants[v].be, &d, &old, 0, 64, &cache, scrap);
        run_spans(variants[v].be, &d, &both, &batch, 0, &cache, got);
        assert_same_bits(got + q_row, alone, ROWS * q_row * 4, variants[v].name);
        free(cache.memory);
        free(fresh.memory);
    }
    free(scrap);
    free(alone);
    free(got);
    free_inputs(&old);
    free_inputs(&in);
    free_inputs(&both);
}
END_TEST

START_TEST(rope_angles_are_exact_far_out) {
    static const int32_t positions[] = {0, 1, 4095, 262143, (1 << 20) - 1, 1 << 20};
    float freq[32], cosines[32], sines[32];
    qep_rope_frequencies(1e7f, 64, freq);
    for (size_t i = 0; i < sizeof positions / sizeof positions[0]; i++) {
        qep_rope_angles(freq, 32, positions[i], cosines, sines);
        for (int j = 0; j < 32; j++) {
            long double angle = (long double)freq[j] * positions[i];
            ck_assert_double_le(fabs((double)freq[j] / pow(1e7, -2.0 * j / 64) - 1.0), 1e-7);
            ck_assert_double_le(fabs((double)cosines[j] - (double)cosl(angle)), 6e-8);
            ck_assert_double_le(fabs((double)sines[j] - (double)sinl(angle)), 6e-8);
        }
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("attention");
    TCase *tc = tcase_create("attention");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, attention_agrees, 0, 3 * NUM_DIMS);
    tcase_add_loop_test(tc, attention_slots_are_reused_and_do_not_meet, 0, 3 * NUM_DIMS);
    tcase_add_test(tc, rope_angles_are_exact_far_out);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

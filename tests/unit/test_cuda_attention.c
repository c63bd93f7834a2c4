/* CUDA attention against the reference backend, over KV types, head dims, group sizes, positions
 * around the edges of blocks, pieces and splits; equal bits for any chunking of a prompt, any
 * company of a row and any bound on the lengths; padding rows. */
#include "device_support.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct qep_backend *cuda, *ref;

static void setup(void) {
    cuda = open_cuda();
    ref = open_reference();
}

static void teardown(void) {
    close_cuda(cuda);
    ref->ops->destroy(ref);
}

enum { NUM_SLOTS = 3 };

/* heads, kv heads, head_dim, rotary_dim, theta, eps, kv type, max_blocks */
static const struct qep_attention_dims dims_list[] = {
    {2, 2, 16, 8, 1e4f, 1e-6f, QEP_KV_F32, 6},   {6, 2, 20, 4, 1e7f, 1e-6f, QEP_KV_F32, 6},
    {4, 2, 32, 32, 1e7f, 1e-6f, QEP_KV_F32, 6},  {16, 2, 64, 16, 1e7f, 1e-6f, QEP_KV_F32, 6},
    {8, 1, 256, 64, 1e7f, 1e-6f, QEP_KV_F32, 6}, {18, 1, 40, 40, 1e7f, 1e-6f, QEP_KV_F32, 6},
    {2, 1, 128, 64, 1e7f, 1e-6f, QEP_KV_F32, 6}, {3, 1, 7, 6, 1e4f, 1e-6f, QEP_KV_F32, 6},
    {1, 1, 200, 0, 1e4f, 1e-6f, QEP_KV_F32, 6}};

enum { NUM_DIMS = sizeof dims_list / sizeof dims_list[0] };

/* Relative to the largest output: bf16 queries, keys, weights and values. */
static const double tolerance = 1.5e-2;

static struct qep_attention_dims dims_of(int i) {
    struct qep_attention_dims d = dims_list[i / 3];
    d.kv_type = (enum qep_kv_type)(i % 3);
    return d;
}

static size_t q_len(const struct qep_attention_dims *d) {
    return (size_t)(d->num_heads * d->head_dim);
}

static size_t kv_len(const struct qep_attention_dims *d) {
    return (size_t)(d->num_kv_heads * d->head_dim);
}

/* The same rows for both backends; index 0 host, 1 device. */
struct inputs {
    int32_t n;
    float *qg[2], *k[2], *v[2], *q_norm[2], *k_norm[2];
};

static void both(struct rng *rng, float *(*pair), size_t count, float scale) {
    pair[0] = random_floats(rng, count, scale);
    pair[1] = dev_put(cuda, pair[0], count * 4);
}

static void free_both(float **pair) {
    free(pair[0]);
    cuda->ops->free(cuda, pair[1]);
}

static struct inputs make_inputs(struct rng *rng, const struct qep_attention_dims *d, int32_t n) {
    struct inputs in = {.n = n};
    both(rng, in.qg, (size_t)n * 2 * q_len(d), 2.0f);
    both(rng, in.k, (size_t)n * kv_len(d), 1.0f);
    both(rng, in.v, (size_t)n * kv_len(d), 1.0f);
    both(rng, in.q_norm, (size_t)d->head_dim, 1.0f);
    both(rng, in.k_norm, (size_t)d->head_dim, 1.0f);
    return in;
}

static void free_inputs(struct inputs *in) {
    free_both(in->qg);
    free_both(in->k);
    free_both(in->v);
    free_both(in->q_norm);
    free_both(in->k_norm);
}

/* Slots whose blocks lie out of order, on the host and on the device. */
struct cache {
    size_t block, num_blocks;
    char *host, *dev;
    void **host_table, **dev_table;
};

static struct cache make_cache(const struct qep_attention_dims *d) {
    struct cache c = {.block = qep_kv_block_bytes(d->kv_type, d->num_kv_heads, d->head_dim),
                      .num_blocks = (size_t)(NUM_SLOTS * d->max_blocks)};
    c.host = must_alloc(c.num_blocks * c.block);
    c.dev = dev_put(cuda, NULL, c.num_blocks * c.block);
    c.host_table = must_alloc(c.num_blocks * sizeof(void *));
    void **table = must_alloc(c.num_blocks * sizeof(void *));
    for (size_t i = 0; i < c.num_blocks; i++) {
        size_t at = i * 7 % c.num_blocks * c.block;
        c.host_table[i] = c.host + at;
        table[i] = c.dev + at;
    }
    c.dev_table = dev_put(cuda, table, c.num_blocks * sizeof(void *));
    free(table);
    return c;
}

static void free_cache(struct cache *c) {
    cuda->ops->free(cuda, c->dev);
    cuda->ops->free(cuda, c->dev_table);
    free(c->host);
    free(c->host_table);
}

/* Both ops on spans whose row 0 is `first_row` of the inputs; out: [rows][q_len] at that row. */
static void run_ref(const struct qep_attention_dims *d, const struct inputs *in,
                    const struct qep_span *spans, int32_t num_spans, size_t first_row,
                    const struct cache *cache, float *out) {
    struct qep_batch batch = {.num_spans = num_spans, .spans = spans};
    for (int32_t s = 0; s < num_spans; s++)
        batch.num_rows += spans[s].num_rows;
    ok(ref->ops->attention_kv(ref, d, &batch, in->k[0] + first_row * kv_len(d),
                              in->v[0] + first_row * kv_len(d), in->k_norm[0], cache->host_table));
    ok(ref->ops->attention(ref, d, &batch, qep_f32_rows(out + first_row * q_len(d)),
                           in->qg[0] + first_row * 2 * q_len(d), in->q_norm[0], cache->host_table));
}

/* Activation rows are those of act_convert on the f32 rows, with what lies between untouched. */
static void check_act(const float *rows, void *dev_act, size_t stride, int32_t n, int32_t cols) {
    size_t bytes = (size_t)n * stride;
    char *want = must_alloc(bytes), *got = must_alloc(bytes);
    memset(want, 0x55, bytes);
    ok(ref->ops->act_convert(ref, want, stride, QEP_ACT_BF16, rows, n, cols));
    dev_take(cuda, got, dev_act, bytes);
    assert_same_bits(got, want, bytes, "activation rows");
    free(want);
    free(got);
}

static void run_cuda(const struct qep_attention_dims *d, const struct inputs *in,
                     const struct qep_span *spans, int32_t num_spans, size_t first_row,
                     int32_t slack, const struct cache *cache, float *out) {
    struct qep_batch batch = dev_batch(cuda, spans, num_spans, slack);
    size_t bytes = (size_t)batch.num_rows * q_len(d) * 4;
    size_t stride = qep_act_row_bytes(QEP_ACT_BF16, (int32_t)q_len(d)) + 16;
    float *dev_out = dev_put(cuda, NULL, bytes);
    char *before = must_alloc((size_t)batch.num_rows * stride);
    memset(before, 0x55, (size_t)batch.num_rows * stride);
    void *dev_act = dev_put(cuda, before, (size_t)batch.num_rows * stride);
    free(before);
    struct qep_rows_out rows = {dev_out, dev_act, stride, QEP_ACT_BF16};
    ok(cuda->ops->attention_kv(cuda, d, &batch, in->k[1] + first_row * kv_len(d),
                               in->v[1] + first_row * kv_len(d), in->k_norm[1], cache->dev_table));
    ok(cuda->ops->attention(cuda, d, &batch, rows, in->qg[1] + first_row * 2 * q_len(d),
                            in->q_norm[1], cache->dev_table));
    dev_take(cuda, out + first_row * q_len(d), dev_out, bytes);
    check_act(out + first_row * q_len(d), dev_act, stride, batch.num_rows, (int32_t)q_len(d));
    dev_batch_free(cuda, &batch);
}

/* Rows [from, n) of a sequence as prefill spans of `span` rows, or one by one as decode (span 1).
 */
static void run_sequence(const struct qep_attention_dims *d, const struct inputs *in, int32_t from,
                         int32_t span, int32_t slot, const struct cache *cache, float *out) {
    for (int32_t i = from; i < in->n; i += span) {
        int32_t rows = in->n - i < span ? in->n - i : span;
        struct qep_span s = {0, rows, slot, i, span == 1};
        run_cuda(d, in, &s, 1, (size_t)i, 0, cache, out);
    }
}

static float element_of(const struct qep_attention_dims *d, const char *block, size_t idx) {
    size_t count = 2 * QEP_KV_BLOCK * kv_len(d);
    if (d->kv_type == QEP_KV_F32)
        return ((const float *)(const void *)block)[idx];
    if (d->kv_type == QEP_KV_BF16)
        return qep_bf16_to_f32(((const uint16_t *)(const void *)block)[idx]);
    return (float)((const int8_t *)block)[idx] *
           ((const float *)(const void *)(block + count))[idx / (size_t)d->head_dim];
}

/* What lies in the caches: V to the bit, K within a step of the type. */
static void check_caches(const struct qep_attention_dims *d, const struct cache *cache) {
    size_t half = QEP_KV_BLOCK * kv_len(d);
    char *got = must_alloc(cache->num_blocks * cache->block);
    dev_get(cuda, got, cache->dev, cache->num_blocks * cache->block);
    double step = d->kv_type == QEP_KV_F32 ? 1e-6 : d->kv_type == QEP_KV_BF16 ? 8e-3 : 2e-2;
    for (size_t b = 0; b < cache->num_blocks; b++)
        for (size_t i = 0; i < 2 * half; i++) {
            float x = element_of(d, got + b * cache->block, i);
            float y = element_of(d, cache->host + b * cache->block, i);
            if (!(fabs((double)x - (double)y) <= (i < half ? step * 4.0 : 0.0)))
                ck_abort_msg("block %zu element %zu is %g, expected %g", b, i, (double)x,
                             (double)y);
        }
    free(got);
}

START_TEST(prefill_agrees_however_it_is_cut) {
    static const int32_t lengths[] = {1, 63, 64, 65, 131}, spans[] = {256, 64, 128};
    struct qep_attention_dims d = dims_of(_i);
    struct rng rng = {(uint64_t)_i + 11};
    for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++) {
        if (d.head_dim > 64 && lengths[l] != 65 && lengths[l] != 131)
            continue;
        struct inputs in = make_inputs(&rng, &d, lengths[l]);
        size_t count = (size_t)in.n * q_len(&d);
        float *want = must_alloc(count * 4), *got = must_alloc(count * 4);
        float *first = must_alloc(count * 4);
        struct cache cache = make_cache(&d);
        struct qep_span whole = {0, in.n, 1, 0, 0};
        run_ref(&d, &in, &whole, 1, 0, &cache, want);
        for (int s = 0; s < 3; s++) {
            char what[64];
            if (s > 0 && in.n <= spans[s]) /* the same call again */
                continue;
            snprintf(what, sizeof what, "%d rows by %d", in.n, spans[s]);
            run_sequence(&d, &in, 0, spans[s], 1, &cache, s == 0 ? first : got);
            if (s == 0)
                assert_close(first, want, count, tolerance, what);
            else
                assert_same_bits(got, first, count * 4, what);
        }
        check_caches(&d, &cache);
        free_cache(&cache);
        free_inputs(&in);
        free(want);
        free(got);
        free(first);
    }
}
END_TEST

/* A prompt, then tokens one by one over the edges of blocks and splits. */
START_TEST(decode_agrees) {
    static const int32_t starts[] = {0, 61, 126, 253};
    struct qep_attention_dims d = dims_of(_i);
    struct rng rng = {(uint64_t)_i + 50};
    for (size_t l = 0; l < sizeof starts / sizeof starts[0]; l++) {
        if (d.head_dim > 64 && starts[l] % 64 == 62)
            continue;
        struct inputs in = make_inputs(&rng, &d, starts[l] + 5);
        size_t count = (size_t)in.n * q_len(&d), done = (size_t)starts[l] * q_len(&d);
        float *want = must_alloc(count * 4), *got = must_alloc(count * 4);
        struct cache cache = make_cache(&d);
        struct qep_span whole = {0, in.n, 2, 0, 0}, prompt = {0, starts[l], 2, 0, 0};
        run_ref(&d, &in, &whole, 1, 0, &cache, want);
        if (starts[l] > 0)
            run_cuda(&d, &in, &prompt, 1, 0, 0, &cache, got);
        run_sequence(&d, &in, starts[l], 1, 2, &cache, got);
        assert_close(got + done, want + done, count - done, tolerance, "decode");
        free_cache(&cache);
        free_inputs(&in);
        free(want);
        free(got);
    }
}
END_TEST

/* Both caches get the same content, so that long rows cost little. */
static void fill_cache(struct rng *rng, const struct qep_attention_dims *d, struct cache *cache) {
    size_t count = 2 * QEP_KV_BLOCK * kv_len(d), heads = count / (size_t)d->head_dim;
    for (size_t b = 0; b < cache->num_blocks; b++) {
        char *block = cache->host + b * cache->block;
        for (size_t i = 0; i < count; i++)
            if (d->kv_type == QEP_KV_F32)
                ((float *)(void *)block)[i] = rng_normal(rng);
            else if (d->kv_type == QEP_KV_BF16)
                ((uint16_t *)(void *)block)[i] = qep_f32_to_bf16(rng_normal(rng));
            else
                ((int8_t *)block)[i] = (int8_t)(rng_below(rng, 255) - 127);
        for (size_t i = 0; d->kv_type == QEP_KV_INT8 && i < heads; i++)
            ((float *)(void *)(block + count))[i] = 0.01f + 0.001f * (float)rng_below(rng, 10);
    }
    ok(cuda->ops->upload(cuda, cache->dev, cache->host, cache->num_blocks * cache->block));
}

static const int32_t long_positions[] = {255,   256,   257,   511,   512,   767,   1000, 8191,
                                         16383, 16384, 16639, 16640, 20000, 32767, 33000};

enum { NUM_LONG = sizeof long_positions / sizeof long_positions[0] };

/* Around the points where a row gets another split, or splits get another piece. */
START_TEST(decode_agrees_at_split_boundaries) {
    struct qep_attention_dims d = {3, 1, 16, 8, 1e7f, 1e-6f, (enum qep_kv_type)(_i % 3), 0};
    struct rng rng = {(uint64_t)_i + 90};
    int32_t position = long_positions[_i / 3];
    d.max_blocks = position / QEP_KV_BLOCK + 1;
    struct inputs in = make_inputs(&rng, &d, 1);
    struct cache cache = make_cache(&d);
    struct qep_span span = {0, 1, 1, position, 1};
    float *want = must_alloc(q_len(&d) * 4), *got = must_alloc(q_len(&d) * 4);
    float *again = must_alloc(q_len(&d) * 4);
    fill_cache(&rng, &d, &cache);
    run_ref(&d, &in, &span, 1, 0, &cache, want);
    run_cuda(&d, &in, &span, 1, 0, 0, &cache, got);
    assert_close(got, want, q_len(&d), tolerance, "decode");
    run_cuda(&d, &in, &span, 1, 0, 5000, &cache, again); /* the bound has no say in the bits */
    assert_same_bits(again, got, q_len(&d) * 4, "again");
    free_cache(&cache);
    free_inputs(&in);
    free(want);
    free(got);
    free(again);
}
END_TEST

/* Rows of all lengths and padding rows in one batch against each row alone; twice, because the
 * counters of the splits must be as they were. */
START_TEST(decode_rows_do_not_meet) {
    struct qep_attention_dims d = {8, 2, 32, 16, 1e7f, 1e-6f, (enum qep_kv_type)_i, 12};
    struct rng rng = {(uint64_t)_i + 300};
    enum { ROWS = 7 };
    const struct qep_span spans[ROWS] = {{0, 1, 0, 700, 1}, {1, 1, -1, 0, 1},  {2, 1, 2, 3, 1},
                                         {3, 1, -1, 64, 1}, {4, 1, 1, 511, 1}, {5, 1, -1, 700, 1},
                                         {6, 1, -1, 300, 1}};
    struct inputs in = make_inputs(&rng, &d, ROWS);
    struct cache cache = make_cache(&d);
    size_t row = q_len(&d), bytes = cache.num_blocks * cache.block;
    float *alone = must_alloc(ROWS * row * 4), *got = must_alloc(ROWS * row * 4);
    char *after_alone = must_alloc(bytes), *after = must_alloc(bytes);
    fill_cache(&rng, &d, &cache);
    for (int32_t r = 0; r < ROWS; r++) {
        struct qep_span one = spans[r];
        one.row0 = 0;
        run_cuda(&d, &in, &one, 1, (size_t)r, 0, &cache, alone);
        for (size_t i = 0; one.slot < 0 && i < row; i++)
            ck_assert(alone[(size_t)r * row + i] == 0.0f);
    }
    dev_get(cuda, after_alone, cache.dev, bytes);
    for (int time = 0; time < 2; time++) {
        ok(cuda->ops->upload(cuda, cache.dev, cache.host, bytes));
        memset(got, 0x55, ROWS * row * 4);
        run_cuda(&d, &in, spans, ROWS, 0, 0, &cache, got);
        assert_same_bits(got, alone, ROWS * row * 4, "rows together");
        dev_get(cuda, after, cache.dev, bytes);
        assert_same_bits(after, after_alone, bytes, "caches");
    }
    free_cache(&cache);
    free_inputs(&in);
    free(alone);
    free(got);
    free(after);
    free(after_alone);
}
END_TEST

/* Two prompts in one batch, one of them continued, in a slot that was used before. */
START_TEST(prefill_spans_do_not_meet) {
    struct qep_attention_dims d = dims_of(_i);
    struct rng rng = {(uint64_t)_i + 500};
    enum { A = 70, B = 64 + 21 };
    d.max_blocks = 3;
    struct inputs in = make_inputs(&rng, &d, A + B);
    const struct qep_span spans[] = {{0, A, 2, 0, 0}, {A, B - 64, 0, 64, 0}};
    struct cache cache = make_cache(&d), fresh = make_cache(&d);
    size_t row = q_len(&d);
    float *alone = must_alloc((A + B) * row * 4), *got = must_alloc((A + B) * row * 4);
    struct qep_span one = {0, A, 2, 0, 0}, head = {0, 64, 0, 0, 0}, tail = {0, B - 64, 0, 64, 0};
    run_cuda(&d, &in, &one, 1, 0, 0, &fresh, alone);
    run_cuda(&d, &in, &head, 1, 0, 0, &fresh, got); /* any 64 rows */
    run_cuda(&d, &in, &tail, 1, A, 0, &fresh, alone);
    fill_cache(&rng, &d, &cache); /* what earlier sequences left */
    run_cuda(&d, &in, &head, 1, 0, 0, &cache, got);
    run_cuda(&d, &in, spans, 2, 0, 1000, &cache, got);
    assert_same_bits(got, alone, (A + B - 64) * row * 4, "spans together");
    free_cache(&cache);
    free_cache(&fresh);
    free_inputs(&in);
    free(alone);
    free(got);
}
END_TEST

/* Far out, angles must still be exact: a query that meets its own key scores |q||k|, whatever the
 * position, if both were turned alike, and K in the cache is what the reference writes. */
START_TEST(rope_is_exact_far_out) {
    static const int32_t positions[] = {4095, 99999, 262143};
    struct qep_attention_dims d = {1, 1, 64, 64, 1e7f, 1e-6f, QEP_KV_F32, 0};
    struct rng rng = {7};
    for (size_t p = 0; p < 3; p++) {
        d.max_blocks = positions[p] / QEP_KV_BLOCK + 1;
        struct inputs in = make_inputs(&rng, &d, 1);
        size_t block = qep_kv_block_bytes(d.kv_type, 1, 64), last = (size_t)d.max_blocks - 1;
        char *host = must_alloc(block), *got = must_alloc(block);
        char *dev = dev_put(cuda, NULL, block);
        void **table = must_alloc((last + 1) * sizeof(void *));
        struct qep_span span = {0, 1, 0, positions[p], 1};
        struct qep_batch batch = dev_batch(cuda, &span, 1, 0);
        table[last] = host;
        ok(ref->ops->attention_kv(ref, &d, &batch, in.k[0], in.v[0], in.k_norm[0], table));
        table[last] = dev;
        void **dev_table = dev_put(cuda, table, (last + 1) * sizeof(void *));
        ok(cuda->ops->attention_kv(cuda, &d, &batch, in.k[1], in.v[1], in.k_norm[1], dev_table));
        dev_take(cuda, got, dev, block);
        assert_close((const float *)(const void *)got, (const float *)(const void *)host, block / 4,
                     1e-6, "K and V");
        cuda->ops->free(cuda, dev_table);
        dev_batch_free(cuda, &batch);
        free_inputs(&in);
        free(table);
        free(host);
        free(got);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda attention");
    TCase *tc = device_case(suite, "short", 300); /* what tests/seeded_defects.sh runs */
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, prefill_agrees_however_it_is_cut, 0, 3);
    tcase_add_loop_test(tc, decode_agrees, 0, 3);
    tcase_add_loop_test(tc, decode_agrees, 21, 22); /* rows with padding */
    tcase_add_loop_test(tc, decode_rows_do_not_meet, 0, 3);
    tc = device_case(suite, "long", 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, prefill_agrees_however_it_is_cut, 3, 3 * NUM_DIMS);
    tcase_add_loop_test(tc, decode_agrees, 3, 21);
    tcase_add_loop_test(tc, decode_agrees, 22, 3 * NUM_DIMS);
    tcase_add_loop_test(tc, decode_agrees_at_split_boundaries, 0, 3 * NUM_LONG);
    tcase_add_loop_test(tc, prefill_spans_do_not_meet, 0, 3 * NUM_DIMS);
    tcase_add_test(tc, rope_is_exact_far_out);
    return run_device_suite(suite);
}

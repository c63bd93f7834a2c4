/* Numbers that are not finite stay so through every op of the CUDA backend: the battery of all
 * backends; then what only this one has: experts spread over lanes, splits of a long row, padding
 * rows, sampling. (The decode step of DeltaNet in one op: test_cuda_delta_decode.) */
#include "nonfinite_support.h"

#include <math.h>
#include <string.h>

static struct qep_backend *cuda;
static struct nf_backends backends;

static void setup(void) {
    cuda = open_cuda();
    backends = (struct nf_backends){.num = 1,
                                    .be = {cuda},
                                    .name = {"cuda"},
                                    .tolerance = 1e-5,
                                    .acts = 7,
                                    .kvs = 7,
                                    .expert_acts = 1u << QEP_ACT_BF16,
                                    .tiles = true,
                                    .brief = true};
}

static void teardown(void) {
    close_cuda(cuda);
}

static void (*const plain[])(const struct nf_backends *) = {
    nf_embed,  nf_rms_norm, nf_act_convert, nf_swiglu,    nf_delta_norm,
    nf_router, nf_tree_sum, nf_kv_int8,     nf_delta_conv};

START_TEST(op_keeps_what_is_not_finite) {
    plain[_i](&backends);
}
END_TEST

START_TEST(matmul_keeps_what_is_not_finite) {
    nf_matmul(&backends, (enum qep_weight_type)_i);
}
END_TEST

START_TEST(experts_keep_what_is_not_finite) {
    nf_experts(&backends, (enum qep_weight_type)_i);
}
END_TEST

/* Chunks multiply in tf32. */
START_TEST(delta_keeps_what_is_not_finite) {
    backends.tolerance = 2e-3;
    nf_delta(&backends);
}
END_TEST

/* bf16 queries, keys, weights and values. */
START_TEST(attention_keeps_what_is_not_finite) {
    backends.tolerance = 1.5e-2;
    nf_attention(&backends, (enum qep_kv_type)_i);
}
END_TEST

static const uint32_t bad_bits[] = {0x7fc00000u, 0xffc12345u, 0x7fffffffu, 0x7f800000u,
                                    0xff800000u};
enum { NUM_BAD = sizeof bad_bits / sizeof bad_bits[0], NUM_NANS = 3 };

static float bad(int i) {
    float v;
    memcpy(&v, &bad_bits[i % NUM_BAD], sizeof v);
    return v;
}

static void fill(float *x, size_t count, float v) {
    for (size_t i = 0; i < count; i++)
        x[i] = v;
}

/* ---- router: the experts of every register of a lane ---- */

enum { TOP_K = 8 };

static void route(const float *logits, int32_t n, int32_t experts, int32_t *idx, float *weights) {
    size_t pairs = (size_t)n * TOP_K * 4;
    void *in = dev_put(cuda, logits, (size_t)(n * experts) * 4);
    void *dev_idx = dev_put(cuda, NULL, pairs), *dev_weights = dev_put(cuda, NULL, pairs);
    ok(cuda->ops->router_topk(cuda, dev_idx, dev_weights, in, n, experts, TOP_K, NULL));
    dev_take(cuda, idx, dev_idx, pairs);
    dev_take(cuda, weights, dev_weights, pairs);
    cuda->ops->free(cuda, in);
}

static void assert_in_range(const int32_t *idx, int32_t experts) {
    for (int j = 0; j < TOP_K; j++) {
        ck_assert(idx[j] >= 0 && idx[j] < experts);
        for (int i = 0; i < j; i++)
            ck_assert_int_ne(idx[i], idx[j]);
    }
}

/* Row i has the plant at expert i. */
START_TEST(router_sees_every_expert) {
    static const int32_t widths[] = {8, 33, 64, 65, 256, 300, 1024};
    int32_t n = widths[_i];
    size_t count = (size_t)(n * n), pairs = (size_t)n * TOP_K;
    struct rng rng = {(uint64_t)_i + 1};
    float *logits = random_floats(&rng, count, 2.0f), *weights = must_alloc(pairs * 4);
    float *nans = must_alloc(pairs * 4);
    int32_t *idx = must_alloc(pairs * 4);
    const uint32_t nan = 0x7fc00000u;
    for (size_t i = 0; i < pairs; i++)
        memcpy(&nans[i], &nan, 4);
    for (int i = 0; i < n; i++)
        logits[i * n + i] = bad(i);
    route(logits, n, n, idx, weights);
    assert_same_bits(weights, nans, pairs * 4, "weights");
    for (int i = 0; i < n; i++)
        assert_in_range(idx + i * TOP_K, n);
    free(logits);
    free(weights);
    free(nans);
    free(idx);
}
END_TEST

/* ---- decode attention: rows of several splits, beside a short one and padding ---- */

enum { HEADS = 4, KV_HEADS = 2, HEAD_DIM = 24, ROW = HEADS * HEAD_DIM, BLOCKS = 11, ROWS = 3 };
static const struct qep_span spans[ROWS] = {{0, 1, 0, 700, 1}, {1, 1, -1, 0, 1}, {2, 1, 1, 300, 1}};

/* The blocks of two slots, one after the other. */
struct cache {
    struct qep_attention_dims dims;
    size_t block;
    char *host, *dev;
    void *table;
    float *qg, *q_norm;
    struct qep_batch batch;
};

/* An element, or with INT8 the scale of its row, becomes v. */
static void set_element(struct cache *c, int slot, int which, int position, int head, int d,
                        float v) {
    int row = (which * QEP_KV_BLOCK + position % QEP_KV_BLOCK) * KV_HEADS + head;
    char *block = c->host + (size_t)(slot * BLOCKS + position / QEP_KV_BLOCK) * c->block;
    uint16_t half = qep_f32_to_bf16(v);
    if (c->dims.kv_type == QEP_KV_F32)
        memcpy(block + (row * HEAD_DIM + d) * 4, &v, 4);
    else if (c->dims.kv_type == QEP_KV_BF16)
        memcpy(block + (row * HEAD_DIM + d) * 2, &half, 2);
    else
        memcpy(block + 2 * QEP_KV_BLOCK * KV_HEADS * HEAD_DIM + row * 4, &v, 4);
}

/* Random up to the rows' own positions, NaN behind them. */
static void fill_cache(struct cache *c, struct rng *rng) {
    for (int i = 0; i < 2 * 2 * BLOCKS * QEP_KV_BLOCK * KV_HEADS * HEAD_DIM; i++) {
        int d = i % HEAD_DIM, head = i / HEAD_DIM % KV_HEADS, row = i / HEAD_DIM / KV_HEADS;
        int position = row % (BLOCKS * QEP_KV_BLOCK), slot = row / (BLOCKS * QEP_KV_BLOCK) % 2;
        float v = position > spans[2 * slot].position ? NAN : rng_normal(rng);
        v = c->dims.kv_type == QEP_KV_INT8 ? v * 0.01f : v;
        set_element(c, slot, row / (2 * BLOCKS * QEP_KV_BLOCK), position, head, d, v);
    }
    for (size_t i = 0; i < 2 * BLOCKS * c->block && c->dims.kv_type == QEP_KV_INT8; i++)
        if (i % c->block < 2 * QEP_KV_BLOCK * KV_HEADS * HEAD_DIM)
            c->host[i] = (char)(rng_below(rng, 255) - 127);
}

static struct cache make_cache(struct rng *rng, enum qep_kv_type type) {
    struct cache c = {.dims = {HEADS, KV_HEADS, HEAD_DIM, 8, 1e7f, 1e-6f, type, BLOCKS},
                      .block = qep_kv_block_bytes(type, KV_HEADS, HEAD_DIM)};
    void *blocks[2 * BLOCKS];
    float *qg = random_floats(rng, ROWS * 2 * ROW, 2.0f);
    float *norm = random_floats(rng, HEAD_DIM, 1.0f);
    c.host = must_alloc(2 * BLOCKS * c.block);
    fill_cache(&c, rng);
    fill(qg + 2 * ROW, 2 * ROW, NAN); /* of the padding row */
    c.qg = dev_put(cuda, qg, ROWS * 2 * ROW * 4);
    c.q_norm = dev_put(cuda, norm, HEAD_DIM * 4);
    c.dev = dev_put(cuda, NULL, 2 * BLOCKS * c.block);
    for (int i = 0; i < 2 * BLOCKS; i++)
        blocks[i] = c.dev + (size_t)i * c.block;
    c.table = dev_put(cuda, blocks, sizeof blocks);
    c.batch = dev_batch(cuda, spans, ROWS, 0);
    free(qg);
    free(norm);
    return c;
}

static void free_cache(struct cache *c) {
    void *all[] = {c->dev, c->table, c->qg, c->q_norm};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        cuda->ops->free(cuda, all[i]);
    dev_batch_free(cuda, &c->batch);
    free(c->host);
}

static void attend(const struct cache *c, float *out) {
    float *rows = dev_put(cuda, NULL, ROWS * ROW * 4);
    ok(cuda->ops->upload(cuda, c->dev, c->host, 2 * BLOCKS * c->block));
    ok(cuda->ops->attention(cuda, &c->dims, &c->batch, qep_f32_rows(rows), c->qg, c->q_norm,
                            c->table));
    dev_take(cuda, out, rows, ROWS * ROW * 4);
}

/* A plant in K or V of slot 0, KV head 0: the first row's first two heads are its own. */
static void check_attended(const float *out, const float *base, int which, int plant, bool whole) {
    for (int i = 0; i < ROWS * ROW; i++) {
        bool head = i < 2 * HEAD_DIM;
        bool hit = head && (whole || which == 0 || i % HEAD_DIM == 5);
        bool right = !hit               ? memcmp(&out[i], &base[i], 4) == 0
                     : plant < NUM_NANS ? isnan(out[i])
                                        : !isfinite(out[i]);
        ck_assert_msg(right, "plant %d in %s: output %d is %g", plant, which ? "V" : "K", i,
                      (double)out[i]);
    }
}

START_TEST(splits_of_a_row_keep_what_is_not_finite) {
    static const int positions[] = {0, 255, 256, 530, 700};
    enum qep_kv_type type = (enum qep_kv_type)_i;
    struct rng rng = {(uint64_t)_i + 3};
    struct cache c = make_cache(&rng, type);
    float base[ROWS * ROW], out[ROWS * ROW];
    char *before = must_alloc(2 * BLOCKS * c.block);
    memcpy(before, c.host, 2 * BLOCKS * c.block);
    attend(&c, base);
    for (int i = 0; i < ROWS * ROW; i++)
        ck_assert(i / ROW == 1 ? base[i] == 0.0f : isfinite(base[i]));
    for (int i = 0; i < 5 * NUM_BAD * 2; i++) {
        int plant = i / 5 % NUM_BAD, which = i / 5 / NUM_BAD;
        if (which == 0 && plant >= NUM_NANS) /* a score of -inf is a weight of 0 */
            continue;
        set_element(&c, 0, which, positions[i % 5], 0, 5, bad(plant));
        attend(&c, out);
        check_attended(out, base, which, plant, type == QEP_KV_INT8);
        memcpy(c.host, before, 2 * BLOCKS * c.block);
    }
    free(before);
    free_cache(&c);
}
END_TEST

/* ---- sampling: every id that can be drawn is looked at ---- */

enum { VOCAB = 3000, CUT = 1700, SETTINGS = 4, NUM_PLACES = 10, DRAWS = 2 * NUM_PLACES };

static const int32_t places[NUM_PLACES] = {0,       1,   3,    1023, 1024,
                                           CUT - 1, CUT, 2047, 2724, VOCAB - 1};

/* Row i is planted at places[i % NUM_PLACES]; setting i % SETTINGS: greedy, no filter, two filters.
 */
static struct qep_device_draw draw_of(int i) {
    return (struct qep_device_draw){.seed = 7,
                                    .position = (uint64_t)i,
                                    .temperature = 1.0,
                                    .top_p = i % SETTINGS == 2 ? 0.9 : 1.0,
                                    .repetition_penalty = 1.1,
                                    .top_k = i % SETTINGS == 3 ? 5 : 0,
                                    .greedy = i % SETTINGS == 0,
                                    .slot = i};
}

static void draw(const float *logits, const uint8_t *allowed, int32_t *tokens) {
    const int32_t cut[] = {0, CUT, VOCAB};
    struct qep_device_draw draws[DRAWS];
    for (int i = 0; i < DRAWS; i++)
        draws[i] = draw_of(i);
    struct qep_device_draw *dev_draws = dev_put(cuda, draws, sizeof draws);
    struct qep_row_candidates *candidates = dev_put(cuda, NULL, 2 * DRAWS * sizeof *candidates);
    uint8_t *dev_allowed = dev_put(cuda, allowed, VOCAB),
            *seen = dev_put(cuda, NULL, DRAWS * VOCAB);
    int32_t *dev_tokens = dev_put(cuda, NULL, DRAWS * 4);
    float *part = must_alloc(DRAWS * VOCAB * 4);
    for (int r = 0; r < 2; r++) {
        size_t width = (size_t)(cut[r + 1] - cut[r]);
        for (size_t i = 0; i < DRAWS; i++)
            memcpy(part + i * width, logits + i * VOCAB + cut[r], width * 4);
        float *dev = dev_put(cuda, part, DRAWS * width * 4);
        ok(cuda->device->sample_candidates(cuda, candidates + r * DRAWS, dev, DRAWS, (int32_t)width,
                                           cut[r], VOCAB, VOCAB, dev_allowed, seen, dev_draws));
        cuda->ops->free(cuda, dev);
    }
    ok(cuda->device->sample_final(cuda, dev_tokens, candidates, 2, DRAWS, VOCAB, VOCAB, seen,
                                  dev_draws));
    dev_take(cuda, tokens, dev_tokens, DRAWS * 4);
    void *all[] = {dev_draws, candidates, dev_allowed, seen};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        cuda->ops->free(cuda, all[i]);
    free(part);
}

/* What is not finite is flagged, also beside +inf; what is not allowed is nobody's. */
START_TEST(sampling_sees_every_id) {
    struct rng rng = {9};
    float *logits = random_floats(&rng, DRAWS * VOCAB, 2.0f);
    uint8_t allowed[VOCAB];
    int32_t tokens[DRAWS];
    for (int pass = 0; pass < NUM_BAD + 2; pass++) {
        memset(allowed, 1, sizeof allowed);
        for (int i = 0; i < DRAWS; i++) {
            logits[i * VOCAB + 1500] = pass == NUM_BAD ? INFINITY : 0.0f;
            logits[i * VOCAB + places[i % NUM_PLACES]] = bad(pass >= NUM_BAD ? 0 : pass);
            allowed[places[i % NUM_PLACES]] = pass <= NUM_BAD;
        }
        draw(logits, allowed, tokens);
        for (int i = 0; i < DRAWS; i++) {
            int32_t at = places[i % NUM_PLACES];
            bool drawn = tokens[i] >= 0 && tokens[i] < VOCAB && tokens[i] != at;
            bool right = pass <= NUM_NANS + 1 || pass == NUM_BAD
                             ? tokens[i] == QEP_TOKEN_FLAGGED
                             : drawn || tokens[i] == QEP_TOKEN_FLAGGED;
            ck_assert_msg(right, "pass %d, plant at %d, setting %d: token %d", pass, at,
                          i % SETTINGS, tokens[i]);
        }
    }
    free(logits);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda nonfinite");
    TCase *tc = device_case(suite, "short", 300); /* what tests/seeded_defects.sh runs */
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, op_keeps_what_is_not_finite, 0, (int)(sizeof plain / sizeof plain[0]));
    tcase_add_loop_test(tc, router_sees_every_expert, 0, 7);
    tcase_add_test(tc, sampling_sees_every_id);
    tcase_add_loop_test(tc, splits_of_a_row_keep_what_is_not_finite, QEP_KV_F32, QEP_KV_INT8 + 1);
    tcase_add_test(tc, delta_keeps_what_is_not_finite);
    tc = device_case(suite, "products", 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, matmul_keeps_what_is_not_finite, QEP_WEIGHT_F32, QEP_WEIGHT_INT4 + 1);
    tcase_add_loop_test(tc, experts_keep_what_is_not_finite, QEP_WEIGHT_BF16, QEP_WEIGHT_INT4 + 1);
    tcase_add_loop_test(tc, attention_keeps_what_is_not_finite, QEP_KV_F32, QEP_KV_INT8 + 1);
    return run_device_suite(suite);
}

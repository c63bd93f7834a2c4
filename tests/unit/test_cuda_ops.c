/* The row-wise and element-wise CUDA ops and the router against the reference backend: equal bits
 * where the formulas are the same steps, close where sums run in another order; a row's bits are
 * the same in any company. */
#include "device_support.h"

#include <check.h>
#include <float.h>
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

static const int32_t row_shapes[][2] = {{1, 1},    {1, 31},   {2, 33},   {3, 64},   {7, 97},
                                        {13, 160}, {40, 521}, {5, 1028}, {1, 2048}, {700, 8}};

enum { NUM_ROW_SHAPES = sizeof row_shapes / sizeof row_shapes[0] };

START_TEST(rms_norm_agrees) {
    struct rng rng = {(uint64_t)_i};
    int32_t n = row_shapes[_i][0], cols = row_shapes[_i][1];
    size_t count = (size_t)(n * cols), row = (size_t)cols;
    float *x = random_floats(&rng, count, 3.0f), *w = random_floats(&rng, row, 1.0f);
    float *want = must_alloc(count * 4), *got = must_alloc(count * 4), *alone = must_alloc(row * 4);
    float *dev_x = dev_put(cuda, x, count * 4), *dev_w = dev_put(cuda, w, row * 4);
    float *dev_out = dev_put(cuda, NULL, count * 4);
    ok(ref->ops->rms_norm(ref, qep_f32_rows(want), x, w, n, cols, 1e-6f));
    ok(cuda->ops->rms_norm(cuda, qep_f32_rows(dev_out), dev_x, dev_w, n, cols, 1e-6f));
    dev_get(cuda, got, dev_out, count * 4);
    assert_close(got, want, count, 1e-6, "rms_norm");
    float *last = dev_put(cuda, x + count - row, row * 4);
    ok(cuda->ops->rms_norm(cuda, qep_f32_rows(last), last, dev_w, 1, cols, 1e-6f)); /* in place */
    dev_take(cuda, alone, last, row * 4);
    assert_same_bits(alone, got + count - row, row * 4, "row alone");
    cuda->ops->free(cuda, dev_x);
    cuda->ops->free(cuda, dev_w);
    cuda->ops->free(cuda, dev_out);
    free(x);
    free(w);
    free(want);
    free(got);
    free(alone);
}
END_TEST

/* Exact halves, zeros, numbers at both ends of the range. */
static void make_awkward(struct rng *rng, float *x, int32_t cols) {
    for (int32_t c = 0; c < cols; c++) {
        if (c / 32 % 4 == 1)
            x[c] = c % 32 == 0 ? 127.0f : (float)rng_below(rng, 253) * 0.5f - 63.0f;
        if (c / 32 % 4 == 2)
            x[c] = c / 32 % 8 == 2 ? 0.0f : 3e-45f * (float)rng_below(rng, 200);
        if (c / 32 % 4 == 3)
            x[c] = x[c] * (FLT_MAX / 8.0f);
    }
}

START_TEST(activation_rows_are_exact) {
    struct rng rng = {(uint64_t)_i + 40};
    int32_t n = row_shapes[_i][0], cols = row_shapes[_i][1];
    size_t count = (size_t)(n * cols);
    float *x = random_floats(&rng, count, 1.0f);
    make_awkward(&rng, x, cols);
    float *dev_x = dev_put(cuda, x, count * 4);
    for (int type = QEP_ACT_F32; type <= QEP_ACT_INT8; type++) {
        size_t stride = qep_act_row_bytes((enum qep_act_type)type, cols) + 48;
        size_t bytes = (size_t)n * stride;
        char *want = must_alloc(bytes), *got = must_alloc(bytes);
        memset(want, 0x55, bytes);
        void *dev_out = dev_put(cuda, want, bytes);
        ok(ref->ops->act_convert(ref, want, stride, (enum qep_act_type)type, x, n, cols));
        ok(cuda->ops->act_convert(cuda, dev_out, stride, (enum qep_act_type)type, dev_x, n, cols));
        dev_take(cuda, got, dev_out, bytes);
        assert_same_bits(got, want, bytes, type == QEP_ACT_INT8 ? "int8 rows" : "float rows");
        free(want);
        free(got);
    }
    cuda->ops->free(cuda, dev_x);
    free(x);
}
END_TEST

/* Ops that write activation rows: the bits of act_convert on their f32 rows, the padding and no
 * more; without f32 rows the same. */
START_TEST(ops_write_activation_rows) {
    struct rng rng = {(uint64_t)_i + 240};
    int32_t n = row_shapes[_i][0], cols = row_shapes[_i][1];
    size_t count = (size_t)(n * cols);
    float *x = random_floats(&rng, count, 3.0f), *w = random_floats(&rng, count, 1.0f);
    float *dev_x = dev_put(cuda, x, count * 4), *dev_w = dev_put(cuda, w, count * 4);
    float *rows = must_alloc(count * 4);
    for (int run = 0; run < 8; run++) { /* op; type, or bf16 alone */
        bool alone = run / 2 == 3;
        enum qep_act_type type = alone ? QEP_ACT_BF16 : (enum qep_act_type)(run / 2);
        size_t stride = qep_act_row_bytes(type, cols) + 48, bytes = (size_t)n * stride;
        char *want = must_alloc(bytes), *got = must_alloc(bytes);
        memset(want, 0x55, bytes);
        float *dev_rows = dev_put(cuda, NULL, count * 4);
        void *dev_act = dev_put(cuda, want, bytes);
        struct qep_rows_out f32 = qep_f32_rows(dev_rows), out = {dev_rows, dev_act, stride, type};
        out.f32 = alone ? NULL : dev_rows;
        for (int twice = 0; twice < 2; twice++) {
            struct qep_rows_out to = twice == 0 ? f32 : out;
            ok(run % 2 == 0 ? cuda->ops->rms_norm(cuda, to, dev_x, dev_w, n, cols, 1e-6f)
                            : cuda->ops->swiglu(cuda, to, dev_x, dev_w, n, cols));
            if (twice == 0)
                dev_get(cuda, rows, dev_rows, count * 4);
        }
        ok(ref->ops->act_convert(ref, want, stride, type, rows, n, cols));
        dev_take(cuda, got, dev_act, bytes);
        assert_same_bits(got, want, bytes, run % 2 == 0 ? "rms_norm" : "swiglu");
        float *again = must_alloc(count * 4);
        dev_take(cuda, again, dev_rows, count * 4);
        assert_same_bits(again, rows, count * 4, "f32 rows");
        free(again);
        free(want);
        free(got);
    }
    cuda->ops->free(cuda, dev_x);
    cuda->ops->free(cuda, dev_w);
    free(x);
    free(w);
    free(rows);
}
END_TEST

START_TEST(swiglu_is_exact) {
    struct rng rng = {(uint64_t)_i + 80};
    int32_t n = row_shapes[_i][0], cols = row_shapes[_i][1];
    size_t bytes = (size_t)(n * cols) * 4;
    float *gate = random_floats(&rng, (size_t)(n * cols), 4.0f);
    float *up = random_floats(&rng, (size_t)(n * cols), 4.0f);
    float *want = must_alloc(bytes), *got = must_alloc(bytes);
    float *dev_gate = dev_put(cuda, gate, bytes), *dev_up = dev_put(cuda, up, bytes);
    ok(ref->ops->swiglu(ref, qep_f32_rows(want), gate, up, n, cols));
    ok(cuda->ops->swiglu(cuda, qep_f32_rows(dev_gate), dev_gate, dev_up, n, cols)); /* in place */
    dev_take(cuda, got, dev_gate, bytes);
    assert_same_bits(got, want, bytes, "swiglu");
    cuda->ops->free(cuda, dev_up);
    free(gate);
    free(up);
    free(want);
    free(got);
}
END_TEST

/* More rows than a grid has y. */
START_TEST(rows_may_be_many) {
    enum { N = 65537, COLS = 4 };
    struct rng rng = {160};
    size_t bytes = (size_t)N * COLS * 4;
    float *x = random_floats(&rng, (size_t)N * COLS, 4.0f);
    char *want = must_alloc(bytes), *got = must_alloc(bytes);
    float *dev_x = dev_put(cuda, x, bytes);
    float *dev_out = dev_put(cuda, x, bytes);
    size_t stride = qep_act_row_bytes(QEP_ACT_BF16, COLS);
    ok(ref->ops->act_convert(ref, want, stride, QEP_ACT_BF16, x, N, COLS));
    ok(cuda->ops->act_convert(cuda, dev_out, stride, QEP_ACT_BF16, dev_x, N, COLS));
    dev_get(cuda, got, dev_out, (size_t)N * stride);
    for (size_t row = 0; row < N; row++)
        assert_same_bits(got + row * stride, want + row * stride, 2 * COLS, "act_convert");
    cuda->ops->free(cuda, dev_x);
    cuda->ops->free(cuda, dev_out);
    free(x);
    free(want);
    free(got);
}
END_TEST

START_TEST(delta_norm_agrees) {
    struct rng rng = {(uint64_t)_i + 120};
    int32_t n = row_shapes[_i][0], width = row_shapes[_i][1] % 300, heads = 3;
    struct qep_delta_dims dims = {.num_value_heads = heads, .value_head_dim = width, .eps = 1e-6f};
    size_t count = (size_t)(n * heads * width), row = (size_t)(heads * width);
    float *o = random_floats(&rng, count, 0.5f), *z = random_floats(&rng, count, 2.0f);
    float *w = random_floats(&rng, (size_t)width, 1.0f), *want = must_alloc(count * 4);
    float *got = must_alloc(count * 4), *alone = must_alloc(row * 4);
    float *dev_o = dev_put(cuda, o, count * 4), *dev_z = dev_put(cuda, z, count * 4);
    float *dev_w = dev_put(cuda, w, (size_t)width * 4);
    ok(ref->ops->delta_norm(ref, &dims, want, o, z, w, n));
    ok(cuda->ops->delta_norm(cuda, &dims, dev_o, dev_o, dev_z, dev_w, n));
    dev_take(cuda, got, dev_o, count * 4);
    assert_close(got, want, count, 1e-6, "delta_norm");
    dev_o = dev_put(cuda, o + count - row, row * 4);
    ok(cuda->ops->delta_norm(cuda, &dims, dev_o, dev_o, dev_z + count - row, dev_w, 1));
    dev_take(cuda, alone, dev_o, row * 4);
    assert_same_bits(alone, got + count - row, row * 4, "row alone");
    cuda->ops->free(cuda, dev_z);
    cuda->ops->free(cuda, dev_w);
    free(o);
    free(z);
    free(w);
    free(want);
    free(got);
    free(alone);
}
END_TEST

static const int32_t router_shapes[][3] = {{1, 8, 1},   {5, 8, 8},     {3, 7, 3},     {50, 256, 8},
                                           {9, 64, 6},  {33, 65, 32},  {2, 1024, 32}, {4, 300, 10},
                                           {1, 32, 32}, {130, 128, 10}};

enum { NUM_ROUTER_SHAPES = sizeof router_shapes / sizeof router_shapes[0] };

/* Every third row is padding. */
static void check_router_padding(const float *logits, const int32_t *idx, const float *weights,
                                 int32_t n, int32_t experts, int32_t k) {
    size_t bytes = (size_t)(n * k) * 4;
    struct qep_span *spans = must_alloc((size_t)n * sizeof *spans);
    int32_t *want = must_alloc(bytes), *got_idx = must_alloc(bytes);
    float *got = must_alloc(bytes);
    for (int32_t i = 0; i < n; i++) {
        spans[i] = (struct qep_span){i, 1, i % 3 == 0 ? -1 : i, 5, 1};
        for (int32_t j = 0; j < k; j++)
            want[i * k + j] = i % 3 == 0 ? -1 : idx[i * k + j];
    }
    ok(ref->ops->router_topk(ref, got_idx, got, logits, n, experts, k, spans));
    assert_same_bits(got_idx, want, bytes, "padded ids of the reference");
    float *dev_logits = dev_put(cuda, logits, (size_t)(n * experts) * 4);
    float *dev_weights = dev_put(cuda, NULL, bytes);
    int32_t *dev_idx = dev_put(cuda, NULL, bytes);
    struct qep_span *dev_spans = dev_put(cuda, spans, (size_t)n * sizeof *spans);
    ok(cuda->ops->router_topk(cuda, dev_idx, dev_weights, dev_logits, n, experts, k, dev_spans));
    dev_take(cuda, got_idx, dev_idx, bytes);
    dev_take(cuda, got, dev_weights, bytes);
    assert_same_bits(got_idx, want, bytes, "padded ids");
    assert_same_bits(got, weights, bytes, "weights beside padding");
    cuda->ops->free(cuda, dev_logits);
    cuda->ops->free(cuda, dev_spans);
    free(spans);
    free(want);
    free(got_idx);
    free(got);
}

static void check_router(const float *logits, int32_t n, int32_t experts, int32_t k) {
    size_t bytes = (size_t)(n * k) * 4;
    float *want = must_alloc(bytes), *got = must_alloc(bytes);
    int32_t *want_idx = must_alloc(bytes), *got_idx = must_alloc(bytes);
    float *dev_logits = dev_put(cuda, logits, (size_t)(n * experts) * 4);
    float *dev_weights = dev_put(cuda, NULL, bytes);
    int32_t *dev_idx = dev_put(cuda, NULL, bytes);
    ok(ref->ops->router_topk(ref, want_idx, want, logits, n, experts, k, NULL));
    ok(cuda->ops->router_topk(cuda, dev_idx, dev_weights, dev_logits, n, experts, k, NULL));
    dev_take(cuda, got_idx, dev_idx, bytes);
    dev_take(cuda, got, dev_weights, bytes);
    assert_same_bits(got_idx, want_idx, bytes, "ids");
    assert_same_bits(got, want, bytes, "weights");
    check_router_padding(logits, want_idx, want, n, experts, k);
    cuda->ops->free(cuda, dev_logits);
    free(want);
    free(got);
    free(want_idx);
    free(got_idx);
}

START_TEST(router_is_exact) {
    int32_t n = router_shapes[_i][0], experts = router_shapes[_i][1], k = router_shapes[_i][2];
    struct rng rng = {(uint64_t)_i + 160};
    float *logits = random_floats(&rng, (size_t)(n * experts), 2.0f);
    check_router(logits, n, experts, k);
    for (int32_t i = 0; i < n * experts; i++) /* few values, so ties abound; row 0 is all ties */
        logits[i] = i < experts ? 1.5f : (float)rng_below(&rng, 12) * 0.75f;
    check_router(logits, n, experts, k);
    for (int32_t i = 0; i < n * experts; i++) /* most of exp(x - max) is zero: ties again */
        logits[i] = rng_below(&rng, 5) == 0 ? 300.0f : -300.0f;
    check_router(logits, n, experts, k);
    free(logits);
}
END_TEST

START_TEST(router_stays_in_range_on_nan) {
    float logits[48], weights[4];
    int32_t idx[4];
    for (int i = 0; i < 48; i++)
        logits[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
    for (int all = 0; all < 2; all++) {
        for (int i = 0; all && i < 48; i++)
            logits[i] = NAN;
        float *dev_logits = dev_put(cuda, logits, sizeof logits);
        float *dev_weights = dev_put(cuda, NULL, sizeof weights);
        int32_t *dev_idx = dev_put(cuda, NULL, sizeof idx);
        ok(cuda->ops->router_topk(cuda, dev_idx, dev_weights, dev_logits, 1, 48, 4, NULL));
        dev_take(cuda, idx, dev_idx, sizeof idx);
        cuda->ops->free(cuda, dev_weights);
        cuda->ops->free(cuda, dev_logits);
        for (int a = 0; a < 4; a++) {
            ck_assert(idx[a] >= 0 && idx[a] < 48);
            for (int b = 0; b < a; b++)
                ck_assert_int_ne(idx[a], idx[b]);
        }
    }
}
END_TEST

START_TEST(no_rows_are_no_work) {
    struct qep_delta_dims dims = {.num_value_heads = 1, .value_head_dim = 8, .eps = 1e-6f};
    ok(cuda->ops->rms_norm(cuda, qep_f32_rows(NULL), NULL, NULL, 0, 8, 1e-6f));
    ok(cuda->ops->act_convert(cuda, NULL, 16, QEP_ACT_BF16, NULL, 0, 8));
    ok(cuda->ops->swiglu(cuda, qep_f32_rows(NULL), NULL, NULL, 0, 8));
    ok(cuda->ops->delta_norm(cuda, &dims, NULL, NULL, NULL, NULL, 0));
    ok(cuda->ops->router_topk(cuda, NULL, NULL, NULL, 0, 8, 2, NULL));
    ok(cuda->ops->sync(cuda));
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda ops");
    TCase *tc = device_case(suite, "cuda ops", 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, rms_norm_agrees, 0, NUM_ROW_SHAPES);
    tcase_add_loop_test(tc, activation_rows_are_exact, 0, NUM_ROW_SHAPES);
    tcase_add_loop_test(tc, ops_write_activation_rows, 0, NUM_ROW_SHAPES);
    tcase_add_loop_test(tc, swiglu_is_exact, 0, NUM_ROW_SHAPES);
    tcase_add_test(tc, rows_may_be_many);
    tcase_add_loop_test(tc, delta_norm_agrees, 0, NUM_ROW_SHAPES);
    tcase_add_loop_test(tc, router_is_exact, 0, NUM_ROUTER_SHAPES);
    tcase_add_test(tc, router_stays_in_range_on_nan);
    tcase_add_test(tc, no_rows_are_no_work);
    return run_device_suite(suite);
}

/* The ops that are not matmul, attention or DeltaNet, and the tables themselves, on all backends:
 * memory, norms, activation rows, element-wise ops, router, tree. Equal bits for every ISA level,
 * number of threads and number of rows; the reference within tolerance. */
#include "kernels_support.h"

#include <check.h>
#include <float.h>
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

START_TEST(tables_have_no_gaps) {
    for (int v = 0; v < num_variants; v++) {
        const struct qep_backend_ops *ops = variants[v].be->ops;
        /* The table is a name and function pointers only. */
        size_t count = sizeof *ops / sizeof(void (*)(void));
        for (size_t i = 0; i < count; i++) {
            void *entry;
            memcpy(&entry, (const char *)ops + i * sizeof entry, sizeof entry);
            ck_assert_ptr_nonnull(entry);
        }
        ck_assert_str_eq(ops->name, v == 0 ? "reference" : "cpu");
    }
}
END_TEST

START_TEST(isa_names_are_checked) {
    struct qep_backend *be = NULL;
    ck_assert_int_eq(qep_backend_cpu_create(NULL, "sse9", &be), QEP_ERR_USAGE);
    ck_assert_ptr_null(be);
    ck_assert_int_eq(qep_backend_cpu_create(NULL, "auto", &be), QEP_OK);
    ck_assert_str_eq(be->isa, qep_cpu_isa_name(qep_cpu_isa_level()));
    be->ops->destroy(be);
    ck_assert_str_eq(qep_cpu_isa_name(0), "baseline");
    ck_assert_ptr_null(qep_cpu_isa_name(3));
    ck_assert_ptr_null(qep_cpu_isa_name(-1));
}
END_TEST

START_TEST(memory_is_zeroed_and_copied) {
    for (int v = 0; v < num_variants; v++) {
        struct qep_backend *be = variants[v].be;
        char text[100] = "abc", back[100] = {1}, zeros[100] = {0};
        void *dev = NULL;
        ck_assert_int_eq(be->ops->alloc(be, sizeof text, "x", &dev), QEP_OK);
        ck_assert_uint_eq((uintptr_t)dev % 64, 0);
        be->ops->download(be, back, dev, sizeof back);
        assert_same_bits(back, zeros, sizeof back, "fresh memory");
        be->ops->upload(be, dev, text, sizeof text);
        be->ops->download(be, back, dev, sizeof back);
        assert_same_bits(back, text, sizeof back, "round trip");
        be->ops->zero(be, dev, sizeof text);
        be->ops->sync(be);
        be->ops->download(be, back, dev, sizeof back);
        assert_same_bits(back, zeros, sizeof back, "zero");
        be->ops->free(be, dev);
        be->ops->free(be, NULL);
        be->ops->weight_destroy(be, NULL);
    }
}
END_TEST

static const int32_t row_shapes[][2] = {{1, 1},  {1, 31},   {2, 33},   {3, 64},
                                        {7, 97}, {13, 160}, {40, 521}, {1, 2048}};

enum { NUM_ROW_SHAPES = sizeof row_shapes / sizeof row_shapes[0] };

START_TEST(rms_norm_agrees) {
    struct rng rng = {(uint64_t)_i};
    int32_t n = row_shapes[_i][0], cols = row_shapes[_i][1];
    size_t count = (size_t)(n * cols);
    float *x = random_floats(&rng, count, 3.0f), *w = random_floats(&rng, (size_t)cols, 1.0f);
    float *want = must_alloc(count * 4), *first = must_alloc(count * 4);
    float *got = must_alloc(count * 4);
    for (int32_t i = 0; i < n; i++) {
        double sum = 0.0;
        for (int32_t c = 0; c < cols; c++)
            sum += (double)x[i * cols + c] * (double)x[i * cols + c];
        for (int32_t c = 0; c < cols; c++)
            want[i * cols + c] =
                (float)((double)x[i * cols + c] / sqrt(sum / cols + 1e-6) * (double)w[c]);
    }
    for (int v = 0; v < num_variants; v++) {
        struct qep_backend *be = variants[v].be;
        memcpy(got, x, count * 4); /* in place */
        be->ops->rms_norm(be, qep_f32_rows(got), got, w, n, cols, 1e-6f);
        assert_close(got, want, count, 1e-6, variants[v].name);
        if (v == 1)
            memcpy(first, got, count * 4);
        if (v > 1)
            assert_same_bits(got, first, count * 4, variants[v].name);
        be->ops->rms_norm(be, qep_f32_rows(got), x + (n - 1) * cols, w, 1, cols, 1e-6f);
        if (v > 0)
            assert_same_bits(got, first + (n - 1) * cols, (size_t)cols * 4, "row alone");
    }
    free(x);
    free(w);
    free(want);
    free(first);
    free(got);
}
END_TEST

/* The INT8 row by its definition. */
static void check_int8_row(const float *x, int32_t cols, const void *row) {
    int32_t groups = (cols + QEP_ACT_GROUP - 1) / QEP_ACT_GROUP;
    const int8_t *quants = row;
    for (int32_t g = 0; g < groups; g++) {
        float absmax = 0.0f, scale;
        memcpy(&scale, quants + groups * QEP_ACT_GROUP + 4 * g, sizeof scale);
        for (int32_t c = g * 32; c < g * 32 + 32 && c < cols; c++)
            absmax = fmaxf(absmax, fabsf(x[c]));
        ck_assert(scale == absmax / 127.0f);
        for (int32_t c = g * 32; c < g * 32 + 32; c++) {
            float q = c < cols && scale > 0.0f ? rintf(x[c] / scale) : 0.0f;
            ck_assert_int_eq(quants[c], (int)fmaxf(-127.0f, fminf(127.0f, q)));
        }
    }
}

START_TEST(act_convert_is_exact) {
    struct rng rng = {(uint64_t)_i + 40};
    int32_t n = row_shapes[_i][0], cols = row_shapes[_i][1];
    float *x = random_floats(&rng, (size_t)(n * cols), 1.0f);
    for (int32_t c = 0; c < cols; c++) {
        if (c / 32 % 4 == 1) /* exact halves; zeros; numbers at both ends of the range */
            x[c] = c % 32 == 0 ? 127.0f : (float)rng_below(&rng, 253) * 0.5f - 63.0f;
        if (c / 32 % 4 == 2)
            x[c] = c / 32 % 8 == 2 ? 0.0f : 3e-45f * (float)rng_below(&rng, 200);
        if (c / 32 % 4 == 3)
            x[c] = x[c] * (FLT_MAX / 8.0f);
    }
    for (int type = QEP_ACT_F32; type <= QEP_ACT_INT8; type++) {
        size_t bytes = qep_act_row_bytes((enum qep_act_type)type, cols), stride = bytes + 48;
        ck_assert_uint_eq(bytes % 16, 0);
        char *want = must_alloc((size_t)n * stride), *got = must_alloc((size_t)n * stride);
        for (int v = 0; v < num_variants; v++) {
            struct qep_backend *be = variants[v].be;
            char *out = v == 0 ? want : got;
            memset(out, 0x55, (size_t)n * stride);
            be->ops->act_convert(be, out, stride, (enum qep_act_type)type, x, n, cols);
            assert_same_bits(out, want, (size_t)n * stride, variants[v].name);
        }
        for (int32_t i = 0; i < n; i++) {
            const char *row = want + (size_t)i * stride;
            if (type == QEP_ACT_F32)
                assert_same_bits(row, x + i * cols, (size_t)cols * 4, "f32 row");
            if (type == QEP_ACT_INT8)
                check_int8_row(x + i * cols, cols, row);
            for (int32_t c = 0; type == QEP_ACT_BF16 && c < cols; c++)
                ck_assert_uint_eq(((const uint16_t *)(const void *)row)[c],
                                  qep_f32_to_bf16(x[i * cols + c]));
            ck_assert_int_eq(row[bytes], 0x55);
        }
        free(want);
        free(got);
    }
    free(x);
}
END_TEST

/* Ops that write activation rows: the bits of act_convert on their f32 rows. */
START_TEST(ops_write_activation_rows) {
    struct rng rng = {(uint64_t)_i + 60};
    int32_t n = row_shapes[_i][0], cols = row_shapes[_i][1];
    size_t count = (size_t)(n * cols);
    float *x = random_floats(&rng, count, 3.0f), *w = random_floats(&rng, count, 1.0f);
    float *plain = must_alloc(count * 4), *rows = must_alloc(count * 4);
    for (int run = 0; run < 6; run++) { /* op, type */
        enum qep_act_type type = (enum qep_act_type)(run / 2);
        size_t stride = qep_act_row_bytes(type, cols) + 48, bytes = (size_t)n * stride;
        char *want = must_alloc(bytes), *got = must_alloc(bytes);
        for (int v = 0; v < num_variants; v++) {
            struct qep_backend *be = variants[v].be;
            memset(want, 0x55, bytes);
            memset(got, 0x55, bytes);
            for (int act = 0; act < 2; act++) {
                struct qep_rows_out out = {act ? rows : plain, act ? got : NULL, stride, type};
                ck_assert_int_eq(run % 2 == 0 ? be->ops->rms_norm(be, out, x, w, n, cols, 1e-6f)
                                              : be->ops->swiglu(be, out, x, w, n, cols),
                                 QEP_OK);
            }
            be->ops->act_convert(be, want, stride, type, plain, n, cols);
            assert_same_bits(rows, plain, count * 4, variants[v].name);
            assert_same_bits(got, want, bytes, variants[v].name);
        }
        free(want);
        free(got);
    }
    free(x);
    free(w);
    free(plain);
    free(rows);
}
END_TEST

START_TEST(swiglu_agrees) {
    struct rng rng = {(uint64_t)_i + 80};
    int32_t n = row_shapes[_i][0], cols = row_shapes[_i][1];
    size_t count = (size_t)(n * cols);
    float *gate = random_floats(&rng, count, 4.0f), *up = random_floats(&rng, count, 4.0f);
    float *want = must_alloc(count * 4), *first = must_alloc(count * 4);
    float *got = must_alloc(count * 4);
    for (size_t i = 0; i < count; i++)
        want[i] = (float)((double)gate[i] / (1.0 + exp(-(double)gate[i])) * (double)up[i]);
    for (int v = 0; v < num_variants; v++) {
        struct qep_backend *be = variants[v].be;
        memcpy(got, gate, count * 4);
        be->ops->swiglu(be, qep_f32_rows(got), got, up, n, cols); /* in place */
        assert_close(got, want, count, 1e-6, variants[v].name);
        if (v == 0)
            memcpy(first, got, count * 4);
        assert_same_bits(got, first, count * 4, variants[v].name);
    }
    free(gate);
    free(up);
    free(want);
    free(first);
    free(got);
}
END_TEST

START_TEST(delta_norm_agrees) {
    struct rng rng = {(uint64_t)_i + 120};
    int32_t n = row_shapes[_i][0], width = row_shapes[_i][1], heads = 3;
    struct qep_delta_dims dims = {.num_value_heads = heads, .value_head_dim = width, .eps = 1e-6f};
    size_t count = (size_t)(n * heads * width);
    float *o = random_floats(&rng, count, 0.5f), *z = random_floats(&rng, count, 2.0f);
    float *w = random_floats(&rng, (size_t)width, 1.0f), *want = must_alloc(count * 4);
    float *got = must_alloc(count * 4), *first = must_alloc(count * 4);
    for (int32_t i = 0; i < n * heads; i++) {
        double sum = 0.0;
        for (int32_t c = 0; c < width; c++)
            sum += (double)o[i * width + c] * (double)o[i * width + c];
        for (int32_t c = 0; c < width; c++) {
            double gate = (double)z[i * width + c], x = (double)o[i * width + c];
            want[i * width + c] =
                (float)((double)w[c] * x / sqrt(sum / width + 1e-6) * gate / (1.0 + exp(-gate)));
        }
    }
    for (int v = 0; v < num_variants; v++) {
        struct qep_backend *be = variants[v].be;
        memcpy(got, o, count * 4);
        be->ops->delta_norm(be, &dims, got, got, z, w, n);
        assert_close(got, want, count, 1e-6, variants[v].name);
        if (v == 1)
            memcpy(first, got, count * 4);
        else if (v > 1)
            assert_same_bits(got, first, count * 4, variants[v].name);
    }
    free(o);
    free(z);
    free(w);
    free(want);
    free(got);
    free(first);
}
END_TEST

/* ---- router ---- */

START_TEST(router_breaks_ties_by_the_lower_id) {
    static const int32_t shapes[][3] = {
        {1, 8, 1}, {5, 8, 8}, {3, 7, 3}, {50, 256, 8}, {300, 64, 6}};
    int32_t n = shapes[_i][0], experts = shapes[_i][1], k = shapes[_i][2];
    struct rng rng = {(uint64_t)_i + 160};
    size_t outs = (size_t)(n * k);
    float *logits = must_alloc((size_t)(n * experts) * 4);
    float *weights = must_alloc(outs * 4), *first = must_alloc(outs * 4);
    int32_t *idx = must_alloc(outs * 4), *first_idx = must_alloc(outs * 4);
    for (int32_t i = 0; i < n * experts; i++) /* few values, so ties abound; row 0 is all ties */
        logits[i] = i < experts ? 1.5f : (float)rng_below(&rng, 12) * 0.75f;
    for (int v = 0; v < num_variants; v++) {
        struct qep_backend *be = variants[v].be;
        be->ops->router_topk(be, idx, weights, logits, n, experts, k, NULL);
        if (v == 0) {
            memcpy(first, weights, outs * 4);
            memcpy(first_idx, idx, outs * 4);
        }
        assert_same_bits(weights, first, outs * 4, variants[v].name);
        assert_same_bits(idx, first_idx, outs * 4, variants[v].name);
        const struct qep_span padding = {0, 1, -1, 7, 1};
        be->ops->router_topk(be, idx, weights, logits, 1, experts, k, &padding);
        assert_same_bits(weights, first, (size_t)k * 4, variants[v].name);
        for (int32_t j = 0; j < k; j++)
            ck_assert_int_eq(idx[j], -1);
        memcpy(idx, first_idx, outs * 4);
    }
    for (int32_t i = 0; i < n; i++) {
        const float *row = logits + i * experts;
        double sum = 0.0;
        for (int32_t j = 0; j < k; j++)
            sum += exp((double)row[idx[i * k + j]]);
        for (int32_t j = 0; j < k; j++) {
            int32_t e = idx[i * k + j], rank = 0;
            for (int32_t o = 0; o < experts; o++)
                rank += row[o] > row[e] || (row[o] == row[e] && o < e);
            ck_assert_int_eq(rank, j);
            ck_assert_double_le(fabs((double)weights[i * k + j] - exp((double)row[e]) / sum), 1e-6);
        }
    }
    free(logits);
    free(weights);
    free(first);
    free(idx);
    free(first_idx);
}
END_TEST

START_TEST(router_stays_in_range_on_nan) {
    float logits[16], weights[4];
    int32_t idx[4];
    for (int i = 0; i < 16; i++)
        logits[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
    for (int v = 0; v < num_variants; v++) {
        variants[v].be->ops->router_topk(variants[v].be, idx, weights, logits, 1, 16, 4, NULL);
        for (int a = 0; a < 4; a++) {
            ck_assert(idx[a] >= 0 && idx[a] < 16);
            for (int b = 0; b < a; b++)
                ck_assert_int_ne(idx[a], idx[b]);
        }
    }
}
END_TEST

/* ---- tree ---- */

/* Sum of the leaves with ids in [low, low + size), by halving the id range; *any: there was one. */
static float tree_by_definition(const int32_t *ids, const float *values, int32_t count, int64_t low,
                                int64_t size, bool *any) {
    bool left_any = false, right_any = false;
    if (size == 1) {
        for (int32_t i = 0; i < count; i++)
            if (ids[i] == low) {
                *any = true;
                return values[i];
            }
        *any = false;
        return 0.0f;
    }
    float left = tree_by_definition(ids, values, count, low, size / 2, &left_any);
    float right = tree_by_definition(ids, values, count, low + size / 2, size / 2, &right_any);
    *any = left_any || right_any;
    return left_any && right_any ? left + right : left_any ? left : right;
}

START_TEST(tree_sum_follows_the_definition) {
    enum { OUTS = 25, IDS = 256 };
    int32_t cols = row_shapes[_i][1], begin[OUTS + 1] = {0}, row[OUTS * IDS], id[OUTS * IDS];
    struct rng rng = {(uint64_t)_i + 200};
    for (int32_t o = 0; o < OUTS; o++) {
        int32_t leaf = begin[o], one_in = o % 5 == 0 ? 300 : 1 + o;
        for (int32_t e = 0; e < IDS; e++)
            if (o == 1 || (o > 0 && rng_below(&rng, one_in) == 0))
                id[leaf++] = e;
        begin[o + 1] = leaf;
    }
    size_t num_leaves = (size_t)begin[OUTS], outs = (size_t)(OUTS * cols);
    float *src = random_floats(&rng, num_leaves * (size_t)cols, 1.0f);
    float *base = random_floats(&rng, outs, 1.0f), *got = must_alloc(outs * 4);
    float values[IDS];
    for (size_t i = 0; i < num_leaves; i++) /* rows in another order than leaves */
        row[i] = (int32_t)(num_leaves - 1 - i);
    for (int with_base = 0; with_base < 2; with_base++) {
        struct qep_tree_args args = {with_base ? base : NULL, src, OUTS, cols, begin, row, id};
        for (int v = 0; v < num_variants; v++) {
            ck_assert_int_eq(variants[v].be->ops->tree_sum(variants[v].be, &args, got), QEP_OK);
            for (int32_t o = 0; o < OUTS; o++)
                for (int32_t c = 0; c < cols; c += 1 + cols / 40) {
                    bool any;
                    for (int32_t l = begin[o]; l < begin[o + 1]; l++)
                        values[l - begin[o]] = src[row[l] * cols + c];
                    float tree = tree_by_definition(id + begin[o], values, begin[o + 1] - begin[o],
                                                    0, IDS, &any);
                    float want = !with_base ? tree
                                 : any      ? base[o * cols + c] + tree
                                            : base[o * cols + c];
                    ck_assert(got[o * cols + c] == want);
                }
        }
    }
    free(src);
    free(base);
    free(got);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("conformance");
    TCase *tc = tcase_create("conformance");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, tables_have_no_gaps);
    tcase_add_test(tc, isa_names_are_checked);
    tcase_add_test(tc, memory_is_zeroed_and_copied);
    tcase_add_loop_test(tc, rms_norm_agrees, 0, NUM_ROW_SHAPES);
    tcase_add_loop_test(tc, act_convert_is_exact, 0, NUM_ROW_SHAPES);
    tcase_add_loop_test(tc, ops_write_activation_rows, 0, NUM_ROW_SHAPES);
    tcase_add_loop_test(tc, swiglu_agrees, 0, NUM_ROW_SHAPES);
    tcase_add_loop_test(tc, delta_norm_agrees, 0, NUM_ROW_SHAPES);
    tcase_add_loop_test(tc, router_breaks_ties_by_the_lower_id, 0, 5);
    tcase_add_test(tc, router_stays_in_range_on_nan);
    tcase_add_loop_test(tc, tree_sum_follows_the_definition, 0, NUM_ROW_SHAPES);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

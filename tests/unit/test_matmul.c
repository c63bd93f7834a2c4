/* Matmul, embedding and routed experts on all backends: awkward shapes, all weight and activation
 * types, equal bits for every ISA level, number of threads and number of rows. */
#include "kernels_support.h"

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

static struct qep_weight *upload(struct qep_backend *be, const struct qep_host_weight *host) {
    struct qep_weight *w = NULL;
    ck_assert_int_eq(be->ops->weight_create(be, host, &w), QEP_OK);
    return w;
}

struct shape {
    int32_t n, rows, cols, group;
};

static const struct shape shapes[] = {
    {1, 1, 1, 32},     {1, 16, 32, 32},   {1, 17, 31, 64},   {2, 13, 33, 32},   {3, 32, 64, 64},
    {5, 37, 97, 32},   {7, 131, 160, 64}, {8, 48, 256, 128}, {9, 67, 300, 128}, {11, 1, 257, 32},
    {17, 96, 513, 64}, {33, 70, 520, 32}, {70, 33, 64, 32},  {1, 512, 96, 64},
};

enum { NUM_SHAPES = sizeof shapes / sizeof shapes[0] };

/* Row by row alone: the bits must be those of the batch. */
static void check_rows_alone(struct qep_backend *be, const struct qep_weight *w,
                             const struct shape *s, enum qep_act_type act, const char *acts,
                             size_t stride, const float *batch, const char *what) {
    float *alone = must_alloc((size_t)s->rows * sizeof *alone);
    for (int32_t i = 0; i < s->n; i++) {
        ck_assert_int_eq(multiply(be, alone, acts + (size_t)i * stride, stride, act, w, 1, 0),
                         QEP_OK);
        assert_same_bits(alone, batch + (size_t)i * (size_t)s->rows,
                         (size_t)s->rows * sizeof *alone, what);
    }
    free(alone);
}

static void check_matmul(struct rng *rng, const struct shape *s, enum qep_weight_type type,
                         enum qep_act_type act) {
    struct qep_host_weight host = random_weight(rng, type, s->rows, s->cols, s->group);
    size_t n = (size_t)s->n, cols = (size_t)s->cols, outs = n * (size_t)s->rows;
    size_t stride = qep_act_row_bytes(act, s->cols) + 32;
    float *x = random_floats(rng, n * cols, 1.0f), *plain = must_alloc(n * cols * sizeof *plain);
    char *acts = must_alloc(n * stride);
    float *want = must_alloc(outs * sizeof *want), *first = NULL;
    for (int v = 0; v < num_variants; v++) {
        struct qep_backend *be = variants[v].be;
        struct qep_weight *w = upload(be, &host);
        float *got = must_alloc(outs * sizeof *got);
        char what[128];
        snprintf(what, sizeof what, "%.31s %s act %d [%d, %d] x %d", variants[v].name,
                 weight_name(type), (int)act, s->rows, s->cols, s->n);
        if (v == 0) {
            ck_assert_int_eq(be->ops->act_convert(be, acts, stride, act, x, s->n, s->cols), QEP_OK);
            for (size_t i = 0; i < n; i++)
                decode_act_row(act, acts + i * stride, s->cols, plain + i * cols);
            ck_assert_int_eq(
                multiply(be, want, plain, cols * sizeof *plain, QEP_ACT_F32, w, s->n, 0), QEP_OK);
        } else {
            ck_assert(be->ops->supports(be, type, act));
            ck_assert_int_eq(multiply(be, got, acts, stride, act, w, s->n, 0), QEP_OK);
            assert_close(got, want, outs, 1e-5, what);
            if (first == NULL)
                check_rows_alone(be, w, s, act, acts, stride, got, what);
            else
                assert_same_bits(got, first, outs * sizeof *got, what);
        }
        be->ops->weight_destroy(be, w);
        if (v == 1)
            first = got;
        else
            free(got);
    }
    free(first);
    free(want);
    free(acts);
    free(plain);
    free(x);
    free_weight(&host);
}

START_TEST(matmul_agrees) {
    struct rng rng = {(uint64_t)_i + 1};
    for (int type = QEP_WEIGHT_F32; type <= QEP_WEIGHT_INT4; type++)
        for (int act = QEP_ACT_F32; act <= QEP_ACT_INT8; act++)
            if (act != QEP_ACT_INT8 || type >= QEP_WEIGHT_INT8)
                check_matmul(&rng, &shapes[_i], (enum qep_weight_type)type, (enum qep_act_type)act);
}
END_TEST

/* ---- several products ---- */

static const enum qep_weight_type type_mixes[][QEP_MAX_PRODUCTS] = {
    {QEP_WEIGHT_INT8, QEP_WEIGHT_INT8, QEP_WEIGHT_INT8, QEP_WEIGHT_INT8},
    {QEP_WEIGHT_INT4, QEP_WEIGHT_INT8, QEP_WEIGHT_INT8, QEP_WEIGHT_INT4},
    {QEP_WEIGHT_BF16, QEP_WEIGHT_F32, QEP_WEIGHT_INT4, QEP_WEIGHT_BF16},
};

/* A call's results, first to last product, from activation rows. */
static void run_group(struct qep_backend *be, const struct group *g, struct qep_weight **w,
                      const char *acts, size_t stride, enum qep_act_type act, float **out) {
    struct qep_product products[QEP_MAX_PRODUCTS];
    for (int32_t i = 0; i < g->shape->num; i++) {
        size_t bytes = (size_t)g->n * (size_t)g->shape->rows[i] * sizeof(float);
        out[i] = must_alloc(bytes);
        memcpy(out[i], g->before[i], bytes);
        products[i] = (struct qep_product){
            .weight = w[i], .out = out[i], .epilogue = g->epilogue[i], .gate = g->gate};
    }
    ck_assert_int_eq(be->ops->matmul(be, products, g->shape->num, acts, stride, act, g->n, 0),
                     QEP_OK);
}

/* Product i alone, its epilogue by hand: the same bits. */
static void check_product(struct qep_backend *be, const struct group *g, int32_t i,
                          const struct qep_weight *w, const char *acts, size_t stride,
                          enum qep_act_type act, const float *got, const char *what) {
    size_t bytes = (size_t)g->n * (size_t)g->shape->rows[i] * sizeof(float);
    float *alone = must_alloc(bytes);
    ck_assert_int_eq(multiply(be, alone, acts, stride, act, w, g->n, 0), QEP_OK);
    apply_epilogue(g, i, alone);
    assert_same_bits(got, alone, bytes, what);
    free(alone);
}

static void check_group(struct rng *rng, const struct group_shape *shape,
                        const enum qep_weight_type *types, enum qep_act_type act, int32_t n) {
    struct group g = make_group(rng, shape, types, rng_below(rng, 3), n);
    size_t cols = (size_t)shape->cols, stride = qep_act_row_bytes(act, shape->cols) + 32;
    float *x = random_floats(rng, (size_t)n * cols, 1.0f);
    float *plain = must_alloc((size_t)n * cols * sizeof *plain);
    char *acts = must_alloc((size_t)n * stride), what[128];
    float *out[3][QEP_MAX_PRODUCTS]; /* reference, first cpu variant, another */
    variants[0].be->ops->act_convert(variants[0].be, acts, stride, act, x, n, shape->cols);
    for (size_t i = 0; i < (size_t)n; i++)
        decode_act_row(act, acts + i * stride, shape->cols, plain + i * cols);
    for (int v = 0; v < num_variants; v++) {
        struct qep_backend *be = variants[v].be;
        struct qep_weight *w[QEP_MAX_PRODUCTS];
        enum qep_act_type type = v == 0 ? QEP_ACT_F32 : act;
        const char *rows = v == 0 ? (const char *)plain : acts;
        size_t row_stride = v == 0 ? cols * sizeof *plain : stride;
        float **mine = out[v < 2 ? v : 2];
        for (int32_t i = 0; i < shape->num; i++)
            w[i] = upload(be, &g.host[i]);
        run_group(be, &g, w, rows, row_stride, type, mine);
        for (int32_t i = 0; i < shape->num; i++) {
            size_t count = (size_t)n * (size_t)shape->rows[i];
            snprintf(what, sizeof what, "%.31s act %d, product %d of [.., %d] x %d",
                     variants[v].name, (int)act, (int)i, (int)shape->cols, (int)n);
            check_product(be, &g, i, w[i], rows, row_stride, type, mine[i], what);
            assert_close(mine[i], out[0][i], count, 1e-5, what);
            assert_same_bits(mine[i], out[v < 1 ? 0 : 1][i], count * sizeof(float), what);
            be->ops->weight_destroy(be, w[i]);
            if (v >= 2)
                free(mine[i]);
        }
    }
    for (int32_t i = 0; i < shape->num; i++) {
        free(out[0][i]);
        free(out[1][i]);
    }
    free(acts);
    free(plain);
    free(x);
    free_group(&g);
}

START_TEST(products_of_a_call_agree) {
    struct rng rng = {(uint64_t)_i + 300};
    for (int r = 0; r < NUM_GROUP_ROWS; r++)
        for (int mix = 0; mix < 3; mix++)
            for (int act = QEP_ACT_F32; act <= QEP_ACT_INT8; act++)
                if (act != QEP_ACT_INT8 || mix < 2)
                    check_group(&rng, &group_shapes[_i], type_mixes[mix], (enum qep_act_type)act,
                                group_rows[r]);
}
END_TEST

START_TEST(no_rows_are_no_work) {
    struct rng rng = {1};
    struct qep_host_weight host = random_weight(&rng, QEP_WEIGHT_BF16, 3, 8, 0);
    for (int v = 0; v < num_variants; v++) {
        struct qep_weight *w = upload(variants[v].be, &host);
        ck_assert_int_eq(multiply(variants[v].be, NULL, NULL, 32, QEP_ACT_F32, w, 0, 0), QEP_OK);
        variants[v].be->ops->weight_destroy(variants[v].be, w);
    }
    free_weight(&host);
}
END_TEST

START_TEST(matmul_takes_extreme_int8) {
    /* Largest products of every sign: no level may saturate. */
    enum { COLS = 64, ROWS = 18 };
    int8_t data[ROWS * COLS];
    uint16_t scales[ROWS * 2];
    float x[COLS], out[ROWS];
    for (int i = 0; i < ROWS * COLS; i++)
        data[i] = (int8_t)(i / COLS % 3 == 0 ? -128 : i / COLS % 3 == 1 ? 127 : i % 2 ? 127 : -128);
    for (int i = 0; i < ROWS * 2; i++)
        scales[i] = qep_f32_to_bf16(1.0f);
    for (int i = 0; i < COLS; i++)
        x[i] = i % 4 < 2 ? 127.0f : -127.0f;
    struct qep_host_weight host = {.type = QEP_WEIGHT_INT8,
                                   .rows = ROWS,
                                   .cols = COLS,
                                   .group_size = 32,
                                   .data = data,
                                   .scales = scales};
    for (int v = 1; v < num_variants; v++) {
        struct qep_backend *be = variants[v].be;
        struct qep_weight *w = upload(be, &host);
        char act[256];
        be->ops->act_convert(be, act, sizeof act, QEP_ACT_INT8, x, 1, COLS);
        multiply(be, out, act, sizeof act, QEP_ACT_INT8, w, 1, 0);
        for (int r = 0; r < ROWS; r++) {
            double want = 0.0;
            for (int c = 0; c < COLS; c++)
                want += (double)data[r * COLS + c] * (double)x[c];
            ck_assert_double_eq((double)out[r], want);
        }
        be->ops->weight_destroy(be, w);
    }
}
END_TEST

START_TEST(supports_is_what_the_contract_says) {
    for (int v = 0; v < num_variants; v++)
        for (int type = QEP_WEIGHT_F32; type <= QEP_WEIGHT_INT4; type++)
            for (int act = QEP_ACT_F32; act <= QEP_ACT_INT8; act++) {
                bool want =
                    v == 0 ? act == QEP_ACT_F32 : act != QEP_ACT_INT8 || type >= QEP_WEIGHT_INT8;
                ck_assert(variants[v].be->ops->supports(variants[v].be, (enum qep_weight_type)type,
                                                        (enum qep_act_type)act) == want);
            }
}
END_TEST

START_TEST(embed_reads_rows_exactly) {
    static const int32_t ids[] = {36, 0, 16, 15, 7, 7};
    struct rng rng = {99};
    struct qep_host_weight host = random_weight(&rng, (enum qep_weight_type)_i, 37, 75, 32);
    float want[6 * 75], got[6 * 75];
    for (int v = 0; v < num_variants; v++) {
        struct qep_backend *be = variants[v].be;
        struct qep_weight *w = upload(be, &host);
        ck_assert_int_eq(be->ops->embed(be, v == 0 ? want : got, w, ids, 6), QEP_OK);
        if (v > 0)
            assert_same_bits(got, want, sizeof want, variants[v].name);
        be->ops->weight_destroy(be, w);
    }
    free_weight(&host);
}
END_TEST

/* ---- experts ---- */

enum { NUM_EXPERTS = 7, MAX_ITEMS = 200 };

struct expert_case {
    const char *name;
    int32_t num_rows, top_k, hidden, inner;
    int32_t only; /* >= 0: every row goes to this expert alone */
};

static const struct expert_case expert_cases[] = {
    {"one token", 1, 3, 64, 32, -1},
    {"some experts empty", 2, 2, 33, 40, -1},
    {"all on one", 23, 1, 64, 48, 4},
    {"many rows", 37, 4, 96, 70, -1},
    {"every expert", 5, NUM_EXPERTS, 32, 16, -1},
};

struct items {
    int32_t count, expert[MAX_ITEMS], row[MAX_ITEMS];
    float weight[MAX_ITEMS];
};

static void choose_items(struct rng *rng, const struct expert_case *c, struct items *items) {
    bool chosen[MAX_ITEMS][NUM_EXPERTS] = {{false}};
    for (int32_t r = 0; r < c->num_rows; r++)
        for (int32_t j = 0; j < c->top_k;) {
            int32_t e = c->only >= 0 ? c->only : rng_below(rng, NUM_EXPERTS);
            if (!chosen[r][e]) {
                chosen[r][e] = true;
                j++;
            }
        }
    items->count = 0;
    for (int32_t e = 0; e < NUM_EXPERTS; e++)
        for (int32_t r = 0; r < c->num_rows; r++)
            if (chosen[r][e]) {
                items->expert[items->count] = e;
                items->row[items->count] = r;
                items->weight[items->count++] = (float)(1 + rng_below(rng, 8)) / 8.0f;
            }
}

/* Runs the op; with `only_item` >= 0 for that item alone. */
static void run_experts(struct qep_backend *be, const struct expert_case *c,
                        const struct items *items, int32_t only_item,
                        const struct qep_host_weight *host, enum qep_act_type act, const float *x,
                        float *out) {
    struct qep_weight *w[2 * NUM_EXPERTS];
    size_t stride = qep_act_row_bytes(act, c->hidden);
    char *rows = must_alloc((size_t)c->num_rows * stride);
    int32_t first = only_item >= 0 ? only_item : 0;
    for (int i = 0; i < 2 * NUM_EXPERTS; i++)
        w[i] = upload(be, &host[i]);
    be->ops->act_convert(be, rows, stride, act, x, c->num_rows, c->hidden);
    struct qep_expert_args args = {.rows = rows,
                                   .row_stride = stride,
                                   .act_type = act,
                                   .num_rows = c->num_rows,
                                   .num_items = only_item >= 0 ? 1 : items->count,
                                   .item_expert = items->expert + first,
                                   .item_row = items->row + first,
                                   .item_weight = items->weight + first,
                                   .gate_up = (const struct qep_weight *const *)w,
                                   .down = (const struct qep_weight *const *)w + NUM_EXPERTS,
                                   .hidden_size = c->hidden,
                                   .intermediate_size = c->inner};
    ck_assert_int_eq(be->ops->experts(be, &args, out), QEP_OK);
    for (int i = 0; i < 2 * NUM_EXPERTS; i++)
        be->ops->weight_destroy(be, w[i]);
    free(rows);
}

static void check_experts(struct rng *rng, const struct expert_case *c, enum qep_weight_type type,
                          enum qep_act_type act) {
    struct qep_host_weight host[2 * NUM_EXPERTS];
    struct items items;
    char what[128];
    for (int e = 0; e < NUM_EXPERTS; e++) {
        host[e] = random_weight(rng, type, 2 * c->inner, c->hidden, 32);
        host[e + NUM_EXPERTS] = random_weight(rng, type, c->hidden, c->inner, 32);
    }
    choose_items(rng, c, &items);
    size_t hidden = (size_t)c->hidden, outs = (size_t)items.count * hidden;
    float *x = random_floats(rng, (size_t)c->num_rows * hidden, 1.0f);
    float *want = must_alloc(outs * 4), *first = must_alloc(outs * 4), *got = must_alloc(outs * 4);
    run_experts(variants[0].be, c, &items, -1, host, QEP_ACT_F32, x, want);
    for (int v = 1; v < num_variants; v++) {
        snprintf(what, sizeof what, "experts, %s: %.31s %s act %d", c->name, variants[v].name,
                 weight_name(type), (int)act);
        run_experts(variants[v].be, c, &items, -1, host, act, x, v == 1 ? first : got);
        if (v > 1)
            assert_same_bits(got, first, outs * 4, what);
    }
    /* Rounded activations are compared loosely: the arithmetic is matmul's, tested above. */
    assert_close(first, want, outs, act == QEP_ACT_F32 ? 1e-5 : 0.05, what);
    for (int32_t i = 0; i < items.count; i += 5) {
        run_experts(variants[1].be, c, &items, i, host, act, x, got);
        assert_same_bits(got, first + (size_t)i * hidden, hidden * 4, "expert item alone");
    }
    free(got);
    free(first);
    free(want);
    free(x);
    for (int e = 0; e < 2 * NUM_EXPERTS; e++)
        free_weight(&host[e]);
}

START_TEST(experts_agree) {
    struct rng rng = {(uint64_t)_i + 500};
    check_experts(&rng, &expert_cases[_i], QEP_WEIGHT_F32, QEP_ACT_F32);
    check_experts(&rng, &expert_cases[_i], QEP_WEIGHT_BF16, QEP_ACT_BF16);
    check_experts(&rng, &expert_cases[_i], QEP_WEIGHT_INT8, QEP_ACT_INT8);
    check_experts(&rng, &expert_cases[_i], QEP_WEIGHT_INT4, QEP_ACT_INT8);
}
END_TEST

START_TEST(experts_take_no_items) {
    struct qep_expert_args args = {.hidden_size = 32, .intermediate_size = 32};
    for (int v = 0; v < num_variants; v++)
        ck_assert_int_eq(variants[v].be->ops->experts(variants[v].be, &args, NULL), QEP_OK);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("matmul");
    TCase *tc = tcase_create("matmul");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, matmul_agrees, 0, NUM_SHAPES);
    tcase_add_loop_test(tc, products_of_a_call_agree, 0, NUM_GROUP_SHAPES);
    tcase_add_test(tc, no_rows_are_no_work);
    tcase_add_test(tc, matmul_takes_extreme_int8);
    tcase_add_test(tc, supports_is_what_the_contract_says);
    tcase_add_loop_test(tc, embed_reads_rows_exactly, QEP_WEIGHT_F32, QEP_WEIGHT_INT4 + 1);
    tcase_add_loop_test(tc, experts_agree, 0, (int)(sizeof expert_cases / sizeof expert_cases[0]));
    tcase_add_test(tc, experts_take_no_items);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

#include "quant/group.h"
#include "quant/quantize.h"
#include "quant/recipe.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state = 1;

static double uniform(void) { /* xorshift */
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (double)(random_state >> 11) / 9007199254740992.0;
}

static float gaussian(void) {
    double u = uniform() + 1e-18, v = uniform();
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

/* Heavier tails, as trained weights have: student-t with 5 degrees of freedom. */
static float student(void) {
    double sum = 0;
    for (int i = 0; i < 5; i++) {
        double g = gaussian();
        sum += g * g;
    }
    return gaussian() / (float)sqrt(sum / 5);
}

static double squared_error(const struct qep_host_weight *w, const float *exact) {
    double error = 0;
    float *row = malloc((size_t)w->cols * sizeof *row);
    ck_assert_ptr_nonnull(row);
    for (int64_t r = 0; r < w->rows; r++) {
        qep_dequantize_row(w, r, row);
        for (int64_t c = 0; c < w->cols; c++) {
            double e = (double)row[c] - exact[r * w->cols + c];
            error += e * e;
        }
    }
    free(row);
    return error;
}

/* Round to nearest with scale = absmax / levels, in exact arithmetic. */
static double plain_error(const float *w, int64_t rows, int64_t cols, int group, double levels) {
    double error = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c += group) {
            int64_t n = cols - c < group ? cols - c : group;
            const float *x = w + r * cols + c;
            double absmax = 0;
            for (int64_t i = 0; i < n; i++)
                absmax = fmax(absmax, fabs((double)x[i]));
            double s = absmax / levels;
            for (int64_t i = 0; i < n && s > 0; i++) {
                double e = rint(x[i] / s) * s - x[i];
                error += e * e;
            }
        }
    return error;
}

static struct qep_host_weight quantize(const float *w, int64_t rows, int64_t cols, int32_t group,
                                       enum qep_weight_type type) {
    struct qep_host_weight q = {.type = type, .rows = rows, .cols = cols, .group_size = group};
    q.data = malloc(qep_weight_data_bytes(type, rows, cols));
    q.scales = malloc(qep_weight_num_scales(rows, cols, group) * sizeof *q.scales);
    ck_assert(q.data != NULL && q.scales != NULL);
    if (type == QEP_WEIGHT_INT8)
        qep_quantize_int8(w, rows, cols, group, q.data, q.scales);
    else
        qep_quantize_int4(w, rows, cols, group, q.data, q.scales);
    return q;
}

static void free_weight(struct qep_host_weight *q) {
    free(q->data);
    free(q->scales);
}

START_TEST(search_beats_plain_rounding) {
    enum { ROWS = 64, COLS = 1024 };
    static const int groups[] = {32, 64, 128};
    int group = groups[_i / 2];
    float *w = malloc(ROWS * COLS * sizeof *w);
    ck_assert_ptr_nonnull(w);
    for (int i = 0; i < ROWS * COLS; i++)
        w[i] = 0.02f * (_i % 2 == 0 ? gaussian() : student());
    struct qep_host_weight q4 = quantize(w, ROWS, COLS, group, QEP_WEIGHT_INT4);
    struct qep_host_weight q8 = quantize(w, ROWS, COLS, group, QEP_WEIGHT_INT8);
    double ratio4 = squared_error(&q4, w) / plain_error(w, ROWS, COLS, group, 7);
    double ratio8 = squared_error(&q8, w) / plain_error(w, ROWS, COLS, group, 127);
    ck_assert_msg(ratio4 <= 0.8, "int4, group %d: %g of plain rounding's error", group, ratio4);
    ck_assert_msg(ratio8 <= 1.01, "int8, group %d: %g of plain rounding's error", group, ratio8);
    free_weight(&q4);
    free_weight(&q8);
    free(w);
}
END_TEST

START_TEST(awkward_widths_round_trip) {
    static const int64_t widths[] = {1, 2, 7, 31, 32, 33, 63, 65, 100, 127, 129, 161};
    int64_t cols = widths[_i], rows = 5;
    float w[5 * 161];
    for (int64_t i = 0; i < rows * cols; i++)
        w[i] = gaussian();
    for (int group = 32; group <= 128; group *= 2) {
        struct qep_host_weight q4 = quantize(w, rows, cols, group, QEP_WEIGHT_INT4);
        struct qep_host_weight q8 = quantize(w, rows, cols, group, QEP_WEIGHT_INT8);
        double norm = 0;
        for (int64_t i = 0; i < rows * cols; i++)
            norm += (double)w[i] * w[i];
        ck_assert(squared_error(&q4, w) < 0.02 * norm);
        ck_assert(squared_error(&q8, w) < 1e-4 * norm);
        for (int64_t i = 0; i < rows * cols; i++) /* kernels rely on it */
            ck_assert_int_ne(((int8_t *)q8.data)[i], -128);
        if (cols % 2 == 1)
            for (int64_t r = 0; r < rows; r++)
                ck_assert_uint_eq(((uint8_t *)q4.data)[r * ((cols + 1) / 2) + cols / 2] >> 4, 0);
        free_weight(&q4);
        free_weight(&q8);
    }
}
END_TEST

START_TEST(extreme_groups_are_safe) {
    static const float fills[] = {0.0f, 1e-40f, 1e-38f, 3.0f, -3.0f, 1.1e18f, -1.1e18f};
    float w[64], row[64];
    for (size_t f = 0; f < sizeof fills / sizeof *fills; f++) {
        for (int i = 0; i < 64; i++)
            w[i] = fills[f];
        for (int t = QEP_WEIGHT_INT8; t <= QEP_WEIGHT_INT4; t++) {
            struct qep_host_weight q = quantize(w, 1, 64, 32, (enum qep_weight_type)t);
            qep_dequantize_row(&q, 0, row);
            for (int i = 0; i < 64; i++)
                ck_assert(fabsf(row[i] - w[i]) <= 0.01f * fabsf(w[i]) || fabsf(w[i]) < 1e-30f);
            free_weight(&q);
        }
    }
}
END_TEST

/* One lonely outlier of either sign takes the level that only its sign has. */
START_TEST(sixteenth_level_serves_both_signs) {
    for (int sign = -1; sign <= 1; sign += 2) {
        float w[32];
        for (int i = 0; i < 32; i++)
            w[i] = (float)(sign * (i % 16 - 7)); /* -7..8 times the sign */
        struct qep_host_weight q = quantize(w, 1, 32, 32, QEP_WEIGHT_INT4);
        ck_assert(squared_error(&q, w) == 0);
        ck_assert_int_eq(qep_bf16_to_f32(q.scales[0]) < 0, sign > 0);
        free_weight(&q);
    }
}
END_TEST

START_TEST(variants_give_equal_bits) {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx2"))
        return;
    float w[128], a[128], b[128];
    for (int round = 0; round < 2000; round++) {
        int n = 8 * (1 + round % 16);
        float size = powf(10.0f, (float)(round % 20 - 10));
        for (int i = 0; i < n; i++)
            w[i] = size * student();
        ck_assert(qep_int4_group_base(w, n, a) == qep_int4_group_avx2(w, n, b));
        ck_assert_mem_eq(a, b, (size_t)n * sizeof *a);
        ck_assert(qep_int8_group_base(w, n, a) == qep_int8_group_avx2(w, n, b));
        ck_assert_mem_eq(a, b, (size_t)n * sizeof *a);
    }
#endif
}
END_TEST

/* A group with a value that has no code is NaN, whoever reads it; its neighbours are not. */
START_TEST(groups_beyond_the_limit_are_nan) {
    static const float values[] = {NAN, -NAN, INFINITY, -INFINITY, 3.4e38f, -3.4e38f, 1.2e18f};
    for (size_t v = 0; v < sizeof values / sizeof *values; v++)
        for (int t = QEP_WEIGHT_INT8; t <= QEP_WEIGHT_INT4; t++)
            for (int at = 32; at < 75; at += 21) {
                float w[75], row[75];
                for (int i = 0; i < 75; i++)
                    w[i] = (float)(i % 7 - 3);
                w[at] = values[v];
                struct qep_host_weight q = quantize(w, 1, 75, 32, (enum qep_weight_type)t);
                qep_dequantize_row(&q, 0, row);
                ck_assert_uint_eq(q.scales[at / 32], 0x7fc0);
                for (int i = 0; i < 75; i++)
                    ck_assert_msg(i / 32 == at / 32 ? isnan(row[i]) : fabsf(row[i] - w[i]) < 0.3f,
                                  "%g at %d: %g at %d", (double)values[v], at, (double)row[i], i);
                free_weight(&q);
            }
}
END_TEST

START_TEST(values_beyond_the_limit_are_found) {
    const uint32_t inf = qep_storable_limit(QEP_WEIGHT_F32);
    float f[3000] = {0};
    uint16_t h[3000] = {0};
    f[500] = 3.4e38f;
    h[500] = 0xff7f;
    ck_assert_uint_eq(qep_find_beyond_f32(f, 3000, inf), 3000);
    ck_assert_uint_eq(qep_find_beyond_bf16(h, 3000, inf), 3000);
    f[2999] = NAN;
    h[2999] = 0xff80;
    ck_assert_uint_eq(qep_find_beyond_f32(f, 3000, inf), 2999);
    ck_assert_uint_eq(qep_find_beyond_bf16(h, 3000, inf), 2999);
    f[1024] = -INFINITY;
    h[1024] = 0x7fc1;
    ck_assert_uint_eq(qep_find_beyond_f32(f, 3000, inf), 1024);
    ck_assert_uint_eq(qep_find_beyond_bf16(h, 3000, inf), 1024);
    for (int t = QEP_WEIGHT_INT8; t <= QEP_WEIGHT_INT4; t++) {
        uint32_t limit = qep_storable_limit((enum qep_weight_type)t);
        ck_assert_uint_eq(qep_find_beyond_f32(f, 3000, limit), 500);
        ck_assert_uint_eq(qep_find_beyond_bf16(h, 3000, limit), 500);
    }
}
END_TEST

/* The limit of bf16 is where rounding leaves for infinity. */
START_TEST(bf16_limit_is_where_rounding_overflows) {
    uint32_t limit = qep_storable_limit(QEP_WEIGHT_BF16);
    float at, below;
    uint32_t bits = limit - 1;
    memcpy(&at, &limit, sizeof at);
    memcpy(&below, &bits, sizeof below);
    ck_assert_uint_eq(qep_f32_to_bf16(at), 0x7f80);
    ck_assert_uint_eq(qep_f32_to_bf16(below), 0x7f7f);
    ck_assert_uint_eq(qep_find_beyond_f32(&at, 1, limit), 0);
    ck_assert_uint_eq(qep_find_beyond_f32(&below, 1, limit), 1);
}
END_TEST

START_TEST(globs_match) {
    static const struct {
        const char *pattern, *text;
        bool match;
    } cases[] = {
        {"*", "", true},          {"", "", true},
        {"a", "", false},         {"*a", "banana", true},
        {"*b", "banana", false},  {"b*n*a", "banana", true},
        {"a*b*c", "aXbY", false}, {"**x", "x", true},
        {"x*", "x", true},        {"layers.*.A_log", "layers.12.linear_attn.A_log", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        ck_assert_msg(qep_glob_match(cases[i].pattern, cases[i].text) == cases[i].match, "%s %s",
                      cases[i].pattern, cases[i].text);
}
END_TEST

static enum qep_weight_type type_of(const struct qep_recipe *r, const char *name, bool matrix) {
    enum qep_weight_type type = QEP_WEIGHT_F32;
    ck_assert_int_eq(qep_recipe_apply(r, name, matrix, true, &type), QEP_OK);
    return type;
}

START_TEST(builtin_recipes_choose_types) {
    static const struct {
        const char *tensor;
        bool matrix;
        enum qep_weight_type types[4]; /* bf16, q8, q4, q4-all */
    } cases[] = {
#define B QEP_WEIGHT_BF16
#define I8 QEP_WEIGHT_INT8
#define I4 QEP_WEIGHT_INT4
        {"layers.3.mlp.experts.17.gate_up_proj", true, {B, I8, I4, I4}},
        {"layers.3.mlp.experts.17.down_proj", true, {B, I8, I4, I4}},
        {"layers.3.mlp.gate_proj.weight", true, {B, I8, I4, I4}},
        {"layers.3.mlp.shared_expert.gate_proj.weight", true, {B, I8, I8, I4}},
        {"layers.3.mlp.shared_expert.down_proj.weight", true, {B, I8, I8, I4}},
        {"layers.3.self_attn.q_proj.weight", true, {B, I8, I8, I4}},
        {"layers.3.self_attn.o_proj.weight", true, {B, I8, I8, I4}},
        {"layers.0.linear_attn.in_proj_qkv.weight", true, {B, I8, I8, I4}},
        {"layers.0.linear_attn.in_proj_z.weight", true, {B, I8, I8, I4}},
        {"layers.0.linear_attn.out_proj.weight", true, {B, I8, I8, I4}},
        {"lm_head.weight.block.63", true, {B, I8, I8, I4}},
        {"embed_tokens.weight", true, {B, I8, I8, I4}},
        {"layers.0.linear_attn.in_proj_a.weight", true, {B, B, B, B}},
        {"layers.0.linear_attn.in_proj_b.weight", true, {B, B, B, B}},
        {"layers.0.linear_attn.conv1d.weight", false, {B, B, B, B}},
        {"layers.0.linear_attn.A_log", false, {B, B, B, B}},
        {"layers.0.linear_attn.dt_bias", false, {B, B, B, B}},
        {"layers.0.linear_attn.norm.weight", false, {B, B, B, B}},
        {"layers.3.self_attn.q_norm.weight", false, {B, B, B, B}},
        {"layers.3.mlp.gate.weight", true, {B, B, B, B}},
        {"layers.3.mlp.shared_expert_gate.weight", true, {B, B, B, B}},
        {"norm.weight", false, {B, B, B, B}},
    };
    static const char *const names[] = {"bf16", "q8", "q4", "q4-all"};
    for (int n = 0; n < 4; n++) {
        struct qep_recipe recipe;
        ck_assert_msg(qep_recipe_builtin(names[n], &recipe) == QEP_OK, "%s", qep_last_error());
        ck_assert_str_eq(recipe.name, names[n]);
        ck_assert_int_eq(recipe.group_size, 32);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
            ck_assert_msg(type_of(&recipe, cases[i].tensor, cases[i].matrix) == cases[i].types[n],
                          "%s %s", names[n], cases[i].tensor);
        qep_recipe_free(&recipe);
    }
}
END_TEST

START_TEST(float32_sources_are_kept) {
    struct qep_recipe recipe;
    enum qep_weight_type type;
    ck_assert_int_eq(qep_recipe_builtin("bf16", &recipe), QEP_OK);
    ck_assert_int_eq(qep_recipe_apply(&recipe, "layers.0.linear_attn.A_log", false, false, &type),
                     QEP_OK);
    ck_assert_int_eq(type, QEP_WEIGHT_F32);
    ck_assert_int_eq(
        qep_recipe_apply(&recipe, "layers.0.self_attn.q_proj.weight", true, false, &type), QEP_OK);
    ck_assert_int_eq(type, QEP_WEIGHT_BF16);
    qep_recipe_free(&recipe);
}
END_TEST

START_TEST(bad_recipes_are_refused) {
    static const char *const texts[] = {
        "",
        "{}",
        "[]",
        "{\"name\": \"x\"}",
        "{\"name\": \"x\", \"rules\": []}",
        "{\"name\": \"x\", \"rules\": [{\"match\": \"*\", \"type\": \"int2\"}]}",
        "{\"name\": \"x\", \"rules\": [{\"match\": \"\", \"type\": \"int4\"}]}",
        "{\"name\": \"x\", \"rules\": [{\"type\": \"int4\"}]}",
        "{\"name\": \"x\", \"rules\": [3]}",
        "{\"name\": \"\", \"rules\": [{\"match\": \"*\", \"type\": \"int4\"}]}",
        "{\"name\": \"x\", \"group_size\": 48, \"rules\": [{\"match\": \"*\", \"type\": "
        "\"int4\"}]}",
        "{\"name\": \"x\", \"groupsize\": 32, \"rules\": [{\"match\": \"*\", \"type\": \"int4\"}]}",
        "{\"name\": \"\\u001b[2J\", \"rules\": [{\"match\": \"*\", \"type\": \"int4\"}]}",
        "{\"name\": \"\\u202ex\", \"rules\": [{\"match\": \"*\", \"type\": \"int4\"}]}",
        "{\"name\": \"01234567890123456789012345678901\", \"rules\": [{\"match\": \"*\", "
        "\"type\": \"keep\"}]}",
    };
    struct qep_recipe recipe;
    enum qep_weight_type type;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        ck_assert_msg(qep_recipe_parse(texts[i], strlen(texts[i]), "r", &recipe) == QEP_ERR_DATA,
                      "%s", texts[i]);
    ck_assert_int_eq(qep_recipe_builtin("q5", &recipe), QEP_ERR_USAGE);
    ck_assert(qep_recipe_is_path("x.json") && qep_recipe_is_path("/dev/fd/63"));
    ck_assert(!qep_recipe_is_path("q4") && !qep_recipe_is_path(".json"));
    static const char vectors[] =
        "{\"name\": \"x\", \"rules\": [{\"match\": \"norm*\", \"type\": \"int4\"}]}";
    ck_assert_int_eq(qep_recipe_parse(vectors, strlen(vectors), "r", &recipe), QEP_OK);
    ck_assert_int_eq(qep_recipe_apply(&recipe, "norm.weight", false, true, &type), QEP_ERR_DATA);
    ck_assert_int_eq(qep_recipe_apply(&recipe, "other", true, true, &type), QEP_ERR_DATA);
    qep_recipe_free(&recipe);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("quant");
    TCase *tc = tcase_create("quant");
    tcase_add_loop_test(tc, search_beats_plain_rounding, 0, 6);
    tcase_add_loop_test(tc, awkward_widths_round_trip, 0, 12);
    tcase_add_test(tc, extreme_groups_are_safe);
    tcase_add_test(tc, sixteenth_level_serves_both_signs);
    tcase_add_test(tc, variants_give_equal_bits);
    tcase_add_test(tc, groups_beyond_the_limit_are_nan);
    tcase_add_test(tc, values_beyond_the_limit_are_found);
    tcase_add_test(tc, bf16_limit_is_where_rounding_overflows);
    tcase_add_test(tc, globs_match);
    tcase_add_test(tc, builtin_recipes_choose_types);
    tcase_add_test(tc, float32_sources_are_kept);
    tcase_add_test(tc, bad_recipes_are_refused);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* Shard directories without files: what bench --weights random loads. */
#include "checkpoint/config.h"
#include "model/rank_bytes.h"
#include "quant/quantize.h"
#include "shard/random.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct qep_shard_dir *open_config(const char *path, const char *recipe_name, uint64_t seed) {
    struct qep_model_config config;
    struct qep_recipe recipe;
    struct qep_shard_dir *dir = NULL;
    ck_assert_int_eq(qep_config_read(path, &config), QEP_OK);
    ck_assert_int_eq(qep_recipe_builtin(recipe_name, &recipe), QEP_OK);
    ck_assert_msg(qep_shard_dir_random(&config, &recipe, seed, &dir) == QEP_OK, "%s",
                  qep_last_error());
    qep_recipe_free(&recipe);
    return dir;
}

static struct qep_shard_dir *open_random(const char *recipe_name, uint64_t seed) {
    return open_config("configs/tiny-random.json", recipe_name, seed);
}

static struct qep_host_weight load(const struct qep_shard_dir *dir, const char *name) {
    struct qep_host_weight w;
    ck_assert_msg(qep_shard_load(dir, name, &w, NULL) == QEP_OK, "%s: %s", name, qep_last_error());
    return w;
}

static size_t scale_bytes(const struct qep_host_weight *w) {
    return qep_weight_num_scales(w->rows, w->cols, w->group_size) * sizeof *w->scales;
}

static bool equal(const struct qep_host_weight *a, const struct qep_host_weight *b) {
    return a->type == b->type && a->rows == b->rows && a->cols == b->cols &&
           memcmp(a->data, b->data, qep_weight_data_bytes(a->type, a->rows, a->cols)) == 0 &&
           (a->scales == NULL || memcmp(a->scales, b->scales, scale_bytes(a)) == 0);
}

static double deviation_of(const struct qep_host_weight *w) {
    double squares = 0;
    float *row = malloc((size_t)w->cols * sizeof *row);
    ck_assert_ptr_nonnull(row);
    for (int64_t r = 0; r < w->rows; r++) {
        qep_dequantize_row(w, r, row);
        for (int64_t c = 0; c < w->cols; c++)
            squares += (double)row[c] * (double)row[c];
    }
    free(row);
    return sqrt(squares / (double)(w->rows * w->cols));
}

static const struct {
    const char *recipe, *name;
    enum qep_weight_type type;
    int64_t rows, cols;
} tensors[] = {
    {"q4", "layers.1.mlp.experts.3.gate_up_proj", QEP_WEIGHT_INT4, 64, 64},
    {"q4", "layers.1.mlp.experts.3.down_proj", QEP_WEIGHT_INT4, 64, 32},
    {"q4", "layers.0.linear_attn.in_proj_qkv.weight", QEP_WEIGHT_INT8, 128, 64},
    {"q4", "lm_head.weight.block.5", QEP_WEIGHT_INT8, 8, 64},
    {"q4", "layers.3.mlp.gate.weight", QEP_WEIGHT_BF16, 8, 64},
    {"q4", "layers.0.linear_attn.A_log", QEP_WEIGHT_F32, 1, 4},
    {"bf16", "layers.1.mlp.experts.3.gate_up_proj", QEP_WEIGHT_BF16, 64, 64},
};

/* Quantised or not, a tensor has the same shape and scale as the one of `synth`. */
START_TEST(tensor_table) {
    struct qep_shard_dir *dir = open_random(tensors[_i].recipe, 1), *plain = open_random("bf16", 1);
    struct qep_host_weight w = load(dir, tensors[_i].name), p = load(plain, tensors[_i].name);
    ck_assert_int_eq(w.type, tensors[_i].type);
    ck_assert_int_eq(w.rows, tensors[_i].rows);
    ck_assert_int_eq(w.cols, tensors[_i].cols);
    ck_assert_double_eq_tol(deviation_of(&w) / deviation_of(&p), 1.0, 0.15);
    qep_host_weight_free(&w);
    qep_host_weight_free(&p);
    qep_shard_dir_close(dir);
    qep_shard_dir_close(plain);
}
END_TEST

START_TEST(seeds_and_names_decide) {
    const char *name = "layers.1.mlp.experts.3.gate_up_proj";
    struct qep_shard_dir *a = open_random("q4", 1), *b = open_random("q4", 1),
                         *c = open_random("q4", 2);
    struct qep_host_weight w[4] = {load(a, name), load(b, name), load(c, name),
                                   load(a, "layers.1.mlp.experts.4.gate_up_proj")};
    ck_assert(equal(&w[0], &w[1]));
    ck_assert(!equal(&w[0], &w[2]));
    ck_assert(!equal(&w[0], &w[3]));
    ck_assert_str_eq(qep_shard_dir_info(a)->identity, qep_shard_dir_info(b)->identity);
    ck_assert_str_ne(qep_shard_dir_info(a)->identity, qep_shard_dir_info(c)->identity);
    for (int i = 0; i < 4; i++)
        qep_host_weight_free(&w[i]);
    qep_shard_dir_close(a);
    qep_shard_dir_close(b);
    qep_shard_dir_close(c);
}
END_TEST

/* Rows of an odd number of columns, more rows than the repeated block has groups. */
START_TEST(odd_shapes_are_canonical) {
    struct qep_tensor_spec spec = {.kind = QEP_TENSOR_MATRIX,
                                   .rows = 70001,
                                   .cols = 37,
                                   .layer = 0,
                                   .expert = -1,
                                   .vocab_block = -1};
    const struct qep_inventory inventory = {.specs = &spec, .num_specs = 1};
    struct qep_model_config config = {.num_hidden_layers = 1};
    struct qep_random_tensors *t = NULL;
    struct qep_host_weight w;
    strcpy(spec.name, "layers.0.mlp.gate_proj.weight");
    ck_assert_int_eq(qep_random_tensors_create(&config, &inventory, 0, 32, &t), QEP_OK);
    ck_assert_int_eq(qep_random_tensors_load(t, 0, QEP_WEIGHT_INT4, &w), QEP_OK);
    for (int64_t r = 0; r < w.rows; r++)
        ck_assert_uint_eq(((uint8_t *)w.data)[r * 19 + 18] & 0xf0u, 0);
    ck_assert_double_eq_tol(deviation_of(&w) * sqrt(37.0), 1.0, 0.02);
    qep_host_weight_free(&w);
    qep_random_tensors_destroy(t);
}
END_TEST

START_TEST(unknown_names_are_refused) {
    struct qep_shard_dir *dir = open_random("q4", 1);
    struct qep_host_weight w;
    ck_assert_int_eq(qep_shard_load(dir, "layers.9.norm", &w, NULL), QEP_ERR_DATA);
    qep_shard_dir_close(dir);
}
END_TEST

/* Qwen3.5-35B-A3B: what docs/performance.md derives from the shapes, in GB. */
static const struct {
    const char *recipe;
    int64_t batch, depth;
    double gb;
} steps[] = {{"q4", 1, 0, 2.78},
             {"q4", 8, 0, 7.2},
             {"q4", 32, 0, 17.7},
             {"q4", 1, 16384, 3.12},
             {"bf16", 1, 0, 6.04}};

START_TEST(a_step_reads_what_the_shapes_say) {
    struct qep_shard_dir *dir = open_config("configs/qwen3.5-35b-a3b.json", steps[_i].recipe, 0);
    double gb = 1e-9 * qep_step_bytes(dir, QEP_KV_BF16, steps[_i].batch, steps[_i].depth);
    ck_assert_msg(fabs(gb / steps[_i].gb - 1) < 0.01, "%s, %d sequences: %.3f GB, expected %.2f",
                  steps[_i].recipe, (int)steps[_i].batch, gb, steps[_i].gb);
    qep_shard_dir_close(dir);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("random_dir");
    TCase *tc = tcase_create("random_dir");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, tensor_table, 0, (int)(sizeof tensors / sizeof *tensors));
    tcase_add_test(tc, seeds_and_names_decide);
    tcase_add_test(tc, odd_shapes_are_canonical);
    tcase_add_test(tc, unknown_names_are_refused);
    tcase_add_loop_test(tc, a_step_reads_what_the_shapes_say, 0,
                        (int)(sizeof steps / sizeof *steps));
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* Packed weights, matmul in both phases and embedding of the cuda backend against the reference:
 * awkward shapes, every pair of types it takes, equal bits for any number and place of rows. */
#include "cuda_support.h"

#include <math.h>
#include <string.h>

static struct qep_backend *ref, *cuda;

static void setup(void) {
    ck_assert_int_eq(qep_backend_reference_create(&ref), QEP_OK);
    cuda = open_cuda();
}

static void teardown(void) {
    ref->ops->destroy(ref);
    close_cuda(cuda);
}

struct shape {
    int32_t n, rows, cols, group;
};

/* On a device of few SMs, as the emulator's is, the last one and its parts take prefill tiles of
 * all widths. */
static const struct shape shapes[] = {
    {1, 1, 1, 32},      {1, 16, 32, 32},     {1, 17, 31, 64},     {2, 13, 33, 32},
    {3, 32, 64, 64},    {5, 37, 97, 32},     {7, 131, 160, 64},   {8, 48, 256, 128},
    {9, 67, 300, 128},  {11, 1, 257, 32},    {17, 96, 513, 64},   {33, 70, 520, 32},
    {70, 33, 64, 32},   {1, 40, 2081, 32},   {3, 24, 1100, 1120}, {13, 130, 200, 96},
    {131, 19, 130, 32}, {131, 300, 130, 64},
};

enum { NUM_SHAPES = sizeof shapes / sizeof shapes[0] };

/* Activation rows as the backend takes them, with bytes between them that nobody may read: they are
 * NaNs in every type. */
struct acts {
    char *rows;
    size_t stride, bytes; /* the last row ends with its own bytes */
    float *plain;         /* [n, cols] what they stand for */
};

static struct acts make_acts(struct rng *rng, enum qep_act_type type, int32_t n, int32_t cols) {
    struct acts a = {.stride = qep_act_row_bytes(type, cols) + 32};
    size_t count = (size_t)n * (size_t)cols, row_bytes = qep_act_row_bytes(type, cols);
    float *x = random_floats(rng, count, 1.0f);
    a.rows = must_alloc((size_t)n * a.stride);
    a.plain = must_alloc(count * sizeof *a.plain);
    a.bytes = (size_t)(n - 1) * a.stride + row_bytes;
    ck_assert_int_eq(ref->ops->act_convert(ref, a.rows, a.stride, type, x, n, cols), QEP_OK);
    for (size_t i = 0; i < (size_t)n; i++) {
        decode_act_row(type, a.rows + i * a.stride, cols, a.plain + i * (size_t)cols);
        memset(a.rows + i * a.stride + row_bytes, 0xff, a.stride - row_bytes);
    }
    free(x);
    return a;
}

static void free_acts(struct acts *a) {
    free(a->rows);
    free(a->plain);
}

static struct qep_weight *upload(struct qep_backend *be, const struct qep_host_weight *host) {
    struct qep_weight *w = NULL;
    enum qep_status st = be->ops->weight_create(be, host, &w);
    ck_assert_msg(st == QEP_OK, "%s", qep_last_error());
    return w;
}

/* cuda's matmul of rows first .. first + n of the activations on the device; free the result. */
static float *run(const struct qep_weight *w, const char *dev_acts, const struct acts *a,
                  enum qep_act_type type, int32_t first, int32_t n, int32_t rows, int32_t decode) {
    size_t bytes = (size_t)n * (size_t)rows * sizeof(float);
    float *out = device_room(cuda, bytes);
    enum qep_status st = cuda->ops->matmul(cuda, out, dev_acts + (size_t)first * a->stride,
                                           a->stride, type, w, n, decode);
    ck_assert_msg(st == QEP_OK, "%s", qep_last_error());
    float *host = to_host(cuda, out, bytes);
    cuda->ops->free(cuda, out);
    return host;
}

/* Some rows alone, and a batch that starts in the middle: the bits of the whole batch. */
static void check_places(const struct qep_weight *w, const char *dev_acts, const struct acts *a,
                         enum qep_act_type type, const struct shape *s, int32_t decode,
                         const float *batch, const char *what) {
    const int32_t parts[][2] = {{0, 1}, {s->n - 1, 1}, {s->n / 3, s->n - s->n / 3}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0] && s->n > 1; i++) {
        int32_t first = parts[i][0], n = parts[i][1];
        float *part = run(w, dev_acts, a, type, first, n, s->rows, decode);
        assert_same_bits(part, batch + (size_t)first * (size_t)s->rows,
                         (size_t)n * (size_t)s->rows * sizeof *part, what);
        free(part);
    }
}

static void check_matmul(struct rng *rng, const struct shape *s, enum qep_weight_type type,
                         enum qep_act_type act) {
    struct qep_host_weight host = random_weight(rng, type, s->rows, s->cols, s->group);
    struct acts a = make_acts(rng, act, s->n, s->cols);
    struct qep_weight *rw = upload(ref, &host), *cw = upload(cuda, &host);
    size_t outs = (size_t)s->n * (size_t)s->rows;
    float *want = must_alloc(outs * sizeof *want);
    char *dev_acts = to_device(cuda, a.rows, a.bytes);
    ck_assert_int_eq(ref->ops->matmul(ref, want, a.plain, (size_t)s->cols * sizeof(float),
                                      QEP_ACT_F32, rw, s->n, 0),
                     QEP_OK);
    for (int32_t decode = 0; decode < 2; decode++) {
        char what[128];
        snprintf(what, sizeof what, "%s act %d [%d, %d] x %d%s", weight_name(type), (int)act,
                 s->rows, s->cols, s->n, decode ? " decode" : "");
        float *got = run(cw, dev_acts, &a, act, 0, s->n, s->rows, decode);
        assert_close(got, want, outs, 1e-5, what);
        check_places(cw, dev_acts, &a, act, s, decode, got, what);
        free(got);
    }
    cuda->ops->free(cuda, dev_acts);
    ref->ops->weight_destroy(ref, rw);
    cuda->ops->weight_destroy(cuda, cw);
    free(want);
    free_acts(&a);
    free_weight(&host);
}

START_TEST(matmul_agrees) {
    struct rng rng = {(uint64_t)_i + 1};
    for (int type = QEP_WEIGHT_F32; cuda != NULL && type <= QEP_WEIGHT_INT4; type++)
        for (int act = QEP_ACT_F32; act <= QEP_ACT_BF16; act++)
            if (cuda->ops->supports(cuda, (enum qep_weight_type)type, (enum qep_act_type)act))
                check_matmul(&rng, &shapes[_i], (enum qep_weight_type)type, (enum qep_act_type)act);
}
END_TEST

START_TEST(supports_is_what_the_contract_says) {
    for (int type = QEP_WEIGHT_F32; cuda != NULL && type <= QEP_WEIGHT_INT4; type++)
        for (int act = QEP_ACT_F32; act <= QEP_ACT_INT8; act++) {
            bool want = act == QEP_ACT_BF16 ||
                        (act == QEP_ACT_F32 && (type == QEP_WEIGHT_F32 || type == QEP_WEIGHT_BF16));
            ck_assert(cuda->ops->supports(cuda, (enum qep_weight_type)type,
                                          (enum qep_act_type)act) == want);
        }
}
END_TEST

/* Rows of the unit matrix give back the weights themselves, every stored value and scale: the
 * layout and the exactness of dequantisation at once. */
static void check_unit_rows(enum qep_weight_type type, enum qep_act_type act, int32_t decode) {
    enum { ROWS = 21, COLS = 75 };
    struct rng rng = {7};
    struct qep_host_weight host = random_weight(&rng, type, ROWS, COLS, 32);
    struct qep_weight *rw = upload(ref, &host), *cw = upload(cuda, &host);
    size_t stride = qep_act_row_bytes(act, COLS);
    float *unit = must_alloc(COLS * COLS * sizeof *unit), weights[ROWS * COLS];
    char *rows = must_alloc(COLS * stride);
    int32_t ids[ROWS];
    for (int i = 0; i < COLS; i++)
        unit[i * COLS + i] = 1.0f;
    for (int i = 0; i < ROWS; i++)
        ids[i] = i;
    ck_assert_int_eq(ref->ops->embed(ref, weights, rw, ids, ROWS), QEP_OK);
    ck_assert_int_eq(ref->ops->act_convert(ref, rows, stride, act, unit, COLS, COLS), QEP_OK);
    struct acts a = {.stride = stride};
    char *dev = to_device(cuda, rows, COLS * stride);
    float *got = run(cw, dev, &a, act, 0, COLS, ROWS, decode);
    for (int c = 0; c < COLS; c++)
        for (int r = 0; r < ROWS; r++)
            ck_assert_msg(got[c * ROWS + r] == weights[r * COLS + c], "%s [%d, %d]: %g, not %g",
                          weight_name(type), r, c, (double)got[c * ROWS + r],
                          (double)weights[r * COLS + c]);
    free(got);
    cuda->ops->free(cuda, dev);
    ref->ops->weight_destroy(ref, rw);
    cuda->ops->weight_destroy(cuda, cw);
    free(rows);
    free(unit);
    free_weight(&host);
}

START_TEST(matmul_of_unit_rows_is_exact) {
    for (int act = QEP_ACT_F32; cuda != NULL && act <= QEP_ACT_BF16; act++)
        for (int32_t decode = 0; decode < 2; decode++)
            /* fp32 weights meet bf16 activations in fp32: exact as well. */
            if (cuda->ops->supports(cuda, (enum qep_weight_type)_i, (enum qep_act_type)act))
                check_unit_rows((enum qep_weight_type)_i, (enum qep_act_type)act, decode);
}
END_TEST

START_TEST(matmul_sums_integers_exactly) {
    /* Largest products of every sign, exact in fp32: nothing may saturate or round. */
    enum { COLS = 192, ROWS = 18 };
    int8_t *data = must_alloc(ROWS * COLS);
    uint16_t scales[ROWS * COLS / 32];
    float x[COLS];
    for (int i = 0; i < ROWS * COLS; i++)
        data[i] = (int8_t)(i / COLS % 3 == 0 ? -128 : i / COLS % 3 == 1 ? 127 : i % 256 - 128);
    for (size_t i = 0; i < sizeof scales / sizeof scales[0]; i++)
        scales[i] = qep_f32_to_bf16(1.0f);
    for (int i = 0; i < COLS; i++)
        x[i] = i % 4 < 2 ? 127.0f : -125.0f;
    struct qep_host_weight host = {.type = QEP_WEIGHT_INT8,
                                   .rows = ROWS,
                                   .cols = COLS,
                                   .group_size = 32,
                                   .data = data,
                                   .scales = scales};
    for (int32_t decode = 0; cuda != NULL && decode < 2; decode++) {
        struct qep_weight *w = upload(cuda, &host);
        struct acts a = {.stride = qep_act_row_bytes(QEP_ACT_BF16, COLS)};
        char *rows = must_alloc(a.stride);
        ref->ops->act_convert(ref, rows, a.stride, QEP_ACT_BF16, x, 1, COLS);
        char *dev = to_device(cuda, rows, a.stride);
        float *got = run(w, dev, &a, QEP_ACT_BF16, 0, 1, ROWS, decode);
        for (int r = 0; r < ROWS; r++) {
            double want = 0.0;
            for (int c = 0; c < COLS; c++)
                want += (double)data[r * COLS + c] * (double)x[c];
            ck_assert_double_eq((double)got[r], want);
        }
        free(got);
        free(rows);
        cuda->ops->free(cuda, dev);
        cuda->ops->weight_destroy(cuda, w);
    }
    free(data);
}
END_TEST

START_TEST(embed_reads_rows_exactly) {
    static const int32_t ids[] = {36, 0, 16, 15, 7, -1, 7, 19, 18};
    enum { N = sizeof ids / sizeof ids[0], COLS = 75 };
    struct rng rng = {99};
    struct qep_host_weight host = random_weight(&rng, (enum qep_weight_type)_i, 37, COLS, 32);
    float want[N * COLS];
    struct qep_weight *rw = upload(ref, &host);
    ck_assert_int_eq(ref->ops->embed(ref, want, rw, ids, N), QEP_OK);
    if (cuda != NULL) {
        struct qep_weight *w = upload(cuda, &host);
        int32_t *dev_ids = to_device(cuda, ids, sizeof ids);
        float *out = device_room(cuda, sizeof want);
        ck_assert_int_eq(cuda->ops->embed(cuda, out, w, dev_ids, N), QEP_OK);
        float *got = to_host(cuda, out, sizeof want);
        assert_same_bits(got, want, sizeof want, weight_name((enum qep_weight_type)_i));
        free(got);
        cuda->ops->free(cuda, out);
        cuda->ops->free(cuda, dev_ids);
        cuda->ops->weight_destroy(cuda, w);
    }
    ref->ops->weight_destroy(ref, rw);
    free_weight(&host);
}
END_TEST

START_TEST(odd_groups_are_refused) {
    struct rng rng = {3};
    struct qep_host_weight host = random_weight(&rng, QEP_WEIGHT_INT8, 4, 96, 48);
    struct qep_weight *w = NULL;
    if (cuda != NULL) {
        ck_assert_int_eq(cuda->ops->weight_create(cuda, &host, &w), QEP_ERR_USAGE);
        ck_assert_ptr_nonnull(strstr(qep_last_error(), "multiples of 32"));
    }
    free_weight(&host);
}
END_TEST

/* Larger than what is uploaded at once. */
START_TEST(large_matrices_load_in_parts) {
    enum { ROWS = 4500, COLS = 2048 };
    static const int32_t ids[] = {0, 1, 2249, 2250, 2251, 4480, 4499, 1999, 2047, 2048, 2049};
    enum { N = sizeof ids / sizeof ids[0] };
    struct rng rng = {5};
    struct qep_host_weight host = random_weight(&rng, QEP_WEIGHT_INT8, ROWS, COLS, 128);
    float *want = must_alloc(N * COLS * sizeof *want);
    struct qep_weight *rw = upload(ref, &host);
    ck_assert_int_eq(ref->ops->embed(ref, want, rw, ids, N), QEP_OK);
    if (cuda != NULL) {
        struct qep_weight *w = upload(cuda, &host);
        int32_t *dev_ids = to_device(cuda, ids, sizeof ids);
        float *out = device_room(cuda, N * COLS * sizeof *out);
        ck_assert_int_eq(cuda->ops->embed(cuda, out, w, dev_ids, N), QEP_OK);
        float *got = to_host(cuda, out, N * COLS * sizeof *out);
        assert_same_bits(got, want, N * COLS * sizeof *got, "large");
        free(got);
        cuda->ops->free(cuda, out);
        cuda->ops->free(cuda, dev_ids);
        cuda->ops->weight_destroy(cuda, w);
    }
    ref->ops->weight_destroy(ref, rw);
    free(want);
    free_weight(&host);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda_matmul");
    TCase *tc = tcase_create("matmul");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, supports_is_what_the_contract_says);
    tcase_add_loop_test(tc, embed_reads_rows_exactly, QEP_WEIGHT_F32, QEP_WEIGHT_INT4 + 1);
    tcase_add_loop_test(tc, matmul_of_unit_rows_is_exact, QEP_WEIGHT_F32, QEP_WEIGHT_INT4 + 1);
    tcase_add_test(tc, matmul_sums_integers_exactly);
    tcase_add_loop_test(tc, matmul_agrees, 0, NUM_SHAPES);
    tcase_add_test(tc, odd_groups_are_refused);
    tcase_add_test(tc, large_matrices_load_in_parts);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* Packed weights, matmul in both phases and embedding of the cuda backend against the reference:
 * single products and calls of several, awkward shapes, every pair of types it takes, equal bits
 * for any number and place of rows. */
#include "device_support.h"

#include "kernels/cuda/cuda_backend.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static struct qep_backend *ref, *cuda;

static void setup(void) {
    ref = open_reference();
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
    float *out = dev_put(cuda, NULL, bytes);
    enum qep_status st =
        multiply(cuda, out, dev_acts + (size_t)first * a->stride, a->stride, type, w, n, decode);
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
    char *dev_acts = dev_put(cuda, a.rows, a.bytes);
    ck_assert_int_eq(
        multiply(ref, want, a.plain, (size_t)s->cols * sizeof(float), QEP_ACT_F32, rw, s->n, 0),
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

/* ---- several products ---- */

/* By activation type. */
static const struct {
    enum qep_act_type act;
    enum qep_weight_type types[QEP_MAX_PRODUCTS];
} mixes[] = {
    {QEP_ACT_BF16, {QEP_WEIGHT_INT4, QEP_WEIGHT_INT4, QEP_WEIGHT_INT4, QEP_WEIGHT_INT4}},
    {QEP_ACT_BF16, {QEP_WEIGHT_INT8, QEP_WEIGHT_INT4, QEP_WEIGHT_INT8, QEP_WEIGHT_INT8}},
    {QEP_ACT_BF16, {QEP_WEIGHT_BF16, QEP_WEIGHT_BF16, QEP_WEIGHT_F32, QEP_WEIGHT_BF16}},
    {QEP_ACT_F32, {QEP_WEIGHT_BF16, QEP_WEIGHT_BF16, QEP_WEIGHT_BF16, QEP_WEIGHT_BF16}},
    {QEP_ACT_F32, {QEP_WEIGHT_F32, QEP_WEIGHT_BF16, QEP_WEIGHT_F32, QEP_WEIGHT_F32}},
};
enum { NUM_MIXES = sizeof mixes / sizeof mixes[0] };

static void create_weights(struct qep_backend *be, const struct group *g, struct qep_weight **w) {
    for (int32_t i = 0; i < g->shape->num; i++)
        w[i] = upload(be, &g->host[i]);
}

static void destroy_weights(struct qep_backend *be, const struct group *g, struct qep_weight **w) {
    for (int32_t i = 0; i < g->shape->num; i++)
        be->ops->weight_destroy(be, w[i]);
}

/* Rows first .. first + n of a group's products, from all its activations on the device; free the
 * results. */
static void run_group(struct qep_backend *be, const struct group *g, struct qep_weight **w,
                      const char *acts, size_t stride, enum qep_act_type act, int32_t first,
                      int32_t n, int32_t decode, float **got) {
    struct qep_product products[QEP_MAX_PRODUCTS];
    float *gate = dev_put(be, g->gate + first, (size_t)n * sizeof *gate);
    for (int32_t i = 0; i < g->shape->num; i++) {
        size_t rows = (size_t)g->shape->rows[i];
        products[i] = (struct qep_product){.weight = w[i],
                                           .out = dev_put(be, g->before[i] + (size_t)first * rows,
                                                          (size_t)n * rows * sizeof(float)),
                                           .epilogue = g->epilogue[i],
                                           .gate = gate};
    }
    enum qep_status st = be->ops->matmul(be, products, g->shape->num, acts + (size_t)first * stride,
                                         stride, act, n, decode);
    ck_assert_msg(st == QEP_OK, "%s", qep_last_error());
    for (int32_t i = 0; i < g->shape->num; i++) {
        got[i] =
            to_host(be, products[i].out, (size_t)n * (size_t)g->shape->rows[i] * sizeof(float));
        be->ops->free(be, products[i].out);
    }
    be->ops->free(be, gate);
}

/* The last rows by themselves have the bits they had among all; so has every product, whose slices
 * of K are as many in a call of its own at these sizes, with its epilogue done by hand. */
static void check_parts(const struct group *g, struct qep_weight **w, const char *dev_acts,
                        const struct acts *a, enum qep_act_type act, int32_t decode, float **got,
                        const char *what) {
    int32_t first = 2 * g->n / 3, n = g->n - first;
    float *part[QEP_MAX_PRODUCTS];
    run_group(cuda, g, w, dev_acts, a->stride, act, first, n, decode, part);
    for (int32_t i = 0; i < g->shape->num; i++) {
        size_t row_bytes = (size_t)g->shape->rows[i] * sizeof(float);
        float *alone = run(w[i], dev_acts, a, act, 0, g->n, g->shape->rows[i], decode);
        apply_epilogue(g, i, alone);
        assert_same_bits(got[i], alone, (size_t)g->n * row_bytes, what);
        assert_same_bits(part[i], got[i] + (size_t)first * (size_t)g->shape->rows[i],
                         (size_t)n * row_bytes, what);
        free(alone);
        free(part[i]);
    }
}

static void check_group(struct rng *rng, const struct group_shape *shape, int mix, int32_t n) {
    struct group g = make_group(rng, shape, mixes[mix].types, rng_below(rng, 3), n);
    enum qep_act_type act = mixes[mix].act;
    struct acts a = make_acts(rng, act, n, shape->cols);
    struct qep_weight *rw[QEP_MAX_PRODUCTS], *cw[QEP_MAX_PRODUCTS];
    float *want[QEP_MAX_PRODUCTS], *got[QEP_MAX_PRODUCTS];
    char *dev_acts = dev_put(cuda, a.rows, a.bytes), what[128];
    create_weights(ref, &g, rw);
    create_weights(cuda, &g, cw);
    run_group(ref, &g, rw, (const char *)a.plain, (size_t)shape->cols * sizeof(float), QEP_ACT_F32,
              0, n, 0, want);
    for (int32_t decode = 0; decode < 2; decode++) {
        snprintf(what, sizeof what, "mix %d, %d products [.., %d] x %d%s", mix, shape->num,
                 shape->cols, n, decode ? " decode" : "");
        run_group(cuda, &g, cw, dev_acts, a.stride, act, 0, n, decode, got);
        check_parts(&g, cw, dev_acts, &a, act, decode, got, what);
        for (int32_t i = 0; i < shape->num; i++) {
            assert_close(got[i], want[i], (size_t)n * (size_t)shape->rows[i], 1e-5, what);
            free(got[i]);
        }
    }
    for (int32_t i = 0; i < shape->num; i++)
        free(want[i]);
    cuda->ops->free(cuda, dev_acts);
    destroy_weights(ref, &g, rw);
    destroy_weights(cuda, &g, cw);
    free_acts(&a);
    free_group(&g);
}

START_TEST(products_of_a_call_agree) {
    struct rng rng = {(uint64_t)_i + 400};
    for (int mix = 0; cuda != NULL && mix < NUM_MIXES; mix++)
        for (int r = 0; r < NUM_GROUP_ROWS; r++)
            check_group(&rng, &group_shapes[_i], mix, group_rows[r]);
}
END_TEST

/* Kernels of one call, decode arithmetic. */
static size_t count_launches(const struct qep_product *products, int32_t num, const void *acts,
                             size_t stride, enum qep_act_type act) {
    cudaStream_t stream = cuda->device->stream(cuda);
    cudaGraph_t graph = NULL;
    size_t count = 0;
    ck_assert_int_eq(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    ck_assert_int_eq(cuda->ops->matmul(cuda, products, num, acts, stride, act, 1, 1), QEP_OK);
    ck_assert_int_eq(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ck_assert_int_eq(cudaGraphGetNodes(graph, NULL, &count), cudaSuccess);
    ck_assert_int_eq(cudaGraphDestroy(graph), cudaSuccess);
    return count;
}

/* Those of one type and scale group share a launch. */
START_TEST(products_share_launches) {
    static const size_t want[NUM_MIXES] = {1, 2, 2, 1, 2};
    const struct group_shape shape = {4, 96, {9, 40, 17, 1}, {32, 32, 32, 32}};
    const struct group_shape groups = {3, 96, {9, 40, 17}, {32, 64, 32}};
    struct rng rng = {77};
    for (int mix = 0; cuda != NULL && mix <= NUM_MIXES; mix++) {
        const struct group_shape *s = mix < NUM_MIXES ? &shape : &groups;
        enum qep_act_type act = mixes[mix % NUM_MIXES].act;
        struct group g = make_group(&rng, s, mixes[mix % NUM_MIXES].types, 0, 1);
        struct acts a = make_acts(&rng, act, 1, s->cols);
        struct qep_weight *w[QEP_MAX_PRODUCTS];
        struct qep_product products[QEP_MAX_PRODUCTS] = {{0}};
        char *dev_acts = dev_put(cuda, a.rows, a.bytes);
        create_weights(cuda, &g, w);
        for (int32_t i = 0; i < s->num; i++) {
            products[i].weight = w[i];
            products[i].out = dev_put(cuda, NULL, (size_t)s->rows[i] * sizeof(float));
        }
        ck_assert_uint_eq(count_launches(products, s->num, dev_acts, a.stride, act),
                          mix < NUM_MIXES ? want[mix] : 2);
        for (int32_t i = 0; i < s->num; i++)
            cuda->ops->free(cuda, products[i].out);
        destroy_weights(cuda, &g, w);
        cuda->ops->free(cuda, dev_acts);
        free_acts(&a);
        free_group(&g);
    }
}
END_TEST

/* So many rows that the number of slices of K depends on them. In a call with others the sums may
 * be others; a range of a matrix's rows has the bits it has in the whole. */
START_TEST(slices_follow_the_whole) {
    static const enum qep_weight_type types[][2] = {{QEP_WEIGHT_INT8, QEP_WEIGHT_INT8},
                                                    {QEP_WEIGHT_BF16, QEP_WEIGHT_BF16}};
    enum { ROWS = 33000, PART = 100, AT = 8016 };
    const struct group_shape shape = {2, 128, {ROWS, 17}, {32, 32}};
    struct rng rng = {78};
    if (cuda == NULL)
        return;
    struct group g = make_group(&rng, &shape, types[_i / 2], 0, 1);
    enum qep_act_type act = _i == 3 ? QEP_ACT_F32 : QEP_ACT_BF16; /* one of each kernel */
    struct acts a = make_acts(&rng, act, 1, shape.cols);
    struct qep_weight *rw[QEP_MAX_PRODUCTS], *cw[QEP_MAX_PRODUCTS], *part;
    float *want[QEP_MAX_PRODUCTS], *got[QEP_MAX_PRODUCTS], *whole;
    char *dev_acts = dev_put(cuda, a.rows, a.bytes);
    create_weights(ref, &g, rw);
    create_weights(cuda, &g, cw);
    run_group(ref, &g, rw, (const char *)a.plain, (size_t)shape.cols * sizeof(float), QEP_ACT_F32,
              0, 1, 0, want);
    run_group(cuda, &g, cw, dev_acts, a.stride, act, 0, 1, 1, got);
    for (int i = 0; i < 2; i++) {
        assert_close(got[i], want[i], (size_t)shape.rows[i], 1e-5, "large group");
        free(want[i]);
        free(got[i]);
    }
    struct qep_host_weight rows = g.host[0];
    rows.rows = PART;
    rows.data = (char *)rows.data + qep_weight_data_bytes(rows.type, AT, shape.cols);
    if (rows.scales != NULL)
        rows.scales += qep_weight_num_scales(AT, shape.cols, rows.group_size);
    part = upload(cuda, &rows);
    struct qep_product product = {
        .weight = part, .out = dev_put(cuda, NULL, PART * sizeof(float)), .whole_rows = ROWS};
    float *out = product.out;
    whole = run(cw[0], dev_acts, &a, act, 0, 1, ROWS, 1);
    ck_assert_int_eq(cuda->ops->matmul(cuda, &product, 1, dev_acts, a.stride, act, 1, 1), QEP_OK);
    got[0] = to_host(cuda, out, PART * sizeof(float));
    assert_same_bits(got[0], whole + AT, PART * sizeof(float), "a range of the rows");
    free(got[0]);
    free(whole);
    cuda->ops->free(cuda, out);
    cuda->ops->free(cuda, dev_acts);
    cuda->ops->weight_destroy(cuda, part);
    destroy_weights(ref, &g, rw);
    destroy_weights(cuda, &g, cw);
    free_acts(&a);
    free_group(&g);
}
END_TEST

START_TEST(no_rows_are_no_work) {
    struct rng rng = {79};
    struct qep_host_weight host = random_weight(&rng, QEP_WEIGHT_INT8, 8, 64, 32);
    for (int32_t decode = 0; cuda != NULL && decode < 2; decode++) {
        struct qep_weight *w = upload(cuda, &host);
        ck_assert_int_eq(multiply(cuda, NULL, NULL, 128, QEP_ACT_BF16, w, 0, decode), QEP_OK);
        cuda->ops->weight_destroy(cuda, w);
    }
    free_weight(&host);
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
    char *dev = dev_put(cuda, rows, COLS * stride);
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
        char *dev = dev_put(cuda, rows, a.stride);
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
        int32_t *dev_ids = dev_put(cuda, ids, sizeof ids);
        float *out = dev_put(cuda, NULL, sizeof want);
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
        int32_t *dev_ids = dev_put(cuda, ids, sizeof ids);
        float *out = dev_put(cuda, NULL, N * COLS * sizeof *out);
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
    TCase *tc = device_case(suite, "matmul", 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, supports_is_what_the_contract_says);
    tcase_add_loop_test(tc, embed_reads_rows_exactly, QEP_WEIGHT_F32, QEP_WEIGHT_INT4 + 1);
    tcase_add_loop_test(tc, matmul_of_unit_rows_is_exact, QEP_WEIGHT_F32, QEP_WEIGHT_INT4 + 1);
    tcase_add_test(tc, matmul_sums_integers_exactly);
    tcase_add_loop_test(tc, matmul_agrees, 0, NUM_SHAPES);
    tcase_add_loop_test(tc, products_of_a_call_agree, 0, NUM_GROUP_SHAPES);
    tcase_add_test(tc, products_share_launches);
    tcase_add_loop_test(tc, slices_follow_the_whole, 0, 4);
    tcase_add_test(tc, no_rows_are_no_work);
    tcase_add_test(tc, odd_groups_are_refused);
    tcase_add_test(tc, large_matrices_load_in_parts);
    return run_device_suite(suite);
}

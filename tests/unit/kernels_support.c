#include "kernels_support.h"

#include "base/mem.h"
#include "base/team.h"
#include "kernels/mathfn.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int open_variants(struct variant *variants) {
    int count = 0;
    memset(variants, 0, MAX_VARIANTS * sizeof *variants);
    ck_assert_int_eq(qep_backend_reference_create(&variants[0].be), QEP_OK);
    snprintf(variants[count++].name, sizeof variants[0].name, "reference");
    for (int level = 0; qep_cpu_isa_name(level) != NULL; level++) {
        const char *isa = qep_cpu_isa_name(level);
        if (level > qep_cpu_isa_level()) {
            struct qep_backend *none = NULL;
            printf("skipped: this CPU has no %s\n", isa);
            ck_assert_int_eq(qep_backend_cpu_create(NULL, isa, &none), QEP_ERR_UNAVAILABLE);
            continue;
        }
        for (int threads = 1; threads <= 3; threads++) {
            struct variant *v = &variants[count++];
            snprintf(v->name, sizeof v->name, "cpu/%s/%d", isa != NULL ? isa : "", threads);
            if (threads > 1)
                ck_assert_int_eq(qep_team_create(threads, &v->team), QEP_OK);
            ck_assert_int_eq(qep_backend_cpu_create(v->team, isa, &v->be), QEP_OK);
            ck_assert_str_eq(v->be->isa, isa);
        }
    }
    return count;
}

void close_variants(struct variant *variants, int count) {
    for (int i = 0; i < count; i++) {
        variants[i].be->ops->destroy(variants[i].be);
        qep_team_destroy(variants[i].team);
    }
}

uint32_t rng_next(struct rng *rng) {
    rng->state += 0x9e3779b97f4a7c15u;
    uint64_t z = rng->state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

int rng_below(struct rng *rng, int limit) {
    return (int)(rng_next(rng) % (uint32_t)limit);
}

float rng_normal(struct rng *rng) {
    float sum = 0.0f;
    for (int i = 0; i < 12; i++)
        sum += (float)(rng_next(rng) >> 8) * (1.0f / 16777216.0f);
    return sum - 6.0f;
}

void *must_alloc(size_t bytes) {
    void *mem = NULL;
    ck_assert_int_eq(qep_calloc(bytes, 1, "test", &mem), QEP_OK);
    return mem;
}

float *random_floats(struct rng *rng, size_t count, float scale) {
    float *x = must_alloc(count * sizeof *x);
    for (size_t i = 0; i < count; i++)
        x[i] = rng_normal(rng) * scale;
    return x;
}

struct qep_host_weight random_weight(struct rng *rng, enum qep_weight_type type, int64_t rows,
                                     int64_t cols, int32_t group_size) {
    struct qep_host_weight w = {.type = type, .rows = rows, .cols = cols};
    size_t bytes = qep_weight_data_bytes(type, rows, cols), n = (size_t)rows * (size_t)cols;
    w.data = must_alloc(bytes);
    if (type == QEP_WEIGHT_F32) {
        for (size_t i = 0; i < n; i++)
            ((float *)w.data)[i] = rng_normal(rng) * 0.1f;
    } else if (type == QEP_WEIGHT_BF16) {
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)w.data)[i] = qep_f32_to_bf16(rng_normal(rng) * 0.1f);
    } else {
        size_t num_scales = qep_weight_num_scales(rows, cols, group_size);
        for (size_t i = 0; i < bytes; i++) /* all values, -128 included */
            ((uint8_t *)w.data)[i] = (uint8_t)rng_next(rng);
        w.group_size = group_size;
        w.scales = must_alloc(num_scales * sizeof *w.scales);
        for (size_t i = 0; i < num_scales; i++) /* negative ones too */
            w.scales[i] = qep_f32_to_bf16(rng_normal(rng) * 0.002f);
    }
    return w;
}

void free_weight(struct qep_host_weight *weight) {
    free(weight->data);
    free(weight->scales);
}

const char *weight_name(enum qep_weight_type type) {
    static const char *const names[] = {"f32", "bf16", "int8", "int4"};
    return names[type];
}

enum qep_status multiply(struct qep_backend *be, float *out, const void *act, size_t row_stride,
                         enum qep_act_type type, const struct qep_weight *weight, int32_t n,
                         int32_t decode) {
    const struct qep_product product = {.weight = weight, .out = out};
    return be->ops->matmul(be, &product, 1, act, row_stride, type, n, decode);
}

const struct group_shape group_shapes[NUM_GROUP_SHAPES] = {
    {1, 64, {1}, {32}},
    {2, 33, {1, 19}, {32, 32}},
    {2, 160, {48, 48}, {64, 64}},
    {3, 97, {130, 17, 1}, {32, 32, 32}},
    {3, 300, {16, 33, 16}, {128, 32, 128}},
    {4, 65, {7, 64, 1, 31}, {32, 64, 32, 32}},
    {4, 520, {96, 32, 2, 3}, {32, 32, 32, 32}},
};
const int32_t group_rows[NUM_GROUP_ROWS] = {1, 2, 8, 9, 33};

struct group make_group(struct rng *rng, const struct group_shape *shape,
                        const enum qep_weight_type *types, int first, int32_t n) {
    struct group g = {.shape = shape, .n = n, .gate = random_floats(rng, (size_t)n, 3.0f)};
    for (int32_t i = 0; i < shape->num; i++) {
        g.host[i] = random_weight(rng, types[i], shape->rows[i], shape->cols, shape->group[i]);
        g.epilogue[i] = (enum qep_epilogue)((first + i) % 3);
        g.before[i] = random_floats(rng, (size_t)n * (size_t)shape->rows[i], 2.0f);
    }
    return g;
}

void free_group(struct group *g) {
    for (int32_t i = 0; i < g->shape->num; i++) {
        free_weight(&g->host[i]);
        free(g->before[i]);
    }
    free(g->gate);
}

void apply_epilogue(const struct group *g, int32_t i, float *sums) {
    size_t rows = (size_t)g->shape->rows[i], count = (size_t)g->n * rows;
    for (size_t k = 0; k < count && g->epilogue[i] != QEP_EPILOGUE_STORE; k++) {
        float x = sums[k];
        if (g->epilogue[i] == QEP_EPILOGUE_GATED_ADD)
            x = qep_sigmoidf(g->gate[k / rows]) * x;
        sums[k] = g->before[i][k] + x;
    }
}

void decode_act_row(enum qep_act_type type, const void *row, int32_t cols, float *out) {
    int32_t groups = (cols + QEP_ACT_GROUP - 1) / QEP_ACT_GROUP;
    const int8_t *quants = row;
    const float *scales =
        (const float *)(const void *)((const char *)row + (size_t)groups * QEP_ACT_GROUP);
    for (int32_t c = 0; c < cols; c++)
        out[c] = type == QEP_ACT_F32    ? ((const float *)row)[c]
                 : type == QEP_ACT_BF16 ? qep_bf16_to_f32(((const uint16_t *)row)[c])
                                        : (float)quants[c] * scales[c / QEP_ACT_GROUP];
}

void assert_same_bits(const void *a, const void *b, size_t bytes, const char *what) {
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < bytes; i++)
        if (x[i] != y[i])
            ck_abort_msg("%s: byte %zu of %zu differs (%02x, %02x)", what, i, bytes, x[i], y[i]);
}

void assert_close(const float *a, const float *b, size_t count, double tolerance,
                  const char *what) {
    double largest = 0.0;
    for (size_t i = 0; i < count; i++)
        largest = fmax(largest, fabs((double)b[i]));
    for (size_t i = 0; i < count; i++)
        if (!(fabs((double)a[i] - (double)b[i]) <= tolerance * largest))
            ck_abort_msg("%s: element %zu of %zu is %g, expected %g (largest %g)", what, i, count,
                         (double)a[i], (double)b[i], largest);
}

/* The decode step of a DeltaNet layer in one op: the bits of outputs and states are those of
 * convolution, delta rule, gated norm and conversion one by one, for any dims, over steps that go
 * around the ring of inputs; padding rows; rows in company. */
#include "delta_support.h"
#include "device_support.h"
#include "kernels/device_ops.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct qep_backend *cuda;

static void setup(void) {
    cuda = open_cuda();
}

static void teardown(void) {
    close_cuda(cuda);
}

/* key heads, value heads, key dim, value dim, conv taps, eps */
static const struct qep_delta_dims dims_list[] = {
    {2, 4, 16, 16, 4, 1e-6f},   {1, 3, 8, 24, 4, 1e-6f},    {2, 2, 20, 4, 3, 1e-6f},
    {1, 2, 13, 7, 4, 1e-6f},    {2, 6, 1, 1, 4, 1e-6f},     {1, 1, 3, 2, 1, 1e-6f},
    {3, 3, 31, 33, 2, 1e-5f},   {1, 2, 128, 128, 4, 1e-6f}, {1, 2, 64, 100, 4, 1e-6f},
    {1, 3, 127, 129, 5, 1e-6f}, {1, 2, 132, 36, 6, 1e-6f},  {1, 1, 256, 256, 4, 1e-6f},
    {1, 1, 255, 250, 7, 1e-6f}, {1, 2, 128, 256, 8, 1e-6f}, {2, 4, 4, 192, 4, 1e-6f},
    {1, 1, 200, 65, 4, 1e-6f},  {1, 2, 65, 1, 8, 1e-6f}};

enum { NUM_DIMS = sizeof dims_list / sizeof dims_list[0], SLOTS = 4, MOST_ROWS = 5 };

/* A layer's weights and states in device memory; the states twice: of the one op, of the many. */
struct layer {
    const struct qep_delta_dims *d;
    float *conv1d, *A_log, *dt_bias, *norm;
    float *conv_state[2], *state[2];
    size_t conv_bytes, state_bytes;
};

static float *put_random(struct rng *rng, size_t count, float scale) {
    float *host = random_floats(rng, count, scale);
    float *dev = dev_put(cuda, host, count * sizeof *host);
    free(host);
    return dev;
}

/* The same random numbers twice. */
static void put_twice(struct rng *rng, size_t count, float **dev) {
    float *host = random_floats(rng, count, 0.5f);
    for (int i = 0; i < 2; i++)
        dev[i] = dev_put(cuda, host, count * sizeof *host);
    free(host);
}

static struct layer make_layer(struct rng *rng, const struct qep_delta_dims *d) {
    size_t heads = (size_t)d->num_value_heads, inputs = channels_of(d) * (size_t)d->conv_kernel_dim;
    struct layer l = {.d = d,
                      .conv1d = put_random(rng, inputs, 0.5f),
                      .A_log = put_random(rng, heads, 0.5f),
                      .dt_bias = put_random(rng, heads, 0.5f),
                      .norm = put_random(rng, (size_t)d->value_head_dim, 1.0f),
                      .conv_bytes = SLOTS * inputs * sizeof(float),
                      .state_bytes = SLOTS * state_floats(d) * sizeof(float)};
    put_twice(rng, SLOTS * inputs, l.conv_state);
    put_twice(rng, SLOTS * state_floats(d), l.state);
    return l;
}

static void free_layer(struct layer *l) {
    float *all[] = {l->conv1d,        l->A_log,         l->dt_bias,  l->norm,
                    l->conv_state[0], l->conv_state[1], l->state[0], l->state[1]};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        cuda->ops->free(cuda, all[i]);
}

/* The rows of one step, and where its outputs go. */
struct step {
    int32_t n;
    float *qkv, *z, *a, *b;
    float *out[2]; /* f32 */
    char *act[2];
    size_t act_stride, out_bytes, act_bytes;
};

static struct step make_step(struct rng *rng, const struct qep_delta_dims *d, int32_t n,
                             enum qep_act_type type) {
    size_t rows = (size_t)n, heads = (size_t)d->num_value_heads;
    struct step s = {.n = n,
                     .qkv = put_random(rng, rows * channels_of(d), 1.0f),
                     .z = put_random(rng, rows * out_row(d), 2.0f),
                     .a = put_random(rng, rows * heads, 1.0f),
                     .b = put_random(rng, rows * heads, 2.0f),
                     .act_stride = qep_act_row_bytes(type, (int32_t)out_row(d)) + 16,
                     .out_bytes = rows * out_row(d) * sizeof(float)};
    s.act_bytes = rows * s.act_stride;
    for (int i = 0; i < 2; i++) {
        s.out[i] = dev_put(cuda, NULL, s.out_bytes);
        s.act[i] = dev_put(cuda, NULL, s.act_bytes);
    }
    return s;
}

static void free_step(struct step *s) {
    void *all[] = {s->qkv, s->z, s->a, s->b, s->out[0], s->out[1], s->act[0], s->act[1]};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        cuda->ops->free(cuda, all[i]);
}

static void run_one(const struct layer *l, const struct step *s, const struct qep_batch *batch,
                    struct qep_rows_out out) {
    const struct qep_delta_decode_args args = {.qkv = s->qkv,
                                               .z = s->z,
                                               .a = s->a,
                                               .b = s->b,
                                               .conv1d = l->conv1d,
                                               .A_log = l->A_log,
                                               .dt_bias = l->dt_bias,
                                               .norm = l->norm,
                                               .conv_state = l->conv_state[0],
                                               .recurrent_state = l->state[0]};
    ok(cuda->device->delta_decode(cuda, l->d, batch, out, &args));
}

static void run_many(const struct layer *l, const struct step *s, const struct qep_batch *batch,
                     enum qep_act_type type) {
    const struct qep_backend_ops *ops = cuda->ops;
    size_t conv_bytes = (size_t)s->n * channels_of(l->d) * sizeof(float);
    float *conv = dev_put(cuda, NULL, conv_bytes);
    ok(ops->delta_conv(cuda, l->d, batch, conv, s->qkv, l->conv1d, l->conv_state[1]));
    ok(ops->delta(cuda, l->d, batch, s->out[1], conv, s->a, s->b, l->A_log, l->dt_bias,
                  l->state[1]));
    ok(ops->delta_norm(cuda, l->d, s->out[1], s->out[1], s->z, l->norm, s->n));
    ok(ops->act_convert(cuda, s->act[1], s->act_stride, type, s->out[1], s->n,
                        (int32_t)out_row(l->d)));
    ops->free(cuda, conv);
}

/* dev: of the one op and of the many. */
static void assert_same(const void *const *dev, size_t bytes, const char *what) {
    char *host[2];
    for (int i = 0; i < 2; i++) {
        host[i] = must_alloc(bytes);
        dev_get(cuda, host[i], dev[i], bytes);
    }
    assert_same_bits(host[0], host[1], bytes, what);
    free(host[0]);
    free(host[1]);
}

/* Padding rows are zero. Those of the many ops have signs, which are cleared before comparing. */
static void check_padding(const struct step *s, const struct qep_span *spans, size_t row_bytes,
                          bool f32, bool act) {
    char *row = must_alloc(row_bytes > s->act_stride ? row_bytes : s->act_stride);
    for (int32_t i = 0; i < s->n; i++) {
        const struct {
            bool is;
            char *dev;
            size_t bytes;
        } parts[] = {{f32, (char *)s->out[0] + (size_t)i * row_bytes, row_bytes},
                     {act, s->act[0] + (size_t)i * s->act_stride, s->act_stride}};
        for (int p = 0; spans[i].slot < 0 && p < 2; p++) {
            if (!parts[p].is)
                continue;
            dev_get(cuda, row, parts[p].dev, parts[p].bytes);
            for (size_t j = 0; j < parts[p].bytes; j++)
                ck_assert_msg(row[j] == 0, "byte %zu of padding row %d", j, i);
            char *other = p == 0 ? (char *)s->out[1] + (size_t)i * row_bytes
                                 : s->act[1] + (size_t)i * s->act_stride;
            ok(cuda->ops->zero(cuda, other, parts[p].bytes));
        }
    }
    free(row);
}

/* One step of both; which: what of the output is asked for, 1 f32, 2 activation rows. */
static void check_step(struct rng *rng, const struct layer *l, const struct qep_span *spans,
                       int32_t n, int which, enum qep_act_type type) {
    struct step s = make_step(rng, l->d, n, type);
    struct qep_batch batch = dev_batch(cuda, spans, n, 0);
    bool f32 = which & 1, act = which & 2;
    char what[96];
    const struct qep_rows_out out = {f32 ? s.out[0] : NULL, act ? s.act[0] : NULL, s.act_stride,
                                     act ? type : QEP_ACT_F32};
    run_one(l, &s, &batch, out);
    run_many(l, &s, &batch, type);
    check_padding(&s, spans, out_row(l->d) * sizeof(float), f32, act);
    snprintf(what, sizeof what, "heads %d:%d of %d x %d, %d taps, position %d",
             l->d->num_value_heads, l->d->num_key_heads, l->d->key_head_dim, l->d->value_head_dim,
             l->d->conv_kernel_dim, spans[0].position);
    if (f32)
        assert_same((const void *const[]){s.out[0], s.out[1]}, s.out_bytes, what);
    if (act)
        assert_same((const void *const[]){s.act[0], s.act[1]}, s.act_bytes, what);
    assert_same((const void *const[]){l->conv_state[0], l->conv_state[1]}, l->conv_bytes, what);
    assert_same((const void *const[]){l->state[0], l->state[1]}, l->state_bytes, what);
    dev_batch_free(cuda, &batch);
    free_step(&s);
}

/* Several slots, out of order and with padding between them, each at a position of its own, for
 * more steps than the ring has rows. */
START_TEST(one_op_has_the_bits_of_many) {
    const struct qep_delta_dims *d = &dims_list[_i];
    struct rng rng = {(uint64_t)_i + 31};
    struct layer l = make_layer(&rng, d);
    for (int32_t t = 0; t <= d->conv_kernel_dim; t++) {
        const struct qep_span spans[MOST_ROWS] = {{0, 1, 3, 17 + t, 1},
                                                  {1, 1, -1, 0, 1},
                                                  {2, 1, 0, t, 1},
                                                  {3, 1, 1, 62 + t, 1},
                                                  {4, 1, -1, 9, 1}};
        check_step(&rng, &l, spans, t == 0 ? MOST_ROWS : 1 + t % 3, t == 0 ? 3 : 2, QEP_ACT_BF16);
    }
    free_layer(&l);
}
END_TEST

/* Activation rows of other types follow the f32 rows. */
START_TEST(other_activation_types) {
    const struct qep_span spans[] = {{0, 1, 2, 5, 1}, {1, 1, -1, 5, 1}, {2, 1, 1, 77, 1}};
    struct rng rng = {(uint64_t)_i + 900};
    struct layer l = make_layer(&rng, &dims_list[_i]);
    check_step(&rng, &l, spans, 3, 1, QEP_ACT_BF16); /* f32 alone */
    check_step(&rng, &l, spans, 3, 3, QEP_ACT_F32);
    check_step(&rng, &l, spans, 3, 3, QEP_ACT_INT8);
    free_layer(&l);
}
END_TEST

/* A row alone and in company. */
START_TEST(rows_do_not_meet) {
    const struct qep_delta_dims *d = &dims_list[_i];
    const struct qep_span spans[] = {{0, 1, 2, 5, 1}, {1, 1, 0, 130, 1}, {2, 1, 3, 64, 1}};
    struct rng rng = {(uint64_t)_i + 77};
    struct layer l = make_layer(&rng, d);
    struct step s = make_step(&rng, d, 3, QEP_ACT_BF16);
    struct qep_batch batch = dev_batch(cuda, spans, 3, 0);
    const struct qep_rows_out out = {s.out[0], s.act[0], s.act_stride, QEP_ACT_BF16};
    run_one(&l, &s, &batch, out);
    dev_batch_free(cuda, &batch);
    struct layer alone = l;
    alone.conv_state[0] = l.conv_state[1];
    alone.state[0] = l.state[1];
    for (int32_t i = 2; i >= 0; i--) {
        size_t row = (size_t)i, heads = (size_t)d->num_value_heads;
        struct qep_span span = spans[i];
        span.row0 = 0;
        struct step one = s;
        one.qkv += row * channels_of(d);
        one.z += row * out_row(d);
        one.a += row * heads;
        one.b += row * heads;
        batch = dev_batch(cuda, &span, 1, 0);
        run_one(&alone, &one, &batch,
                (struct qep_rows_out){s.out[1] + row * out_row(d), s.act[1] + row * s.act_stride,
                                      s.act_stride, QEP_ACT_BF16});
        dev_batch_free(cuda, &batch);
    }
    assert_same((const void *const[]){s.out[0], s.out[1]}, s.out_bytes, "f32");
    assert_same((const void *const[]){s.act[0], s.act[1]}, s.act_bytes, "activation rows");
    assert_same((const void *const[]){l.conv_state[0], l.conv_state[1]}, l.conv_bytes, "inputs");
    assert_same((const void *const[]){l.state[0], l.state[1]}, l.state_bytes, "states");
    free_step(&s);
    free_layer(&l);
}
END_TEST

/* ---- numbers that are not finite: as one by one, which test_cuda_nonfinite judges ---- */

/* Equal, or both NaN. */
static void assert_agree(const float *one, const float *many, size_t bytes, const char *what) {
    float *host[2] = {to_host(cuda, one, bytes), to_host(cuda, many, bytes)};
    for (size_t i = 0; i < bytes / sizeof(float); i++)
        if (!(isnan(host[0][i]) && isnan(host[1][i])) &&
            memcmp(&host[0][i], &host[1][i], sizeof(float)) != 0)
            ck_abort_msg("%s: %zu is %g in one op, %g in many", what, i, (double)host[0][i],
                         (double)host[1][i]);
    free(host[0]);
    free(host[1]);
}

/* bits in the middle of an array of `count` floats; NULL: of none. */
static void plant(float *dev, size_t count, uint32_t bits) {
    if (dev != NULL)
        ok(cuda->ops->upload(cuda, dev + count / 2, &bits, sizeof bits));
}

enum { NUM_INPUTS = 10 };

static void check_planted(const struct qep_delta_dims *d, int input, uint32_t bits) {
    const struct qep_span spans[] = {{0, 1, 2, 6, 1}, {1, 1, 0, 77, 1}, {2, 1, -1, 0, 1}};
    struct rng rng = {(uint64_t)input};
    struct layer l = make_layer(&rng, d);
    struct step s = make_step(&rng, d, 3, QEP_ACT_BF16);
    struct qep_batch batch = dev_batch(cuda, spans, 3, 0);
    size_t heads = (size_t)d->num_value_heads, width = channels_of(d);
    const struct {
        const char *name;
        float *dev[2];
        size_t count;
    } inputs[NUM_INPUTS] = {
        {"qkv", {s.qkv}, width},
        {"qkv of padding", {s.qkv + 2 * width}, width},
        {"z", {s.z}, 2 * out_row(d)},
        {"a", {s.a}, 2 * heads},
        {"b", {s.b}, 2 * heads},
        {"conv1d", {l.conv1d}, width * (size_t)d->conv_kernel_dim},
        {"A_log", {l.A_log}, heads},
        {"norm", {l.norm}, (size_t)d->value_head_dim},
        {"conv_state", {l.conv_state[0], l.conv_state[1]}, l.conv_bytes / sizeof(float)},
        {"state", {l.state[0], l.state[1]}, l.state_bytes / sizeof(float)}};
    for (int i = 0; i < 2; i++)
        plant(inputs[input].dev[i], inputs[input].count, bits);
    run_one(&l, &s, &batch, qep_f32_rows(s.out[0]));
    run_many(&l, &s, &batch, QEP_ACT_BF16);
    check_padding(&s, spans, out_row(d) * sizeof(float), true, false);
    assert_agree(s.out[0], s.out[1], s.out_bytes, inputs[input].name);
    assert_agree(l.conv_state[0], l.conv_state[1], l.conv_bytes, inputs[input].name);
    assert_agree(l.state[0], l.state[1], l.state_bytes, inputs[input].name);
    dev_batch_free(cuda, &batch);
    free_step(&s);
    free_layer(&l);
}

START_TEST(one_op_keeps_what_is_not_finite) {
    static const uint32_t bits[] = {0x7fc00000u, 0x7fffffffu, 0xffc12345u,
                                    0x7f800000u, 0xff800000u, 0x7f7fc99eu};
    for (int i = 0; i < NUM_INPUTS * 6; i++)
        check_planted(&dims_list[_i], i % NUM_INPUTS, bits[i / NUM_INPUTS]);
}
END_TEST

static void add_cases(TCase *tc, int begin, int end) {
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, one_op_has_the_bits_of_many, begin, end);
    tcase_add_loop_test(tc, other_activation_types, begin, end);
    tcase_add_loop_test(tc, rows_do_not_meet, begin, end);
}

int main(void) {
    enum { SHORT = 5 }; /* what tests/seeded_defects.sh runs */
    Suite *suite = suite_create("cuda delta decode");
    TCase *tc = device_case(suite, "short", 300);
    add_cases(tc, 0, SHORT);
    tcase_add_loop_test(tc, one_op_keeps_what_is_not_finite, 0, 2);
    tc = device_case(suite, "long", 300);
    add_cases(tc, SHORT, NUM_DIMS);
    return run_device_suite(suite);
}

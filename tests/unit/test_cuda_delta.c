/* CUDA Gated DeltaNet against a float64 scan, over lengths, chunkings, decays and dims; equal bits
 * for any chunking of a prompt and any company of a row; slots, padding rows, the convolution. */
#include "delta_support.h"
#include "device_support.h"

#include <check.h>
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

/* key heads, value heads, key dim, value dim, conv taps, eps */
static const struct qep_delta_dims dims_list[] = {
    {2, 4, 16, 16, 4, 1e-6f}, {1, 3, 8, 24, 4, 1e-6f},   {2, 2, 20, 4, 3, 1e-6f},
    {1, 1, 64, 40, 8, 1e-6f}, {1, 2, 128, 32, 4, 1e-6f}, {1, 1, 132, 36, 2, 1e-6f},
    {1, 1, 256, 8, 1, 1e-6f}, {1, 2, 4, 68, 4, 1e-6f},   {1, 2, 13, 7, 4, 1e-6f}};

enum { NUM_DIMS = sizeof dims_list / sizeof dims_list[0] };

struct inputs {
    struct delta_inputs host, dev; /* dev: but the state */
};

static struct inputs make_inputs(struct rng *rng, const struct qep_delta_dims *d, int32_t n,
                                 enum decay decay) {
    size_t heads = (size_t)d->num_value_heads, rows = (size_t)n;
    struct delta_inputs in = make_delta_inputs(rng, d, n, decay);
    return (struct inputs){in,
                           {.qkv = dev_put(cuda, in.qkv, rows * channels_of(d) * 4),
                            .a = dev_put(cuda, in.a, rows * heads * 4),
                            .b = dev_put(cuda, in.b, rows * heads * 4),
                            .A_log = dev_put(cuda, in.A_log, heads * 4),
                            .dt_bias = dev_put(cuda, in.dt_bias, heads * 4)}};
}

static void free_inputs(struct inputs *in) {
    float *const all[] = {in->dev.qkv, in->dev.a, in->dev.b, in->dev.A_log, in->dev.dt_bias};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        cuda->ops->free(cuda, all[i]);
    free_delta_inputs(&in->host);
}

/* Spans over consecutive rows of the inputs from `row` on; device states and outputs. */
static void run_spans(const struct qep_delta_dims *d, const struct inputs *in,
                      const struct qep_span *spans, int32_t num_spans, size_t row, float *dev_out,
                      float *dev_state) {
    struct qep_batch batch = dev_batch(cuda, spans, num_spans, 0);
    size_t heads = (size_t)d->num_value_heads;
    ok(cuda->ops->delta(cuda, d, &batch, dev_out + row * out_row(d),
                        in->dev.qkv + row * channels_of(d), in->dev.a + row * heads,
                        in->dev.b + row * heads, in->dev.A_log, in->dev.dt_bias, dev_state));
    dev_batch_free(cuda, &batch);
}

/* Rows [0, n) as prefill spans of at most `span` rows (a multiple of 64), or as decode (1). */
static void run_delta(const struct qep_delta_dims *d, const struct inputs *in, int32_t n,
                      int32_t span, float *out, float *state) {
    float *dev_out = dev_put(cuda, NULL, (size_t)n * out_row(d) * 4);
    float *dev_state = dev_put(cuda, state, state_floats(d) * 4);
    for (int32_t i = 0; i < n; i += span) {
        struct qep_span s = {0, n - i < span ? n - i : span, 0, i, span == 1};
        run_spans(d, in, &s, 1, (size_t)i, dev_out, dev_state);
    }
    dev_take(cuda, out, dev_out, (size_t)n * out_row(d) * 4);
    dev_take(cuda, state, dev_state, state_floats(d) * 4);
}

/* Relative to the largest value. Chunks multiply in tf32; few or odd dims are scanned in fp32. */
static double tolerance_of(const struct qep_delta_dims *d, bool decode) {
    bool scanned = d->key_head_dim > 128 || d->key_head_dim < 8 || d->key_head_dim % 4 != 0 ||
                   d->value_head_dim % 4 != 0;
    return decode || scanned ? 1e-5 : 2e-3;
}

static void check_sequence(struct rng *rng, const struct qep_delta_dims *d, int32_t n,
                           enum decay decay, bool all_spans) {
    static const int32_t spans[] = {1024, 64, 128, 1};
    struct inputs in = make_inputs(rng, d, n, decay);
    size_t outs = (size_t)n * out_row(d), states = state_floats(d);
    float *want = must_alloc(outs * 4), *want_state = must_alloc(states * 4);
    float *got = must_alloc(outs * 4), *state = must_alloc(states * 4);
    float *first = must_alloc(outs * 4), *first_state = must_alloc(states * 4);
    memcpy(want_state, in.host.state, states * 4);
    delta_scan_double(d, &in.host, n, want, want_state);
    for (int s = 0; s < 4; s++) {
        char what[96];
        bool decode = spans[s] == 1;
        if (s > 0 && !decode && (n <= spans[s] || !all_spans))
            continue;
        snprintf(what, sizeof what, "%d rows by %d, decay %d", n, spans[s], (int)decay);
        memcpy(state, in.host.state, states * 4);
        run_delta(d, &in, n, spans[s], got, state);
        assert_close(got, want, outs, tolerance_of(d, decode), what);
        assert_close(state, want_state, states, tolerance_of(d, decode), what);
        if (s == 0) {
            memcpy(first, got, outs * 4);
            memcpy(first_state, state, states * 4);
        } else if (!decode) {
            assert_same_bits(got, first, outs * 4, what);
            assert_same_bits(state, first_state, states * 4, what);
        }
    }
    free(want);
    free(want_state);
    free(got);
    free(state);
    free(first);
    free(first_state);
    free_inputs(&in);
}

START_TEST(delta_matches_float64_scan_at_every_length) {
    struct rng rng = {(uint64_t)_i};
    check_sequence(&rng, &dims_list[_i % 3], _i, (enum decay)(_i % NUM_DECAYS), true);
}
END_TEST

START_TEST(delta_survives_adversarial_decays) {
    static const int32_t lengths[] = {64, 65, 130, 200};
    struct rng rng = {(uint64_t)_i + 1000};
    const struct qep_delta_dims *d = &dims_list[_i / NUM_DECAYS];
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
        if (d->key_head_dim < 128 || lengths[i] == 130)
            check_sequence(&rng, d, lengths[i], (enum decay)(_i % NUM_DECAYS), false);
}
END_TEST

/* Keys that point almost the same way, writes at full strength: the inverse is far from I. */
START_TEST(delta_holds_for_keys_that_are_alike) {
    struct rng rng = {99};
    const struct qep_delta_dims *d = &dims_list[0];
    enum { ROWS = 150 };
    struct inputs in = make_inputs(&rng, d, ROWS, TINY);
    size_t keys = (size_t)(d->num_key_heads * d->key_head_dim), outs = ROWS * out_row(d);
    for (size_t r = 1; r < ROWS; r++)
        for (size_t c = keys; c < 2 * keys; c++)
            in.host.qkv[r * channels_of(d) + c] =
                in.host.qkv[c] + 0.1f * in.host.qkv[r * channels_of(d) + c];
    for (size_t i = 0; i < ROWS * (size_t)d->num_value_heads; i++)
        in.host.b[i] = 4.0f;
    ok(cuda->ops->upload(cuda, in.dev.qkv, in.host.qkv, ROWS * channels_of(d) * 4));
    ok(cuda->ops->upload(cuda, in.dev.b, in.host.b, ROWS * (size_t)d->num_value_heads * 4));
    float *want = must_alloc(outs * 4), *got = must_alloc(outs * 4);
    float *want_state = must_alloc(state_floats(d) * 4), *state = must_alloc(state_floats(d) * 4);
    memcpy(want_state, in.host.state, state_floats(d) * 4);
    memcpy(state, in.host.state, state_floats(d) * 4);
    delta_scan_double(d, &in.host, ROWS, want, want_state);
    run_delta(d, &in, ROWS, 1024, got, state);
    assert_close(got, want, outs, 5e-3, "out");
    assert_close(state, want_state, state_floats(d), 5e-3, "state");
    free(want);
    free(want_state);
    free(got);
    free(state);
    free_inputs(&in);
}
END_TEST

enum { SLOTS = 4 };

/* One batch against each of its spans alone: outputs and all states. */
static void check_company(struct rng *rng, const struct qep_delta_dims *d,
                          const struct qep_span *spans, int32_t num_spans, int32_t rows) {
    struct inputs in = make_inputs(rng, d, rows, MILD);
    size_t states = SLOTS * state_floats(d), outs = (size_t)rows * out_row(d);
    float *start = random_floats(rng, states, 0.3f);
    float *state[2], *out[2];
    for (int alone = 0; alone < 2; alone++) {
        float *dev_state = dev_put(cuda, start, states * 4);
        float *dev_out = dev_put(cuda, NULL, outs * 4);
        if (!alone)
            run_spans(d, &in, spans, num_spans, 0, dev_out, dev_state);
        for (int32_t s = num_spans - 1; alone && s >= 0; s--) {
            struct qep_span one = spans[s];
            one.row0 = 0;
            run_spans(d, &in, &one, 1, (size_t)spans[s].row0, dev_out, dev_state);
        }
        state[alone] = must_alloc(states * 4);
        out[alone] = must_alloc(outs * 4);
        dev_take(cuda, state[alone], dev_state, states * 4);
        dev_take(cuda, out[alone], dev_out, outs * 4);
    }
    assert_same_bits(out[0], out[1], outs * 4, "outputs");
    assert_same_bits(state[0], state[1], states * 4, "states");
    for (int32_t s = 0; s < num_spans; s++)
        for (size_t i = 0; spans[s].slot < 0 && i < out_row(d); i++)
            ck_assert(out[0][(size_t)spans[s].row0 * out_row(d) + i] == 0.0f);
    for (int i = 0; i < 2; i++) {
        free(state[i]);
        free(out[i]);
    }
    free(start);
    free_inputs(&in);
}

START_TEST(delta_rows_do_not_meet) {
    struct rng rng = {(uint64_t)_i + 77};
    static const struct qep_span prefill[] = {
        {0, 70, 2, 64, 0}, {70, 1, 0, 0, 0}, {71, 129, 3, 128, 0}};
    static const struct qep_span decode[] = {
        {0, 1, 3, 17, 1}, {1, 1, -1, 0, 1}, {2, 1, 0, 5, 1}, {3, 1, 1, 64, 1}, {4, 1, -1, 9, 1}};
    check_company(&rng, &dims_list[_i], prefill, 3, 200);
    check_company(&rng, &dims_list[_i], decode, 5, 5);
}
END_TEST

/* ---- convolution: the same steps as the reference, so the same bits ---- */

static void run_conv(struct qep_backend *be, const struct qep_delta_dims *d,
                     const struct qep_span *spans, int32_t num_spans, const float *x,
                     const float *w, float *out, float *state, size_t row) {
    struct qep_batch batch = dev_batch(be, spans, num_spans, 0);
    ok(be->ops->delta_conv(be, d, &batch, out + row * channels_of(d), x + row * channels_of(d), w,
                           state));
    dev_batch_free(be, &batch);
}

START_TEST(conv_is_exact_and_carries_state) {
    static const int32_t cuts[] = {1, 2, 3, 31, 32, 33, 64, 75};
    const struct qep_delta_dims *d = &dims_list[_i];
    struct rng rng = {(uint64_t)_i + 5};
    enum { ROWS = 75 };
    int32_t position = 64 * _i;
    size_t channels = channels_of(d), taps = (size_t)d->conv_kernel_dim;
    size_t states = 2 * channels * taps, x_bytes = ROWS * channels * 4;
    float *x = random_floats(&rng, ROWS * channels, 1.0f);
    float *w = random_floats(&rng, channels * taps, 0.5f);
    float *start = random_floats(&rng, states, 1.0f);
    float *want = must_alloc(x_bytes), *want_state = must_alloc(states * 4);
    float *got = must_alloc(x_bytes), *state = must_alloc(states * 4);
    float *dev_x = dev_put(cuda, x, x_bytes), *dev_w = dev_put(cuda, w, channels * taps * 4);
    struct qep_span whole = {0, ROWS, 1, position, 0};
    memcpy(want_state, start, states * 4);
    run_conv(ref, d, &whole, 1, x, w, want, want_state, 0);
    for (size_t c = 0; c < sizeof cuts / sizeof cuts[0]; c++) { /* rows of the first call */
        struct qep_span a = {0, cuts[c], 1, position, cuts[c] == 1};
        struct qep_span b = {0, ROWS - cuts[c], 1, position + cuts[c], 0};
        float *dev_state = dev_put(cuda, start, states * 4);
        float *dev_out = dev_put(cuda, NULL, x_bytes);
        run_conv(cuda, d, &a, 1, dev_x, dev_w, dev_out, dev_state, 0);
        if (b.num_rows > 0)
            run_conv(cuda, d, &b, 1, dev_x, dev_w, dev_out, dev_state, (size_t)cuts[c]);
        dev_take(cuda, got, dev_out, x_bytes);
        dev_take(cuda, state, dev_state, states * 4);
        assert_same_bits(got, want, x_bytes, "conv");
        assert_same_bits(state, want_state, states * 4, "states");
    }
    cuda->ops->free(cuda, dev_x);
    cuda->ops->free(cuda, dev_w);
    free(x);
    free(w);
    free(start);
    free(want);
    free(want_state);
    free(got);
    free(state);
}
END_TEST

START_TEST(conv_pads_and_keeps_slots_apart) {
    const struct qep_delta_dims *d = &dims_list[_i];
    struct rng rng = {(uint64_t)_i + 600};
    static const struct qep_span spans[] = {{0, 1, 2, 9, 1}, {1, 1, -1, 0, 1}, {2, 1, 0, 3, 1}};
    size_t channels = channels_of(d), taps = (size_t)d->conv_kernel_dim;
    size_t states = 3 * channels * taps * 4, x_bytes = 3 * channels * 4;
    float *x = random_floats(&rng, 3 * channels, 1.0f), *got = must_alloc(x_bytes);
    float *w = random_floats(&rng, channels * taps, 0.5f), *want = must_alloc(x_bytes);
    float *want_state = random_floats(&rng, states / 4, 1.0f), *state = must_alloc(states);
    float *dev_x = dev_put(cuda, x, x_bytes), *dev_w = dev_put(cuda, w, channels * taps * 4);
    float *dev_state = dev_put(cuda, want_state, states);
    float *dev_out = dev_put(cuda, x, x_bytes);
    run_conv(cuda, d, spans, 3, dev_x, dev_w, dev_out, dev_state, 0);
    for (int s = 0; s < 3; s += 2) {
        struct qep_span one = spans[s];
        one.row0 = 0;
        run_conv(ref, d, &one, 1, x, w, want, want_state, (size_t)s);
    }
    dev_take(cuda, got, dev_out, x_bytes);
    dev_take(cuda, state, dev_state, states);
    assert_same_bits(got, want, x_bytes, "rows, the padding one zero");
    assert_same_bits(state, want_state, states, "states");
    cuda->ops->free(cuda, dev_x);
    cuda->ops->free(cuda, dev_w);
    free(x);
    free(w);
    free(got);
    free(want);
    free(want_state);
    free(state);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda delta");
    TCase *tc = device_case(suite, "short", 300); /* what tests/seeded_defects.sh runs */
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, delta_matches_float64_scan_at_every_length, 63, 67);
    tcase_add_test(tc, delta_holds_for_keys_that_are_alike);
    tcase_add_loop_test(tc, delta_rows_do_not_meet, 0, 2);
    tcase_add_loop_test(tc, conv_is_exact_and_carries_state, 0, NUM_DIMS);
    tcase_add_loop_test(tc, conv_pads_and_keeps_slots_apart, 0, NUM_DIMS);
    tc = device_case(suite, "long", 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, delta_matches_float64_scan_at_every_length, 1, 63);
    tcase_add_loop_test(tc, delta_matches_float64_scan_at_every_length, 67, 131);
    tcase_add_loop_test(tc, delta_survives_adversarial_decays, 0, NUM_DIMS * NUM_DECAYS);
    tcase_add_loop_test(tc, delta_rows_do_not_meet, 2, NUM_DIMS);
    return run_device_suite(suite);
}

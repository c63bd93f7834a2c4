/* Gated DeltaNet: all backends against a float64 scan, over lengths, chunkings and decays; equal
 * bits over levels, threads, neighbours and prefill chunkings; slots and states. */
#include "delta_support.h"

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

static const struct qep_delta_dims dims_list[] = {{2, 4, 16, 16, 4, 1e-6f},
                                                  {1, 3, 8, 24, 4, 1e-6f},
                                                  {2, 2, 20, 7, 3, 1e-6f},
                                                  {1, 2, 128, 128, 4, 1e-6f}};

enum { NUM_DIMS = sizeof dims_list / sizeof dims_list[0], NUM_SLOTS = 3 };

/* Runs rows [0, n) as prefill spans of at most `span` rows (a multiple of 64), or as decode. */
static void run_delta(struct qep_backend *be, const struct qep_delta_dims *d,
                      const struct delta_inputs *in, int32_t n, int32_t span, float *out,
                      float *state) {
    bool decode = span == 1;
    size_t heads = (size_t)d->num_value_heads;
    for (int32_t i = 0; i < n; i += span) {
        int32_t rows = n - i < span ? n - i : span;
        struct qep_span s = {0, rows, 0, i, decode};
        struct qep_batch batch = qep_batch_of(rows, 1, &s, NULL);
        size_t row = (size_t)i;
        ck_assert_int_eq(be->ops->delta(be, d, &batch,
                                        out + row * heads * (size_t)d->value_head_dim,
                                        in->qkv + row * channels_of(d), in->a + row * heads,
                                        in->b + row * heads, in->A_log, in->dt_bias, state),
                         QEP_OK);
    }
}

static void check_sequence(struct rng *rng, const struct qep_delta_dims *d, int32_t n,
                           enum decay decay) {
    static const int32_t spans[] = {1024, 64, 128, 1};
    struct delta_inputs in = make_delta_inputs(rng, d, n, decay);
    size_t outs = (size_t)(n * d->num_value_heads * d->value_head_dim), states = state_floats(d);
    float *want = must_alloc(outs * 4), *want_state = must_alloc(states * 4);
    float *got = must_alloc(outs * 4), *state = must_alloc(states * 4);
    float *first[2] = {must_alloc(outs * 4), must_alloc(outs * 4)};
    float *first_state[2] = {must_alloc(states * 4), must_alloc(states * 4)};
    memcpy(want_state, in.state, states * 4);
    delta_scan_double(d, &in, n, want, want_state);
    for (int v = 0; v < num_variants; v++)
        for (int s = 0; s < 4; s++) {
            char what[128];
            int decode = spans[s] == 1;
            snprintf(what, sizeof what, "%.31s, %d rows by %d, decay %d", variants[v].name, n,
                     spans[s], (int)decay);
            memcpy(state, in.state, states * 4);
            run_delta(variants[v].be, d, &in, n, spans[s], got, state);
            assert_close(got, want, outs, 1e-4, what);
            assert_close(state, want_state, states, 1e-4, what);
            if (v == 1 && (s == 0 || decode)) {
                memcpy(first[decode], got, outs * 4);
                memcpy(first_state[decode], state, states * 4);
            } else if (v > 0) {
                assert_same_bits(got, first[decode], outs * 4, what);
                assert_same_bits(state, first_state[decode], states * 4, what);
            }
        }
    for (int i = 0; i < 2; i++) {
        free(first[i]);
        free(first_state[i]);
    }
    free(want);
    free(want_state);
    free(got);
    free(state);
    free_delta_inputs(&in);
}

START_TEST(delta_matches_float64_scan_at_every_length) {
    struct rng rng = {(uint64_t)_i};
    check_sequence(&rng, &dims_list[_i % 3], _i, (enum decay)(_i % NUM_DECAYS));
}
END_TEST

START_TEST(delta_survives_adversarial_decays) {
    static const int32_t lengths[] = {63, 64, 65, 130, 192};
    struct rng rng = {(uint64_t)_i + 1000};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
        check_sequence(&rng, &dims_list[_i / NUM_DECAYS], lengths[i],
                       (enum decay)(_i % NUM_DECAYS));
}
END_TEST

/* Two prefills and two decodes in one batch, slots out of order, against each alone. */
START_TEST(delta_spans_do_not_meet) {
    const struct qep_delta_dims *d = &dims_list[_i];
    struct rng rng = {(uint64_t)_i + 77};
    enum { ROWS = 1 + 70 + 1 + 5 };
    const struct qep_span spans[] = {
        {0, 1, 2, 17, 1}, {1, 70, 0, 64, 0}, {71, 1, 3, 0, 1}, {72, 5, 1, 0, 0}};
    const struct qep_batch batch = qep_batch_of(ROWS, 4, spans, NULL);
    struct delta_inputs in = make_delta_inputs(&rng, d, ROWS, MILD);
    size_t heads = (size_t)d->num_value_heads, row_floats = out_row(d);
    size_t states = 4 * state_floats(d), outs = ROWS * row_floats;
    float *start = random_floats(&rng, states, 0.3f), *state = must_alloc(states * 4);
    float *alone_state = must_alloc(states * 4);
    float *out = must_alloc(outs * 4), *alone = must_alloc(outs * 4);
    for (int v = 0; v < num_variants; v++) {
        struct qep_backend *be = variants[v].be;
        memcpy(state, start, states * 4);
        memcpy(alone_state, start, states * 4);
        be->ops->delta(be, d, &batch, out, in.qkv, in.a, in.b, in.A_log, in.dt_bias, state);
        for (int s = 0; s < 4; s++) {
            struct qep_span span = spans[s];
            struct qep_batch one = qep_batch_of(span.num_rows, 1, &span, NULL);
            size_t row = (size_t)span.row0;
            span.row0 = 0;
            be->ops->delta(be, d, &one, alone + row * row_floats, in.qkv + row * channels_of(d),
                           in.a + row * heads, in.b + row * heads, in.A_log, in.dt_bias,
                           alone_state);
        }
        assert_same_bits(out, alone, outs * 4, variants[v].name);
        assert_same_bits(state, alone_state, states * 4, variants[v].name);
    }
    free(start);
    free(state);
    free(alone_state);
    free(out);
    free(alone);
    free_delta_inputs(&in);
}
END_TEST

/* ---- convolution ---- */

/* Row t of x, which begins at `position`; past: the slot's state before it. */
static double conv_double(const struct qep_delta_dims *d, const float *w, const float *past,
                          const float *x, int32_t position, int32_t t, size_t channel) {
    int32_t kernel = d->conv_kernel_dim;
    double sum = 0.0;
    for (int32_t j = 0; j < kernel; j++) {
        int32_t at = t - (kernel - 1) + j;
        const float *row =
            at >= 0 ? x + (size_t)at * channels_of(d)
                    : past + (size_t)qep_conv_row(position + at, kernel) * channels_of(d);
        sum += (double)w[channel * (size_t)kernel + (size_t)j] * (double)row[channel];
    }
    return sum / (1.0 + exp(-sum));
}

START_TEST(conv_matches_definition_and_carries_state) {
    const struct qep_delta_dims *d = &dims_list[_i];
    struct rng rng = {(uint64_t)_i + 5};
    enum { ROWS = 9 };
    int32_t kernel = d->conv_kernel_dim, position = 64 * _i;
    size_t channels = channels_of(d), past = channels * (size_t)kernel;
    float *x = random_floats(&rng, ROWS * channels, 1.0f);
    float *w = random_floats(&rng, past, 0.5f);
    float *start = random_floats(&rng, 2 * past, 1.0f);
    float *want = must_alloc(ROWS * channels * 4), *got = must_alloc(ROWS * channels * 4);
    float *state = must_alloc(2 * past * 4), *first = must_alloc(ROWS * channels * 4);
    for (int32_t t = 0; t < ROWS; t++)
        for (size_t c = 0; c < channels; c++)
            want[(size_t)t * channels + c] =
                (float)conv_double(d, w, start + past, x, position, t, c);
    for (int v = 0; v < num_variants; v++) {
        struct qep_backend *be = variants[v].be;
        for (int32_t split = 1; split <= ROWS; split++) { /* rows of the first call */
            struct qep_span a = {0, split, 1, position, 0};
            struct qep_span b = {0, ROWS - split, 1, position + split, 0};
            struct qep_batch first_call = qep_batch_of(split, 1, &a, NULL),
                             second = qep_batch_of(ROWS - split, 1, &b, NULL);
            memcpy(state, start, 2 * past * 4);
            be->ops->delta_conv(be, d, &first_call, got, x, w, state);
            if (split < ROWS)
                be->ops->delta_conv(be, d, &second, got + (size_t)split * channels,
                                    x + (size_t)split * channels, w, state);
            assert_close(got, want, ROWS * channels, 1e-6, variants[v].name);
            assert_same_bits(state, start, past * 4, "the other slot");
            for (int32_t t = ROWS - kernel; t < ROWS; t++)
                assert_same_bits(state + past +
                                     (size_t)qep_conv_row(position + t, kernel) * channels,
                                 x + (size_t)t * channels, channels * 4, "state");
            if (v == 1 && split == 1)
                memcpy(first, got, ROWS * channels * 4);
            else if (v > 0)
                assert_same_bits(got, first, ROWS * channels * 4, variants[v].name);
        }
    }
    free(x);
    free(w);
    free(start);
    free(want);
    free(got);
    free(state);
    free(first);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("delta");
    TCase *tc = tcase_create("delta");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, delta_matches_float64_scan_at_every_length, 1, 131);
    tcase_add_loop_test(tc, delta_survives_adversarial_decays, 0, NUM_DIMS * NUM_DECAYS);
    tcase_add_loop_test(tc, delta_spans_do_not_meet, 0, NUM_DIMS);
    tcase_add_loop_test(tc, conv_matches_definition_and_carries_state, 0, NUM_DIMS);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* What moves decode steps on: positions and ids from one step to the next, captures and their ends,
 * copies to the host beside the ops. */
#include "device_support.h"
#include "kernels/cuda/cuda_backend.h"

#include <stdlib.h>

static struct qep_backend *be;

static void setup(void) {
    be = open_cuda();
}

static void teardown(void) {
    close_cuda(be);
}

START_TEST(advance_moves_on) {
    enum { N = 300 };
    static struct qep_span spans[N];
    static struct qep_device_draw draws[N];
    static int32_t tokens[N], ids[N];
    for (int i = 0; i < N; i++) {
        spans[i] = (struct qep_span){i, 1, i % 7, 100 + i, 1};
        draws[i] = (struct qep_device_draw){.position = 101 + (uint64_t)i, .slot = i % 7};
        tokens[i] = i % 5 == 0 ? QEP_TOKEN_FLAGGED : i % 5 == 1 ? -1 : i;
    }
    struct qep_span *dev_spans = dev_put(be, spans, sizeof spans);
    struct qep_device_draw *dev_draws = dev_put(be, draws, sizeof draws);
    int32_t *dev_tokens = dev_put(be, tokens, sizeof tokens),
            *dev_ids = dev_put(be, NULL, sizeof ids);
    ok(be->device->advance(be, dev_spans, dev_draws, dev_ids, dev_tokens, N));
    ok(be->ops->download(be, spans, dev_spans, sizeof spans));
    ok(be->ops->download(be, draws, dev_draws, sizeof draws));
    ok(be->ops->download(be, ids, dev_ids, sizeof ids));
    for (int i = 0; i < N; i++) {
        int32_t slot = tokens[i] < 0 ? -1 : i % 7;
        ck_assert_int_eq(ids[i], tokens[i]);
        ck_assert_int_eq(spans[i].slot, slot);
        ck_assert_int_eq(draws[i].slot, slot);
        ck_assert_int_eq(spans[i].position, 101 + i);
        ck_assert_uint_eq(draws[i].position, 102 + (uint64_t)i);
        ck_assert_int_eq(spans[i].row0, i);
    }
    be->ops->free(be, dev_spans);
    be->ops->free(be, dev_draws);
    be->ops->free(be, dev_tokens);
    be->ops->free(be, dev_ids);
}
END_TEST

/* An op that adds 1 to each of `count` floats. */
struct adder {
    struct qep_weight *ones; /* [count, 1] */
    float *act;
};

static struct adder make_adder(int32_t count) {
    static const float row[4] = {1};
    struct qep_host_weight host = {.type = QEP_WEIGHT_F32, .rows = count, .cols = 1};
    struct adder a = {.act = dev_put(be, row, sizeof row)};
    float *ones = must_alloc((size_t)count * sizeof *ones);
    for (int32_t i = 0; i < count; i++)
        ones[i] = 1;
    host.data = ones;
    ok(be->ops->weight_create(be, &host, &a.ones));
    free(ones);
    return a;
}

static void add_one(const struct adder *a, float *y) {
    const struct qep_product product = {.weight = a->ones, .out = y, .epilogue = QEP_EPILOGUE_ADD};
    ok(be->ops->matmul(be, &product, 1, a->act, 16, QEP_ACT_F32, 1, 1));
}

static void free_adder(struct adder *a) {
    be->ops->weight_destroy(be, a->ones);
    be->ops->free(be, a->act);
}

START_TEST(capture_ends_cleanly) {
    struct qep_graph *graph = NULL;
    struct qep_event *event = NULL;
    float ones[64], got[64];
    for (int i = 0; i < 64; i++)
        ones[i] = 1;
    float *y = dev_put(be, ones, sizeof ones);
    struct adder adder = make_adder(64);
    ck_assert_int_eq(be->device->capture_end(be, &graph), QEP_ERR_BUG);
    ok(be->device->event_create(be, &event));
    ok(be->device->capture_begin(be));
    ck_assert_int_eq(be->device->capture_begin(be), QEP_ERR_BUG);
    ck_assert_int_eq(be->device->download_async(be, got, y, sizeof got, event), QEP_ERR_BUG);
    add_one(&adder, y);
    ok(be->device->capture_end(be, &graph));
    ok(be->device->graph_launch(be, graph));
    ok(be->device->graph_launch(be, graph));
    ok(be->ops->download(be, got, y, sizeof got));
    ck_assert(got[0] == 3 && got[63] == 3);
    be->device->graph_destroy(be, graph);
    /* An op that waits fails; the backend goes on whatever became of the capture. */
    ok(be->device->capture_begin(be));
    add_one(&adder, y);
    ck_assert_int_ne(be->ops->sync(be), QEP_OK);
    enum qep_status st = be->device->capture_end(be, &graph);
    ck_assert_int_eq(st == QEP_OK, graph != NULL);
    be->device->graph_destroy(be, graph);
    add_one(&adder, y);
    ok(be->ops->download(be, got, y, sizeof got));
    ck_assert(got[0] == 4 && got[63] == 4);
    be->device->event_destroy(be, event);
    be->ops->free(be, y);
    free_adder(&adder);
}
END_TEST

/* ---- copies beside the ops ---- */

enum { COPY_FLOATS = 3000, ROUNDS = 10 };

START_TEST(copies_run_beside_ops) {
    static float ones[COPY_FLOATS], expected[2];
    size_t bytes = sizeof ones;
    float *buffer[2], *pinned[2];
    struct qep_event *event[2];
    for (int i = 0; i < COPY_FLOATS; i++)
        ones[i] = 1;
    float *load = dev_put(be, ones, bytes);
    struct adder adder = make_adder(COPY_FLOATS);
    for (int k = 0; k < 2; k++) {
        expected[k] = 1;
        buffer[k] = dev_put(be, ones, bytes);
        ok(be->device->host_alloc(be, bytes, (void **)&pinned[k]));
        ok(be->device->event_create(be, &event[k]));
        ok(be->device->event_wait(be, event[k])); /* nothing to wait for yet */
    }
    for (int round = 0; round < ROUNDS + 2; round++) {
        int k = round % 2;
        ok(be->device->event_wait(be, event[k]));
        for (int i = 0; i < COPY_FLOATS && round >= 2; i++)
            ck_assert(pinned[k][i] == expected[k]);
        if (round >= ROUNDS)
            continue;
        add_one(&adder, buffer[k]);
        expected[k] += 1;
        ok(be->device->download_async(be, pinned[k], buffer[k], bytes, event[k]));
        for (int i = 0; i < _i; i++) /* ops behind it */
            add_one(&adder, load);
    }
    ok(be->ops->sync(be));
    for (int k = 0; k < 2; k++) {
        be->device->event_destroy(be, event[k]);
        be->device->host_free(be, pinned[k]);
        be->ops->free(be, buffer[k]);
    }
    free_adder(&adder);
    be->ops->free(be, load);
}
END_TEST

static void two_ops(float *x, void *act) {
    ok(be->ops->rms_norm(be, qep_f32_rows(x + 5 * 64), x, x, 3, 64, 1e-6f));
    ok(be->ops->act_convert(be, act, qep_act_row_bytes(QEP_ACT_BF16, 64), QEP_ACT_BF16, x, 5, 64));
}

START_TEST(launches_are_timed_one_by_one) {
    struct qep_launch_time *times = NULL;
    size_t num = 0;
    float *x = dev_put(be, NULL, (5 + 3) * 64 * sizeof *x);
    void *act = dev_put(be, NULL, 5 * qep_act_row_bytes(QEP_ACT_BF16, 64));
    two_ops(x, act); /* nobody looks */
    ok(be->device->profile_begin(be));
    ck_assert_int_eq(be->device->profile_begin(be), QEP_ERR_BUG);
    two_ops(x, act);
    ok(be->device->profile_end(be, &times, &num));
    two_ops(x, act);
    ck_assert_uint_eq(num, 2);
    ck_assert_str_eq(times[0].kernel, "rms_norm_kernel");
    ck_assert_str_eq(times[1].kernel, "act_bf16_kernel");
    ck_assert_uint_eq(times[0].grid[0], 3);
    ck_assert_uint_eq(times[1].grid[0], 5);
    for (size_t i = 0; i < num; i++)
        ck_assert_msg(times[i].us > 0 && times[i].us < 1e7, "%g us", times[i].us);
    free(times);
    ck_assert_int_eq(be->device->profile_end(be, &times, &num), QEP_ERR_BUG);
    be->ops->free(be, x);
    be->ops->free(be, act);
}
END_TEST

START_TEST(kernels_are_named_by_their_function) {
    static const char *const names[][2] = {
        {"_Z12embed_kernel11cuda_matrixPKiPfi", "embed_kernel"},
        {"_ZL12embed_kernel11cuda_matrixPKiPfi", "embed_kernel"},
        {"_Z18route_count_kernel9topk_rows12expert_lists", "route_count_kernel"},
        {"_Z20matmul_decode_kernelILi2ELi1ELi0EEv11matmul_args", "matmul_decode_kernel"},
        {"_ZN45_GLOBAL__N__a1b2c3d4_14_elementwise_cu_5678ab15rms_norm_kernelEPfS0_",
         "rms_norm_kernel"},
        {"_ZN3foo3barL6kernelILi4EEEvPf", "kernel"},
        {"conv_kernel<4>, grid", "conv_kernel"},
        {"_Z99short", "_Z99short"},
        {"plain", "plain"}};
    char name[64];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        cuda_kernel_name(names[i][0], name, sizeof name);
        ck_assert_str_eq(name, names[i][1]);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("cuda_step");
    TCase *tc = device_case(s, "cuda_step", 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, advance_moves_on);
    tcase_add_test(tc, capture_ends_cleanly);
    tcase_add_loop_test(tc, copies_run_beside_ops, 0, 8);
    tcase_add_test(tc, launches_are_timed_one_by_one);
    tcase_add_test(tc, kernels_are_named_by_their_function);
    return run_device_suite(s);
}

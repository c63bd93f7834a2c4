#include "bench/cuda/harness.h"

#include "base/mem.h"
#include "base/streams.h"

#include <stdlib.h>
#include <string.h>

bool bench_wants(const struct bench *b, const char *op) {
    return b->only == NULL || strcmp(b->only, op) == 0;
}

int bench_rotations(const struct bench *b, size_t bytes) {
    size_t n = b->rotate_bytes / (bytes > 0 ? bytes : 1) + 1;
    size_t most = b->tiny ? 2 : BENCH_MAX_ROTATIONS;
    return (int)(n < most ? n : most);
}

uint32_t bench_random(void) {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

enum qep_status bench_zeros(struct bench *b, size_t bytes, void **dev) {
    return b->be->ops->alloc(b->be, bytes, "bench", dev);
}

enum qep_status bench_upload(struct bench *b, const void *host, size_t bytes, void **dev) {
    QEP_TRY(bench_zeros(b, bytes, dev));
    return b->be->ops->upload(b->be, *dev, host, bytes);
}

enum qep_status bench_noise(struct bench *b, size_t count, float **dev) {
    void *mem = NULL, *out = NULL;
    QEP_TRY(qep_alloc(count, sizeof(float), "bench", &mem));
    float *x = mem;
    for (size_t i = 0; i < count; i++)
        x[i] = (float)bench_random() / 8388608.0f - 1.0f;
    enum qep_status st = bench_upload(b, x, count * sizeof *x, &out);
    free(x);
    *dev = out;
    return st;
}

const char *bench_types(enum qep_weight_type weight, enum qep_act_type act) {
    static const char *const names[4][3] = {{"f32 x f32", "f32 x bf16", "f32 x int8"},
                                            {"bf16 x f32", "bf16 x bf16", "bf16 x int8"},
                                            {"int8 x f32", "int8 x bf16", "int8 x int8"},
                                            {"int4 x f32", "int4 x bf16", "int4 x int8"}};
    return names[weight][act];
}

double bench_weight_bytes(enum qep_weight_type type, int64_t rows, int64_t cols) {
    int32_t group = type >= QEP_WEIGHT_INT8 ? 32 : 0;
    return (double)(qep_weight_data_bytes(type, rows, cols) +
                    2 * qep_weight_num_scales(rows, cols, group));
}

static void fill_weight(struct qep_host_weight *w) {
    size_t bytes = qep_weight_data_bytes(w->type, w->rows, w->cols);
    size_t num_scales = qep_weight_num_scales(w->rows, w->cols, w->group_size);
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)w->data)[i] = (uint8_t)(bench_random() >> 8);
    if (w->type == QEP_WEIGHT_BF16) /* numbers around 0.1 */
        for (size_t i = 0; i < bytes / 2; i++)
            ((uint16_t *)w->data)[i] = (uint16_t)((((uint16_t *)w->data)[i] & 0x80ffu) | 0x3d00u);
    for (size_t i = 0; i < num_scales; i++)
        w->scales[i] = qep_f32_to_bf16(0.01f);
}

enum qep_status bench_weights(struct bench *b, enum qep_weight_type type, int64_t rows,
                              int64_t cols, int num, struct qep_weight **out) {
    struct qep_host_weight host = {
        .type = type, .rows = rows, .cols = cols, .group_size = type >= QEP_WEIGHT_INT8 ? 32 : 0};
    void *mem = NULL;
    enum qep_status st = QEP_OK;
    memset(out, 0, (size_t)num * sizeof(struct qep_weight *));
    QEP_TRY(qep_alloc(qep_weight_data_bytes(type, rows, cols), 1, "bench", &host.data));
    QEP_TRY_GOTO(st, done,
                 qep_alloc(qep_weight_num_scales(rows, cols, host.group_size), 2, "bench", &mem));
    host.scales = mem;
    fill_weight(&host);
    for (int i = 0; st == QEP_OK && i < num; i++)
        st = b->be->ops->weight_create(b->be, &host, &out[i]);
done:
    free(host.data);
    free(host.scales);
    return st;
}

/* ---- timing ---- */

static enum qep_status run_all(struct bench *b, const struct bench_case *c) {
    for (int i = 0; i < c->rotations; i++)
        QEP_TRY(c->call(b, c->ctx, i));
    return QEP_OK;
}

/* One run first, outside the graph: it grows workspaces. */
static enum qep_status capture(struct bench *b, const struct bench_case *c,
                               struct qep_graph **graph) {
    QEP_TRY(run_all(b, c));
    QEP_TRY(b->be->ops->sync(b->be));
    QEP_TRY(b->be->device->capture_begin(b->be));
    enum qep_status st = run_all(b, c);
    QEP_TRY(b->be->device->capture_end(b->be, graph));
    return st;
}

/* The second of two launches: the first keeps the device busy while the second comes in, so that
 * the host's part of a launch is not in the time. */
static enum qep_status time_graph(struct bench *b, struct qep_graph *graph, double *seconds) {
    float ms = 0.0f;
    QEP_TRY(b->be->device->graph_launch(b->be, graph));
    QEP_TRY(cuda_check(cudaEventRecord(b->begin, b->stream), "cudaEventRecord"));
    QEP_TRY(b->be->device->graph_launch(b->be, graph));
    QEP_TRY(cuda_check(cudaEventRecord(b->end, b->stream), "cudaEventRecord"));
    QEP_TRY(cuda_check(cudaEventSynchronize(b->end), "cudaEventSynchronize"));
    QEP_TRY(cuda_check(cudaEventElapsedTime(&ms, b->begin, b->end), "cudaEventElapsedTime"));
    *seconds = 1e-3 * (double)ms;
    return QEP_OK;
}

static int by_size(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static enum qep_status report(struct bench *b, const struct bench_case *c, double median,
                              double best) {
    double gb_s = 1e-9 * c->bytes / median, tflop_s = 1e-12 * c->flops / median;
    if (b->num_cases == 0)
        puts("| op | shape | types | rows | us | best us | GB/s | of copy | TFLOP/s | of mma |\n"
             "| --- | --- | --- | --: | --: | --: | --: | --: | --: | --: |");
    printf("| %s | %s | %s | %d | %.2f | %.2f | %.0f | %.0f %% | %.1f | %.0f %% |\n", c->op,
           c->shape, c->types, c->rows, 1e6 * median, 1e6 * best, gb_s, 100 * gb_s / b->copy_gb_s,
           tflop_s, 100 * tflop_s / b->mma_tflop_s);
    QEP_TRY(qep_stdout_flush());
    if (b->json != NULL)
        QEP_TRY(qep_output_printf(
            b->json,
            "%s\n  {\"op\": \"%s\", \"shape\": \"%s\", \"types\": \"%s\", \"rows\": %d, "
            "\"us\": %.3f, \"best_us\": %.3f, \"gb_s\": %.2f, \"of_copy\": %.4f, "
            "\"tflop_s\": %.3f, \"of_mma\": %.4f, \"rotations\": %d}",
            b->num_cases > 0 ? "," : "", c->op, c->shape, c->types, c->rows, 1e6 * median,
            1e6 * best, gb_s, gb_s / b->copy_gb_s, tflop_s, tflop_s / b->mma_tflop_s,
            c->rotations));
    b->num_cases++;
    return QEP_OK;
}

enum qep_status bench_run(struct bench *b, const struct bench_case *c) {
    static double seconds[BENCH_MAX_REPEATS];
    struct qep_graph *graph = NULL;
    enum qep_status st = capture(b, c, &graph);
    for (int i = -1; st == QEP_OK && i < b->repeats; i++)
        st = time_graph(b, graph, &seconds[i < 0 ? 0 : i]);
    if (graph != NULL)
        b->be->device->graph_destroy(b->be, graph);
    if (st != QEP_OK) {
        char why[QEP_ERROR_MAX];
        snprintf(why, sizeof why, "%s", qep_last_error());
        return qep_fail(st, "%s %s %s, %d rows: %s", c->op, c->shape, c->types, c->rows, why);
    }
    qsort(seconds, (size_t)b->repeats, sizeof *seconds, by_size);
    return report(b, c, seconds[b->repeats / 2] / c->rotations, seconds[0] / c->rotations);
}

/* ---- what the device can do ---- */

struct copies {
    void *from, *to;
    size_t bytes;
};

static enum qep_status time_copy(struct bench *b, const struct copies *c, double *seconds) {
    float ms = 0.0f;
    QEP_TRY(cuda_check(cudaEventRecord(b->begin, b->stream), "cudaEventRecord"));
    QEP_TRY(b->be->device->copy(b->be, c->to, c->from, c->bytes));
    QEP_TRY(cuda_check(cudaEventRecord(b->end, b->stream), "cudaEventRecord"));
    QEP_TRY(cuda_check(cudaEventSynchronize(b->end), "cudaEventSynchronize"));
    QEP_TRY(cuda_check(cudaEventElapsedTime(&ms, b->begin, b->end), "cudaEventElapsedTime"));
    *seconds = 1e-3 * (double)ms;
    return QEP_OK;
}

static enum qep_status measure_copy(struct bench *b) {
    struct copies c = {.bytes = b->tiny ? 1 << 16 : (size_t)1 << 30};
    double best = 1e30, seconds = 0.0;
    enum qep_status st = bench_zeros(b, c.bytes, &c.from);
    if (st == QEP_OK)
        st = bench_zeros(b, c.bytes, &c.to);
    for (int i = 0; st == QEP_OK && i < b->repeats; i++) {
        st = time_copy(b, &c, &seconds);
        best = seconds < best ? seconds : best;
    }
    b->be->ops->free(b->be, c.from);
    b->be->ops->free(b->be, c.to);
    b->copy_gb_s = 2e-9 * (double)c.bytes / best;
    return st;
}

static enum qep_status measure_mma(struct bench *b) {
    int blocks = b->tiny ? 2 : 8 * ((struct cuda_backend *)b->be)->num_sms;
    int steps = b->tiny ? 2 : 4096;
    double best = 1e30, flops = 0.0;
    void *out = NULL;
    QEP_TRY(bench_zeros(b, (size_t)blocks * BENCH_MMA_THREADS * sizeof(float), &out));
    enum qep_status st = QEP_OK;
    for (int i = 0; st == QEP_OK && i < b->repeats; i++) {
        cudaError_t error = cudaSuccess;
        float ms = 0.0f;
        QEP_TRY_GOTO(st, done, cuda_check(cudaEventRecord(b->begin, b->stream), "cudaEventRecord"));
        flops = bench_launch_mma(out, blocks, steps, b->stream, &error);
        QEP_TRY_GOTO(st, done, cuda_check(error, "mma_chains"));
        QEP_TRY_GOTO(st, done, cuda_check(cudaEventRecord(b->end, b->stream), "cudaEventRecord"));
        QEP_TRY_GOTO(st, done, cuda_check(cudaEventSynchronize(b->end), "mma_chains"));
        QEP_TRY_GOTO(st, done,
                     cuda_check(cudaEventElapsedTime(&ms, b->begin, b->end), "mma_chains"));
        best = 1e-3 * (double)ms < best ? 1e-3 * (double)ms : best;
    }
    b->mma_tflop_s = 1e-12 * flops / best;
done:
    b->be->ops->free(b->be, out);
    return st;
}

enum qep_status bench_measure_peaks(struct bench *b) {
    QEP_TRY(measure_copy(b));
    return measure_mma(b);
}

/* Matmul of one matrix: GB/s of weights for one row, GFLOP/s for many, per weight and activation
 * type. Usage: bench_matmul [threads] [isa] [rows] [cols]. Matrices are cycled through so that
 * decode reads them from memory rather than from cache. */
#include "kernels/backend.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/number.h"
#include "base/team.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 512, NUM_TYPES = 4 };

struct bench {
    struct qep_backend *be;
    int64_t rows, cols;
    float *out;
    char *acts;
};

static void *must_alloc(size_t bytes) {
    void *mem = NULL;
    if (qep_calloc(bytes, 1, "bench", &mem) != QEP_OK)
        exit(EXIT_FAILURE);
    return mem;
}

static struct qep_weight *make_weight(const struct bench *b, enum qep_weight_type type) {
    struct qep_host_weight host = {.type = type, .rows = b->rows, .cols = b->cols};
    size_t bytes = qep_weight_data_bytes(type, b->rows, b->cols);
    struct qep_weight *w = NULL;
    uint32_t x = 1;
    host.data = must_alloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)host.data)[i] = (uint8_t)((x = x * 1664525u + 1013904223u) >> 24);
    /* Sensible exponents: subnormal numbers are slow. */
    if (type < QEP_WEIGHT_INT8)
        for (size_t i = type == QEP_WEIGHT_F32 ? 3 : 1; i < bytes;
             i += type == QEP_WEIGHT_F32 ? 4 : 2)
            ((uint8_t *)host.data)[i] = (uint8_t)(0x3e | (i & 4) << 5);
    if (type >= QEP_WEIGHT_INT8) {
        host.group_size = 32;
        size_t count = qep_weight_num_scales(b->rows, b->cols, 32);
        host.scales = must_alloc(2 * count);
        for (size_t i = 0; i < count; i++)
            host.scales[i] = qep_f32_to_bf16(0.01f);
    }
    if (b->be->ops->weight_create(b->be, &host, &w) != QEP_OK)
        exit(EXIT_FAILURE);
    free(host.data);
    free(host.scales);
    return w;
}

/* Seconds per call, the best of the repeats. */
static double time_matmul(const struct bench *b, struct qep_weight **w, int num_weights,
                          enum qep_act_type act, int32_t n) {
    size_t stride = qep_act_row_bytes(act, (int32_t)b->cols);
    double best = 1e30;
    for (int repeat = 0; repeat < 5; repeat++) {
        double start = qep_now_s();
        for (int i = 0; i < num_weights; i++) {
            const struct qep_product product = {.weight = w[i], .out = b->out};
            b->be->ops->matmul(b->be, &product, 1, b->acts, stride, act, n, 0);
        }
        double seconds = (qep_now_s() - start) / num_weights;
        best = seconds < best ? seconds : best;
    }
    return best;
}

static void bench_pair(struct bench *b, enum qep_weight_type type, enum qep_act_type act) {
    static const char *const weight_names[] = {"f32", "bf16", "int8", "int4"};
    static const char *const act_names[] = {"f32", "bf16", "int8"};
    double bytes = (double)qep_weight_data_bytes(type, b->rows, b->cols);
    double flops = 2.0 * (double)b->rows * (double)b->cols, gflops[4] = {0};
    static const int32_t row_counts[] = {8, 64, 512};
    if (!b->be->ops->supports(b->be, type, act))
        return;
    bytes +=
        type >= QEP_WEIGHT_INT8 ? 2.0 * (double)qep_weight_num_scales(b->rows, b->cols, 32) : 0;
    int num = (int)(200e6 / bytes) + 1;
    struct qep_weight **w = must_alloc((size_t)num * sizeof *w);
    for (int i = 0; i < num; i++)
        w[i] = make_weight(b, type);
    double decode = time_matmul(b, w, num, act, 1);
    for (int i = 0; i < 3; i++)
        gflops[i] = flops * row_counts[i] / time_matmul(b, w, 1, act, row_counts[i]) * 1e-9;
    printf("%-5s x %-5s  decode %7.2f GB/s %8.1f us   n=8 %7.1f  n=64 %7.1f  n=512 %7.1f GFLOP/s\n",
           weight_names[type], act_names[act], bytes / decode * 1e-9, decode * 1e6, gflops[0],
           gflops[1], gflops[2]);
    for (int i = 0; i < num; i++)
        b->be->ops->weight_destroy(b->be, w[i]);
    free(w);
}

static double read_bandwidth(void) {
    size_t count = 256u << 20;
    uint64_t *data = must_alloc(count), sum = 0;
    memset(data, 1, count);
    double best = 1e30;
    for (int repeat = 0; repeat < 3; repeat++) {
        double start = qep_now_s();
        for (size_t i = 0; i < count / 8; i++)
            sum += data[i];
        double seconds = qep_now_s() - start;
        best = seconds < best ? seconds : best;
    }
    free(data);
    return sum == 1 ? 0.0 : (double)count / best * 1e-9;
}

static bool take_number(const char *text, int64_t max, int64_t *out) {
    return text == NULL || qep_parse_int(text, strlen(text), 1, max, out);
}

int main(int argc, char **argv) {
    int64_t threads = 1, rows = 2048, cols = 8192;
    struct qep_team *team = NULL;
    if (!take_number(argc > 1 ? argv[1] : NULL, 1024, &threads) ||
        !take_number(argc > 3 ? argv[3] : NULL, 1 << 20, &rows) ||
        !take_number(argc > 4 ? argv[4] : NULL, 1 << 20, &cols)) {
        fprintf(stderr, "usage: bench_matmul [THREADS [ISA [ROWS [COLS]]]]\n");
        return QEP_ERR_USAGE;
    }
    struct bench b = {.rows = rows, .cols = cols};
    if (qep_team_create((int)threads, &team) != QEP_OK ||
        qep_backend_cpu_create(team, argc > 2 ? argv[2] : NULL, &b.be) != QEP_OK) {
        fprintf(stderr, "bench_matmul: %s\n", qep_last_error());
        return EXIT_FAILURE;
    }
    b.out = must_alloc(MAX_ROWS * (size_t)b.rows * 4);
    b.acts = must_alloc(MAX_ROWS * (size_t)b.cols * 4);
    printf("%s, %d threads, [%d, %d]; one thread reads %.1f GB/s\n", b.be->isa, (int)threads,
           (int)b.rows, (int)b.cols, read_bandwidth());
    for (int type = 0; type < NUM_TYPES; type++)
        for (int act = QEP_ACT_F32; act <= QEP_ACT_INT8; act++)
            bench_pair(&b, (enum qep_weight_type)type, (enum qep_act_type)act);
    free(b.out);
    free(b.acts);
    b.be->ops->destroy(b.be);
    qep_team_destroy(team);
    return EXIT_SUCCESS;
}

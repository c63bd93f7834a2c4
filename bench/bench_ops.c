/* The ops beside matmul at the shapes of Qwen3.5-35B-A3B: milliseconds for one decode row at a
 * given context and for a prefill of 512 rows. Usage: bench_ops [threads] [isa] [context]. */
#include "kernels/backend.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/number.h"
#include "base/team.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    HIDDEN = 2048,
    INNER = 512,
    EXPERTS = 64, /* resident here; enough to leave the caches */
    TOP_K = 8,
    PREFILL = 512,
};

static const struct qep_attention_dims attention_dims = {16,   2,     256,         64,
                                                         1e7f, 1e-6f, QEP_KV_BF16, 1024};
static const struct qep_delta_dims delta_dims = {16, 32, 128, 128, 4, 1e-6f};

static uint32_t seed = 1;

static void *must_alloc(size_t bytes) {
    void *mem = NULL;
    if (qep_calloc(bytes, 1, "bench", &mem) != QEP_OK)
        exit(EXIT_FAILURE);
    return mem;
}

static float *noise(size_t count) {
    float *x = must_alloc(count * sizeof *x);
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
    }
    return x;
}

static void report(const char *name, int32_t rows, double start, int repeats) {
    printf("%-14s %4d rows %9.4f ms\n", name, (int)rows, (qep_now_s() - start) * 1e3 / repeats);
}

static void bench_attention(struct qep_backend *be, int32_t rows, int32_t position) {
    const struct qep_attention_dims *d = &attention_dims;
    size_t n = (size_t)rows, head = (size_t)d->head_dim;
    size_t num_blocks = (size_t)(position + rows) / QEP_KV_BLOCK + 1;
    size_t bytes = qep_kv_block_bytes(d->kv_type, d->num_kv_heads, d->head_dim);
    float *qg = noise(n * (size_t)d->num_heads * 2 * head), *norm = noise(head);
    float *kv = noise(n * (size_t)d->num_kv_heads * head);
    float *out = must_alloc(n * (size_t)d->num_heads * head * sizeof *out);
    char *memory = must_alloc(num_blocks * bytes);
    void **blocks = must_alloc(1024 * sizeof *blocks);
    struct qep_span span = {0, rows, 0, position, rows == 1};
    struct qep_batch batch = qep_batch_of(rows, 1, &span, NULL);
    for (size_t i = 0; i < num_blocks; i++)
        blocks[i] = memory + i * bytes;
    for (int warm = 0; warm < 2; warm++) {
        double start = qep_now_s();
        int repeats = rows == 1 ? 20 : 2;
        for (int i = 0; i < repeats; i++) {
            be->ops->attention_kv(be, d, &batch, kv, kv, norm, blocks);
            be->ops->attention(be, d, &batch, qep_f32_rows(out), qg, norm, blocks);
        }
        if (warm == 1)
            report("attention", rows, start, repeats);
    }
    free(qg);
    free(norm);
    free(kv);
    free(out);
    free(memory);
    free(blocks);
}

/* The keys and values of 512 positions as INT8. */
static void bench_kv_int8(struct qep_backend *be) {
    enum { REPEATS = 100 };
    struct qep_attention_dims d = attention_dims;
    d.kv_type = QEP_KV_INT8;
    size_t head = (size_t)d.head_dim, width = (size_t)d.num_kv_heads * head;
    size_t bytes = qep_kv_block_bytes(d.kv_type, d.num_kv_heads, d.head_dim);
    float *kv = noise(PREFILL * width), *norm = noise(head);
    char *memory = must_alloc(PREFILL / QEP_KV_BLOCK * bytes);
    void **blocks = must_alloc((size_t)d.max_blocks * sizeof *blocks);
    struct qep_span span = {0, PREFILL, 0, 0, 0};
    struct qep_batch batch = qep_batch_of(PREFILL, 1, &span, NULL);
    for (size_t i = 0; i < PREFILL / QEP_KV_BLOCK; i++)
        blocks[i] = memory + i * bytes;
    double start = 0.0;
    for (int i = -REPEATS / 4; i < REPEATS; i++) {
        if (i == 0)
            start = qep_now_s();
        be->ops->attention_kv(be, &d, &batch, kv, kv, norm, blocks);
    }
    report("kv int8", PREFILL, start, REPEATS);
    free(kv);
    free(norm);
    free(memory);
    free(blocks);
}

/* The norm of hidden rows with INT8 activation rows, their conversion alone, and the router. */
static void bench_rows(struct qep_backend *be, int32_t rows) {
    enum { ROUTED = 256 };
    size_t n = (size_t)rows, stride = qep_act_row_bytes(QEP_ACT_INT8, HIDDEN);
    int repeats = rows == 1 ? 20000 : 200;
    float *x = noise(n * HIDDEN), *w = noise(HIDDEN), *normed = must_alloc(n * HIDDEN * sizeof *x);
    float *weights = must_alloc(n * TOP_K * sizeof *weights);
    int32_t *idx = must_alloc(n * TOP_K * sizeof *idx);
    struct qep_rows_out out = {normed, must_alloc(n * stride), stride, QEP_ACT_INT8};
    static const char *const names[] = {"norm to int8", "f32 to int8", "router"};
    for (int op = 0; op < 3; op++) {
        double start = 0.0;
        for (int i = -repeats / 4; i < repeats; i++) {
            if (i == 0)
                start = qep_now_s();
            if (op == 0)
                be->ops->rms_norm(be, out, x, w, rows, HIDDEN, 1e-6f);
            else if (op == 1)
                be->ops->act_convert(be, out.act, stride, QEP_ACT_INT8, x, rows, HIDDEN);
            else
                be->ops->router_topk(be, idx, weights, x, rows, ROUTED, TOP_K, NULL);
        }
        report(names[op], rows, start, repeats);
    }
    free(x);
    free(w);
    free(normed);
    free(weights);
    free(idx);
    free(out.act);
}

static void bench_delta(struct qep_backend *be, int32_t rows) {
    enum { SLOTS = 30 }; /* as many as layers: states come from memory */
    const struct qep_delta_dims *d = &delta_dims;
    size_t n = (size_t)rows, channels = 8192, heads = (size_t)d->num_value_heads;
    size_t states = heads * 128 * 128;
    float *qkv = noise(n * channels), *conv = must_alloc(n * channels * sizeof *conv);
    float *a = noise(n * heads), *b = noise(n * heads), *head = noise(heads);
    float *w = noise(channels * 4), *out = must_alloc(n * heads * 128 * sizeof *out);
    float *state = must_alloc(SLOTS * states * sizeof *state);
    float *conv_state = must_alloc(SLOTS * channels * 4 * sizeof *conv_state);
    double conv_start = 0.0, start = 0.0;
    for (int pass = 0; pass < 4; pass++) {
        if (pass == 1)
            conv_start = qep_now_s();
        if (pass == 2)
            report("delta_conv", rows, conv_start, rows == 1 ? SLOTS : 2);
        if (pass == 3)
            start = qep_now_s();
        for (int i = 0; i < (rows == 1 ? SLOTS : 2); i++) {
            struct qep_span span = {0, rows, i, 0, rows == 1};
            struct qep_batch batch = qep_batch_of(rows, 1, &span, NULL);
            if (pass < 2)
                be->ops->delta_conv(be, d, &batch, conv, qkv, w, conv_state);
            else
                be->ops->delta(be, d, &batch, out, conv, a, b, head, head, state);
        }
    }
    report("delta", rows, start, rows == 1 ? SLOTS : 2);
    free(qkv);
    free(conv);
    free(a);
    free(b);
    free(head);
    free(w);
    free(out);
    free(state);
    free(conv_state);
}

static struct qep_weight *int4_weight(struct qep_backend *be, int64_t rows, int64_t cols) {
    struct qep_host_weight host = {.type = QEP_WEIGHT_INT4, .rows = rows, .cols = cols};
    size_t bytes = qep_weight_data_bytes(host.type, rows, cols);
    size_t num_scales = qep_weight_num_scales(rows, cols, 32);
    struct qep_weight *w = NULL;
    host.group_size = 32;
    host.data = must_alloc(bytes);
    host.scales = must_alloc(num_scales * 2);
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)host.data)[i] = (uint8_t)((seed = seed * 1664525u + 1013904223u) >> 24);
    for (size_t i = 0; i < num_scales; i++)
        host.scales[i] = qep_f32_to_bf16(0.01f);
    if (be->ops->weight_create(be, &host, &w) != QEP_OK)
        exit(EXIT_FAILURE);
    free(host.data);
    free(host.scales);
    return w;
}

static void bench_experts(struct qep_backend *be, struct qep_weight *const *w, int32_t rows) {
    int32_t items = rows * TOP_K, per_expert = items / EXPERTS;
    int32_t *expert = must_alloc((size_t)items * 4), *row = must_alloc((size_t)items * 4);
    float *weight = noise((size_t)items), *x = noise((size_t)rows * HIDDEN);
    float *out = must_alloc((size_t)items * HIDDEN * sizeof *out);
    size_t stride = qep_act_row_bytes(QEP_ACT_INT8, HIDDEN);
    char *acts = must_alloc((size_t)rows * stride);
    int repeats = rows == 1 ? EXPERTS : 3;
    be->ops->act_convert(be, acts, stride, QEP_ACT_INT8, x, rows, HIDDEN);
    for (int32_t i = 0; i < items; i++)
        row[i] = rows == 1 ? 0 : i % per_expert;
    double start = 0.0;
    for (int i = -2; i < repeats; i++) {
        if (i == 0)
            start = qep_now_s();
        for (int32_t j = 0; j < items; j++) /* one token: other experts every time */
            expert[j] = rows == 1 ? (i + 2) % 8 * TOP_K + j : j / per_expert;
        struct qep_expert_args args = {acts,
                                       stride,
                                       QEP_ACT_INT8,
                                       rows,
                                       items,
                                       expert,
                                       row,
                                       weight,
                                       (const struct qep_weight *const *)w,
                                       (const struct qep_weight *const *)w + EXPERTS,
                                       HIDDEN,
                                       INNER,
                                       0};
        be->ops->experts(be, &args, out);
    }
    report("experts int4", rows, start, repeats);
    free(expert);
    free(row);
    free(weight);
    free(x);
    free(out);
    free(acts);
}

static bool take_number(const char *text, int64_t min, int64_t max, int64_t *out) {
    return text == NULL || qep_parse_int(text, strlen(text), min, max, out);
}

int main(int argc, char **argv) {
    int64_t num_threads = 1, positions = 4096;
    if (!take_number(argc > 1 ? argv[1] : NULL, 1, 1024, &num_threads) ||
        !take_number(argc > 3 ? argv[3] : NULL, 0, 1 << 20, &positions)) {
        fprintf(stderr, "usage: bench_ops [THREADS [ISA [CONTEXT]]]\n");
        return QEP_ERR_USAGE;
    }
    int threads = (int)num_threads, context = (int)positions;
    struct qep_backend *be = NULL;
    struct qep_team *team = NULL;
    struct qep_weight *w[2 * EXPERTS];
    if (qep_team_create(threads, &team) != QEP_OK ||
        qep_backend_cpu_create(team, argc > 2 ? argv[2] : NULL, &be) != QEP_OK) {
        fprintf(stderr, "bench_ops: %s\n", qep_last_error());
        return EXIT_FAILURE;
    }
    printf("%s, %d threads, context %d\n", be->isa, threads, context);
    bench_rows(be, 1);
    bench_rows(be, PREFILL);
    bench_kv_int8(be);
    bench_attention(be, 1, context);
    bench_attention(be, PREFILL, context / 64 * 64);
    bench_delta(be, 1);
    bench_delta(be, PREFILL);
    double start = qep_now_s();
    for (int e = 0; e < EXPERTS; e++) {
        w[e] = int4_weight(be, 2 * INNER, HIDDEN);
        w[e + EXPERTS] = int4_weight(be, HIDDEN, INNER);
    }
    report("pack, 1 expert", 0, start, EXPERTS);
    bench_experts(be, w, 1);
    bench_experts(be, w, PREFILL);
    for (int e = 0; e < 2 * EXPERTS; e++)
        be->ops->weight_destroy(be, w[e]);
    be->ops->destroy(be);
    qep_team_destroy(team);
    return EXIT_SUCCESS;
}

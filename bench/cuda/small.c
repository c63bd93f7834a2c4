/* The ops between the large ones: their time is launch and latency. */
#include "bench/cuda/harness.h"

enum { HIDDEN = 2048, EXPERTS = 256, TOP_K = 8 };

struct call {
    float *x, *w, *out;
    int32_t *idx;
    int32_t rows;
};

static enum qep_status norm(struct bench *b, void *ctx, int rotation) {
    struct call *c = ctx;
    (void)rotation;
    return b->be->ops->rms_norm(b->be, qep_f32_rows(c->out), c->x, c->w, c->rows, HIDDEN, 1e-6f);
}

static enum qep_status convert(struct bench *b, void *ctx, int rotation) {
    struct call *c = ctx;
    (void)rotation;
    return b->be->ops->act_convert(b->be, c->out, qep_act_row_bytes(QEP_ACT_BF16, HIDDEN),
                                   QEP_ACT_BF16, c->x, c->rows, HIDDEN);
}

static enum qep_status topk(struct bench *b, void *ctx, int rotation) {
    struct call *c = ctx;
    (void)rotation;
    return b->be->ops->router_topk(b->be, c->idx, c->out, c->x, c->rows, EXPERTS, TOP_K, NULL);
}

static const struct {
    const char *name, *types;
    double bytes_per_row;
    enum qep_status (*call)(struct bench *b, void *ctx, int rotation);
} ops[] = {{"rms_norm", "f32", 8.0 * HIDDEN, norm},
           {"act_convert", "f32 to bf16", 6.0 * HIDDEN, convert},
           {"router_topk", "8 of 256", 4.0 * EXPERTS + 8.0 * TOP_K, topk}};

static enum qep_status run_rows(struct bench *b, struct call *c) {
    size_t n = (size_t)c->rows * HIDDEN;
    void *out = NULL, *idx = NULL;
    QEP_TRY(bench_noise(b, n, &c->x));
    QEP_TRY(bench_noise(b, HIDDEN, &c->w));
    QEP_TRY(bench_zeros(b, n * sizeof(float), &out));
    c->out = out;
    QEP_TRY(bench_zeros(b, (size_t)c->rows * TOP_K * sizeof(int32_t), &idx));
    c->idx = idx;
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        struct bench_case bc = {.op = ops[i].name,
                                .types = ops[i].types,
                                .shape = "hidden 2048",
                                .rows = c->rows,
                                .bytes = c->rows * ops[i].bytes_per_row,
                                .rotations = b->tiny ? 2 : 32,
                                .call = ops[i].call,
                                .ctx = c};
        QEP_TRY(bench_run(b, &bc));
    }
    return QEP_OK;
}

enum qep_status bench_small(struct bench *b) {
    static const int32_t counts[] = {1, 32, 4096};
    enum qep_status st = QEP_OK;
    if (!bench_wants(b, "small"))
        return QEP_OK;
    for (int i = 0; st == QEP_OK && i < (b->tiny ? 1 : 3); i++) {
        struct call c = {.rows = counts[i]};
        st = run_rows(b, &c);
        b->be->ops->free(b->be, c.x);
        b->be->ops->free(b->be, c.w);
        b->be->ops->free(b->be, c.out);
        b->be->ops->free(b->be, c.idx);
    }
    return st;
}

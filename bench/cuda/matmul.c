/* Matrices of Qwen3.5-35B-A3B: few rows with decode arithmetic, many with prefill arithmetic. */
#include "bench/cuda/harness.h"

struct shape {
    const char *name;
    int32_t rows, cols;
    bool f32_act; /* router and gates: bf16 weights, f32 activations */
    int32_t max_n;
};

static const struct shape shapes[] = {
    {"q_proj, in_proj_qkv", 8192, 2048, false, 4096},
    {"in_proj_z", 4096, 2048, false, 4096},
    {"k_proj, shared gate", 512, 2048, false, 4096},
    {"o_proj, out_proj", 2048, 4096, false, 4096},
    {"shared down", 2048, 512, false, 4096},
    {"lm_head", 248320, 2048, false, 32},
    {"router", 256, 2048, true, 4096},
    {"in_proj_a", 32, 2048, true, 4096},
};

struct call {
    struct qep_weight *w[BENCH_MAX_ROTATIONS];
    float *out;
    void *acts;
    size_t stride;
    enum qep_act_type act;
    int32_t n;
};

static enum qep_status matmul(struct bench *b, void *ctx, int rotation) {
    struct call *c = ctx;
    return b->be->ops->matmul(b->be, c->out, c->acts, c->stride, c->act, c->w[rotation], c->n,
                              c->n <= 32);
}

static enum qep_status bench_n(struct bench *b, struct call *c, const struct shape *s,
                               enum qep_weight_type type, int rotations) {
    double weight = bench_weight_bytes(type, s->rows, s->cols), n = c->n;
    struct bench_case bc = {.op = "matmul",
                            .types = bench_types(type, c->act),
                            .rows = c->n,
                            .bytes = weight + n * ((double)c->stride + 4.0 * s->rows),
                            .flops = 2.0 * n * s->rows * s->cols,
                            .rotations = rotations,
                            .call = matmul,
                            .ctx = c};
    void *out = NULL;
    float *x = NULL;
    enum qep_status st = QEP_OK;
    snprintf(bc.shape, sizeof bc.shape, "%s [%d, %d]", s->name, s->rows, s->cols);
    QEP_TRY_GOTO(st, done, bench_zeros(b, (size_t)c->n * (size_t)s->rows * sizeof(float), &out));
    QEP_TRY_GOTO(st, done, bench_zeros(b, (size_t)c->n * c->stride, &c->acts));
    QEP_TRY_GOTO(st, done, bench_noise(b, (size_t)c->n * (size_t)s->cols, &x));
    c->out = out;
    QEP_TRY_GOTO(st, done,
                 b->be->ops->act_convert(b->be, c->acts, c->stride, c->act, x, c->n, s->cols));
    st = bench_run(b, &bc);
done:
    b->be->ops->free(b->be, x);
    b->be->ops->free(b->be, out);
    b->be->ops->free(b->be, c->acts);
    return st;
}

static enum qep_status bench_pair(struct bench *b, const struct shape *s,
                                  enum qep_weight_type type) {
    static const int32_t counts[] = {1, 8, 32, 512, 4096}, tiny_counts[] = {1, 3, 33};
    static struct call c;
    c.act = s->f32_act ? QEP_ACT_F32 : QEP_ACT_BF16;
    c.stride = qep_act_row_bytes(c.act, s->cols);
    if (!b->be->ops->supports(b->be, type, c.act))
        return QEP_OK;
    int num = bench_rotations(b, (size_t)bench_weight_bytes(type, s->rows, s->cols));
    enum qep_status st = bench_weights(b, type, s->rows, s->cols, num, c.w);
    for (int i = 0; st == QEP_OK && i < (b->tiny ? 3 : 5); i++) {
        c.n = b->tiny ? tiny_counts[i] : counts[i];
        if (c.n <= s->max_n)
            st = bench_n(b, &c, s, type, c.n > 32 && num > 16 ? 16 : num);
    }
    for (int i = 0; i < num; i++)
        b->be->ops->weight_destroy(b->be, c.w[i]);
    return st;
}

enum qep_status bench_matmul(struct bench *b) {
    static const enum qep_weight_type types[] = {QEP_WEIGHT_INT4, QEP_WEIGHT_INT8, QEP_WEIGHT_BF16};
    if (!bench_wants(b, "matmul"))
        return QEP_OK;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct shape s = shapes[i];
        if (b->tiny) {
            s.rows = s.rows > 4096 ? 200 : s.rows / 8;
            s.cols /= 16;
        }
        for (int t = s.f32_act ? 2 : 0; t < 3; t++)
            QEP_TRY(bench_pair(b, &s, types[t]));
    }
    return QEP_OK;
}

/* Matrices of Qwen3.5-35B-A3B: few rows with decode arithmetic, many with prefill arithmetic. */
#include "bench/cuda/harness.h"

struct shape {
    const char *name;
    int32_t rows[QEP_MAX_PRODUCTS], cols; /* one call's products; 0: none */
    bool f32_act;                         /* router and gates: bf16 weights, f32 activations */
    bool adds;
    int32_t max_n;
};

static const struct shape shapes[] = {
    {"in_proj_qkv + z", {8192, 4096}, 2048, .max_n = 4096},
    {"q_proj + k + v", {8192, 512, 512}, 2048, .max_n = 4096},
    {"shared gate + up", {512, 512}, 2048, .max_n = 4096},
    {"o_proj, out_proj", {2048}, 4096, .adds = true, .max_n = 4096},
    {"shared down", {2048}, 512, .adds = true, .max_n = 4096},
    {"lm_head", {248320}, 2048, .max_n = 32},
    {"router + shared gate", {256, 1}, 2048, .f32_act = true, .max_n = 4096},
    {"in_proj_a + b", {32, 32}, 2048, .f32_act = true, .max_n = 4096},
};

struct call {
    struct qep_weight *w[QEP_MAX_PRODUCTS][BENCH_MAX_ROTATIONS];
    float *out[QEP_MAX_PRODUCTS];
    void *acts;
    size_t stride;
    enum qep_act_type act;
    enum qep_epilogue epilogue;
    int32_t num, n;
};

static enum qep_status matmul(struct bench *b, void *ctx, int rotation) {
    struct call *c = ctx;
    struct qep_product products[QEP_MAX_PRODUCTS];
    for (int32_t i = 0; i < c->num; i++)
        products[i] = (struct qep_product){
            .weight = c->w[i][rotation], .out = c->out[i], .epilogue = c->epilogue};
    return b->be->ops->matmul(b->be, products, c->num, c->acts, c->stride, c->act, c->n,
                              c->n <= 32);
}

static int32_t all_rows(const struct shape *s) {
    int32_t rows = 0;
    for (int i = 0; i < QEP_MAX_PRODUCTS; i++)
        rows += s->rows[i];
    return rows;
}

static enum qep_status bench_n(struct bench *b, struct call *c, const struct shape *s,
                               enum qep_weight_type type, int rotations) {
    double rows = all_rows(s), weight = bench_weight_bytes(type, all_rows(s), s->cols), n = c->n;
    struct bench_case bc = {.op = "matmul",
                            .types = bench_types(type, c->act),
                            .rows = c->n,
                            .bytes =
                                weight + n * ((double)c->stride + (s->adds ? 8.0 : 4.0) * rows),
                            .flops = 2.0 * n * rows * s->cols,
                            .rotations = rotations,
                            .call = matmul,
                            .ctx = c};
    float *x = NULL;
    enum qep_status st = QEP_OK;
    snprintf(bc.shape, sizeof bc.shape, "%s [%d, %d]%s", s->name, all_rows(s), s->cols,
             s->adds ? ", added" : "");
    for (int32_t i = 0; i < c->num; i++) {
        void *out = NULL;
        QEP_TRY_GOTO(st, done,
                     bench_zeros(b, (size_t)c->n * (size_t)s->rows[i] * sizeof(float), &out));
        c->out[i] = out;
    }
    QEP_TRY_GOTO(st, done, bench_zeros(b, (size_t)c->n * c->stride, &c->acts));
    QEP_TRY_GOTO(st, done, bench_noise(b, (size_t)c->n * (size_t)s->cols, &x));
    QEP_TRY_GOTO(st, done,
                 b->be->ops->act_convert(b->be, c->acts, c->stride, c->act, x, c->n, s->cols));
    st = bench_run(b, &bc);
done:
    b->be->ops->free(b->be, x);
    b->be->ops->free(b->be, c->acts);
    c->acts = NULL;
    for (int i = 0; i < QEP_MAX_PRODUCTS; i++) {
        b->be->ops->free(b->be, c->out[i]);
        c->out[i] = NULL;
    }
    return st;
}

static enum qep_status bench_pair(struct bench *b, const struct shape *s,
                                  enum qep_weight_type type) {
    static const int32_t counts[] = {1, 8, 32, 512, 4096}, tiny_counts[] = {1, 3, 33};
    static struct call c;
    enum qep_status st = QEP_OK;
    c = (struct call){.act = s->f32_act ? QEP_ACT_F32 : QEP_ACT_BF16,
                      .epilogue = s->adds ? QEP_EPILOGUE_ADD : QEP_EPILOGUE_STORE};
    c.stride = qep_act_row_bytes(c.act, s->cols);
    if (!b->be->ops->supports(b->be, type, c.act))
        return QEP_OK;
    int num = bench_rotations(b, (size_t)bench_weight_bytes(type, all_rows(s), s->cols));
    for (; st == QEP_OK && c.num < QEP_MAX_PRODUCTS && s->rows[c.num] > 0; c.num++)
        st = bench_weights(b, type, s->rows[c.num], s->cols, num, c.w[c.num]);
    for (int i = 0; st == QEP_OK && i < (b->tiny ? 3 : 5); i++) {
        c.n = b->tiny ? tiny_counts[i] : counts[i];
        if (c.n <= s->max_n)
            st = bench_n(b, &c, s, type, c.n > 32 && num > 16 ? 16 : num);
    }
    for (int32_t p = 0; p < c.num; p++)
        for (int i = 0; i < num; i++)
            b->be->ops->weight_destroy(b->be, c.w[p][i]);
    return st;
}

enum qep_status bench_matmul(struct bench *b) {
    static const enum qep_weight_type types[] = {QEP_WEIGHT_INT4, QEP_WEIGHT_INT8, QEP_WEIGHT_BF16};
    if (!bench_wants(b, "matmul"))
        return QEP_OK;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct shape s = shapes[i];
        if (b->tiny) {
            for (int p = 0; p < QEP_MAX_PRODUCTS; p++)
                s.rows[p] = s.rows[p] > 4096 ? 200 : (s.rows[p] + 7) / 8;
            s.cols /= 16;
        }
        for (int t = s.f32_act ? 2 : 0; t < 3; t++)
            QEP_TRY(bench_pair(b, &s, types[t]));
    }
    return QEP_OK;
}

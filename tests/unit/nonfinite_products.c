/* The battery for products: matmul with its epilogues, and the experts. */
#include "nonfinite_support.h"

#include <math.h>
#include <string.h>

static double sigmoid(double x) {
    return 1.0 / (1.0 + exp(-x));
}

/* f32 rows on the host as activation rows on the device. */
static void *dev_acts(struct qep_backend *be, const float *x, enum qep_act_type type, int32_t n,
                      int32_t cols) {
    size_t stride = qep_act_row_bytes(type, cols);
    void *in = dev_put(be, x, (size_t)(n * cols) * sizeof *x);
    void *out = dev_put(be, NULL, (size_t)n * stride);
    ok(be->ops->act_convert(be, out, stride, type, in, n, cols));
    be->ops->free(be, in);
    return out;
}

static double dot(const double *a, const double *b, int32_t n) {
    double sum = 0.0;
    for (int32_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* ---- matmul ---- */

enum { ROWS = 19, COLS = 97 }; /* no multiple of 16, of 32 */

struct product {
    struct qep_host_weight w;
    enum qep_act_type act;
    enum qep_epilogue epilogue;
    int32_t n, decode;
    float *x, *before, *gate;
};

static bool product_runs_on(const void *ctx, const struct qep_backend *be) {
    const struct product *c = ctx;
    return be->ops->supports(be, c->w.type, c->act);
}

static void product_run(const void *ctx, struct qep_backend *be, float *out) {
    const struct product *c = ctx;
    size_t bytes = (size_t)(c->n * ROWS) * sizeof *out;
    struct qep_weight *w = NULL;
    ok(be->ops->weight_create(be, &c->w, &w));
    void *act = dev_acts(be, c->x, c->act, c->n, COLS), *sums = dev_put(be, c->before, bytes);
    void *gate = dev_put(be, c->gate, (size_t)c->n * sizeof *c->gate);
    const struct qep_product product = {
        .weight = w, .out = sums, .epilogue = c->epilogue, .gate = gate};
    ok(be->ops->matmul(be, &product, 1, act, qep_act_row_bytes(c->act, COLS), c->act, c->n,
                       c->decode));
    dev_take(be, out, sums, bytes);
    be->ops->free(be, act);
    be->ops->free(be, gate);
    be->ops->weight_destroy(be, w);
}

static void product_exact(const void *ctx, double *out) {
    const struct product *c = ctx;
    double x[COLS], w[COLS];
    for (int32_t i = 0; i < c->n; i++) {
        nf_as_act(c->act, c->x + i * COLS, COLS, x);
        for (int32_t r = 0; r < ROWS; r++) {
            nf_weight_row(&c->w, r, w);
            double sum = dot(x, w, COLS), before = (double)c->before[i * ROWS + r];
            out[i * ROWS + r] = c->epilogue == QEP_EPILOGUE_STORE ? sum
                                : c->epilogue == QEP_EPILOGUE_ADD
                                    ? before + sum
                                    : before + sigmoid((double)c->gate[i]) * sum;
        }
    }
}

static void check_product(const struct nf_backends *b, struct product *c) {
    size_t n = (size_t)c->n;
    bool add = c->epilogue != QEP_EPILOGUE_STORE, gated = c->epilogue == QEP_EPILOGUE_GATED_ADD;
    const struct nf_op op = {.name = "matmul",
                             .inputs = {{"activations", c->x, n * COLS, false},
                                        nf_weight_input(weight_name(c->w.type), &c->w),
                                        {"sums before", add ? c->before : NULL, n * ROWS, false},
                                        {"gate", gated ? c->gate : NULL, n, false}},
                             .num_out = n * ROWS,
                             .ctx = c,
                             .runs_on = product_runs_on,
                             .run = product_run,
                             .exact = product_exact};
    nf_check(&op, b);
}

void nf_matmul(const struct nf_backends *b, enum qep_weight_type type) {
    static const int32_t rows[] = {1, 9, 3}; /* of the three epilogues */
    struct rng rng = {10 + (uint64_t)type};
    struct product c = {.w = random_weight(&rng, type, ROWS, COLS, 32),
                        .x = random_floats(&rng, 9 * COLS, 1.0f),
                        .before = random_floats(&rng, 9 * ROWS, 1.0f),
                        .gate = random_floats(&rng, 9, 2.0f)};
    for (int run = 0; run < 3 * 3 * 2; run++) {
        c.act = (enum qep_act_type)(run / 6);
        c.epilogue = (enum qep_epilogue)(run / 2 % 3);
        c.decode = run % 2;
        c.n = rows[run / 2 % 3];
        check_product(b, &c);
    }
    free_weight(&c.w);
    free(c.x);
    free(c.before);
    free(c.gate);
}

/* ---- experts ---- */

enum { EXPERTS = 3, HIDDEN = 40, INNER = 35, ITEMS = 5, TOKENS = 3 };

static const int32_t item_expert[ITEMS] = {0, 0, 2, 2, 2};
static const int32_t item_row[ITEMS] = {0, 2, 0, 1, 2};

struct experts {
    struct qep_host_weight gate_up[EXPERTS], down[EXPERTS];
    enum qep_act_type act;
    int32_t decode;
    float *x, *weights; /* [TOKENS, HIDDEN], [ITEMS] */
};

static bool experts_run_on(const void *ctx, const struct qep_backend *be) {
    const struct experts *c = ctx;
    return be->ops->supports(be, c->down[0].type, c->act);
}

static void experts_run(const void *ctx, struct qep_backend *be, float *out) {
    const struct experts *c = ctx;
    struct qep_weight *w[2 * EXPERTS];
    size_t bytes = ITEMS * HIDDEN * sizeof *out;
    for (int e = 0; e < EXPERTS; e++) {
        ok(be->ops->weight_create(be, &c->gate_up[e], &w[e]));
        ok(be->ops->weight_create(be, &c->down[e], &w[EXPERTS + e]));
    }
    void *act = dev_acts(be, c->x, c->act, TOKENS, HIDDEN), *sums = dev_put(be, NULL, bytes);
    const struct qep_expert_args args = {.rows = act,
                                         .row_stride = qep_act_row_bytes(c->act, HIDDEN),
                                         .act_type = c->act,
                                         .num_rows = TOKENS,
                                         .num_items = ITEMS,
                                         .item_expert = item_expert,
                                         .item_row = item_row,
                                         .item_weight = c->weights,
                                         .gate_up = (const struct qep_weight *const *)w,
                                         .down = (const struct qep_weight *const *)w + EXPERTS,
                                         .hidden_size = HIDDEN,
                                         .intermediate_size = INNER,
                                         .decode = c->decode};
    ok(be->ops->experts(be, &args, sums));
    dev_take(be, out, sums, bytes);
    be->ops->free(be, act);
    for (int e = 0; e < 2 * EXPERTS; e++)
        be->ops->weight_destroy(be, w[e]);
}

static void experts_exact(const void *ctx, double *out) {
    const struct experts *c = ctx;
    double x[HIDDEN], row[HIDDEN], inner[INNER];
    float rounded[INNER];
    for (int32_t i = 0; i < ITEMS; i++) {
        const struct qep_host_weight *gate_up = &c->gate_up[item_expert[i]];
        nf_as_act(c->act, c->x + item_row[i] * HIDDEN, HIDDEN, x);
        for (int32_t r = 0; r < INNER; r++) {
            nf_weight_row(gate_up, r, row);
            double gate = dot(x, row, HIDDEN);
            nf_weight_row(gate_up, INNER + r, row);
            rounded[r] = (float)(gate * sigmoid(gate) * dot(x, row, HIDDEN));
        }
        nf_as_act(c->act, rounded, INNER, inner);
        for (int32_t r = 0; r < HIDDEN; r++) {
            nf_weight_row(&c->down[item_expert[i]], r, row);
            out[i * HIDDEN + r] = (double)c->weights[i] * dot(inner, row, INNER);
        }
    }
}

void nf_experts(const struct nf_backends *b, enum qep_weight_type type) {
    struct rng rng = {20 + (uint64_t)type};
    struct experts c = {.x = random_floats(&rng, TOKENS * HIDDEN, 1.0f),
                        .weights = random_floats(&rng, ITEMS, 1.0f)};
    for (int e = 0; e < EXPERTS; e++) {
        c.gate_up[e] = random_weight(&rng, type, 2 * INNER, HIDDEN, 32);
        c.down[e] = random_weight(&rng, type, HIDDEN, INNER, 32);
    }
    for (int run = 0; run < 3 * 2; run++) {
        c.act = (enum qep_act_type)(run / 2);
        c.decode = run % 2;
        const struct nf_op op = {.name = "experts",
                                 .inputs = {{"rows", c.x, TOKENS * HIDDEN, false},
                                            {"weights", c.weights, ITEMS, false},
                                            nf_weight_input("gate and up", &c.gate_up[2]),
                                            nf_weight_input("down", &c.down[0])},
                                 .num_out = ITEMS * HIDDEN,
                                 .ctx = &c,
                                 .runs_on = experts_run_on,
                                 .run = experts_run,
                                 .exact = experts_exact,
                                 /* a rounding edge of the inner row may fall the other way */
                                 .tolerance = c.act == QEP_ACT_F32 ? 0.0 : 2e-2};
        nf_check(&op, b);
    }
    for (int e = 0; e < EXPERTS; e++) {
        free_weight(&c.gate_up[e]);
        free_weight(&c.down[e]);
    }
    free(c.x);
    free(c.weights);
}

/* The battery for ops on rows: embedding, norms, activation rows, element-wise ops, router, tree.
 */
#include "nonfinite_support.h"

#include "kernels/mathfn.h"

#include <math.h>
#include <string.h>

static double silu(double x) {
    return x / (1.0 + exp(-x));
}

/* ---- embedding ---- */

struct embed {
    struct qep_host_weight w;
    int32_t ids[5];
};

static void embed_run(const void *ctx, struct qep_backend *be, float *out) {
    const struct embed *c = ctx;
    size_t bytes = 5 * (size_t)c->w.cols * sizeof *out;
    struct qep_weight *w = NULL;
    ok(be->ops->weight_create(be, &c->w, &w));
    void *ids = dev_put(be, c->ids, sizeof c->ids), *rows = dev_put(be, NULL, bytes);
    ok(be->ops->embed(be, rows, w, ids, 5));
    dev_take(be, out, rows, bytes);
    be->ops->free(be, ids);
    be->ops->weight_destroy(be, w);
}

static void embed_exact(const void *ctx, double *out) {
    const struct embed *c = ctx;
    for (size_t i = 0; i < 5; i++) {
        memset(out + i * (size_t)c->w.cols, 0, (size_t)c->w.cols * sizeof *out);
        if (c->ids[i] >= 0)
            nf_weight_row(&c->w, c->ids[i], out + i * (size_t)c->w.cols);
    }
}

void nf_embed(const struct nf_backends *b) {
    struct rng rng = {1};
    for (int type = QEP_WEIGHT_F32; type <= QEP_WEIGHT_INT4; type++) {
        struct embed c = {random_weight(&rng, (enum qep_weight_type)type, 19, 70, 32),
                          {18, 0, -1, 7, 18}};
        const struct nf_op op = {.name = "embed",
                                 .inputs = {nf_weight_input(weight_name(c.w.type), &c.w)},
                                 .num_out = 5 * 70,
                                 .ctx = &c,
                                 .run = embed_run,
                                 .exact = embed_exact};
        nf_check(&op, b);
        free_weight(&c.w);
    }
}

/* ---- rows [n, cols] of two inputs ---- */

struct rows {
    float *x, *y, *w;
    int32_t n, cols;
    unsigned acts;
};

static struct rows make_rows(struct rng *rng, int32_t n, int32_t cols, unsigned acts) {
    size_t count = (size_t)(n * cols);
    return (struct rows){random_floats(rng, count, 2.0f),
                         random_floats(rng, count, 2.0f),
                         random_floats(rng, (size_t)cols, 1.0f),
                         n,
                         cols,
                         acts};
}

static void free_rows(struct rows *c) {
    free(c->x);
    free(c->y);
    free(c->w);
}

typedef enum qep_status rows_op(const struct rows *c, struct qep_backend *be,
                                struct qep_rows_out out, float *x, float *y, float *w);

/* The op's f32 rows, and its activation rows, which must be those of act_convert on them. */
static void rows_run(const struct rows *c, struct qep_backend *be, rows_op *fn, float *out) {
    size_t count = (size_t)(c->n * c->cols), bytes = count * sizeof *out;
    void *x = dev_put(be, c->x, bytes), *y = dev_put(be, c->y, bytes);
    void *w = dev_put(be, c->w, (size_t)c->cols * sizeof *c->w), *rows = dev_put(be, NULL, bytes);
    ok(fn(c, be, qep_f32_rows(rows), x, y, w));
    dev_get(be, out, rows, bytes);
    for (int type = QEP_ACT_F32; type <= QEP_ACT_INT8; type++) {
        size_t stride = qep_act_row_bytes((enum qep_act_type)type, c->cols);
        size_t act_bytes = (size_t)c->n * stride;
        if ((c->acts >> type & 1u) == 0)
            continue;
        char *got = must_alloc(act_bytes), *want = must_alloc(act_bytes);
        void *act = dev_put(be, NULL, act_bytes), *again = dev_put(be, NULL, act_bytes);
        struct qep_rows_out to = {rows, act, stride, (enum qep_act_type)type};
        ok(be->ops->act_convert(be, again, stride, to.act_type, rows, c->n, c->cols));
        ok(fn(c, be, to, x, y, w));
        dev_take(be, got, act, act_bytes);
        dev_take(be, want, again, act_bytes);
        assert_same_bits(got, want, act_bytes, "activation rows");
        free(got);
        free(want);
    }
    be->ops->free(be, x);
    be->ops->free(be, y);
    be->ops->free(be, w);
    be->ops->free(be, rows);
}

static enum qep_status norm_op(const struct rows *c, struct qep_backend *be,
                               struct qep_rows_out out, float *x, float *y, float *w) {
    (void)y;
    return be->ops->rms_norm(be, out, x, w, c->n, c->cols, 1e-6f);
}

static void norm_run(const void *ctx, struct qep_backend *be, float *out) {
    rows_run(ctx, be, norm_op, out);
}

static double norm_root(const float *x, int32_t n) {
    double sum = 0.0;
    for (int32_t c = 0; c < n; c++)
        sum += (double)x[c] * (double)x[c];
    return nf_root(sum / n + 1e-6);
}

static void norm_exact(const void *ctx, double *out) {
    const struct rows *c = ctx;
    for (int32_t i = 0; i < c->n; i++) {
        const float *x = c->x + i * c->cols;
        double root = norm_root(x, c->cols);
        for (int32_t k = 0; k < c->cols; k++)
            out[i * c->cols + k] = (double)x[k] / root * (double)c->w[k];
    }
}

/* The third shape is large enough for teams of threads. */
void nf_rms_norm(const struct nf_backends *b) {
    static const int32_t shapes[][2] = {{3, 37}, {1, 1}, {20, 2050}};
    struct rng rng = {2};
    for (int s = 0; s < 3; s++) {
        struct rows c = make_rows(&rng, shapes[s][0], shapes[s][1], b->acts);
        size_t count = (size_t)(c.n * c.cols);
        const struct nf_op op = {
            .name = "rms_norm",
            .inputs = {{"x", c.x, count, false}, {"w", c.w, (size_t)c.cols, false}},
            .num_out = count,
            .ctx = &c,
            .run = norm_run,
            .exact = norm_exact,
            .nan_for_nan = true};
        nf_check(&op, b);
        free_rows(&c);
    }
}

static enum qep_status swiglu_op(const struct rows *c, struct qep_backend *be,
                                 struct qep_rows_out out, float *x, float *y, float *w) {
    (void)w;
    return be->ops->swiglu(be, out, x, y, c->n, c->cols);
}

static void swiglu_run(const void *ctx, struct qep_backend *be, float *out) {
    rows_run(ctx, be, swiglu_op, out);
}

static void swiglu_exact(const void *ctx, double *out) {
    const struct rows *c = ctx;
    for (int32_t i = 0; i < c->n * c->cols; i++)
        out[i] = silu((double)c->x[i]) * (double)c->y[i];
}

void nf_swiglu(const struct nf_backends *b) {
    struct rng rng = {3};
    struct rows c = make_rows(&rng, 3, 37, b->acts);
    const struct nf_op op = {.name = "swiglu",
                             .inputs = {{"gate", c.x, 3 * 37, false}, {"up", c.y, 3 * 37, false}},
                             .num_out = 3 * 37,
                             .ctx = &c,
                             .run = swiglu_run,
                             .exact = swiglu_exact,
                             .nan_for_nan = true};
    nf_check(&op, b);
    free_rows(&c);
}

/* ---- the norm of DeltaNet: rows of 3 heads of 37 ---- */

enum { HEADS = 3 };

static void delta_norm_run(const void *ctx, struct qep_backend *be, float *out) {
    const struct rows *c = ctx;
    const struct qep_delta_dims dims = {
        .num_value_heads = HEADS, .value_head_dim = c->cols, .eps = 1e-6f};
    size_t bytes = (size_t)(c->n * c->cols) * sizeof *out;
    void *o = dev_put(be, c->x, bytes), *z = dev_put(be, c->y, bytes);
    void *w = dev_put(be, c->w, (size_t)c->cols * sizeof *c->w);
    ok(be->ops->delta_norm(be, &dims, o, o, z, w, c->n / HEADS));
    dev_take(be, out, o, bytes);
    be->ops->free(be, z);
    be->ops->free(be, w);
}

static void delta_norm_exact(const void *ctx, double *out) {
    const struct rows *c = ctx;
    norm_exact(ctx, out);
    for (int32_t i = 0; i < c->n * c->cols; i++)
        out[i] *= silu((double)c->y[i]);
}

void nf_delta_norm(const struct nf_backends *b) {
    struct rng rng = {4};
    struct rows c = make_rows(&rng, 2 * HEADS, 37, 0);
    const struct nf_op op = {
        .name = "delta_norm",
        .inputs = {{"o", c.x, 6 * 37, false}, {"z", c.y, 6 * 37, false}, {"w", c.w, 37, false}},
        .num_out = 6 * 37,
        .ctx = &c,
        .run = delta_norm_run,
        .exact = delta_norm_exact,
        .nan_for_nan = true};
    nf_check(&op, b);
    free_rows(&c);
}

/* ---- activation rows ---- */

static const uint32_t bad_bits[] = {0x7fc00000u, 0xffc12345u, 0x7f800001u, 0x7f800000u,
                                    0xff800000u, 0x7f7fc99eu, 0xff7fc99eu, 0x7f7fffffu};

enum { NUM_BAD = sizeof bad_bits / sizeof bad_bits[0], ACT_COLS = 70, FIRST_FINITE = 5 };

/* Groups of 32, 32 and 6. Group `at` / 32 holds a plant, the others have the bits they had. */
static void check_int8(const float *x, const char *row, const char *before, int at, bool finite) {
    float scale, want;
    for (int g = 0; g < 3; g++) {
        const char *codes = row + 32 * g, *place = row + 96 + 4 * g;
        if (g != at / 32) {
            assert_same_bits(codes, before + 32 * g, 32, "codes of another group");
            assert_same_bits(place, before + 96 + 4 * g, 4, "scale of another group");
            continue;
        }
        memcpy(&scale, place, sizeof scale);
        want = finite ? fabsf(x[at]) / 127.0f : qep_float_from_bits(0x7fc00000u);
        assert_same_bits(&scale, &want, sizeof scale, "scale");
        char codes_want[32] = {0};
        codes_want[at % 32] = (char)(!finite ? 0 : x[at] > 0 ? 127 : -127);
        assert_same_bits(codes, codes_want, 32, "codes");
    }
}

static void check_act_row(enum qep_act_type type, const float *x, const char *row,
                          const char *before, int at, bool finite) {
    if (type == QEP_ACT_INT8) {
        check_int8(x, row, before, at, finite);
        return;
    }
    if (type == QEP_ACT_F32) {
        assert_same_bits(row, x, ACT_COLS * sizeof *x, "f32 row");
        return;
    }
    for (int c = 0; c < ACT_COLS; c++) {
        uint16_t want = qep_f32_to_bf16(x[c]), got = ((const uint16_t *)(const void *)row)[c];
        if (got != want && !(isnan(x[c]) && isnan(qep_bf16_to_f32(got))))
            ck_abort_msg("bf16 row: %04x of %g", got, (double)x[c]);
    }
}

static char *convert(struct qep_backend *be, enum qep_act_type type, const float *x) {
    size_t bytes = qep_act_row_bytes(type, ACT_COLS);
    char *row = must_alloc(bytes);
    void *in = dev_put(be, x, ACT_COLS * sizeof *x), *out = dev_put(be, NULL, bytes);
    ok(be->ops->act_convert(be, out, bytes, type, in, 1, ACT_COLS));
    dev_take(be, row, out, bytes);
    be->ops->free(be, in);
    return row;
}

/* Every place: the vectors of every level meet it in every lane. */
void nf_act_convert(const struct nf_backends *b) {
    struct rng rng = {5};
    float *x = random_floats(&rng, ACT_COLS, 1.0f);
    for (int run = 0; run < 3 * b->num; run++) {
        struct qep_backend *be = b->be[run / 3];
        enum qep_act_type type = (enum qep_act_type)(run % 3);
        if ((b->acts >> type & 1u) == 0)
            continue;
        char *before = convert(be, type, x);
        for (int i = 0; i < ACT_COLS * NUM_BAD; i++) {
            int at = i / NUM_BAD;
            float was = x[at];
            memcpy(&x[at], &bad_bits[i % NUM_BAD], sizeof *x);
            char *row = convert(be, type, x);
            check_act_row(type, x, row, before, at, i % NUM_BAD >= FIRST_FINITE);
            free(row);
            x[at] = was;
        }
        free(before);
    }
    free(x);
}

/* ---- router ---- */

enum { ROUTED = 3, EXPERTS = 21, TOP_K = 4 };

static void route(struct qep_backend *be, const float *logits, int32_t *idx, float *weights) {
    void *in = dev_put(be, logits, ROUTED * EXPERTS * 4);
    void *dev_idx = dev_put(be, NULL, ROUTED * TOP_K * 4);
    void *dev_weights = dev_put(be, NULL, ROUTED * TOP_K * 4);
    ok(be->ops->router_topk(be, dev_idx, dev_weights, in, ROUTED, EXPERTS, TOP_K, NULL));
    dev_take(be, idx, dev_idx, ROUTED * TOP_K * 4);
    dev_take(be, weights, dev_weights, ROUTED * TOP_K * 4);
    be->ops->free(be, in);
}

static void assert_distinct(const int32_t *idx) {
    uint32_t seen = 0;
    for (int j = 0; j < TOP_K; j++) {
        bool fine = idx[j] >= 0 && idx[j] < EXPERTS && (seen >> idx[j] & 1u) == 0;
        if (!fine)
            ck_abort_msg("expert %d, out of range or twice", idx[j]);
        seen |= 1u << idx[j];
    }
}

/* Finite, but at the ends of f32: the expert is taken alone, or never. */
static void assert_routed(const float *row, int at, const int32_t *idx, const float *weights) {
    if (row[at] > 0)
        ck_assert(idx[0] == at && weights[0] == 1.0f && weights[1] == 0.0f);
    for (int j = 0; j < TOP_K; j++)
        ck_assert(isfinite(weights[j]) && (row[at] > 0 || idx[j] != at));
}

void nf_router(const struct nf_backends *b) {
    struct rng rng = {6};
    float *logits = random_floats(&rng, ROUTED * EXPERTS, 2.0f);
    const uint32_t nans[TOP_K] = {0x7fc00000u, 0x7fc00000u, 0x7fc00000u, 0x7fc00000u};
    for (int v = 0; v < b->num; v++) {
        int32_t was_idx[ROUTED * TOP_K], idx[ROUTED * TOP_K];
        float was[ROUTED * TOP_K], weights[ROUTED * TOP_K];
        route(b->be[v], logits, was_idx, was);
        for (int i = 0; i < ROUTED * EXPERTS * NUM_BAD; i++) {
            int at = i / NUM_BAD, row = at / EXPERTS;
            float before = logits[at];
            memcpy(&logits[at], &bad_bits[i % NUM_BAD], sizeof before);
            route(b->be[v], logits, idx, weights);
            for (int r = 0; r < ROUTED; r++) {
                const size_t first = (size_t)r * TOP_K, bytes = TOP_K * 4;
                assert_distinct(idx + first);
                if (r != row) {
                    assert_same_bits(idx + first, was_idx + first, bytes, b->name[v]);
                    assert_same_bits(weights + first, was + first, bytes, b->name[v]);
                } else if (i % NUM_BAD < FIRST_FINITE) {
                    assert_same_bits(weights + first, nans, bytes, b->name[v]);
                }
            }
            if (i % NUM_BAD >= FIRST_FINITE)
                assert_routed(logits + row * EXPERTS, at % EXPERTS, idx + row * TOP_K,
                              weights + row * TOP_K);
            logits[at] = before;
        }
    }
    free(logits);
}

/* ---- tree ---- */

enum { OUTS = 4, LEAVES = 9, TREE_COLS = 70 };

struct tree {
    float *base, *src;
    bool with_base;
};

/* No leaves, one, three, five. */
static const int32_t leaf_begin[] = {0, 0, 1, 4, 9};
static const int32_t leaf_row[] = {8, 0, 1, 2, 3, 4, 5, 6, 7};
static const int32_t leaf_id[] = {5, 1, 2, 9, 0, 3, 4, 12, 15};

static void tree_run(const void *ctx, struct qep_backend *be, float *out) {
    const struct tree *c = ctx;
    size_t bytes = OUTS * TREE_COLS * sizeof *out;
    void *src = dev_put(be, c->src, LEAVES * TREE_COLS * sizeof *c->src);
    void *base = dev_put(be, c->base, bytes), *sums = dev_put(be, NULL, bytes);
    const struct qep_tree_args args = {
        c->with_base ? base : NULL, src, OUTS, TREE_COLS, leaf_begin, leaf_row, leaf_id};
    ok(be->ops->tree_sum(be, &args, sums));
    dev_take(be, out, sums, bytes);
    be->ops->free(be, src);
    be->ops->free(be, base);
}

static void tree_exact(const void *ctx, double *out) {
    const struct tree *c = ctx;
    for (int i = 0; i < OUTS * TREE_COLS; i++) {
        int o = i / TREE_COLS, col = i % TREE_COLS;
        out[i] = c->with_base ? (double)c->base[i] : 0.0;
        for (int32_t l = leaf_begin[o]; l < leaf_begin[o + 1]; l++)
            out[i] += (double)c->src[leaf_row[l] * TREE_COLS + col];
    }
}

void nf_tree_sum(const struct nf_backends *b) {
    struct rng rng = {7};
    struct tree c = {random_floats(&rng, OUTS * TREE_COLS, 1.0f),
                     random_floats(&rng, LEAVES * TREE_COLS, 1.0f), false};
    for (int with_base = 0; with_base < 2; with_base++) {
        c.with_base = with_base;
        const struct nf_op op = {
            .name = "tree_sum",
            .inputs = {{"src", c.src, LEAVES * TREE_COLS, false},
                       {"base", with_base ? c.base : NULL, OUTS * TREE_COLS, false}},
            .num_out = OUTS * TREE_COLS,
            .ctx = &c,
            .run = tree_run,
            .exact = tree_exact};
        nf_check(&op, b);
    }
    free(c.base);
    free(c.src);
}

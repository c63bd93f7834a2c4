/* The battery for attention and Gated DeltaNet: prefill of a chunk and two rows of the next, then
 * decode. */
#include "nonfinite_support.h"

#include "delta_support.h"

#include "kernels/mathfn.h"

#include <math.h>
#include <string.h>

enum { PREFILL = 66, ROWS = 68, SLOT = 1 };

/* Rows [0, PREFILL) as one span, the others one by one; fn runs a batch whose first row is row. */
typedef void batch_fn(void *arg, struct qep_backend *be, const struct qep_batch *batch, size_t row);

static void run_batches(struct qep_backend *be, batch_fn *fn, void *arg) {
    for (int32_t row = 0; row < ROWS; row += row < PREFILL ? PREFILL : 1) {
        const struct qep_span span = {0, row < PREFILL ? PREFILL : 1, SLOT, row, row >= PREFILL};
        struct qep_batch batch = dev_batch(be, &span, 1, 0);
        fn(arg, be, &batch, (size_t)row);
        dev_batch_free(be, &batch);
    }
}

/* ---- attention ---- */

enum { Q_ROW = 3 * 20, KV_ROW = 20, HEAD_DIM = 20, MAX_BLOCKS = 2, SLOTS = SLOT + 1 };

struct attention {
    struct qep_attention_dims dims;
    float *qg, *k, *v, *q_norm, *k_norm;
};

static struct attention make_attention(struct rng *rng, enum qep_kv_type type) {
    return (struct attention){{3, 1, HEAD_DIM, 8, 1e4f, 1e-6f, type, MAX_BLOCKS},
                              random_floats(rng, ROWS * 2 * Q_ROW, 2.0f),
                              random_floats(rng, ROWS * KV_ROW, 1.0f),
                              random_floats(rng, ROWS * KV_ROW, 1.0f),
                              random_floats(rng, HEAD_DIM, 1.0f),
                              random_floats(rng, HEAD_DIM, 1.0f)};
}

static void free_attention(struct attention *c) {
    free(c->qg);
    free(c->k);
    free(c->v);
    free(c->q_norm);
    free(c->k_norm);
}

/* Device copies of all inputs, the cache and its table. */
struct dev_attention {
    const struct attention *c;
    float *qg, *k, *v, *q_norm, *k_norm, *out;
    void *blocks[SLOTS * MAX_BLOCKS], *table;
};

static struct dev_attention put_attention(const struct attention *c, struct qep_backend *be) {
    struct dev_attention d = {.c = c,
                              .qg = dev_put(be, c->qg, ROWS * 2 * Q_ROW * 4),
                              .k = dev_put(be, c->k, ROWS * KV_ROW * 4),
                              .v = dev_put(be, c->v, ROWS * KV_ROW * 4),
                              .q_norm = dev_put(be, c->q_norm, HEAD_DIM * 4),
                              .k_norm = dev_put(be, c->k_norm, HEAD_DIM * 4),
                              .out = dev_put(be, NULL, ROWS * Q_ROW * 4)};
    for (int i = 0; i < SLOTS * MAX_BLOCKS; i++)
        d.blocks[i] = dev_put(be, NULL, qep_kv_block_bytes(c->dims.kv_type, 1, HEAD_DIM));
    d.table = dev_put(be, d.blocks, sizeof d.blocks);
    return d;
}

static void drop_attention(struct dev_attention *d, struct qep_backend *be) {
    void *all[] = {d->qg, d->k, d->v, d->q_norm, d->k_norm, d->out, d->table};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        be->ops->free(be, all[i]);
    for (int i = 0; i < SLOTS * MAX_BLOCKS; i++)
        be->ops->free(be, d->blocks[i]);
}

static void attention_batch(void *arg, struct qep_backend *be, const struct qep_batch *batch,
                            size_t row) {
    struct dev_attention *d = arg;
    ok(be->ops->attention_kv(be, &d->c->dims, batch, d->k + row * KV_ROW, d->v + row * KV_ROW,
                             d->k_norm, d->table));
    ok(be->ops->attention(be, &d->c->dims, batch, qep_f32_rows(d->out + row * Q_ROW),
                          d->qg + row * 2 * Q_ROW, d->q_norm, d->table));
}

static void attention_run(const void *ctx, struct qep_backend *be, float *out) {
    struct dev_attention d = put_attention(ctx, be);
    run_batches(be, attention_batch, &d);
    dev_get(be, out, d.out, ROWS * Q_ROW * sizeof *out);
    drop_attention(&d, be);
}

static void norm_and_rotate(const float *x, const float *w, int32_t position, double *out) {
    double sum = 0.0;
    for (int i = 0; i < HEAD_DIM; i++)
        sum += (double)x[i] * (double)x[i];
    for (int i = 0; i < HEAD_DIM; i++)
        out[i] = (double)x[i] / nf_root(sum / HEAD_DIM + 1e-6) * (double)w[i];
    for (int j = 0; j < 4; j++) {
        double angle = (double)(float)pow(1e4, -2.0 * j / 8) * position, a = out[j];
        out[j] = a * cos(angle) - out[j + 4] * sin(angle);
        out[j + 4] = out[j + 4] * cos(angle) + a * sin(angle);
    }
}

/* What a KV type makes of a vector. */
static void as_stored(enum qep_kv_type type, double *x) {
    float absmax = 0.0f;
    bool finite = true;
    for (int i = 0; i < HEAD_DIM; i++) {
        finite = finite && isfinite((float)x[i]);
        absmax = fmaxf(absmax, fabsf((float)x[i]));
    }
    double scale = (double)(absmax / 127.0f);
    for (int i = 0; i < HEAD_DIM; i++)
        if (type == QEP_KV_BF16)
            x[i] = (double)qep_bf16_to_f32(qep_f32_to_bf16((float)x[i]));
        else if (type == QEP_KV_INT8)
            x[i] = finite ? rint(x[i] / scale) * scale : (double)NAN;
}

static void attend(const double *q, const double (*k)[HEAD_DIM], const double (*v)[HEAD_DIM],
                   int32_t n, double *out) {
    double p[ROWS], max = (double)-INFINITY, sum = 0.0;
    for (int32_t s = 0; s < n; s++) {
        p[s] = 0.0;
        for (int i = 0; i < HEAD_DIM; i++)
            p[s] += q[i] * k[s][i];
        p[s] /= sqrt((double)HEAD_DIM);
        max = p[s] > max || isnan(p[s]) ? p[s] : max;
    }
    for (int32_t s = 0; s < n; s++)
        sum += p[s] = exp(p[s] - max);
    for (int i = 0; i < HEAD_DIM; i++) {
        out[i] = 0.0;
        for (int32_t s = 0; s < n; s++)
            out[i] += p[s] / sum * v[s][i];
    }
}

static void attention_exact(const void *ctx, double *out) {
    const struct attention *c = ctx;
    double k[ROWS][HEAD_DIM], v[ROWS][HEAD_DIM], q[HEAD_DIM];
    for (int32_t t = 0; t < ROWS; t++) {
        norm_and_rotate(c->k + t * KV_ROW, c->k_norm, t, k[t]);
        for (int i = 0; i < HEAD_DIM; i++)
            v[t][i] = (double)c->v[t * KV_ROW + i];
        as_stored(c->dims.kv_type, k[t]);
        as_stored(c->dims.kv_type, v[t]);
        for (int h = 0; h < 3; h++) {
            const float *qg = c->qg + t * 2 * Q_ROW + h * 2 * HEAD_DIM;
            double *y = out + t * Q_ROW + h * HEAD_DIM;
            norm_and_rotate(qg, c->q_norm, t, q);
            attend(q, (const double(*)[HEAD_DIM])k, (const double(*)[HEAD_DIM])v, t + 1, y);
            for (int i = 0; i < HEAD_DIM; i++)
                y[i] *= 1.0 / (1.0 + exp(-(double)qg[HEAD_DIM + i]));
        }
    }
}

void nf_attention(const struct nf_backends *b, enum qep_kv_type type) {
    static const double tolerance[] = {0.0, 8e-3, 2e-2};
    struct rng rng = {30 + (uint64_t)type};
    struct attention c = make_attention(&rng, type);
    const struct nf_op op = {.name = "attention",
                             .inputs = {{"q and gate", c.qg, ROWS * 2 * Q_ROW, false},
                                        {"k", c.k, ROWS * KV_ROW, false},
                                        {"v", c.v, ROWS * KV_ROW, false},
                                        {"q_norm", c.q_norm, HEAD_DIM, false},
                                        {"k_norm", c.k_norm, HEAD_DIM, false}},
                             .num_out = ROWS * Q_ROW,
                             .ctx = &c,
                             .run = attention_run,
                             .exact = attention_exact,
                             .tolerance = fmax(tolerance[type], b->tolerance)};
    if (b->kvs >> type & 1u)
        nf_check(&op, b);
    free_attention(&c);
}

/* ---- what an INT8 cache holds ---- */

static void kv_batch(void *arg, struct qep_backend *be, const struct qep_batch *batch, size_t row) {
    struct dev_attention *d = arg;
    ok(be->ops->attention_kv(be, &d->c->dims, batch, d->k + row * KV_ROW, d->v + row * KV_ROW,
                             d->k_norm, d->table));
}

/* The slot's blocks one after the other (free). */
static char *cache_of(const struct attention *c, struct qep_backend *be, size_t *bytes) {
    struct dev_attention d = put_attention(c, be);
    size_t block = qep_kv_block_bytes(QEP_KV_INT8, 1, HEAD_DIM);
    char *cache = must_alloc(*bytes = MAX_BLOCKS * block);
    run_batches(be, kv_batch, &d);
    for (size_t i = 0; i < MAX_BLOCKS; i++)
        dev_get(be, cache + i * block, d.blocks[SLOT * MAX_BLOCKS + i], block);
    drop_attention(&d, be);
    return cache;
}

/* Only the vector `which` (K, V) of the position differs; where want_nan it is NaN. */
static void check_cache(const char *cache, const char *before, size_t bytes, int which,
                        int position, bool want_nan) {
    size_t block = bytes / MAX_BLOCKS, in_block = (size_t)(position % QEP_KV_BLOCK);
    size_t first = (size_t)(position / QEP_KV_BLOCK) * block;
    size_t vector = (size_t)which * QEP_KV_BLOCK + in_block;
    size_t codes = first + vector * HEAD_DIM;
    size_t scale = first + 2 * (size_t)QEP_KV_BLOCK * HEAD_DIM + vector * 4;
    const uint32_t nan = 0x7fc00000u;
    const char zeros[HEAD_DIM] = {0};
    assert_same_bits(cache, before, codes, "cache before the codes");
    assert_same_bits(cache + codes + HEAD_DIM, before + codes + HEAD_DIM, scale - codes - HEAD_DIM,
                     "cache between codes and scale");
    assert_same_bits(cache + scale + 4, before + scale + 4, bytes - scale - 4,
                     "cache behind the scale");
    ck_assert_int_eq(memcmp(cache + scale, &nan, 4) == 0, want_nan);
    if (want_nan)
        assert_same_bits(cache + codes, zeros, HEAD_DIM, "codes");
}

void nf_kv_int8(const struct nf_backends *b) {
    static const uint32_t bits[] = {0x7fc00000u, 0xffc12345u, 0x7f800001u,
                                    0x7f800000u, 0xff800000u, 0x7f7fc99eu};
    static const int positions[] = {0, 31, 64, ROWS - 1};
    struct rng rng = {40};
    struct attention c = make_attention(&rng, QEP_KV_INT8);
    for (int v = 0; v < b->num && (b->kvs >> QEP_KV_INT8 & 1u); v++) {
        size_t bytes;
        char *before = cache_of(&c, b->be[v], &bytes);
        for (int i = 0; i < 2 * 4 * 6 * 3; i++) {
            int which = i % 2, position = positions[i / 2 % 4], plant = i / 8 % 6;
            int column = i / 48 == 0 ? 0 : i / 48 == 1 ? 7 : HEAD_DIM - 1;
            float *x = (which == 0 ? c.k : c.v) + position * KV_ROW + column, was = *x;
            memcpy(x, &bits[plant], sizeof *x);
            char *cache = cache_of(&c, b->be[v], &bytes);
            /* The norm of K makes 3.4e38 NaN, V holds it. */
            check_cache(cache, before, bytes, which, position, which == 0 || plant < 5);
            free(cache);
            *x = was;
        }
        free(before);
    }
    free_attention(&c);
}

/* ---- convolution ---- */

static const struct qep_delta_dims dims = {1, 2, 12, 20, 4, 1e-6f};
enum { CHANNELS = 2 * 12 + 2 * 20, KERNEL = 4, CONV_ROWS = 7, CONV_OUT = CONV_ROWS * CHANNELS };

struct conv {
    float *qkv, *weight, *state;
};

/* Rows after the state's, then the state. */
static void conv_run(const void *ctx, struct qep_backend *be, float *out) {
    const struct conv *c = ctx;
    const struct qep_span prefill = {0, CONV_ROWS - 1, 0, 64, 0};
    const struct qep_span decode = {0, 1, 0, 64 + CONV_ROWS - 1, 1};
    struct qep_batch first = dev_batch(be, &prefill, 1, 0), last = dev_batch(be, &decode, 1, 0);
    float *qkv = dev_put(be, c->qkv, CONV_OUT * 4), *rows = dev_put(be, NULL, CONV_OUT * 4);
    void *w = dev_put(be, c->weight, CHANNELS * KERNEL * 4);
    void *state = dev_put(be, c->state, CHANNELS * KERNEL * 4);
    size_t at = (CONV_ROWS - 1) * CHANNELS;
    ok(be->ops->delta_conv(be, &dims, &first, rows, qkv, w, state));
    ok(be->ops->delta_conv(be, &dims, &last, rows + at, qkv + at, w, state));
    dev_take(be, out, rows, CONV_OUT * 4);
    dev_take(be, out + CONV_OUT, state, CHANNELS * KERNEL * 4);
    be->ops->free(be, qkv);
    be->ops->free(be, w);
    dev_batch_free(be, &first);
    dev_batch_free(be, &last);
}

static double conv_input(const struct conv *c, int t, int channel) {
    return (double)(t < 0 ? c->state[qep_conv_row(64 + t, KERNEL) * CHANNELS + channel]
                          : c->qkv[t * CHANNELS + channel]);
}

static void conv_exact(const void *ctx, double *out) {
    const struct conv *c = ctx;
    for (int ch = 0; ch < CHANNELS; ch++) {
        for (int t = 0; t < CONV_ROWS; t++) {
            double sum = 0.0;
            for (int j = 0; j < KERNEL; j++)
                sum += (double)c->weight[ch * KERNEL + j] * conv_input(c, t - (KERNEL - 1) + j, ch);
            out[t * CHANNELS + ch] = sum / (1.0 + exp(-sum));
        }
        for (int t = CONV_ROWS - KERNEL; t < CONV_ROWS; t++)
            out[CONV_OUT + qep_conv_row(64 + t, KERNEL) * CHANNELS + ch] = conv_input(c, t, ch);
    }
}

void nf_delta_conv(const struct nf_backends *b) {
    struct rng rng = {50};
    struct conv c = {random_floats(&rng, CONV_OUT, 1.0f),
                     random_floats(&rng, CHANNELS * KERNEL, 0.5f),
                     random_floats(&rng, CHANNELS * KERNEL, 1.0f)};
    const struct nf_op op = {.name = "delta_conv",
                             .inputs = {{"qkv", c.qkv, CONV_OUT, false},
                                        {"weight", c.weight, CHANNELS * KERNEL, false},
                                        {"state", c.state, CHANNELS * KERNEL, false}},
                             .num_out = CONV_OUT + CHANNELS * KERNEL,
                             .ctx = &c,
                             .run = conv_run,
                             .exact = conv_exact};
    nf_check(&op, b);
    free(c.qkv);
    free(c.weight);
    free(c.state);
}

/* ---- delta rule ---- */

enum { OUT_ROW = 2 * 20, STATE = 2 * 12 * 20 };

struct dev_delta {
    float *qkv, *a, *b, *A_log, *dt_bias, *state, *out;
};

static void delta_batch(void *arg, struct qep_backend *be, const struct qep_batch *batch,
                        size_t row) {
    struct dev_delta *d = arg;
    ok(be->ops->delta(be, &dims, batch, d->out + row * OUT_ROW, d->qkv + row * CHANNELS,
                      d->a + row * 2, d->b + row * 2, d->A_log, d->dt_bias, d->state));
}

/* Rows, then the state of the slot; the slot before it stays zero. */
static void delta_run(const void *ctx, struct qep_backend *be, float *out) {
    const struct delta_inputs *in = ctx;
    float start[SLOTS * STATE] = {0};
    memcpy(start + SLOT * STATE, in->state, STATE * sizeof *start);
    struct dev_delta d = {
        dev_put(be, in->qkv, ROWS * CHANNELS * 4), dev_put(be, in->a, ROWS * 2 * 4),
        dev_put(be, in->b, ROWS * 2 * 4),          dev_put(be, in->A_log, 2 * 4),
        dev_put(be, in->dt_bias, 2 * 4),           dev_put(be, start, sizeof start),
        dev_put(be, NULL, ROWS * OUT_ROW * 4)};
    run_batches(be, delta_batch, &d);
    dev_take(be, out, d.out, ROWS * OUT_ROW * 4);
    dev_take(be, start, d.state, sizeof start);
    memcpy(out + ROWS * OUT_ROW, start + SLOT * STATE, STATE * sizeof *out);
    void *rest[] = {d.qkv, d.a, d.b, d.A_log, d.dt_bias};
    for (size_t i = 0; i < sizeof rest / sizeof rest[0]; i++)
        be->ops->free(be, rest[i]);
}

static void delta_exact(const void *ctx, double *out) {
    const struct delta_inputs *in = ctx;
    float rows[ROWS * OUT_ROW], state[STATE];
    memcpy(state, in->state, sizeof state);
    delta_scan_double(&dims, in, ROWS, rows, state);
    for (size_t i = 0; i < ROWS * OUT_ROW; i++)
        out[i] = (double)rows[i];
    for (size_t i = 0; i < STATE; i++)
        out[ROWS * OUT_ROW + i] = (double)state[i];
}

void nf_delta(const struct nf_backends *b) {
    struct rng rng = {60};
    struct delta_inputs in = make_delta_inputs(&rng, &dims, ROWS, MILD);
    const struct nf_op op = {.name = "delta",
                             .inputs = {{"q, k and v", in.qkv, ROWS * CHANNELS, false},
                                        {"first v", in.qkv + 24, 20, false},
                                        {"a", in.a, ROWS * 2, false},
                                        {"b", in.b, ROWS * 2, false},
                                        {"A_log", in.A_log, 2, false},
                                        {"dt_bias", in.dt_bias, 2, false},
                                        {"state", in.state, STATE, false}},
                             .num_out = ROWS * OUT_ROW + STATE,
                             .ctx = &in,
                             .run = delta_run,
                             .exact = delta_exact,
                             .tolerance = fmax(1e-4, b->tolerance)};
    nf_check(&op, b);
    free_delta_inputs(&in);
}

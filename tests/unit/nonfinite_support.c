#include "nonfinite_support.h"

#include "kernels/mathfn.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct plant {
    const char *name;
    uint32_t bits;
    uint16_t bf16;
} plants[] = {
    {"NaN", 0x7fc00000u, 0x7fc0},
    {"-NaN", 0xffc12345u, 0xffc1},
    {"signalling NaN", 0x7f800001u, 0x7fa0},
    {"inf", 0x7f800000u, 0x7f80},
    {"-inf", 0xff800000u, 0xff80},
    {"3.4e38", 0x7f7fc99eu, 0x7f7f},
    {"-3.4e38", 0xff7fc99eu, 0xff7f},
};

enum { NUM_PLANTS = sizeof plants / sizeof plants[0] };

/* A value where it was planted, and what was there. */
struct planted {
    const struct nf_op *op;
    const struct nf_input *input;
    size_t at;
    const struct plant *plant;
    uint32_t before;
};

static void put(struct planted *p) {
    size_t width = p->input->bf16 ? 2 : 4;
    void *where = (char *)p->input->data + p->at * width;
    memcpy(&p->before, where, width);
    memcpy(where, p->input->bf16 ? (const void *)&p->plant->bf16 : &p->plant->bits, width);
}

static void take_back(const struct planted *p) {
    size_t width = p->input->bf16 ? 2 : 4;
    memcpy((char *)p->input->data + p->at * width, &p->before, width);
}

static bool is_nan(const struct plant *plant) {
    return (plant->bits & 0x7fffffffu) > 0x7f800000u;
}

/* Outputs in float64, without and with the plant, and whether each depends on the place. */
struct expected {
    double *base, *want;
    bool *depends;
    double largest; /* of those that are finite */
};

static void find_dependent(struct planted *p, struct expected *e) {
    p->plant = &plants[0];
    put(p);
    p->op->exact(p->op->ctx, e->want);
    take_back(p);
    for (size_t o = 0; o < p->op->num_out; o++)
        e->depends[o] = isnan(e->want[o]);
}

static void expect(const struct planted *p, struct expected *e) {
    p->op->exact(p->op->ctx, e->want);
    e->largest = 0.0;
    for (size_t o = 0; o < p->op->num_out; o++)
        if (isfinite(e->want[o]))
            e->largest = fmax(e->largest, fabs(e->want[o]));
}

/* Whether an output that depends on the plant is as it must be. */
static bool is_right(const struct planted *p, double want, float got, double slack) {
    if (is_nan(p->plant) || (p->op->nan_for_nan && isnan(want)))
        return isnan(got);
    if (!isfinite(want) || fabs(want) > 1.01 * (double)FLT_MAX)
        return !isfinite(got);
    return !isfinite(got) || fabs((double)got - want) <= slack;
}

static void judge(const struct planted *p, const struct expected *e, double tolerance,
                  const char *name, const float *base, const float *got) {
    for (size_t o = 0; o < p->op->num_out; o++) {
        bool right = e->depends[o] ? is_right(p, e->want[o], got[o], tolerance * e->largest)
                                   : memcmp(&got[o], &base[o], sizeof *got) == 0;
        if (!right)
            ck_abort_msg("%s on %s, %s at %zu of %s: output %zu is %g, %s %g", p->op->name, name,
                         p->plant->name, p->at, p->input->name, o, (double)got[o],
                         e->depends[o] ? "float64 says" : "does not depend on it and was",
                         e->depends[o] ? e->want[o] : (double)base[o]);
    }
}

/* Equal bits, or both NaN. */
static void assert_agree(const float *a, const float *b, size_t n, const char *what) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i])))
            ck_abort_msg("%s: output %zu is %a, elsewhere %a", what, i, (double)b[i], (double)a[i]);
}

/* Outputs of all backends without a plant, [num][num_out], and what they are checked with. */
struct runs {
    const struct nf_backends *b;
    const struct nf_op *op;
    float *base, *first, *got;
};

static bool runs_on(const struct runs *r, int v) {
    return r->op->runs_on == NULL || r->op->runs_on(r->op->ctx, r->b->be[v]);
}

static double tolerance_of(const struct runs *r) {
    return r->op->tolerance > 0 ? r->op->tolerance : r->b->tolerance;
}

static void run_base(const struct runs *r, const double *want) {
    double largest = 0.0;
    for (size_t o = 0; o < r->op->num_out; o++)
        largest = fmax(largest, fabs(want[o]));
    for (int v = 0; v < r->b->num; v++) {
        float *got = r->base + (size_t)v * r->op->num_out;
        if (!runs_on(r, v))
            continue;
        r->op->run(r->op->ctx, r->b->be[v], got);
        for (size_t o = 0; o < r->op->num_out; o++)
            if (!(fabs((double)got[o] - want[o]) <= tolerance_of(r) * largest))
                ck_abort_msg("%s on %s: output %zu is %g, float64 says %g", r->op->name,
                             r->b->name[v], o, (double)got[o], want[o]);
    }
}

static void run_planted(const struct runs *r, struct planted *p, struct expected *e) {
    bool have_first = false;
    put(p);
    expect(p, e);
    for (int v = 0; v < r->b->num; v++) {
        if (!runs_on(r, v))
            continue;
        r->op->run(r->op->ctx, r->b->be[v], r->got);
        judge(p, e, tolerance_of(r), r->b->name[v], r->base + (size_t)v * r->op->num_out, r->got);
        if (v >= r->b->same_from && have_first)
            assert_agree(r->first, r->got, r->op->num_out, r->b->name[v]);
        else if (v >= r->b->same_from)
            memcpy(r->first, r->got, r->op->num_out * sizeof *r->got);
        have_first = have_first || v >= r->b->same_from;
    }
    take_back(p);
}

static void check_place(const struct runs *r, const struct nf_input *input, size_t at,
                        struct expected *e) {
    struct planted p = {.op = r->op, .input = input, .at = at};
    find_dependent(&p, e);
    for (int i = 0; i < NUM_PLANTS; i++) {
        p.plant = &plants[i];
        run_planted(r, &p, e);
    }
}

void nf_check(const struct nf_op *op, const struct nf_backends *b) {
    size_t n = op->num_out, bytes = n * sizeof(float);
    struct expected e = {.base = must_alloc(n * sizeof *e.base),
                         .want = must_alloc(n * sizeof *e.want),
                         .depends = must_alloc(n * sizeof *e.depends)};
    struct runs r = {b, op, must_alloc((size_t)b->num * bytes), must_alloc(bytes),
                     must_alloc(bytes)};
    op->exact(op->ctx, e.base);
    run_base(&r, e.base);
    for (int i = 0; i < NF_MAX_INPUTS && op->inputs[i].data != NULL; i++) {
        size_t count = op->inputs[i].count;
        size_t places[] = {0, count * 2 / 5, count * 3 / 4, count - 1};
        for (int k = 0; k < 4; k++)
            if (k == 0 || places[k] != places[k - 1])
                check_place(&r, &op->inputs[i], places[k], &e);
    }
    free(e.base);
    free(e.want);
    free(e.depends);
    free(r.base);
    free(r.first);
    free(r.got);
}

double nf_root(double squares) {
    return squares > (double)FLT_MAX ? (double)NAN : sqrt(squares);
}

static void as_int8(const float *x, int32_t n, double *out) {
    float absmax = 0.0f;
    bool finite = true;
    for (int32_t i = 0; i < n; i++) {
        finite = finite && isfinite(x[i]);
        absmax = fmaxf(absmax, fabsf(x[i]));
    }
    double scale = (double)(absmax / 127.0f);
    for (int32_t i = 0; i < n; i++)
        out[i] = !finite ? (double)NAN : scale == 0.0 ? 0.0 : rint((double)x[i] / scale) * scale;
}

void nf_as_act(enum qep_act_type type, const float *x, int32_t n, double *out) {
    for (int32_t i = 0; i < n && type == QEP_ACT_INT8; i += QEP_ACT_GROUP)
        as_int8(x + i, n - i < QEP_ACT_GROUP ? n - i : QEP_ACT_GROUP, out + i);
    for (int32_t i = 0; i < n && type != QEP_ACT_INT8; i++)
        out[i] = (double)(type == QEP_ACT_F32 ? x[i] : qep_bf16_to_f32(qep_f32_to_bf16(x[i])));
}

static int code_of(const struct qep_host_weight *w, size_t row, size_t col) {
    const uint8_t *bytes = w->data;
    if (w->type == QEP_WEIGHT_INT8)
        return ((const int8_t *)w->data)[row * (size_t)w->cols + col];
    unsigned byte = bytes[row * (((size_t)w->cols + 1) / 2) + col / 2];
    return (int)(col % 2 == 0 ? byte & 15u : byte >> 4) - 8;
}

void nf_weight_row(const struct qep_host_weight *w, int64_t row, double *out) {
    size_t r = (size_t)row, cols = (size_t)w->cols;
    for (size_t c = 0; c < cols; c++) {
        if (w->type == QEP_WEIGHT_F32)
            out[c] = (double)((const float *)w->data)[r * cols + c];
        else if (w->type == QEP_WEIGHT_BF16)
            out[c] = (double)qep_bf16_to_f32(((const uint16_t *)w->data)[r * cols + c]);
        else
            out[c] = (double)qep_bf16_to_f32(
                         w->scales[r * qep_weight_num_scales(1, w->cols, w->group_size) +
                                   c / (size_t)w->group_size]) *
                     code_of(w, r, c);
    }
}

struct nf_input nf_weight_input(const char *name, const struct qep_host_weight *w) {
    if (w->scales != NULL)
        return (struct nf_input){name, w->scales,
                                 qep_weight_num_scales(w->rows, w->cols, w->group_size), true};
    return (struct nf_input){name, w->data, (size_t)(w->rows * w->cols),
                             w->type == QEP_WEIGHT_BF16};
}

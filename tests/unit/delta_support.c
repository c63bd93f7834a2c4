#include "delta_support.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

size_t channels_of(const struct qep_delta_dims *d) {
    return (size_t)(2 * d->num_key_heads * d->key_head_dim +
                    d->num_value_heads * d->value_head_dim);
}

size_t state_floats(const struct qep_delta_dims *d) {
    return (size_t)(d->num_value_heads * d->key_head_dim * d->value_head_dim);
}

size_t out_row(const struct qep_delta_dims *d) {
    return (size_t)(d->num_value_heads * d->value_head_dim);
}

static float draw_a(struct rng *rng, enum decay decay, float a) {
    /* With A_log = dt_bias = 0 the decay is about -a for large a and -exp(a) for very small. */
    bool strong = decay == STRONG || (decay == MIXED && rng_below(rng, 3) == 0);
    if (strong)
        return (float)rng_below(rng, 50);
    if (decay == TINY || decay == MIXED)
        return -9.0f - 0.5f * a;
    if (decay == HUGE_DECAY)
        return rng_below(rng, 4) == 0 ? 1e30f : -9.0f;
    return a;
}

struct delta_inputs make_delta_inputs(struct rng *rng, const struct qep_delta_dims *d, int32_t n,
                                      enum decay decay) {
    size_t heads = (size_t)d->num_value_heads, rows = (size_t)n;
    struct delta_inputs in = {.qkv = random_floats(rng, rows * channels_of(d), 1.0f),
                              .a = random_floats(rng, rows * heads, 1.0f),
                              .b = random_floats(rng, rows * heads, 2.0f),
                              .A_log = random_floats(rng, heads, 0.5f),
                              .dt_bias = random_floats(rng, heads, 0.5f),
                              .state = random_floats(rng, state_floats(d), 0.3f)};
    for (size_t i = 0; i < rows * heads; i++)
        in.a[i] = draw_a(rng, decay, in.a[i]);
    for (size_t h = 0; decay != MILD && h < heads; h++)
        in.A_log[h] = in.dt_bias[h] = 0.0f;
    return in;
}

void free_delta_inputs(struct delta_inputs *in) {
    free(in->qkv);
    free(in->a);
    free(in->b);
    free(in->A_log);
    free(in->dt_bias);
    free(in->state);
}

static void l2_double(double *out, const float *x, int32_t n, double factor) {
    double sum = 1e-6;
    for (int32_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    double root = sum > (double)FLT_MAX ? (double)NAN : sqrt(sum); /* the norms of backend.h */
    for (int32_t i = 0; i < n; i++)
        out[i] = (double)x[i] * factor / root;
}

static void step_double(double *S, int32_t key_dim, int32_t value_dim, const double *q,
                        const double *k, const float *v, double decay, double beta, float *out) {
    for (int32_t j = 0; j < value_dim; j++) {
        double predicted = 0.0, sum = 0.0;
        for (int32_t i = 0; i < key_dim; i++)
            predicted += decay * S[i * value_dim + j] * k[i];
        double delta = beta * ((double)v[j] - predicted);
        for (int32_t i = 0; i < key_dim; i++) {
            S[i * value_dim + j] = decay * S[i * value_dim + j] + k[i] * delta;
            sum += S[i * value_dim + j] * q[i];
        }
        out[j] = (float)sum;
    }
}

static void row_double(const struct qep_delta_dims *d, const struct delta_inputs *in, int32_t t,
                       int32_t h, double *qk, float *out, double *S) {
    int32_t dk = d->key_head_dim, dv = d->value_head_dim, heads = d->num_value_heads;
    int32_t key_head = h / (heads / d->num_key_heads);
    const float *x = in->qkv + (size_t)t * channels_of(d);
    double a = (double)in->a[t * heads + h] + (double)in->dt_bias[h];
    double g = -exp((double)in->A_log[h]) * (a > 20.0 ? a : log1p(exp(a)));
    double beta = 1.0 / (1.0 + exp(-(double)in->b[t * heads + h]));
    l2_double(qk, x + key_head * dk, dk, 1.0 / sqrt((double)dk));
    l2_double(qk + dk, x + (d->num_key_heads + key_head) * dk, dk, 1.0);
    step_double(S, dk, dv, qk, qk + dk, x + 2 * d->num_key_heads * dk + h * dv, exp(g), beta,
                out + (t * heads + h) * dv);
}

void delta_scan_double(const struct qep_delta_dims *d, const struct delta_inputs *in, int32_t n,
                       float *out, float *state) {
    size_t dk = (size_t)d->key_head_dim, size = dk * (size_t)d->value_head_dim;
    double *S = must_alloc(size * sizeof *S), *qk = must_alloc(2 * dk * sizeof *qk);
    for (int32_t h = 0; h < d->num_value_heads; h++) {
        float *head_state = state + (size_t)h * size;
        for (size_t i = 0; i < size; i++)
            S[i] = (double)head_state[i];
        for (int32_t t = 0; t < n; t++)
            row_double(d, in, t, h, qk, out, S);
        for (size_t i = 0; i < size; i++)
            head_state[i] = (float)S[i];
    }
    free(S);
    free(qk);
}

/* Grid and least squares, included by group_base.c and group_avx2.c, which define the eight-lane
 * vector `vec` and its operations.
 *
 * The scale is searched on sign * factor * absmax / divisor, all candidates at once, one a lane: no
 * sums over lanes. The best is refined: with the codes q fixed, the best scale is sum(w q) / sum(q
 * q); with it new codes, a few times. What decides is always the true squared error under the scale
 * as bf16 rounds it. For int4 a negative scale gives the sixteenth level to the positive side. */
#include "kernels/weight.h"
#include "quant/group.h"

enum { LANES = QEP_GROUP_LANES, MAX_CANDIDATE_VECS = 4, REFINEMENTS = 3 };

/* Below this a group is all zeros: 1 / scale would overflow and the error is nothing. */
static const float tiny = 1e-30f;

struct grid {
    float low, high;                         /* codes */
    int num_vecs;                            /* of candidates */
    float steps[LANES * MAX_CANDIDATE_VECS]; /* candidate scale / absmax */
};

#define STEP4(c) (c) / 8.0f
/* absmax / 7 first: weights trained against plain rounding lie on that grid. */
static const struct grid int4_grid = {
    -8, 7, 4, {STEP4(8.0f / 7.0f),  STEP4(1.100f),  STEP4(1.060f),  STEP4(1.030f),
               STEP4(1.000f),       STEP4(0.975f),  STEP4(0.950f),  STEP4(0.925f),
               STEP4(0.900f),       STEP4(0.875f),  STEP4(0.850f),  STEP4(0.825f),
               STEP4(0.800f),       STEP4(0.770f),  STEP4(0.730f),  STEP4(0.690f),
               STEP4(-8.0f / 7.0f), STEP4(-1.100f), STEP4(-1.060f), STEP4(-1.030f),
               STEP4(-1.000f),      STEP4(-0.975f), STEP4(-0.950f), STEP4(-0.925f),
               STEP4(-0.900f),      STEP4(-0.875f), STEP4(-0.850f), STEP4(-0.825f),
               STEP4(-0.800f),      STEP4(-0.770f), STEP4(-0.730f), STEP4(-0.690f)}};
#define STEP8(c) (c) / 127.0f
static const struct grid int8_grid = {-127,
                                      127,
                                      1,
                                      {STEP8(1.0f), STEP8(0.998f), STEP8(0.996f), STEP8(0.994f),
                                       STEP8(0.991f), STEP8(0.987f), STEP8(0.982f), STEP8(0.975f)}};

/* Adding and subtracting 1.5 * 2^23 rounds to nearest even. */
INLINE vec code_of(vec w, vec inv, vec low, vec high) {
    const vec magic = v_set(12582912.0f);
    vec q = v_min(v_max(v_mul(w, inv), low), high);
    return v_sub(v_add(q, magic), magic);
}

INLINE float lane_sum(vec a) {
    float s[LANES];
    v_store(s, a);
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

INLINE float round_scale(float scale) {
    return qep_bf16_to_f32(qep_f32_to_bf16(scale));
}

/* Codes of n weights under `scale`, their squared error, and the least-squares scale for them. */
INLINE float evaluate(const float *w, int n, float scale, const struct grid *g, float *refined) {
    const vec s = v_set(scale), inv = v_set(1.0f / scale), low = v_set(g->low),
              high = v_set(g->high);
    vec error = v_set(0), wq = v_set(0), qq = v_set(0);
    for (int i = 0; i < n; i += LANES) {
        vec x = v_load(w + i), q = code_of(x, inv, low, high), e = v_sub(x, v_mul(q, s));
        error = v_add(error, v_mul(e, e));
        wq = v_add(wq, v_mul(x, q));
        qq = v_add(qq, v_mul(q, q));
    }
    float den = lane_sum(qq);
    *refined = den > 0 ? round_scale(lane_sum(wq) / den) : 0;
    return lane_sum(error);
}

/* The candidate with the least error; the first of equals. */
INLINE float search_grid(const float *w, int n, float absmax, const struct grid *g) {
    float scales[LANES * MAX_CANDIDATE_VECS], errors[LANES * MAX_CANDIDATE_VECS];
    vec s[MAX_CANDIDATE_VECS], inv[MAX_CANDIDATE_VECS], error[MAX_CANDIDATE_VECS];
    const vec low = v_set(g->low), high = v_set(g->high);
    for (int i = 0; i < g->num_vecs * LANES; i++)
        scales[i] = round_scale(absmax * g->steps[i]);
    for (int v = 0; v < g->num_vecs; v++) {
        s[v] = v_load(scales + v * LANES);
        inv[v] = v_div(v_set(1.0f), s[v]);
        error[v] = v_set(0);
    }
    for (int i = 0; i < n; i++) {
        const vec x = v_set(w[i]);
        for (int v = 0; v < g->num_vecs; v++) {
            vec e = v_sub(x, v_mul(code_of(x, inv[v], low, high), s[v]));
            error[v] = v_add(error[v], v_mul(e, e));
        }
    }
    int best = 0;
    for (int v = 0; v < g->num_vecs; v++)
        v_store(errors + v * LANES, error[v]);
    for (int i = 1; i < g->num_vecs * LANES; i++)
        best = errors[i] < errors[best] ? i : best;
    return scales[best];
}

INLINE float best_scale(const float *w, int n, const struct grid *g) {
    float peaks[LANES], absmax = 0, refined = 0;
    vec peak = v_set(0);
    for (int i = 0; i < n; i += LANES) {
        vec x = v_load(w + i);
        peak = v_max(peak, v_max(x, v_sub(v_set(0), x)));
    }
    v_store(peaks, peak);
    for (int j = 0; j < LANES; j++)
        absmax = peaks[j] > absmax ? peaks[j] : absmax;
    if (absmax < tiny)
        return 0;
    float best = search_grid(w, n, absmax, g), best_error = evaluate(w, n, best, g, &refined);
    float tried = best;
    for (int step = 0; step < REFINEMENTS; step++) {
        float s = refined;
        if (s == tried || __builtin_fabsf(s) < tiny)
            break;
        float error = evaluate(w, n, s, g, &refined);
        if (error < best_error) {
            best = s;
            best_error = error;
        }
        tried = s;
    }
    return best;
}

INLINE float quantize_group(const float *w, int n, const struct grid *g, float *q) {
    float scale = best_scale(w, n, g);
    vec inv = v_set(scale == 0 ? 0 : 1.0f / scale);
    for (int i = 0; i < n; i += LANES)
        v_store(q + i, code_of(v_load(w + i), inv, v_set(g->low), v_set(g->high)));
    return scale;
}

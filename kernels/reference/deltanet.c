/* Gated DeltaNet by a sequential scan over tokens, for decode and prefill alike. */
#include "kernels/reference/reference.h"

#include "kernels/mathfn.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static size_t num_channels(const struct qep_delta_dims *dims) {
    return 2 * (size_t)dims->num_key_heads * (size_t)dims->key_head_dim +
           (size_t)dims->num_value_heads * (size_t)dims->value_head_dim;
}

/* One channel over the rows of one span; x, out and the state's rows step by `stride`. */
static void conv_channel(const float *w, int32_t kernel, float *state, const float *x, float *out,
                         size_t stride, int32_t position, int32_t num_rows) {
    for (int32_t i = 0; i < num_rows; i++) {
        float sum = 0.0f;
        state[(size_t)qep_conv_row(position + i, kernel) * stride] = x[(size_t)i * stride];
        for (int32_t j = 0; j < kernel; j++) /* oldest first */
            sum += w[j] * state[(size_t)qep_conv_row(position + i + j + 1, kernel) * stride];
        out[(size_t)i * stride] = qep_siluf(sum);
    }
}

enum qep_status ref_delta_conv(struct qep_backend *be, const struct qep_delta_dims *dims,
                               const struct qep_batch *batch, float *out, const float *qkv,
                               const float *weight, float *conv_state) {
    (void)be;
    size_t channels = num_channels(dims), kernel = (size_t)dims->conv_kernel_dim;
    for (int32_t s = 0; s < batch->num_spans; s++) {
        const struct qep_span *span = &batch->spans[s];
        float *slot_state = conv_state + (size_t)span->slot * channels * kernel;
        size_t row0 = (size_t)span->row0 * channels;
        for (size_t c = 0; c < channels; c++)
            conv_channel(weight + c * kernel, dims->conv_kernel_dim, slot_state + c, qkv + row0 + c,
                         out + row0 + c, channels, span->position, span->num_rows);
    }
    return QEP_OK;
}

static void l2_normalise(float *out, const float *x, int32_t n, float factor) {
    float inv = factor / qep_norm_rootf(ref_sum_squares(x, n) + 1e-6f);
    for (int32_t i = 0; i < n; i++)
        out[i] = x[i] * inv;
}

/* One token of one head: S *= decay; delta = beta (v - S^T k); S += k delta^T; out = S^T q. */
static void delta_step(float *S, int32_t key_dim, int32_t value_dim, const float *q, const float *k,
                       const float *v, float decay, float beta, float *delta, float *out) {
    size_t width = (size_t)value_dim;
    memset(delta, 0, width * sizeof *delta);
    memset(out, 0, width * sizeof *out);
    for (int32_t i = 0; i < key_dim; i++) {
        float *row = S + (size_t)i * width;
        for (size_t j = 0; j < width; j++) {
            row[j] *= decay;
            delta[j] += row[j] * k[i];
        }
    }
    for (size_t j = 0; j < width; j++)
        delta[j] = beta * (v[j] - delta[j]);
    for (int32_t i = 0; i < key_dim; i++) {
        float *row = S + (size_t)i * width;
        for (size_t j = 0; j < width; j++) {
            row[j] += k[i] * delta[j];
            out[j] += row[j] * q[i];
        }
    }
}

/* What one call works on: the arguments of the op plus scratch. */
struct delta_job {
    const struct qep_delta_dims *dims;
    const float *qkv, *a, *b, *A_log, *dt_bias;
    float *out, *q, *k, *delta;
};

static void delta_row_head(const struct delta_job *job, size_t row, size_t head, float *S) {
    const struct qep_delta_dims *dims = job->dims;
    size_t value_heads = (size_t)dims->num_value_heads, key_heads = (size_t)dims->num_key_heads;
    size_t key_dim = (size_t)dims->key_head_dim, value_dim = (size_t)dims->value_head_dim;
    size_t key_head = head / (value_heads / key_heads);
    const float *x = job->qkv + row * num_channels(dims);
    l2_normalise(job->q, x + key_head * key_dim, dims->key_head_dim, 1.0f / sqrtf((float)key_dim));
    l2_normalise(job->k, x + (key_heads + key_head) * key_dim, dims->key_head_dim, 1.0f);
    float step = qep_softplusf(job->a[row * value_heads + head] + job->dt_bias[head]);
    float g = -qep_expf(job->A_log[head]) * step;
    float beta = qep_sigmoidf(job->b[row * value_heads + head]);
    delta_step(S, dims->key_head_dim, dims->value_head_dim, job->q, job->k,
               x + 2 * key_heads * key_dim + head * value_dim, qep_expf(g), beta, job->delta,
               job->out + (row * value_heads + head) * value_dim);
}

enum qep_status ref_delta(struct qep_backend *be, const struct qep_delta_dims *dims,
                          const struct qep_batch *batch, float *out, const float *qkv,
                          const float *a, const float *b, const float *A_log, const float *dt_bias,
                          float *state) {
    size_t key_dim = (size_t)dims->key_head_dim, value_dim = (size_t)dims->value_head_dim;
    size_t heads = (size_t)dims->num_value_heads;
    float *scratch = NULL;
    QEP_TRY(ref_scratch(be, 2 * key_dim + value_dim, &scratch));
    assert(dims->num_value_heads % dims->num_key_heads == 0);
    struct delta_job job = {
        dims, qkv, a, b, A_log, dt_bias, out, scratch, scratch + key_dim, scratch + 2 * key_dim};
    for (int32_t s = 0; s < batch->num_spans; s++) {
        const struct qep_span *span = &batch->spans[s];
        for (size_t h = 0; h < heads; h++) {
            float *S = state + ((size_t)span->slot * heads + h) * key_dim * value_dim;
            for (int32_t i = 0; i < span->num_rows; i++)
                delta_row_head(&job, (size_t)(span->row0 + i), h, S);
        }
    }
    return QEP_OK;
}

enum qep_status ref_delta_norm(struct qep_backend *be, const struct qep_delta_dims *dims,
                               float *out, const float *o, const float *z, const float *w,
                               int32_t n) {
    (void)be;
    size_t width = (size_t)dims->value_head_dim;
    size_t count = (size_t)n * (size_t)dims->num_value_heads;
    for (size_t i = 0; i < count; i++) {
        const float *x = o + i * width, *gate = z + i * width;
        float *dst = out + i * width;
        float mean = ref_sum_squares(x, dims->value_head_dim) / (float)width;
        float inv = 1.0f / qep_norm_rootf(mean + dims->eps);
        for (size_t c = 0; c < width; c++)
            dst[c] = w[c] * (x[c] * inv) * qep_siluf(gate[c]);
    }
    return QEP_OK;
}

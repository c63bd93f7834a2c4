/* Row-wise and element-wise ops. Loops over the functions of mathfn.h vectorise. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/simd.h"
#include "kernels/mathfn.h"

struct norm_job {
    struct qep_rows_out out;
    const float *x, *w;
    int32_t n, cols;
    float eps;
};

static void norm_rows(void *arg, int thread_idx, int num_threads) {
    const struct norm_job *job = arg;
    size_t begin, end, cols = (size_t)job->cols;
    qep_team_split((size_t)job->n, 1, thread_idx, num_threads, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        const float *x = job->x + i * cols;
        float *out = job->out.f32 + i * cols;
        float inv = 1.0f / qep_norm_rootf(dot16(x, x, job->cols) / (float)job->cols + job->eps);
        for (size_t c = 0; c < cols; c++)
            out[c] = x[c] * inv * job->w[c];
        if (job->out.act != NULL)
            CPU(convert_row)
        (job->out.act_type, out, job->cols, (char *)job->out.act + i * job->out.act_stride);
    }
}

enum qep_status CPU(rms_norm)(struct qep_backend *be, struct qep_rows_out out, const float *x,
                              const float *w, int32_t n, int32_t cols, float eps) {
    struct norm_job job = {out, x, w, n, cols, eps};
    cpu_run(be, (size_t)n * (size_t)cols / 2, norm_rows, &job);
    return QEP_OK;
}

/* One group of at most 32 values; the quants beyond count are zero. */
static float quantise_group(int8_t *quants, const float *values, size_t count) {
    float x[QEP_ACT_GROUP] = {0};
    memcpy(x, values, count * sizeof *x);
    float scale = qep_int8_scale(x, QEP_ACT_GROUP);
    float divisor = scale > 0.0f ? scale : 1.0f;
    for (size_t i = 0; i < QEP_ACT_GROUP; i++) {
        float q = scale > 0.0f ? x[i] / divisor : 0.0f;
        q = q > 127.0f ? 127.0f : q; /* a subnormal scale may have lost bits */
        q = q < -127.0f ? -127.0f : q;
        quants[i] = (int8_t)qep_round_even_int(q);
    }
    return scale;
}

void CPU(convert_row)(enum qep_act_type type, const float *x, int32_t cols, void *out) {
    size_t n = (size_t)cols, used = n * 4;
    if (type == QEP_ACT_F32) {
        memcpy(out, x, used);
    } else if (type == QEP_ACT_BF16) {
        uint16_t *bits = out;
        for (size_t c = 0; c < n; c++)
            bits[c] = qep_f32_to_bf16(x[c]);
        used = n * 2;
    } else {
        size_t groups = (n + QEP_ACT_GROUP - 1) / QEP_ACT_GROUP;
        float *scales = (float *)(void *)((char *)out + groups * QEP_ACT_GROUP);
        for (size_t g = 0; g < groups; g++) {
            size_t left = n - g * QEP_ACT_GROUP;
            scales[g] = quantise_group((int8_t *)out + g * QEP_ACT_GROUP, x + g * QEP_ACT_GROUP,
                                       left < QEP_ACT_GROUP ? left : QEP_ACT_GROUP);
        }
        used = groups * (QEP_ACT_GROUP + 4);
    }
    memset((char *)out + used, 0, qep_act_row_bytes(type, cols) - used);
}

struct convert_job {
    char *out;
    size_t row_stride;
    enum qep_act_type type;
    const float *x;
    int32_t n, cols;
};

static void convert_rows(void *arg, int thread_idx, int num_threads) {
    const struct convert_job *job = arg;
    size_t begin, end;
    qep_team_split((size_t)job->n, 1, thread_idx, num_threads, &begin, &end);
    for (size_t i = begin; i < end; i++)
        CPU(convert_row)
    (job->type, job->x + i * (size_t)job->cols, job->cols, job->out + i * job->row_stride);
}

enum qep_status CPU(act_convert)(struct qep_backend *be, void *out, size_t row_stride,
                                 enum qep_act_type type, const float *x, int32_t n, int32_t cols) {
    struct convert_job job = {out, row_stride, type, x, n, cols};
    cpu_run(be, (size_t)n * (size_t)cols, convert_rows, &job);
    return QEP_OK;
}

enum qep_status CPU(finish_rows)(struct qep_backend *be, const struct qep_rows_out *out, int32_t n,
                                 int32_t cols) {
    if (out->act == NULL)
        return QEP_OK;
    return CPU(act_convert)(be, out->act, out->act_stride, out->act_type, out->f32, n, cols);
}

struct swiglu_job {
    float *out;
    const float *gate, *up;
    size_t count;
};

static void swiglu_range(void *arg, int thread_idx, int num_threads) {
    const struct swiglu_job *job = arg;
    size_t begin, end;
    qep_team_split(job->count, 16, thread_idx, num_threads, &begin, &end);
    for (size_t i = begin; i < end; i++)
        job->out[i] = qep_siluf(job->gate[i]) * job->up[i];
}

enum qep_status CPU(swiglu)(struct qep_backend *be, struct qep_rows_out out, const float *gate,
                            const float *up, int32_t n, int32_t cols) {
    struct swiglu_job job = {out.f32, gate, up, (size_t)n * (size_t)cols};
    cpu_run(be, job.count, swiglu_range, &job);
    return CPU(finish_rows)(be, &out, n, cols);
}

struct gated_norm_job {
    float *out;
    const float *o, *z, *w;
    size_t count;
    int32_t width;
    float eps;
};

static void gated_norm_heads(void *arg, int thread_idx, int num_threads) {
    const struct gated_norm_job *job = arg;
    size_t begin, end, width = (size_t)job->width;
    qep_team_split(job->count, 1, thread_idx, num_threads, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        const float *x = job->o + i * width, *z = job->z + i * width;
        float *out = job->out + i * width;
        float inv = 1.0f / qep_norm_rootf(dot16(x, x, job->width) / (float)job->width + job->eps);
        for (size_t c = 0; c < width; c++)
            out[c] = job->w[c] * (x[c] * inv) * qep_siluf(z[c]);
    }
}

enum qep_status CPU(delta_norm)(struct qep_backend *be, const struct qep_delta_dims *dims,
                                float *out, const float *o, const float *z, const float *w,
                                int32_t n) {
    struct gated_norm_job job = {
        out, o, z, w, (size_t)n * (size_t)dims->num_value_heads, dims->value_head_dim, dims->eps};
    cpu_run(be, job.count * (size_t)job.width, gated_norm_heads, &job);
    return QEP_OK;
}

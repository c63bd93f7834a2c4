/* Weights, matmul and embedding: a weight row is dequantised to fp32 and used once per activation
 * row. */
#include "kernels/reference/reference.h"

#include "base/mem.h"
#include "kernels/mathfn.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum qep_status ref_weight_create(struct qep_backend *be, const struct qep_host_weight *host,
                                  struct qep_weight **out) {
    (void)be;
    void *mem = NULL;
    enum qep_status st = QEP_OK;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof(struct qep_weight), "weight", &mem));
    struct qep_weight *weight = mem;
    assert(host->rows <= INT32_MAX && host->cols <= INT32_MAX);
    *weight = (struct qep_weight){.type = host->type,
                                  .rows = (int32_t)host->rows,
                                  .cols = (int32_t)host->cols,
                                  .group_size = host->group_size};
    size_t bytes = qep_weight_data_bytes(host->type, host->rows, host->cols);
    size_t num_scales = qep_weight_num_scales(host->rows, host->cols, host->group_size);
    QEP_TRY_GOTO(st, done, qep_alloc(bytes, 1, "weight data", &weight->data));
    memcpy(weight->data, host->data, bytes);
    if (host->type == QEP_WEIGHT_INT8 || host->type == QEP_WEIGHT_INT4) {
        QEP_TRY_GOTO(st, done, qep_alloc(num_scales, sizeof(uint16_t), "weight scales", &mem));
        weight->scales = mem;
        memcpy(weight->scales, host->scales, num_scales * sizeof(uint16_t));
    }
    *out = weight;
    weight = NULL;
done:
    ref_weight_destroy(be, weight);
    return st;
}

void ref_weight_destroy(struct qep_backend *be, struct qep_weight *weight) {
    (void)be;
    if (weight == NULL)
        return;
    free(weight->data);
    free(weight->scales);
    free(weight);
}

bool ref_supports(const struct qep_backend *be, enum qep_weight_type weight,
                  enum qep_act_type act) {
    (void)be;
    (void)weight;
    return act == QEP_ACT_F32;
}

static int stored_nibble(const uint8_t *row, int32_t col) {
    int byte = row[col / 2];
    return (col % 2 == 0 ? byte & 15 : byte >> 4) - 8;
}

void ref_weight_row(const struct qep_weight *weight, int32_t row, float *out) {
    size_t r = (size_t)row, cols = (size_t)weight->cols;
    bool quantised = weight->type == QEP_WEIGHT_INT8 || weight->type == QEP_WEIGHT_INT4;
    size_t group = quantised ? (size_t)weight->group_size : 1;
    const uint16_t *scales = quantised ? weight->scales + r * ((cols + group - 1) / group) : NULL;
    const float *f32 = weight->data;
    const uint16_t *bf16 = weight->data;
    const int8_t *int8 = weight->data;
    const uint8_t *int4 = weight->data;
    for (size_t c = 0; c < cols; c++) {
        switch (weight->type) {
        case QEP_WEIGHT_F32:
            out[c] = f32[r * cols + c];
            break;
        case QEP_WEIGHT_BF16:
            out[c] = qep_bf16_to_f32(bf16[r * cols + c]);
            break;
        case QEP_WEIGHT_INT8:
            out[c] = (float)int8[r * cols + c] * qep_bf16_to_f32(scales[c / group]);
            break;
        case QEP_WEIGHT_INT4:
            out[c] = (float)stored_nibble(int4 + r * ((cols + 1) / 2), (int32_t)c) *
                     qep_bf16_to_f32(scales[c / group]);
            break;
        }
    }
}

static float fold_partial_sums(const float *part) {
    float s[8];
    for (int i = 0; i < 8; i++)
        s[i] = part[i] + part[i + 8];
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

float ref_dot(const float *a, const float *b, int32_t n) {
    float part[16] = {0};
    int32_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int32_t l = 0; l < 16; l++)
            part[l] += a[i + l] * b[i + l];
    for (int32_t l = 0; i + l < n; l++)
        part[l] += a[i + l] * b[i + l];
    return fold_partial_sums(part);
}

float ref_sum_squares(const float *x, int32_t n) {
    return ref_dot(x, x, n);
}

enum qep_status ref_embed(struct qep_backend *be, float *out, const struct qep_weight *weight,
                          const int32_t *ids, int32_t n) {
    (void)be;
    for (int32_t i = 0; i < n; i++) {
        float *row = out + (size_t)i * (size_t)weight->cols;
        assert(ids[i] < weight->rows);
        if (ids[i] < 0)
            memset(row, 0, (size_t)weight->cols * sizeof *row);
        else
            ref_weight_row(weight, ids[i], row);
    }
    return QEP_OK;
}

static void put(const struct qep_product *p, int32_t i, int32_t r, float sum) {
    float *out = p->out + (size_t)i * (size_t)p->weight->rows + (size_t)r;
    switch (p->epilogue) {
    case QEP_EPILOGUE_STORE:
        *out = sum;
        break;
    case QEP_EPILOGUE_ADD:
        *out += sum;
        break;
    case QEP_EPILOGUE_GATED_ADD:
        *out += qep_sigmoidf(p->gate[i]) * sum;
        break;
    }
}

enum qep_status ref_matmul(struct qep_backend *be, const struct qep_product *products, int32_t num,
                           const void *act, size_t row_stride, enum qep_act_type type, int32_t n,
                           int32_t decode) {
    (void)decode;
    assert(type == QEP_ACT_F32);
    (void)type;
    for (int32_t p = 0; p < num; p++) {
        const struct qep_weight *weight = products[p].weight;
        float *row = NULL;
        QEP_TRY(ref_scratch(be, (size_t)weight->cols, &row));
        for (int32_t r = 0; r < weight->rows; r++) {
            ref_weight_row(weight, r, row);
            for (int32_t i = 0; i < n; i++) {
                const void *x = (const char *)act + (size_t)i * row_stride;
                put(&products[p], i, r, ref_dot(x, row, weight->cols));
            }
        }
    }
    return QEP_OK;
}

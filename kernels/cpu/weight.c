/* Repacking into blocks of 16 rows (layouts: cpu.h), by all threads, and reading a row back for the
 * embedding. */
#include "kernels/cpu/cpu.h"

#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static bool is_quantised(enum qep_weight_type type) {
    return type == QEP_WEIGHT_INT8 || type == QEP_WEIGHT_INT4;
}

bool cpu_supports(const struct qep_backend *be, enum qep_weight_type weight,
                  enum qep_act_type act) {
    (void)be;
    return act != QEP_ACT_INT8 || is_quantised(weight);
}

static size_t bytes_of_block(const struct qep_weight *w) {
    size_t cols = (size_t)w->cols, groups = (size_t)w->num_act_groups;
    switch (w->type) {
    case QEP_WEIGHT_F32:
        return cols * CPU_ROW_BLOCK * 4;
    case QEP_WEIGHT_BF16:
        return cols * CPU_ROW_BLOCK * 2;
    case QEP_WEIGHT_INT8:
        return groups * CPU_INT8_GROUP_BYTES;
    case QEP_WEIGHT_INT4:
        return groups * CPU_INT4_GROUP_BYTES;
    }
    return 0;
}

/* Byte of (lane, col) within a block of INT8, and of INT4, where `high` says which nibble. */
static size_t int8_at(size_t lane, size_t col) {
    return col / 4 * 64 + lane * 4 + col % 4;
}

static size_t int4_at(size_t lane, size_t col, bool *high) {
    size_t in_group = col % 32;
    *high = in_group >= 16;
    return col / 32 * CPU_INT4_GROUP_BYTES + in_group % 16 / 4 * 64 + lane * 4 + col % 4;
}

/* The packers take 16 rows or fewer of one block; whole groups or quads go at once, because loading
 * a model is mostly this. */
static void pack_f32_row(float *out, const float *row, size_t cols) {
    for (size_t c = 0; c < cols; c++)
        out[c * CPU_ROW_BLOCK] = row[c];
}

static void pack_bf16_row(uint16_t *out, const uint16_t *row, size_t cols) {
    for (size_t c = 0; c < cols; c++)
        out[c * CPU_ROW_BLOCK] = row[c];
}

static void pack_int8_row(uint8_t *block, size_t lane, const int8_t *row, size_t cols) {
    size_t c = 0;
    for (; c + 4 <= cols; c += 4) {
        uint32_t quad;
        memcpy(&quad, row + c, sizeof quad);
        quad ^= 0x80808080u; /* q + 128 */
        memcpy(block + int8_at(lane, c), &quad, sizeof quad);
    }
    for (; c < cols; c++)
        block[int8_at(lane, c)] = (uint8_t)(row[c] + 128);
}

static void pack_int4_row(uint8_t *block, size_t lane, const uint8_t *row, size_t cols) {
    size_t c = 0;
    for (; c + 32 <= cols; c += 32) {
        const uint8_t *in = row + c / 2;
        for (size_t j = 0; j < 4; j++) {
            /* Stored bytes hold (even, odd) columns; packed ones (k, k + 16). */
            unsigned a = in[2 * j], b = in[2 * j + 1], d = in[2 * j + 8], e = in[2 * j + 9];
            uint8_t *out = block + c / 32 * CPU_INT4_GROUP_BYTES + j * 64 + lane * 4;
            out[0] = (uint8_t)((a & 15u) | (d & 15u) << 4);
            out[1] = (uint8_t)(a >> 4 | (d & 0xf0u));
            out[2] = (uint8_t)((b & 15u) | (e & 15u) << 4);
            out[3] = (uint8_t)(b >> 4 | (e & 0xf0u));
        }
    }
    for (; c < cols; c++) {
        bool high;
        uint8_t *byte = block + int4_at(lane, c, &high);
        unsigned u = c % 2 == 0 ? row[c / 2] & 15u : row[c / 2] >> 4;
        *byte = (uint8_t)(high ? (*byte & 0x0fu) | u << 4 : (*byte & 0xf0u) | u);
    }
}

static void pack_row(const struct qep_weight *w, const struct qep_host_weight *host, size_t row) {
    size_t cols = (size_t)w->cols, lane = row % CPU_ROW_BLOCK;
    void *block = (char *)w->data + row / CPU_ROW_BLOCK * w->block_bytes;
    switch (w->type) {
    case QEP_WEIGHT_F32:
        pack_f32_row((float *)block + lane, (const float *)host->data + row * cols, cols);
        break;
    case QEP_WEIGHT_BF16:
        pack_bf16_row((uint16_t *)block + lane, (const uint16_t *)host->data + row * cols, cols);
        break;
    case QEP_WEIGHT_INT8:
        pack_int8_row(block, lane, (const int8_t *)host->data + row * cols, cols);
        break;
    case QEP_WEIGHT_INT4:
        pack_int4_row(block, lane, (const uint8_t *)host->data + row * ((cols + 1) / 2), cols);
        break;
    }
}

static void pack_scales(const struct qep_weight *w, const struct qep_host_weight *host,
                        size_t row) {
    size_t groups = (size_t)w->num_groups;
    uint16_t *block = w->scales + row / CPU_ROW_BLOCK * groups * CPU_ROW_BLOCK;
    for (size_t g = 0; g < groups; g++)
        block[g * CPU_ROW_BLOCK + row % CPU_ROW_BLOCK] = host->scales[row * groups + g];
}

struct pack_job {
    struct qep_weight *weight;
    const struct qep_host_weight *host;
};

static void pack_blocks(void *arg, int thread_idx, int num_threads) {
    const struct pack_job *job = arg;
    struct qep_weight *w = job->weight;
    size_t begin, end, rows = (size_t)w->rows;
    int zero = w->type == QEP_WEIGHT_INT8 ? 0x80 : w->type == QEP_WEIGHT_INT4 ? 0x88 : 0;
    qep_team_split((size_t)w->num_blocks, 1, thread_idx, num_threads, &begin, &end);
    for (size_t b = begin; b < end; b++) {
        memset((char *)w->data + b * w->block_bytes, zero, w->block_bytes);
        if (w->scales != NULL)
            memset(w->scales + b * (size_t)w->num_groups * CPU_ROW_BLOCK, 0,
                   (size_t)w->num_groups * CPU_ROW_BLOCK * sizeof *w->scales);
        for (size_t r = b * CPU_ROW_BLOCK; r < (b + 1) * CPU_ROW_BLOCK && r < rows; r++) {
            pack_row(w, job->host, r);
            if (w->scales != NULL)
                pack_scales(w, job->host, r);
        }
    }
}

enum qep_status cpu_weight_create(struct qep_backend *be, const struct qep_host_weight *host,
                                  struct qep_weight **out) {
    void *mem = NULL;
    enum qep_status st = QEP_OK;
    *out = NULL;
    assert(host->rows <= INT32_MAX && host->cols <= INT32_MAX);
    assert(!is_quantised(host->type) || host->group_size % QEP_ACT_GROUP == 0);
    QEP_TRY(qep_calloc(1, sizeof(struct qep_weight), "weight", &mem));
    struct qep_weight *w = mem;
    w->type = host->type;
    w->rows = (int32_t)host->rows;
    w->cols = (int32_t)host->cols;
    w->num_blocks = (w->rows + CPU_ROW_BLOCK - 1) / CPU_ROW_BLOCK;
    w->num_act_groups = (w->cols + QEP_ACT_GROUP - 1) / QEP_ACT_GROUP;
    if (is_quantised(host->type)) {
        w->group_size = host->group_size;
        w->num_groups = (w->cols + w->group_size - 1) / w->group_size;
    }
    w->block_bytes = bytes_of_block(w);
    QEP_TRY_GOTO(st, done,
                 qep_alloc((size_t)w->num_blocks, w->block_bytes, "weight data", &w->data));
    if (is_quantised(host->type)) {
        size_t count = (size_t)w->num_blocks * (size_t)w->num_groups * CPU_ROW_BLOCK;
        QEP_TRY_GOTO(st, done, qep_alloc(count, sizeof *w->scales, "weight scales", &mem));
        w->scales = mem;
    }
    struct pack_job job = {w, host};
    cpu_run(be, (size_t)w->rows * (size_t)w->cols, pack_blocks, &job);
    *out = w;
    w = NULL;
done:
    cpu_weight_destroy(be, w);
    return st;
}

void cpu_weight_destroy(struct qep_backend *be, struct qep_weight *weight) {
    (void)be;
    if (weight == NULL)
        return;
    free(weight->data);
    free(weight->scales);
    free(weight);
}

static void unpack_row(const struct qep_weight *w, size_t row, float *out) {
    size_t lane = row % CPU_ROW_BLOCK, group = (size_t)w->group_size;
    const char *block = (const char *)w->data + row / CPU_ROW_BLOCK * w->block_bytes;
    const uint8_t *bytes = (const uint8_t *)block;
    const uint16_t *scales = w->scales;
    if (scales != NULL)
        scales += row / CPU_ROW_BLOCK * (size_t)w->num_groups * CPU_ROW_BLOCK + lane;
    for (size_t c = 0; c < (size_t)w->cols; c++) {
        switch (w->type) {
        case QEP_WEIGHT_F32:
            out[c] = ((const float *)(const void *)block)[c * 16 + lane];
            break;
        case QEP_WEIGHT_BF16:
            out[c] = qep_bf16_to_f32(((const uint16_t *)(const void *)block)[c * 16 + lane]);
            break;
        case QEP_WEIGHT_INT8:
            out[c] = (float)(bytes[int8_at(lane, c)] - 128) *
                     qep_bf16_to_f32(scales[c / group * CPU_ROW_BLOCK]);
            break;
        case QEP_WEIGHT_INT4: {
            bool high;
            unsigned byte = bytes[int4_at(lane, c, &high)];
            int u = (int)(high ? byte >> 4 : byte & 15u);
            out[c] = (float)(u - 8) * qep_bf16_to_f32(scales[c / group * CPU_ROW_BLOCK]);
            break;
        }
        }
    }
}

enum qep_status cpu_embed(struct qep_backend *be, float *out, const struct qep_weight *weight,
                          const int32_t *ids, int32_t n) {
    (void)be;
    for (int32_t i = 0; i < n; i++) {
        float *row = out + (size_t)i * (size_t)weight->cols;
        assert(ids[i] < weight->rows);
        if (ids[i] < 0)
            memset(row, 0, (size_t)weight->cols * sizeof *row);
        else
            unpack_row(weight, (size_t)ids[i], row);
    }
    return QEP_OK;
}

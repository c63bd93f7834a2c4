#include "shard/random.h"

#include "base/mem.h"
#include "base/progress.h"
#include "checkpoint/random_source.h"
#include "quant/quantize.h"

#include <stdlib.h>
#include <string.h>

/* Groups of the repeated block. A prime: rows of a matrix begin at different places of it. */
enum { BLOCK_GROUPS = 65521 };

/* Standard normal numbers, quantised. */
struct block {
    size_t group_bytes;
    uint8_t *codes;   /* [BLOCK_GROUPS, group_bytes] */
    uint16_t *scales; /* [BLOCK_GROUPS] */
};

struct qep_random_tensors {
    const struct qep_inventory *inventory;
    struct qep_random_source *source;
    struct qep_row_source rows;
    uint64_t seed;
    int32_t group_size;
    struct block int8, int4;
};

static void block_free(struct block *block) {
    free(block->codes);
    free(block->scales);
}

static enum qep_status block_alloc(struct block *block, size_t group_bytes) {
    void *mem = NULL;
    block->group_bytes = group_bytes;
    QEP_TRY(qep_alloc(BLOCK_GROUPS, group_bytes, "random block", &mem));
    block->codes = mem;
    QEP_TRY(qep_alloc(BLOCK_GROUPS, sizeof *block->scales, "random block", &mem));
    block->scales = mem;
    return QEP_OK;
}

static enum qep_status fill_blocks(struct qep_random_tensors *t) {
    void *mem = NULL;
    size_t n = (size_t)BLOCK_GROUPS * (size_t)t->group_size;
    QEP_TRY(block_alloc(&t->int8, (size_t)t->group_size));
    QEP_TRY(block_alloc(&t->int4, (size_t)t->group_size / 2));
    QEP_TRY(qep_alloc(n, sizeof(float), "random block", &mem));
    float *normal = mem;
    qep_random_normals(t->source, t->seed, (int64_t)n, normal);
    qep_progress(n);
    qep_quantize_int8(normal, BLOCK_GROUPS, t->group_size, t->group_size, (int8_t *)t->int8.codes,
                      t->int8.scales);
    qep_progress(n);
    qep_quantize_int4(normal, BLOCK_GROUPS, t->group_size, t->group_size, t->int4.codes,
                      t->int4.scales);
    free(normal);
    return QEP_OK;
}

enum qep_status qep_random_tensors_create(const struct qep_model_config *config,
                                          const struct qep_inventory *inventory, uint64_t seed,
                                          int32_t group_size, struct qep_random_tensors **out) {
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof **out, "random tensors", &mem));
    struct qep_random_tensors *t = mem;
    t->inventory = inventory;
    t->seed = seed;
    t->group_size = group_size;
    enum qep_status st = qep_random_source_create(config, inventory, seed, &t->source);
    if (st == QEP_OK)
        st = fill_blocks(t);
    if (st != QEP_OK) {
        qep_random_tensors_destroy(t);
        return st;
    }
    t->rows = qep_random_rows(t->source);
    *out = t;
    return QEP_OK;
}

void qep_random_tensors_destroy(struct qep_random_tensors *tensors) {
    if (tensors == NULL)
        return;
    qep_random_source_destroy(tensors->source);
    block_free(&tensors->int8);
    block_free(&tensors->int4);
    free(tensors);
}

enum qep_status qep_random_tensors_types(const struct qep_random_tensors *t,
                                         const struct qep_recipe *recipe,
                                         enum qep_weight_type **types) {
    void *mem = NULL;
    QEP_TRY(qep_calloc(t->inventory->num_specs, sizeof **types, "tensor types", &mem));
    *types = mem;
    for (size_t i = 0; i < t->inventory->num_specs; i++) {
        const struct qep_tensor_spec *spec = &t->inventory->specs[i];
        bool bf16 = t->rows.type(t->rows.impl, i) == QEP_ROWS_BF16;
        QEP_TRY(qep_recipe_apply(recipe, spec->name, spec->kind == QEP_TENSOR_MATRIX, bf16,
                                 &(*types)[i]));
        qep_progress(1);
    }
    return QEP_OK;
}

static uint64_t mix(uint64_t x) { /* splitmix64's finaliser */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Codes of one row from group `at` of the block on, round its end. */
static void copy_codes(const struct block *block, size_t at, size_t bytes, uint8_t *out) {
    while (bytes > 0) {
        size_t room = (BLOCK_GROUPS - at) * block->group_bytes, n = bytes < room ? bytes : room;
        memcpy(out, block->codes + at * block->group_bytes, n);
        out += n;
        bytes -= n;
        at = 0;
    }
}

static void copy_scales(const struct block *block, size_t at, size_t n, float gain, uint16_t *out) {
    for (size_t i = 0; i < n; i++) {
        out[i] = qep_f32_to_bf16(gain * qep_bf16_to_f32(block->scales[at]));
        at = at + 1 == BLOCK_GROUPS ? 0 : at + 1;
    }
}

/* Rows differ in gain by up to a tenth: two that begin at one place of the block are not equal. */
static void fill_quantised(const struct qep_random_tensors *t, const struct block *block,
                           size_t spec_idx, struct qep_host_weight *w) {
    uint64_t key = mix(t->seed + 0x9e3779b97f4a7c15u * (spec_idx + 1));
    size_t num_groups = qep_weight_num_scales(1, w->cols, w->group_size);
    size_t row_bytes = qep_weight_data_bytes(w->type, 1, w->cols), at = key % BLOCK_GROUPS;
    float deviation = qep_random_deviation(t->source, spec_idx);
    for (size_t r = 0; r < (size_t)w->rows; r++) {
        uint8_t *row = (uint8_t *)w->data + r * row_bytes;
        float gain = deviation * (0.9f + 0.2f * (float)(mix(key + r) >> 40) / 16777216.0f);
        copy_codes(block, at, row_bytes, row);
        if (w->type == QEP_WEIGHT_INT4 && w->cols % 2 != 0)
            row[row_bytes - 1] &= 0x0fu; /* the nibble beyond the row's end is 0 */
        copy_scales(block, at, num_groups, gain, w->scales + r * num_groups);
        at = (at + num_groups) % BLOCK_GROUPS;
    }
}

/* Row by row through `row` [cols] where source and tensor differ in type. */
static enum qep_status fill_converted(const struct qep_random_tensors *t, size_t spec_idx,
                                      struct qep_host_weight *w, void *row) {
    size_t cols = (size_t)w->cols;
    for (int64_t r = 0; r < w->rows; r++) {
        QEP_TRY(t->rows.read(t->rows.impl, spec_idx, r, 1, row));
        for (size_t c = 0; c < cols; c++)
            if (w->type == QEP_WEIGHT_F32)
                ((float *)w->data)[(size_t)r * cols + c] = qep_bf16_to_f32(((uint16_t *)row)[c]);
            else
                ((uint16_t *)w->data)[(size_t)r * cols + c] = qep_f32_to_bf16(((float *)row)[c]);
    }
    return QEP_OK;
}

static enum qep_status fill_plain(const struct qep_random_tensors *t, size_t spec_idx,
                                  struct qep_host_weight *w) {
    bool from_f32 = t->rows.type(t->rows.impl, spec_idx) == QEP_ROWS_F32;
    void *row = NULL;
    if (from_f32 == (w->type == QEP_WEIGHT_F32))
        return t->rows.read(t->rows.impl, spec_idx, 0, w->rows, w->data);
    QEP_TRY(qep_alloc((size_t)w->cols, sizeof(float), "random row", &row));
    enum qep_status st = fill_converted(t, spec_idx, w, row);
    free(row);
    return st;
}

enum qep_status qep_random_tensors_load(const struct qep_random_tensors *t, size_t spec_idx,
                                        enum qep_weight_type type, struct qep_host_weight *out) {
    const struct qep_tensor_spec *spec = &t->inventory->specs[spec_idx];
    bool quantised = type == QEP_WEIGHT_INT8 || type == QEP_WEIGHT_INT4;
    void *mem = NULL;
    *out = (struct qep_host_weight){.type = type,
                                    .rows = spec->rows,
                                    .cols = spec->cols,
                                    .group_size = quantised ? t->group_size : 0};
    QEP_TRY(
        qep_alloc(qep_weight_data_bytes(type, spec->rows, spec->cols), 1, spec->name, &out->data));
    enum qep_status st = QEP_OK;
    if (quantised) {
        st = qep_alloc(qep_weight_num_scales(spec->rows, spec->cols, t->group_size),
                       sizeof *out->scales, spec->name, &mem);
        out->scales = mem;
    }
    if (st == QEP_OK && quantised)
        fill_quantised(t, type == QEP_WEIGHT_INT8 ? &t->int8 : &t->int4, spec_idx, out);
    else if (st == QEP_OK)
        st = fill_plain(t, spec_idx, out);
    if (st != QEP_OK)
        qep_host_weight_free(out);
    qep_progress((size_t)out->rows);
    return st;
}

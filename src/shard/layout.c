#include "shard/layout.h"

#include "base/mem.h"
#include "shard/frame.h"
#include "shard/shard.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Files in order: embed, layers, shards. Shard s holds the experts and vocabulary blocks that begin
 * at s / num_shards of their range. */
static size_t file_of(const struct qep_model_config *config, const struct qep_tensor_spec *spec,
                      int32_t num_shards) {
    size_t first_shard = 1 + (size_t)config->num_hidden_layers;
    int64_t idx = spec->expert, count = config->num_experts;
    if (spec->vocab_block >= 0) {
        idx = spec->vocab_block;
        count = qep_num_vocab_blocks(config->vocab_size);
    }
    if (idx >= 0) /* the s with count * s / S <= idx < count * (s + 1) / S */
        return first_shard + (size_t)(((idx + 1) * num_shards - 1) / count);
    return spec->layer < 0 ? 0 : 1 + (size_t)spec->layer;
}

static void name_files(const struct qep_model_config *config, int32_t num_shards,
                       struct qep_layout *layout) {
    struct qep_layout_file *file = layout->files;
    snprintf((file++)->name, QEP_FILE_NAME_MAX, "embed.qep");
    for (int32_t i = 0; i < config->num_hidden_layers; i++)
        snprintf((file++)->name, QEP_FILE_NAME_MAX, "layer-%03d.qep", (int)i);
    for (int32_t i = 0; i < num_shards; i++)
        snprintf((file++)->name, QEP_FILE_NAME_MAX, "shard-%02d-of-%02d.qep", (int)i,
                 (int)num_shards);
}

enum qep_status qep_layout_create(const struct qep_model_config *config,
                                  const struct qep_inventory *inventory, int32_t num_shards,
                                  struct qep_layout *out) {
    void *mem = NULL;
    enum qep_status st = QEP_OK;
    *out = (struct qep_layout){0};
    size_t num_files = 1 + (size_t)config->num_hidden_layers + (size_t)num_shards;
    QEP_TRY(qep_calloc(num_files, sizeof *out->files, "file list", &mem));
    out->files = mem;
    out->num_files = num_files;
    name_files(config, num_shards, out);
    for (size_t i = 0; i < inventory->num_specs; i++)
        out->files[file_of(config, &inventory->specs[i], num_shards)].num_specs++;
    for (size_t f = 0; f < num_files; f++) {
        QEP_TRY_GOTO(st, fail,
                     qep_alloc(out->files[f].num_specs, sizeof(uint32_t), "file list", &mem));
        out->files[f].specs = mem;
        out->files[f].num_specs = 0;
    }
    for (size_t i = 0; i < inventory->num_specs; i++) {
        struct qep_layout_file *file =
            &out->files[file_of(config, &inventory->specs[i], num_shards)];
        file->specs[file->num_specs++] = (uint32_t)i;
    }
    return QEP_OK;
fail:
    qep_layout_free(out);
    return st;
}

void qep_layout_free(struct qep_layout *layout) {
    for (size_t f = 0; f < layout->num_files; f++)
        free(layout->files[f].specs);
    free(layout->files);
    *layout = (struct qep_layout){0};
}

static void set_part(struct qep_part *part, const struct qep_tensor_spec *spec,
                     enum qep_part_kind kind, const char *suffix, const char *dtype, int64_t cols,
                     size_t size) {
    *part = (struct qep_part){.kind = kind,
                              .dtype = dtype,
                              .ndim = 2,
                              .shape = {spec->rows, cols},
                              .rows = spec->rows,
                              .row_bytes = (size_t)cols * size};
    snprintf(part->name, sizeof part->name, "%s%s", spec->name, suffix);
    if (spec->kind == QEP_TENSOR_VECTOR) {
        part->ndim = 1;
        part->shape[0] = cols;
    } else if (spec->kind == QEP_TENSOR_CONV) {
        part->ndim = 3;
        part->shape[1] = 1;
        part->shape[2] = cols;
    }
    int64_t rows = (int64_t)(QEP_FRAME_TARGET / part->row_bytes);
    part->frame_rows = rows < 1 ? 1 : rows;
}

int qep_layout_parts(const struct qep_tensor_spec *spec, enum qep_weight_type type,
                     int32_t group_size, struct qep_part parts[2]) {
    int64_t cols = spec->cols, groups = (cols + group_size - 1) / group_size;
    switch (type) {
    case QEP_WEIGHT_F32:
        set_part(&parts[0], spec, QEP_PART_DATA, "", "F32", cols, 4);
        return 1;
    case QEP_WEIGHT_BF16:
        if (spec->rows * cols * 2 < QEP_PLANE_MIN_BYTES) {
            set_part(&parts[0], spec, QEP_PART_DATA, "", "BF16", cols, 2);
            return 1;
        }
        set_part(&parts[0], spec, QEP_PART_HIGH, ".hi", "U8", cols, 1);
        set_part(&parts[1], spec, QEP_PART_LOW, ".lo", "U8", cols, 1);
        return 2;
    case QEP_WEIGHT_INT8:
        set_part(&parts[0], spec, QEP_PART_DATA, "", "I8", cols, 1);
        break;
    case QEP_WEIGHT_INT4:
        set_part(&parts[0], spec, QEP_PART_DATA, "", "U8", (cols + 1) / 2, 1);
        break;
    }
    set_part(&parts[1], spec, QEP_PART_SCALES, ".scales", "BF16", groups, 2);
    return 2;
}

struct text {
    char *data;
    size_t len, cap;
};

static enum qep_status append_part(struct text *t, const struct qep_part *part, bool first,
                                   uint64_t *offset) {
    void *mem = t->data;
    char shape[80];
    int n = 0;
    QEP_TRY(qep_grow(&mem, &t->cap, t->len + 512, 1, "safetensors header"));
    t->data = mem;
    for (int i = 0; i < part->ndim; i++)
        n += snprintf(shape + n, sizeof shape - (size_t)n, "%s%lld", i > 0 ? "," : "",
                      (long long)part->shape[i]);
    uint64_t end = *offset + (uint64_t)part->rows * part->row_bytes;
    t->len += (size_t)snprintf(
        t->data + t->len, 512,
        "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}", first ? "" : ",",
        part->name, part->dtype, shape, (unsigned long long)*offset, (unsigned long long)end);
    *offset = end;
    return QEP_OK;
}

static enum qep_status append_all(const struct qep_inventory *inventory,
                                  const enum qep_weight_type *types, int32_t group_size,
                                  const struct qep_layout_file *file, struct text *t) {
    uint64_t offset = 0;
    for (size_t i = 0; i < file->num_specs; i++) {
        struct qep_part parts[2];
        uint32_t idx = file->specs[i];
        int n = qep_layout_parts(&inventory->specs[idx], types[idx], group_size, parts);
        for (int p = 0; p < n; p++)
            QEP_TRY(append_part(t, &parts[p], i == 0 && p == 0, &offset));
    }
    return QEP_OK;
}

enum qep_status qep_layout_header(const struct qep_inventory *inventory,
                                  const enum qep_weight_type *types, int32_t group_size,
                                  const struct qep_layout_file *file, char **text, size_t *len) {
    struct text t = {0};
    void *mem = NULL;
    *text = NULL;
    QEP_TRY(qep_grow(&mem, &t.cap, 512, 1, "safetensors header"));
    t.data = mem;
    memcpy(t.data, "........{", 9);
    t.len = 9;
    enum qep_status st = append_all(inventory, types, group_size, file, &t);
    if (st == QEP_OK) {
        mem = t.data;
        st = qep_grow(&mem, &t.cap, t.len + 16, 1, "safetensors header");
        t.data = mem;
    }
    if (st != QEP_OK) {
        free(t.data);
        return st;
    }
    t.data[t.len++] = '}';
    while (t.len % 8 != 0)
        t.data[t.len++] = ' ';
    for (int i = 0; i < 8; i++)
        t.data[i] = (char)((t.len - 8) >> (8 * i) & 0xff);
    *text = t.data;
    *len = t.len;
    return QEP_OK;
}

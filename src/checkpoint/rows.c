#include "checkpoint/checkpoint_internal.h"

#include "base/file.h"
#include "kernels/weight.h"

#include <stdio.h>
#include <string.h>

/* Source elements converted at a time: small enough for the stack and the L1 cache. */
enum { CHUNK_BYTES = 16384 };

static size_t dtype_bytes(enum qep_dtype dtype) {
    return dtype == QEP_DTYPE_F32 ? 4 : 2;
}

static enum qep_row_type row_type(const void *impl, size_t spec_idx) {
    const struct qep_checkpoint *ckpt = impl;
    const struct qep_view *view = &ckpt->views[spec_idx];
    for (int i = 0; i < view->num_sections; i++)
        if (view->sections[i].entry->tensor->dtype != QEP_DTYPE_BF16)
            return QEP_ROWS_F32;
    return QEP_ROWS_BF16;
}

static float f16_to_f32(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v, magic = {.u = 113u << 23};
    uint32_t exponent = (h & 0x7c00u) << 13;
    v.u = (h & 0x7fffu) << 13;
    v.u += (127u - 15u) << 23;
    if (exponent == 0x7c00u << 13) { /* infinity, NaN */
        v.u += (128u - 16u) << 23;
    } else if (exponent == 0) { /* zero, subnormal: renormalised by a subtraction */
        v.u += 1u << 23;
        v.f -= magic.f;
    }
    v.u |= (h & 0x8000u) << 16;
    return v.f;
}

static void widen(enum qep_dtype dtype, const void *src, size_t n, float *out) {
    const uint16_t *half = src;
    if (dtype == QEP_DTYPE_F32)
        memcpy(out, src, n * sizeof *out);
    else if (dtype == QEP_DTYPE_BF16)
        for (size_t i = 0; i < n; i++)
            out[i] = qep_bf16_to_f32(half[i]);
    else
        for (size_t i = 0; i < n; i++)
            out[i] = f16_to_f32(half[i]);
}

static enum qep_status read_f32(const struct qep_entry *e, uint64_t offset, size_t n, float *out) {
    _Alignas(64) char chunk[CHUNK_BYTES];
    size_t size = dtype_bytes(e->tensor->dtype), per_chunk = CHUNK_BYTES / size;
    while (n > 0) {
        size_t now = n < per_chunk ? n : per_chunk;
        QEP_TRY(qep_file_pread(e->file->fd, e->file->path, chunk, now * size, offset));
        widen(e->tensor->dtype, chunk, now, out);
        offset += now * size;
        out += now;
        n -= now;
    }
    return QEP_OK;
}

/* `num_rows` rows of a section from its row `row`, run by run. */
static enum qep_status read_section(const struct qep_section *s, int64_t cols, int64_t row,
                                    int64_t num_rows, enum qep_row_type type, char **out) {
    const struct qep_entry *e = s->entry;
    size_t size = dtype_bytes(e->tensor->dtype);
    while (num_rows > 0) {
        int64_t within = row % s->run, left = s->run - within;
        int64_t now = num_rows < left ? num_rows : left;
        int64_t src_row = row / s->run * s->stride + s->base + within;
        size_t n = (size_t)now * (size_t)cols;
        uint64_t offset =
            e->file->data_start + e->tensor->offset + (uint64_t)src_row * (uint64_t)cols * size;
        if (type == QEP_ROWS_BF16) {
            QEP_TRY(qep_file_pread(e->file->fd, e->file->path, *out, n * 2, offset));
            *out += n * 2;
        } else {
            QEP_TRY(read_f32(e, offset, n, (float *)(void *)*out));
            *out += n * 4;
        }
        row += now;
        num_rows -= now;
    }
    return QEP_OK;
}

static enum qep_status read_rows(const void *impl, size_t spec_idx, int64_t row_begin,
                                 int64_t num_rows, void *out) {
    const struct qep_checkpoint *ckpt = impl;
    const struct qep_view *view = &ckpt->views[spec_idx];
    enum qep_row_type type = row_type(impl, spec_idx);
    char *dst = out;
    for (int i = 0; i < view->num_sections && num_rows > 0; i++) {
        const struct qep_section *s = &view->sections[i];
        if (row_begin >= s->rows) {
            row_begin -= s->rows;
            continue;
        }
        int64_t left = s->rows - row_begin, now = num_rows < left ? num_rows : left;
        QEP_TRY(read_section(s, ckpt->inventory.specs[spec_idx].cols, row_begin, now, type, &dst));
        row_begin = 0;
        num_rows -= now;
    }
    return QEP_OK;
}

static void describe(const void *impl, size_t spec_idx, char *text, size_t text_bytes) {
    const struct qep_checkpoint *ckpt = impl;
    const struct qep_entry *e = ckpt->views[spec_idx].sections[0].entry;
    snprintf(text, text_bytes, "%s: tensor %.160s", e->file->path, e->tensor->name);
}

static enum qep_status check(const void *impl) {
    const struct qep_checkpoint *ckpt = impl;
    for (size_t i = 0; i < ckpt->num_files; i++)
        QEP_TRY(qep_st_file_check(&ckpt->files[i]));
    return QEP_OK;
}

struct qep_row_source qep_checkpoint_source(const struct qep_checkpoint *ckpt) {
    return (struct qep_row_source){
        .impl = ckpt, .type = row_type, .read = read_rows, .check = check, .describe = describe};
}

#include "base/mem.h"
#include "shard/shard.h"
#include "shard/verify.h"

#include <stdlib.h>
#include <string.h>

struct loading {
    struct qep_frame_reader reader;
    const struct qep_shard_location *location;
    const struct qep_part *parts;
    uint64_t stored_bytes;
    void *planes[2]; /* one frame each */
    bool keep_planes;
};

static enum qep_status read_frame(struct loading *l, int part, size_t frame_idx, void *out) {
    l->stored_bytes += l->location->file->frames[frame_idx].stored_bytes;
    return qep_frame_read(&l->reader, frame_idx, l->parts[part].name, out);
}

/* A part as it is, to out[0..rows * row_bytes). */
static enum qep_status read_part(struct loading *l, int part, void *out) {
    const struct qep_seekable *file = l->location->file;
    uint64_t left = (uint64_t)l->parts[part].rows * l->parts[part].row_bytes;
    size_t frame = qep_seekable_find(file, l->location->part_offsets[part]);
    char *dst = out;
    for (; left > 0; frame++) {
        size_t n = file->frames[frame].content_bytes;
        if (n > left)
            return qep_fail(QEP_ERR_DATA, "%s: %s: frame %zu is longer than the tensor's end",
                            file->path, l->parts[part].name, frame);
        QEP_TRY(read_frame(l, part, frame, dst));
        dst += n;
        left -= n;
    }
    return QEP_OK;
}

/* high = exponent, low = mantissa << 1 | sign: the 16 bits rotated left by one. */
static void join_planes(const uint8_t *restrict high, const uint8_t *restrict low, size_t n,
                        uint16_t *restrict out) {
    for (size_t i = 0; i < n; i++) {
        unsigned rotated = (unsigned)high[i] << 8 | low[i];
        out[i] = (uint16_t)(rotated >> 1 | rotated << 15);
    }
}

static enum qep_status read_planes(struct loading *l, uint16_t *out) {
    const struct qep_seekable *file = l->location->file;
    uint64_t left = (uint64_t)l->parts[0].rows * l->parts[0].row_bytes;
    size_t high = qep_seekable_find(file, l->location->part_offsets[0]);
    size_t low = qep_seekable_find(file, l->location->part_offsets[1]);
    for (size_t i = 0; i < 2; i++)
        QEP_TRY(qep_alloc(left < QEP_FRAME_MAX ? (size_t)left : QEP_FRAME_MAX, 1, "plane",
                          &l->planes[i]));
    for (; left > 0; high++, low++) {
        size_t n = file->frames[high].content_bytes;
        if (n > left || low >= file->num_frames || file->frames[low].content_bytes != n)
            return qep_fail(QEP_ERR_DATA, "%s: %s: frames %zu and %zu do not belong together",
                            file->path, l->location->spec->name, high, low);
        QEP_TRY(read_frame(l, 0, high, l->planes[0]));
        QEP_TRY(read_frame(l, 1, low, l->planes[1]));
        join_planes(l->planes[0], l->planes[1], n, out);
        out += n;
        left -= n;
    }
    return QEP_OK;
}

static enum qep_status read_all(struct loading *l, struct qep_host_weight *out) {
    void *mem = NULL;
    size_t scales = qep_weight_num_scales(out->rows, out->cols, out->group_size);
    QEP_TRY(qep_alloc(qep_weight_data_bytes(out->type, out->rows, out->cols), 1,
                      l->location->spec->name, &out->data));
    if (l->parts[0].kind == QEP_PART_HIGH && l->keep_planes) {
        out->planes = 1;
        QEP_TRY(read_part(l, 0, out->data));
        return read_part(l, 1, (char *)out->data + (size_t)out->rows * (size_t)out->cols);
    }
    if (l->parts[0].kind == QEP_PART_HIGH)
        return read_planes(l, out->data);
    QEP_TRY(read_part(l, 0, out->data));
    if (scales == 0)
        return QEP_OK;
    QEP_TRY(qep_alloc(scales, sizeof *out->scales, l->parts[1].name, &mem));
    out->scales = mem;
    return read_part(l, 1, out->scales);
}

static enum qep_status load(const struct qep_shard_dir *dir, const char *name, bool keep_planes,
                            struct qep_host_weight *out, uint64_t *stored_bytes) {
    struct qep_shard_location where;
    struct qep_part parts[2];
    struct loading l = {.location = &where, .parts = parts, .keep_planes = keep_planes};
    *out = (struct qep_host_weight){0};
    QEP_TRY(qep_shard_locate(dir, name, &where));
    if (where.random != NULL)
        return qep_random_tensors_load(where.random, where.spec_idx, where.type, out);
    int32_t group_size = qep_shard_dir_info(dir)->group_size;
    bool quantised = where.type == QEP_WEIGHT_INT8 || where.type == QEP_WEIGHT_INT4;
    qep_layout_parts(where.spec, where.type, group_size, parts);
    out->type = where.type;
    out->rows = where.spec->rows;
    out->cols = where.spec->cols;
    out->group_size = quantised ? group_size : 0;
    enum qep_status st = qep_frame_reader_open(where.file, &l.reader);
    if (st == QEP_OK)
        st = read_all(&l, out);
    qep_frame_reader_close(&l.reader);
    free(l.planes[0]);
    free(l.planes[1]);
    if (st != QEP_OK)
        qep_host_weight_free(out);
    else if (stored_bytes != NULL)
        *stored_bytes += l.stored_bytes;
    return st;
}

enum qep_status qep_shard_load(const struct qep_shard_dir *dir, const char *name,
                               struct qep_host_weight *out, uint64_t *stored_bytes) {
    return load(dir, name, false, out, stored_bytes);
}

enum qep_status qep_shard_load_planes(const struct qep_shard_dir *dir, const char *name,
                                      struct qep_host_weight *out, uint64_t *stored_bytes) {
    return load(dir, name, true, out, stored_bytes);
}

void qep_host_weight_free(struct qep_host_weight *weight) {
    if (weight == NULL)
        return;
    free(weight->data);
    free(weight->scales);
    *weight = (struct qep_host_weight){0};
}

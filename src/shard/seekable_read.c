#include "shard/seekable.h"

#include "base/file.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define SKIPPABLE_SEEK 0x184D2A5Eu
#define SKIPPABLE_HASH 0x184D2A5Du
#define SEEK_MAGIC 0x8F92EAB1u

enum { FOOTER_BYTES = 9, SKIPPABLE_HEADER = 8, MAX_FRAMES = 1 << 24 };

static uint32_t get_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get_u64(const uint8_t *p) {
    return get_u32(p) | (uint64_t)get_u32(p + 4) << 32;
}

/* Reads the whole index to *out (free) after the footer has told its size. */
static enum qep_status read_index(int fd, struct qep_seekable *f, uint8_t **out,
                                  size_t *index_bytes) {
    uint8_t footer[FOOTER_BYTES];
    void *mem = NULL;
    if (f->bytes < FOOTER_BYTES)
        return qep_fail(QEP_ERR_DATA, "%s: truncated: %llu bytes", f->path,
                        (unsigned long long)f->bytes);
    QEP_TRY(qep_file_pread(fd, f->path, footer, FOOTER_BYTES, f->bytes - FOOTER_BYTES));
    uint32_t entries = get_u32(footer);
    if (get_u32(footer + 5) != SEEK_MAGIC || footer[4] != 0 || entries < 2 || entries > MAX_FRAMES)
        return qep_fail(
            QEP_ERR_DATA,
            "%s: seek table: no valid footer in the last 9 bytes: truncated, damaged or "
            "no .qep file",
            f->path);
    size_t hash_bytes = SKIPPABLE_HEADER + 8 * (size_t)(entries - 1);
    size_t total = hash_bytes + SKIPPABLE_HEADER + 8 * (size_t)entries + FOOTER_BYTES;
    if (total > f->bytes)
        return qep_fail(QEP_ERR_DATA, "%s: seek table: %u frames do not fit in %llu bytes", f->path,
                        (unsigned)entries, (unsigned long long)f->bytes);
    QEP_TRY(qep_alloc(total, 1, "seek table", &mem));
    enum qep_status st = qep_file_pread(fd, f->path, mem, total, f->bytes - total);
    if (st != QEP_OK) {
        free(mem);
        return st;
    }
    f->num_frames = entries - 1;
    *out = mem;
    *index_bytes = total;
    return QEP_OK;
}

static enum qep_status parse_index(struct qep_seekable *f, const uint8_t *index,
                                   size_t index_bytes) {
    size_t n = f->num_frames;
    const uint8_t *hashes = index + SKIPPABLE_HEADER, *seek = hashes + 8 * n;
    const uint8_t *entry = seek + SKIPPABLE_HEADER;
    uint64_t offset = 0, content = 0;
    if (get_u32(index) != SKIPPABLE_HASH || get_u32(index + 4) != 8 * n ||
        get_u32(seek) != SKIPPABLE_SEEK || get_u32(seek + 4) != 8 * (n + 1) + FOOTER_BYTES)
        return qep_fail(QEP_ERR_DATA, "%s: seek table: damaged or no .qep file", f->path);
    for (size_t i = 0; i < n; i++, entry += 8) {
        struct qep_frame_info *frame = &f->frames[i];
        *frame = (struct qep_frame_info){.offset = offset,
                                         .content_offset = content,
                                         .hash = get_u64(hashes + 8 * i),
                                         .stored_bytes = get_u32(entry),
                                         .content_bytes = get_u32(entry + 4)};
        if (frame->content_bytes == 0 || frame->content_bytes > QEP_FRAME_MAX ||
            frame->stored_bytes == 0 || frame->stored_bytes > qep_frame_bound(frame->content_bytes))
            return qep_fail(QEP_ERR_DATA, "%s: seek table: frame %zu: %u bytes of content in %u",
                            f->path, i, (unsigned)frame->content_bytes,
                            (unsigned)frame->stored_bytes);
        offset += frame->stored_bytes;
        content += frame->content_bytes;
    }
    if (get_u32(entry) != SKIPPABLE_HEADER + 8 * n || get_u32(entry + 4) != 0)
        return qep_fail(QEP_ERR_DATA, "%s: seek table: the hash frame's entry is damaged", f->path);
    if (offset + index_bytes != f->bytes)
        return qep_fail(QEP_ERR_DATA,
                        "%s: seek table: frames and index have %llu bytes, the file %llu", f->path,
                        (unsigned long long)(offset + index_bytes), (unsigned long long)f->bytes);
    f->content_bytes = content;
    return QEP_OK;
}

enum qep_status qep_seekable_open_fd(int fd, uint64_t bytes, const char *path,
                                     struct qep_seekable *out) {
    uint8_t *index = NULL;
    size_t index_bytes = 0;
    void *mem = NULL;
    enum qep_status st = QEP_OK;
    *out = (struct qep_seekable){.path = strdup(path), .bytes = bytes};
    if (out->path == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", path);
    QEP_TRY_GOTO(st, done, read_index(fd, out, &index, &index_bytes));
    QEP_TRY_GOTO(st, done, qep_alloc(out->num_frames, sizeof *out->frames, "seek table", &mem));
    out->frames = mem;
    QEP_TRY_GOTO(st, done, parse_index(out, index, index_bytes));
    out->index_hash = XXH3_64bits(index, index_bytes);
done:
    free(index);
    if (st != QEP_OK)
        qep_seekable_close(out);
    return st;
}

enum qep_status qep_seekable_open(const char *path, struct qep_seekable *out) {
    uint64_t bytes = 0;
    int fd = -1;
    *out = (struct qep_seekable){0};
    QEP_TRY(qep_file_open(path, &fd, &bytes));
    enum qep_status st = qep_seekable_open_fd(fd, bytes, path, out);
    close(fd);
    return st;
}

void qep_seekable_close(struct qep_seekable *file) {
    free(file->path);
    free(file->frames);
    *file = (struct qep_seekable){0};
}

size_t qep_seekable_find(const struct qep_seekable *file, uint64_t offset) {
    size_t low = 0, high = file->num_frames;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (file->frames[mid].content_offset < offset)
            low = mid + 1;
        else
            high = mid;
    }
    return low < file->num_frames && file->frames[low].content_offset == offset ? low
                                                                                : file->num_frames;
}

enum qep_status qep_frame_reader_open(const struct qep_seekable *file,
                                      struct qep_frame_reader *out) {
    uint64_t bytes = 0;
    *out = (struct qep_frame_reader){.file = file, .fd = -1};
    enum qep_status st = qep_decoder_create(&out->decoder);
    if (st == QEP_OK)
        st = qep_file_open(file->path, &out->fd, &bytes);
    if (st == QEP_OK && bytes != file->bytes)
        st = qep_fail(QEP_ERR_DATA, "%s: changed while in use: %llu bytes, expected %llu",
                      file->path, (unsigned long long)bytes, (unsigned long long)file->bytes);
    if (st != QEP_OK)
        qep_frame_reader_close(out);
    return st;
}

void qep_frame_reader_close(struct qep_frame_reader *reader) {
    if (reader->file != NULL && reader->fd >= 0)
        close(reader->fd);
    qep_decoder_destroy(reader->decoder);
    free(reader->stored);
    *reader = (struct qep_frame_reader){0};
}

enum qep_status qep_frame_read(struct qep_frame_reader *reader, size_t frame_idx, const char *what,
                               void *out) {
    const struct qep_seekable *file = reader->file;
    const struct qep_frame_info *frame = &file->frames[frame_idx];
    if (reader->stored_cap < frame->stored_bytes) {
        free(reader->stored);
        reader->stored_cap = 0;
        QEP_TRY(qep_alloc(frame->stored_bytes, 1, "frame buffer", &reader->stored));
        reader->stored_cap = frame->stored_bytes;
    }
    QEP_TRY(
        qep_file_pread(reader->fd, file->path, reader->stored, frame->stored_bytes, frame->offset));
    const char *wrong = NULL;
    if (XXH3_64bits(reader->stored, frame->stored_bytes) != frame->hash)
        wrong = "its bytes do not match their hash";
    else
        QEP_TRY(qep_frame_decode(reader->decoder, reader->stored, frame->stored_bytes, out,
                                 frame->content_bytes, &wrong));
    if (wrong != NULL)
        return qep_fail(QEP_ERR_DATA, "%s: %s: frame %zu (bytes %llu..%llu) is damaged: %s",
                        file->path, what, frame_idx, (unsigned long long)frame->offset,
                        (unsigned long long)(frame->offset + frame->stored_bytes), wrong);
    return QEP_OK;
}

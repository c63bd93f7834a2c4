#include "shard/seekable.h"

#include "base/file.h"
#include "base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define SKIPPABLE_SEEK 0x184D2A5Eu
#define SKIPPABLE_HASH 0x184D2A5Du
#define SEEK_MAGIC 0x8F92EAB1u

struct written {
    uint64_t hash;
    uint32_t stored_bytes, content_bytes;
};

struct qep_seekable_writer {
    char *path;
    int fd;
    uint64_t bytes;
    XXH3_state_t *whole;
    struct written *frames;
    size_t num_frames, cap;
};

enum qep_status qep_seekable_create(int fd, const char *path, struct qep_seekable_writer **out) {
    struct qep_seekable_writer *w = calloc(1, sizeof *w);
    *out = NULL;
    if (w == NULL) {
        close(fd);
        return qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", path);
    }
    w->fd = fd;
    w->path = strdup(path);
    w->whole = XXH3_createState();
    if (w->path == NULL || w->whole == NULL) {
        qep_seekable_abandon(w);
        return qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", path);
    }
    XXH3_128bits_reset(w->whole);
    *out = w;
    return QEP_OK;
}

static enum qep_status put(struct qep_seekable_writer *w, const void *data, size_t n) {
    QEP_TRY(qep_file_write_all(w->fd, w->path, data, n));
    XXH3_128bits_update(w->whole, data, n);
    w->bytes += n;
    return QEP_OK;
}

enum qep_status qep_seekable_append(struct qep_seekable_writer *writer, const void *frame,
                                    size_t stored_bytes, size_t content_bytes) {
    void *items = writer->frames;
    QEP_TRY(qep_grow(&items, &writer->cap, writer->num_frames + 1, sizeof *writer->frames,
                     "seek table"));
    writer->frames = items;
    writer->frames[writer->num_frames++] =
        (struct written){.hash = XXH3_64bits(frame, stored_bytes),
                         .stored_bytes = (uint32_t)stored_bytes,
                         .content_bytes = (uint32_t)content_bytes};
    return put(writer, frame, stored_bytes);
}

static uint8_t *put_u32(uint8_t *p, uint64_t v) {
    for (int i = 0; i < 4; i++)
        *p++ = (uint8_t)(v >> (8 * i));
    return p;
}

static enum qep_status write_index(struct qep_seekable_writer *w, uint64_t *index_hash) {
    size_t n = w->num_frames, total = 8 + 8 * n + 8 + 8 * (n + 1) + 9;
    void *mem = NULL;
    QEP_TRY(qep_alloc(total, 1, "seek table", &mem));
    uint8_t *p = put_u32(put_u32(mem, SKIPPABLE_HASH), 8 * n);
    for (size_t i = 0; i < n; i++)
        p = put_u32(put_u32(p, w->frames[i].hash & 0xffffffffu), w->frames[i].hash >> 32);
    p = put_u32(put_u32(p, SKIPPABLE_SEEK), 8 * (n + 1) + 9);
    for (size_t i = 0; i < n; i++)
        p = put_u32(put_u32(p, w->frames[i].stored_bytes), w->frames[i].content_bytes);
    p = put_u32(put_u32(p, 8 + 8 * n), 0);
    p = put_u32(p, n + 1);
    *p++ = 0;
    put_u32(p, SEEK_MAGIC);
    *index_hash = XXH3_64bits(mem, total);
    enum qep_status st = put(w, mem, total);
    free(mem);
    return st;
}

enum qep_status qep_seekable_finish(struct qep_seekable_writer *writer,
                                    struct qep_file_identity *out) {
    enum qep_status st = write_index(writer, &out->index_hash);
    if (st == QEP_OK && qep_file_sync(writer->fd) != 0 && errno != EINVAL)
        st = qep_fail(QEP_ERR_IO, "%s: fsync failed: %s", writer->path, strerror(errno));
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(writer->whole));
    for (int i = 0; i < 16; i++)
        snprintf(out->hash + 2 * i, 3, "%02x", canonical.digest[i]);
    out->bytes = writer->bytes;
    int fd = writer->fd;
    writer->fd = -1;
    if (close(fd) != 0 && st == QEP_OK)
        st = qep_fail(QEP_ERR_IO, "%s: close failed: %s", writer->path, strerror(errno));
    qep_seekable_abandon(writer);
    return st;
}

void qep_seekable_abandon(struct qep_seekable_writer *writer) {
    if (writer == NULL)
        return;
    if (writer->fd >= 0)
        close(writer->fd);
    XXH3_freeState(writer->whole);
    free(writer->frames);
    free(writer->path);
    free(writer);
}

#include "shard/verify.h"

#include "base/file.h"
#include "base/mem.h"
#include "shard/side_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum { WINDOW_BYTES = 4 << 20 };

/* The tensor that a frame belongs to, for messages. */
static void name_frame(const struct qep_manifest *m, size_t file_idx,
                       const struct qep_frame_info *frame, uint64_t header_bytes, char *out,
                       size_t out_bytes) {
    uint64_t end = header_bytes;
    snprintf(out, out_bytes, "header");
    for (size_t i = 0; i < m->layout.files[file_idx].num_specs; i++) {
        struct qep_part parts[2];
        uint32_t idx = m->layout.files[file_idx].specs[i];
        int n =
            qep_layout_parts(&m->inventory.specs[idx], m->types[idx], m->info.group_size, parts);
        for (int p = 0; p < n; p++) {
            if (frame->content_offset < end)
                return;
            end += (uint64_t)parts[p].rows * parts[p].row_bytes;
            snprintf(out, out_bytes, "%s", parts[p].name);
        }
    }
}

static uint64_t data_bytes(const struct qep_manifest *m, size_t file_idx) {
    uint64_t total = 0;
    for (size_t i = 0; i < m->layout.files[file_idx].num_specs; i++) {
        struct qep_part parts[2];
        uint32_t idx = m->layout.files[file_idx].specs[i];
        int n =
            qep_layout_parts(&m->inventory.specs[idx], m->types[idx], m->info.group_size, parts);
        for (int p = 0; p < n; p++)
            total += (uint64_t)parts[p].rows * parts[p].row_bytes;
    }
    return total;
}

static enum qep_status verify_frames(const struct qep_shard_dir *dir, size_t file_idx) {
    const struct qep_manifest *m = qep_shard_dir_manifest(dir);
    const struct qep_seekable *file = qep_shard_dir_file(dir, file_idx);
    uint64_t header_bytes = file->content_bytes - data_bytes(m, file_idx);
    struct qep_frame_reader reader = {0};
    void *content = NULL;
    enum qep_status st = qep_frame_reader_open(file, &reader);
    if (st == QEP_OK)
        st = qep_alloc(QEP_FRAME_MAX, 1, "frame", &content);
    for (size_t i = 0; st == QEP_OK && i < file->num_frames; i++) {
        st = qep_frame_read(&reader, i, "a frame", content);
        if (st != QEP_ERR_DATA)
            continue;
        char name[QEP_PART_NAME_MAX];
        name_frame(m, file_idx, &file->frames[i], header_bytes, name, sizeof name);
        st = qep_frame_read(&reader, i, name, content); /* again, for the message */
    }
    free(content);
    qep_frame_reader_close(&reader);
    return st;
}

/* The hash over the whole file; frames were checked before, so this finds what lies between. */
static enum qep_status verify_hash(const char *path, const struct qep_file_identity *expected) {
    XXH3_state_t *state = XXH3_createState();
    void *window = NULL;
    uint64_t bytes = 0;
    int fd = -1;
    char found[QEP_HASH_TEXT];
    enum qep_status st = state != NULL ? qep_alloc(WINDOW_BYTES, 1, "window", &window)
                                       : qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", path);
    if (st == QEP_OK)
        st = qep_file_open(path, &fd, &bytes);
    if (st == QEP_OK)
        XXH3_128bits_reset(state);
    for (uint64_t at = 0; st == QEP_OK && at < bytes; at += WINDOW_BYTES) {
        size_t n = bytes - at < WINDOW_BYTES ? (size_t)(bytes - at) : WINDOW_BYTES;
        st = qep_file_pread(fd, path, window, n, at);
        if (st == QEP_OK)
            XXH3_128bits_update(state, window, n);
    }
    if (st == QEP_OK) {
        XXH128_canonical_t canonical;
        XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
        for (int i = 0; i < 16; i++)
            snprintf(found + 2 * i, 3, "%02x", canonical.digest[i]);
        if (strcmp(found, expected->hash) != 0)
            st = qep_fail(QEP_ERR_DATA, "%s: expected hash %s, found %s", path, expected->hash,
                          found);
    }
    if (fd >= 0)
        close(fd);
    free(window);
    XXH3_freeState(state);
    return st;
}

enum qep_status qep_shard_verify_file(const struct qep_shard_dir *dir, size_t file_idx) {
    QEP_TRY(verify_frames(dir, file_idx));
    return verify_hash(qep_shard_dir_file(dir, file_idx)->path,
                       &qep_shard_dir_manifest(dir)->files[file_idx]);
}

enum qep_status qep_shard_verify_side_files(const struct qep_shard_dir *dir) {
    return qep_side_files_verify(qep_shard_dir_path(dir), qep_shard_dir_manifest(dir));
}

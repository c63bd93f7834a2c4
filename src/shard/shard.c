#include "shard/shard.h"

#include "base/file.h"
#include "base/mem.h"
#include "shard/manifest.h"
#include "shard/random.h"
#include "shard/verify.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct name_ref {
    const char *name;
    uint32_t spec_idx, file_idx;
};

struct qep_shard_dir {
    char *path;
    struct qep_manifest manifest;
    struct qep_seekable *files;        /* [manifest.layout.num_files] */
    struct name_ref *names;            /* sorted */
    uint64_t *part_offsets;            /* [num_specs][2] content offsets of the parts */
    struct qep_random_tensors *random; /* instead of files and part_offsets */
};

static int by_name(const void *a, const void *b) {
    const struct name_ref *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* Reads the header's frames and compares them with the one header this manifest can have. */
static enum qep_status check_header(const struct qep_seekable *file, const char *expected,
                                    size_t len) {
    struct qep_frame_reader reader = {0};
    void *mem = NULL;
    size_t at = 0;
    enum qep_status st = QEP_OK;
    QEP_TRY_GOTO(st, done, qep_frame_reader_open(file, &reader));
    QEP_TRY_GOTO(st, done, qep_alloc(QEP_FRAME_MAX, 1, "header", &mem));
    for (size_t i = 0; at < len; i++) {
        if (i == file->num_frames || file->frames[i].content_bytes > len - at) {
            st = qep_fail(QEP_ERR_DATA, "%s: header: its frames do not end where it does",
                          file->path);
            goto done;
        }
        QEP_TRY_GOTO(st, done, qep_frame_read(&reader, i, "header", mem));
        if (memcmp(mem, expected + at, file->frames[i].content_bytes) != 0) {
            st = qep_fail(QEP_ERR_DATA, "%s: header: not the one that its manifest describes",
                          file->path);
            goto done;
        }
        at += file->frames[i].content_bytes;
    }
done:
    free(mem);
    qep_frame_reader_close(&reader);
    return st;
}

/* Frames must begin and end where parts do. */
static enum qep_status check_parts(struct qep_shard_dir *dir, size_t file_idx, uint64_t offset) {
    const struct qep_manifest *m = &dir->manifest;
    const struct qep_seekable *file = &dir->files[file_idx];
    for (size_t i = 0; i < m->layout.files[file_idx].num_specs; i++) {
        struct qep_part parts[2];
        uint32_t idx = m->layout.files[file_idx].specs[i];
        int n =
            qep_layout_parts(&m->inventory.specs[idx], m->types[idx], m->info.group_size, parts);
        for (int p = 0; p < n; p++) {
            if (qep_seekable_find(file, offset) == file->num_frames)
                return qep_fail(QEP_ERR_DATA,
                                "%s: %s: expected a frame to begin at content byte %llu",
                                file->path, parts[p].name, (unsigned long long)offset);
            dir->part_offsets[2 * idx + (uint32_t)p] = offset;
            offset += (uint64_t)parts[p].rows * parts[p].row_bytes;
        }
    }
    if (offset != file->content_bytes)
        return qep_fail(QEP_ERR_DATA, "%s: expected %llu bytes of content, found %llu", file->path,
                        (unsigned long long)offset, (unsigned long long)file->content_bytes);
    return QEP_OK;
}

static enum qep_status open_one(struct qep_shard_dir *dir, size_t file_idx) {
    const struct qep_manifest *m = &dir->manifest;
    const struct qep_file_identity *expected = &m->files[file_idx];
    struct qep_seekable *file = &dir->files[file_idx];
    char *path = NULL, *header = NULL;
    size_t header_len = 0;
    enum qep_status st = QEP_OK;
    QEP_TRY(qep_path_join(dir->path, m->layout.files[file_idx].name, &path));
    if (!qep_path_exists(path)) {
        st = qep_fail(QEP_ERR_DATA, "%s: missing, the manifest lists it", path);
        goto done;
    }
    QEP_TRY_GOTO(st, done, qep_seekable_open(path, file));
    if (file->bytes != expected->bytes) {
        st = qep_fail(QEP_ERR_DATA,
                      "%s: expected %llu bytes, found %llu: truncated or from another conversion",
                      path, (unsigned long long)expected->bytes, (unsigned long long)file->bytes);
        goto done;
    }
    if (file->index_hash != expected->index_hash) {
        st = qep_fail(QEP_ERR_DATA,
                      "%s: seek table: expected hash %016llx, found %016llx: damaged or from "
                      "another conversion",
                      path, (unsigned long long)expected->index_hash,
                      (unsigned long long)file->index_hash);
        goto done;
    }
    QEP_TRY_GOTO(st, done,
                 qep_layout_header(&m->inventory, m->types, m->info.group_size,
                                   &m->layout.files[file_idx], &header, &header_len));
    QEP_TRY_GOTO(st, done, check_header(file, header, header_len));
    st = check_parts(dir, file_idx, header_len);
done:
    free(header);
    free(path);
    return st;
}

static enum qep_status index_names(struct qep_shard_dir *dir) {
    const struct qep_manifest *m = &dir->manifest;
    size_t n = 0;
    void *mem = NULL;
    QEP_TRY(qep_alloc(m->inventory.num_specs, sizeof *dir->names, "tensor names", &mem));
    dir->names = mem;
    for (size_t f = 0; f < m->layout.num_files; f++)
        for (size_t i = 0; i < m->layout.files[f].num_specs; i++) {
            uint32_t idx = m->layout.files[f].specs[i];
            dir->names[n++] = (struct name_ref){
                .name = m->inventory.specs[idx].name, .spec_idx = idx, .file_idx = (uint32_t)f};
        }
    qsort(dir->names, n, sizeof *dir->names, by_name);
    return QEP_OK;
}

static enum qep_status read_manifest(struct qep_shard_dir *dir) {
    char *path = NULL, *text = NULL;
    size_t len = 0;
    QEP_TRY(qep_path_check_dir(dir->path));
    QEP_TRY(qep_path_join(dir->path, "manifest.json", &path));
    enum qep_status st =
        qep_path_exists(path)
            ? qep_file_read(path, QEP_MANIFEST_MAX_BYTES, &text, &len)
            : qep_fail(
                  QEP_ERR_NOINPUT,
                  "%s: no manifest.json: not a shard directory (qwen-ep convert makes one), or its "
                  "conversion did not finish",
                  dir->path);
    if (st == QEP_OK)
        st = qep_manifest_parse(text, len, path, &dir->manifest);
    free(text);
    free(path);
    return st;
}

static enum qep_status open_parts(struct qep_shard_dir *dir) {
    void *mem = NULL;
    QEP_TRY(read_manifest(dir));
    size_t num_files = dir->manifest.layout.num_files, n = dir->manifest.inventory.num_specs;
    QEP_TRY(qep_calloc(num_files, sizeof *dir->files, "shard files", &mem));
    dir->files = mem;
    QEP_TRY(qep_calloc(2 * n, sizeof *dir->part_offsets, "tensor offsets", &mem));
    dir->part_offsets = mem;
    for (size_t f = 0; f < num_files; f++)
        QEP_TRY(open_one(dir, f));
    return index_names(dir);
}

enum qep_status qep_shard_dir_open(const char *dir, struct qep_shard_dir **out) {
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof **out, "shard directory", &mem));
    struct qep_shard_dir *d = mem;
    d->path = strdup(dir);
    enum qep_status st =
        d->path != NULL ? open_parts(d) : qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", dir);
    if (st == QEP_OK)
        *out = d;
    else
        qep_shard_dir_close(d);
    return st;
}

/* A manifest as `convert` would have written it, with one shard file. */
static enum qep_status invent_manifest(struct qep_shard_dir *dir,
                                       const struct qep_model_config *config,
                                       const struct qep_recipe *recipe, uint64_t seed) {
    struct qep_manifest *m = &dir->manifest;
    char text[2 * QEP_HASH_TEXT + 128], hash[QEP_HASH_TEXT];
    m->config = *config;
    m->info.group_size = recipe->group_size;
    m->info.num_shards = 1;
    snprintf(m->info.recipe, sizeof m->info.recipe, "%s", recipe->name);
    qep_hash_text(config, sizeof *config, hash);
    snprintf(text, sizeof text, "random %s %s %d %llu", hash, recipe->name, recipe->group_size,
             (unsigned long long)seed);
    qep_hash_text(text, strlen(text), m->info.identity);
    QEP_TRY(qep_inventory_create(&m->config, &m->inventory));
    QEP_TRY(qep_layout_create(&m->config, &m->inventory, m->info.num_shards, &m->layout));
    QEP_TRY(qep_random_tensors_create(&m->config, &m->inventory, seed, recipe->group_size,
                                      &dir->random));
    QEP_TRY(qep_random_tensors_types(dir->random, recipe, &m->types));
    for (size_t i = 0; i < m->inventory.num_specs; i++) {
        struct qep_part parts[2];
        int n = qep_layout_parts(&m->inventory.specs[i], m->types[i], m->info.group_size, parts);
        for (int p = 0; p < n; p++)
            m->info.tensor_bytes += (uint64_t)parts[p].rows * parts[p].row_bytes;
    }
    return QEP_OK;
}

enum qep_status qep_shard_dir_random(const struct qep_model_config *config,
                                     const struct qep_recipe *recipe, uint64_t seed,
                                     struct qep_shard_dir **out) {
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof **out, "random weights", &mem));
    struct qep_shard_dir *d = mem;
    d->path = strdup("random weights");
    enum qep_status st = d->path != NULL
                             ? invent_manifest(d, config, recipe, seed)
                             : qep_fail(QEP_ERR_SYSTEM, "random weights: out of memory");
    if (st == QEP_OK)
        st = index_names(d);
    if (st == QEP_OK)
        *out = d;
    else
        qep_shard_dir_close(d);
    return st;
}

void qep_shard_dir_close(struct qep_shard_dir *dir) {
    if (dir == NULL)
        return;
    for (size_t f = 0; dir->files != NULL && f < dir->manifest.layout.num_files; f++)
        qep_seekable_close(&dir->files[f]);
    free(dir->files);
    free(dir->names);
    free(dir->part_offsets);
    qep_random_tensors_destroy(dir->random);
    qep_manifest_free(&dir->manifest);
    free(dir->path);
    free(dir);
}

const struct qep_model_config *qep_shard_dir_config(const struct qep_shard_dir *dir) {
    return &dir->manifest.config;
}

const struct qep_shard_info *qep_shard_dir_info(const struct qep_shard_dir *dir) {
    return &dir->manifest.info;
}

const char *qep_shard_dir_path(const struct qep_shard_dir *dir) {
    return dir->path;
}

const struct qep_manifest *qep_shard_dir_manifest(const struct qep_shard_dir *dir) {
    return &dir->manifest;
}

const struct qep_seekable *qep_shard_dir_file(const struct qep_shard_dir *dir, size_t file_idx) {
    return &dir->files[file_idx];
}

static enum qep_status find(const struct qep_shard_dir *dir, const char *name,
                            const struct name_ref **out) {
    struct name_ref key = {.name = name};
    *out = bsearch(&key, dir->names, dir->manifest.inventory.num_specs, sizeof key, by_name);
    if (*out == NULL)
        return qep_fail(QEP_ERR_DATA, "%s: no tensor %s", dir->path, name);
    return QEP_OK;
}

enum qep_status qep_shard_locate(const struct qep_shard_dir *dir, const char *name,
                                 struct qep_shard_location *out) {
    const struct name_ref *ref = NULL;
    QEP_TRY(find(dir, name, &ref));
    *out = (struct qep_shard_location){.spec = &dir->manifest.inventory.specs[ref->spec_idx],
                                       .spec_idx = ref->spec_idx,
                                       .type = dir->manifest.types[ref->spec_idx],
                                       .random = dir->random};
    if (dir->random == NULL) {
        out->file = &dir->files[ref->file_idx];
        memcpy(out->part_offsets, &dir->part_offsets[2 * (size_t)ref->spec_idx],
               sizeof out->part_offsets);
    }
    return QEP_OK;
}

enum qep_status qep_shard_stat(const struct qep_shard_dir *dir, const char *name,
                               enum qep_weight_type *type, int64_t *rows, int64_t *cols) {
    const struct name_ref *ref = NULL;
    QEP_TRY(find(dir, name, &ref));
    *type = dir->manifest.types[ref->spec_idx];
    *rows = dir->manifest.inventory.specs[ref->spec_idx].rows;
    *cols = dir->manifest.inventory.specs[ref->spec_idx].cols;
    return QEP_OK;
}

#include "checkpoint/checkpoint_internal.h"

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "checkpoint/config.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_INDEX_BYTES = 100000000 };

static enum qep_status open_file(struct qep_checkpoint *ckpt, size_t *cap, const char *name) {
    void *items = ckpt->files;
    char *path = NULL;
    QEP_TRY(qep_grow(&items, cap, ckpt->num_files + 1, sizeof *ckpt->files, "checkpoint files"));
    ckpt->files = items;
    QEP_TRY(qep_path_join(ckpt->dir, name, &path));
    enum qep_status st = qep_st_file_open(path, &ckpt->files[ckpt->num_files]);
    if (st == QEP_OK)
        ckpt->num_files++;
    free(path);
    return st;
}

/* A shard name must stay inside the directory. */
static enum qep_status check_shard_name(const cJSON *item, const char *where) {
    const char *name = cJSON_IsString(item) ? item->valuestring : "";
    if (*name == '\0' || *name == '.' || strchr(name, '/') != NULL || strchr(name, '\\') != NULL)
        return qep_fail(QEP_ERR_DATA,
                        "%s: \"weight_map\": tensor %.160s: expected a plain file name, found "
                        "\"%.160s\"",
                        where, item->string, name);
    return QEP_OK;
}

struct index_item {
    const char *tensor, *file;
};

static int by_file_then_tensor(const void *a, const void *b) {
    const struct index_item *x = a, *y = b;
    int c = strcmp(x->file, y->file);
    return c != 0 ? c : strcmp(x->tensor, y->tensor);
}

static int by_name(const void *a, const void *b) {
    const struct qep_st_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* The tensors the index gives to a file (sorted) must be exactly those in it. */
static enum qep_status compare_shard(const struct qep_st_file *file, const struct index_item *items,
                                     size_t num_items, const char *where) {
    size_t n = file->header.num_tensors;
    void *mem = NULL;
    QEP_TRY(qep_alloc(n, sizeof(struct qep_st_tensor *), where, &mem));
    const struct qep_st_tensor **sorted = mem;
    for (size_t i = 0; i < n; i++)
        sorted[i] = &file->header.tensors[i];
    qsort(sorted, n, sizeof *sorted, by_name);
    enum qep_status st = QEP_OK;
    for (size_t i = 0, j = 0; st == QEP_OK && (i < n || j < num_items);) {
        int c = i == n ? 1 : j == num_items ? -1 : strcmp(sorted[i]->name, items[j].tensor);
        if (c < 0)
            st = qep_fail(QEP_ERR_DATA, "%s: tensor %.160s is not in the index %s", file->path,
                          sorted[i]->name, where);
        else if (c > 0)
            st = qep_fail(QEP_ERR_DATA, "%s: tensor %.160s is missing, the index %s puts it here",
                          file->path, items[j].tensor, where);
        i++;
        j++;
    }
    free(mem);
    return st;
}

static enum qep_status open_shards(struct qep_checkpoint *ckpt, struct index_item *items, size_t n,
                                   const char *where) {
    size_t cap = 0;
    qsort(items, n, sizeof *items, by_file_then_tensor);
    for (size_t i = 1; i < n; i++)
        if (strcmp(items[i - 1].tensor, items[i].tensor) == 0)
            return qep_fail(QEP_ERR_DATA, "%s: \"weight_map\": tensor %.160s appears twice", where,
                            items[i].tensor);
    for (size_t begin = 0, end = 0; begin < n; begin = end) {
        while (end < n && strcmp(items[end].file, items[begin].file) == 0)
            end++;
        QEP_TRY(open_file(ckpt, &cap, items[begin].file));
        QEP_TRY(
            compare_shard(&ckpt->files[ckpt->num_files - 1], items + begin, end - begin, where));
    }
    return QEP_OK;
}

static enum qep_status open_index(struct qep_checkpoint *ckpt, const cJSON *root,
                                  const char *where) {
    const cJSON *map = qep_json_get(root, "weight_map"), *item = NULL;
    struct index_item *items = NULL;
    size_t n = 0, cap = 0;
    enum qep_status st = QEP_OK;
    if (!cJSON_IsObject(map) || map->child == NULL)
        return qep_fail(QEP_ERR_DATA, "%s: \"weight_map\": expected an object that is not empty",
                        where);
    cJSON_ArrayForEach (item, map) {
        void *mem = items;
        QEP_TRY_GOTO(st, done, check_shard_name(item, where));
        QEP_TRY_GOTO(st, done, qep_grow(&mem, &cap, n + 1, sizeof *items, where));
        items = mem;
        items[n++] = (struct index_item){.tensor = item->string, .file = item->valuestring};
    }
    st = open_shards(ckpt, items, n, where);
done:
    free(items);
    return st;
}

static enum qep_status open_weights(struct qep_checkpoint *ckpt) {
    char *single = NULL, *index = NULL;
    cJSON *root = NULL;
    size_t cap = 0;
    enum qep_status st = QEP_OK;
    QEP_TRY_GOTO(st, done, qep_path_join(ckpt->dir, "model.safetensors", &single));
    QEP_TRY_GOTO(st, done, qep_path_join(ckpt->dir, "model.safetensors.index.json", &index));
    if (qep_path_exists(single)) {
        st = open_file(ckpt, &cap, "model.safetensors");
    } else if (qep_path_exists(index)) {
        QEP_TRY_GOTO(st, done, qep_json_read(index, MAX_INDEX_BYTES, &root));
        st = open_index(ckpt, root, index);
    } else {
        st = qep_fail(QEP_ERR_NOINPUT,
                      "%s: neither model.safetensors nor model.safetensors.index.json is there",
                      ckpt->dir);
    }
done:
    cJSON_Delete(root);
    free(single);
    free(index);
    return st;
}

static uint64_t mix(uint64_t h, uint64_t v) {
    h = (h ^ v) * 0x9e3779b97f4a7c15u;
    return h ^ (h >> 29);
}

static void identify(struct qep_checkpoint *ckpt) {
    const unsigned char *config = (const unsigned char *)&ckpt->config;
    uint64_t h = 0x51ed270b0a1f3c77u;
    for (size_t i = 0; i < sizeof ckpt->config; i++)
        h = mix(h, config[i]);
    for (size_t i = 0; i < ckpt->num_files; i++) {
        const struct qep_st_file *file = &ckpt->files[i];
        h = mix(h, file->header_hash);
        h = mix(h, file->file_bytes);
        h = mix(h, (uint64_t)file->opened.st_mtim.tv_sec);
        h = mix(h, (uint64_t)file->opened.st_mtim.tv_nsec);
    }
    ckpt->identity = h;
}

static enum qep_status open_parts(struct qep_checkpoint *ckpt) {
    char *path = NULL;
    QEP_TRY(qep_path_check_dir(ckpt->dir));
    QEP_TRY(qep_path_join(ckpt->dir, "config.json", &path));
    enum qep_status st = qep_config_read(path, &ckpt->config);
    free(path);
    QEP_TRY(st);
    QEP_TRY(qep_inventory_create(&ckpt->config, &ckpt->inventory));
    QEP_TRY(open_weights(ckpt));
    QEP_TRY(qep_checkpoint_map(ckpt));
    identify(ckpt);
    return QEP_OK;
}

enum qep_status qep_checkpoint_open(const char *dir, struct qep_checkpoint **out) {
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof **out, "checkpoint", &mem));
    struct qep_checkpoint *ckpt = mem;
    ckpt->dir = strdup(dir);
    enum qep_status st =
        ckpt->dir != NULL ? open_parts(ckpt) : qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", dir);
    if (st == QEP_OK)
        *out = ckpt;
    else
        qep_checkpoint_close(ckpt);
    return st;
}

void qep_checkpoint_close(struct qep_checkpoint *ckpt) {
    if (ckpt == NULL)
        return;
    for (size_t i = 0; i < ckpt->num_files; i++)
        qep_st_file_close(&ckpt->files[i]);
    free(ckpt->files);
    free(ckpt->entries);
    free(ckpt->views);
    qep_inventory_free(&ckpt->inventory);
    free(ckpt->dir);
    free(ckpt);
}

const char *qep_checkpoint_moved_file(const struct qep_checkpoint *ckpt) {
    for (size_t i = 0; i < ckpt->num_files; i++)
        if (qep_st_file_moved(&ckpt->files[i]))
            return ckpt->files[i].path;
    return NULL;
}

const char *qep_checkpoint_dir(const struct qep_checkpoint *ckpt) {
    return ckpt->dir;
}

const struct qep_model_config *qep_checkpoint_config(const struct qep_checkpoint *ckpt) {
    return &ckpt->config;
}

const struct qep_inventory *qep_checkpoint_inventory(const struct qep_checkpoint *ckpt) {
    return &ckpt->inventory;
}

uint64_t qep_checkpoint_identity(const struct qep_checkpoint *ckpt) {
    return ckpt->identity;
}

uint64_t qep_checkpoint_bytes(const struct qep_checkpoint *ckpt) {
    return ckpt->bytes;
}

#include "shard/side_files.h"

#include "base/file.h"
#include "base/mem.h"
#include "shard/verify.h"
#include "shard/work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TRIES = 100 };

/* Adds the file to the result when it is there and `check` takes it. */
static enum qep_status scan_file(const char *name, const char *path, qep_side_file_check *check,
                                 const struct qep_model_config *model,
                                 struct qep_reseal_result *out) {
    struct qep_side_file *file = &out->files[out->num_files];
    char *text = NULL;
    size_t len = 0;
    if (!qep_path_exists(path))
        return QEP_OK;
    QEP_TRY(qep_file_read(path, QEP_MAX_SIDE_BYTES, &text, &len));
    enum qep_status st = check(model, name, path, text, len);
    snprintf(file->name, sizeof file->name, "%s", name);
    file->bytes = len;
    qep_hash_text(text, len, file->hash);
    free(text);
    out->num_files += st == QEP_OK;
    return st;
}

/* What became of one name, now that it was scanned: the last of the files is it, or it is gone. */
static void compare(const struct qep_manifest *m, const char *name, bool there,
                    struct qep_reseal_result *out) {
    const struct qep_side_file *old = qep_side_files_find(m, name);
    if (!there && old != NULL)
        out->dropped[out->num_dropped++] = name;
    if (!there)
        return;
    const struct qep_side_file *now = &out->files[out->num_files - 1];
    if (old == NULL || old->bytes != now->bytes || strcmp(old->hash, now->hash) != 0)
        out->accepted[out->num_accepted++] = name;
}

static enum qep_status scan(const struct qep_shard_dir *dir, qep_side_file_check *check,
                            struct qep_reseal_result *out) {
    enum qep_status st = QEP_OK;
    for (int i = 0; st == QEP_OK && qep_side_file_names[i] != NULL; i++) {
        const char *name = qep_side_file_names[i];
        int before = out->num_files;
        char *path = NULL;
        QEP_TRY(qep_path_join(qep_shard_dir_path(dir), name, &path));
        st = scan_file(name, path, check, qep_shard_dir_config(dir), out);
        free(path);
        if (st == QEP_OK)
            compare(qep_shard_dir_manifest(dir), name, out->num_files > before, out);
    }
    return st;
}

static enum qep_status print_entries(const struct qep_manifest *m, char **entries) {
    for (size_t f = 0; f < m->layout.num_files; f++)
        QEP_TRY(qep_manifest_file_entry(&m->inventory, m->types, &m->layout.files[f], &m->files[f],
                                        &entries[f]));
    return QEP_OK;
}

static enum qep_status print_manifest(const struct qep_manifest *m,
                                      const struct qep_reseal_result *r, char **text, size_t *len) {
    const struct qep_manifest_head head = {.config = &m->config,
                                           .recipe = m->info.recipe,
                                           .group_size = m->info.group_size,
                                           .num_shards = m->info.num_shards,
                                           .side_files = r->files,
                                           .num_side_files = r->num_files};
    void *mem = NULL;
    QEP_TRY(qep_calloc(m->layout.num_files, sizeof(char *), "manifest", &mem));
    char **entries = mem;
    enum qep_status st = print_entries(m, entries);
    if (st == QEP_OK)
        st = qep_manifest_print(&head, entries, m->layout.num_files, text, len);
    for (size_t f = 0; f < m->layout.num_files; f++)
        free(entries[f]);
    free(entries);
    return st;
}

static enum qep_status write_manifest(const struct qep_work *w, const struct qep_shard_dir *dir,
                                      const struct qep_reseal_result *r) {
    char *text = NULL;
    size_t len = 0;
    QEP_TRY(print_manifest(qep_shard_dir_manifest(dir), r, &text, &len));
    enum qep_status st = qep_dir_write(&w->state, "reseal", text, len);
    if (st == QEP_OK)
        st = qep_dir_rename(&w->state, "reseal", &w->dir, "manifest.json");
    free(text);
    return st == QEP_OK ? qep_dir_sync(&w->dir) : st;
}

/* Whoever converts into DIR writes a manifest of its own; what is nobody's of us stays. */
static enum qep_status check_entry(void *arg, const char *name) {
    const struct qep_work *w = arg;
    bool remains = strcmp(name, "reseal") == 0 || strcmp(name, "reseal.tmp") == 0;
    if (strcmp(name, "lock") == 0 || strcmp(name, "in-use") == 0 || (remains && w->state_ours))
        return QEP_OK;
    return qep_fail(QEP_ERR_CANTCREATE,
                    "%s: holds an unfinished conversion (%s/%s is there): finish it first",
                    w->dir.path, w->state.path, name);
}

static enum qep_status scan_dir(const char *path, qep_side_file_check *check,
                                struct qep_shard_dir **dir, struct qep_reseal_result *out) {
    *out = (struct qep_reseal_result){0};
    QEP_TRY(qep_shard_dir_open(path, dir));
    return scan(*dir, check, out);
}

/* What was seen before the lock was taken may be no more. */
static enum qep_status reseal_locked(const char *path, const struct qep_work *w,
                                     qep_side_file_check *check, struct qep_reseal_result *out) {
    struct qep_shard_dir *dir = NULL;
    QEP_TRY(qep_dir_each(&w->state, check_entry, (void *)w));
    enum qep_status st = scan_dir(path, check, &dir, out);
    if (st == QEP_OK && out->num_accepted + out->num_dropped > 0)
        st = write_manifest(w, dir, out);
    qep_shard_dir_close(dir);
    return st;
}

static enum qep_status lock_and_reseal(const char *path, struct qep_work *work,
                                       qep_side_file_check *check, struct qep_reseal_result *out) {
    bool again = true;
    for (int i = 0; again && i < TRIES; i++)
        QEP_TRY(qep_work_lock(work, &again));
    return again ? qep_fail(QEP_ERR_INTERRUPTED, "%s: in use by others", path)
                 : reseal_locked(path, work, check, out);
}

/* Where nothing is to be written, nothing needs to be writable. */
static enum qep_status needs_work(const char *path, const struct qep_work *work,
                                  qep_side_file_check *check, struct qep_reseal_result *out,
                                  bool *needs) {
    struct qep_shard_dir *dir = NULL;
    *needs = true;
    if (qep_dir_entry(&work->dir, ".convert") != QEP_ENTRY_ABSENT)
        return QEP_OK;
    enum qep_status st = scan_dir(path, check, &dir, out);
    *needs = out->num_accepted + out->num_dropped > 0;
    qep_shard_dir_close(dir);
    return st;
}

enum qep_status qep_shard_reseal(const char *dir, qep_side_file_check *check,
                                 struct qep_reseal_result *out) {
    struct qep_work work = QEP_WORK_CLOSED;
    bool needs = false;
    QEP_TRY(qep_path_check_dir(dir));
    enum qep_status st = qep_dir_open(dir, &work.dir);
    if (st == QEP_OK)
        st = needs_work(dir, &work, check, out, &needs);
    if (st == QEP_OK && needs)
        st = lock_and_reseal(dir, &work, check, out);
    qep_work_close(&work);
    return st;
}

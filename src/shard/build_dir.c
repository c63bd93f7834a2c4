/* What happens in DIR around the files: its state, side files and the manifest. */
#include "base/file.h"
#include "base/mem.h"
#include "shard/build_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum qep_status qep_build_state_path(const struct qep_build *build, const char *name,
                                     const char *suffix, char **out) {
    char file[QEP_FILE_NAME_MAX + 16];
    snprintf(file, sizeof file, "%s%s", name, suffix);
    return qep_path_join(build->state_dir, file, out);
}

/* Does the finished file still look as it was left? */
static bool same_file(const struct qep_build *b, const struct qep_layout_file *file,
                      const struct qep_file_identity *identity) {
    struct qep_seekable found = {0};
    char *path = NULL;
    bool same = false;
    if (qep_path_join(b->options.dir, file->name, &path) == QEP_OK &&
        qep_seekable_open(path, &found) == QEP_OK) {
        same = found.bytes == identity->bytes && found.index_hash == identity->index_hash;
        qep_seekable_close(&found);
    }
    free(path);
    return same;
}

enum qep_status qep_build_load_entry(const struct qep_build *build,
                                     const struct qep_layout_file *file, char **entry,
                                     struct qep_file_identity *identity) {
    char *path = NULL, *text = NULL;
    size_t len = 0;
    *entry = NULL;
    QEP_TRY(qep_build_state_path(build, file->name, ".json", &path));
    if (qep_path_exists(path) &&
        qep_file_read(path, QEP_MANIFEST_MAX_BYTES, &text, &len) == QEP_OK && len > QEP_HASH_TEXT &&
        memcmp(text, build->identity, QEP_HASH_TEXT - 1) == 0 &&
        qep_manifest_parse_entry(text + QEP_HASH_TEXT, len - QEP_HASH_TEXT, path, identity) ==
            QEP_OK &&
        same_file(build, file, identity)) {
        memmove(text, text + QEP_HASH_TEXT, len - QEP_HASH_TEXT + 1);
        *entry = text;
        text = NULL;
    }
    free(text);
    free(path);
    return QEP_OK;
}

static bool ends_with(const char *text, const char *suffix) {
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

/* Removes files of `dir` with the given suffix; "" means all. */
static enum qep_status remove_files(const char *dir, const char *suffix) {
    DIR *d = opendir(dir);
    enum qep_status st = QEP_OK;
    if (d == NULL)
        return errno == ENOENT
                   ? QEP_OK
                   : qep_fail(QEP_ERR_CANTCREATE, "%s: cannot open: %s", dir, strerror(errno));
    for (struct dirent *e; st == QEP_OK && (e = readdir(d)) != NULL;) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
            !ends_with(e->d_name, suffix))
            continue;
        if (unlinkat(dirfd(d), e->d_name, 0) != 0)
            st = qep_fail(QEP_ERR_CANTCREATE, "%s/%s: cannot remove: %s", dir, e->d_name,
                          strerror(errno));
    }
    closedir(d);
    return st;
}

static enum qep_status remove_state(const struct qep_build *b) {
    QEP_TRY(remove_files(b->state_dir, ""));
    if (rmdir(b->state_dir) != 0 && errno != ENOENT)
        return qep_fail(QEP_ERR_CANTCREATE, "%s: cannot remove: %s", b->state_dir, strerror(errno));
    return QEP_OK;
}

static bool is_empty(const char *dir) {
    DIR *d = opendir(dir);
    bool empty = true;
    if (d == NULL)
        return true;
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        empty = empty && (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0);
    closedir(d);
    return empty;
}

/* Sets *same: DIR/.convert belongs to this very build. */
static enum qep_status read_state(const struct qep_build *b, const char *path, bool *same) {
    char *text = NULL;
    size_t len = 0;
    *same = false;
    if (!qep_path_exists(path))
        return QEP_OK;
    QEP_TRY(qep_file_read(path, 4096, &text, &len));
    *same = strcmp(text, b->identity) == 0;
    free(text);
    return QEP_OK;
}

/* The manifest goes first, so that a directory that is being replaced no longer opens. */
static enum qep_status clear_dir(const struct qep_build *b, const char *manifest) {
    if (unlink(manifest) != 0 && errno != ENOENT)
        return qep_fail(QEP_ERR_CANTCREATE, "%s: cannot remove: %s", manifest, strerror(errno));
    QEP_TRY(remove_files(b->options.dir, ".qep"));
    return remove_state(b);
}

static enum qep_status settle(const struct qep_build *b, const char *manifest, bool same) {
    const char *dir = b->options.dir;
    bool complete = qep_path_exists(manifest), remains = qep_path_exists(b->state_dir);
    if (b->options.force)
        return complete || remains ? clear_dir(b, manifest) : QEP_OK;
    if (complete && !same)
        return qep_fail(QEP_ERR_CANTCREATE,
                        "%s: is a complete shard directory already (--force replaces it)", dir);
    if (complete || same) /* complete and same: only its clean-up was interrupted */
        return QEP_OK;
    if (remains)
        return qep_fail(QEP_ERR_CANTCREATE,
                        "%s: holds an unfinished conversion of another source, recipe or options "
                        "(--force starts afresh)",
                        dir);
    if (qep_path_is_dir(dir) && !is_empty(dir))
        return qep_fail(QEP_ERR_CANTCREATE, "%s: is not empty and no shard directory", dir);
    return QEP_OK;
}

enum qep_status qep_build_prepare(struct qep_build *build) {
    char *manifest = NULL, *state = NULL;
    bool same = false;
    enum qep_status st = QEP_OK;
    QEP_TRY_GOTO(st, done, qep_path_join(build->options.dir, "manifest.json", &manifest));
    QEP_TRY_GOTO(st, done, qep_path_join(build->state_dir, "identity", &state));
    QEP_TRY_GOTO(st, done, read_state(build, state, &same));
    QEP_TRY_GOTO(st, done, settle(build, manifest, same));
    QEP_TRY_GOTO(st, done, qep_mkdirs(build->state_dir));
    st = qep_file_write_atomic(state, build->identity, QEP_HASH_TEXT - 1);
done:
    free(manifest);
    free(state);
    return st;
}

static enum qep_status copy_side_file(const struct qep_build *b, const char *name,
                                      struct qep_side_file *out, bool *found) {
    char *from = NULL, *to = NULL, *data = NULL;
    size_t len = 0;
    enum qep_status st = QEP_OK;
    *found = false;
    bool given = b->options.config_text != NULL && strcmp(name, "config.json") == 0;
    if (!given && b->options.side_dir != NULL)
        QEP_TRY_GOTO(st, done, qep_path_join(b->options.side_dir, name, &from));
    if (!given && (from == NULL || !qep_path_exists(from)))
        goto done;
    QEP_TRY_GOTO(st, done, qep_path_join(b->options.dir, name, &to));
    if (!given)
        QEP_TRY_GOTO(st, done, qep_file_read(from, QEP_MAX_SIDE_BYTES, &data, &len));
    const char *text = given ? b->options.config_text : data;
    len = given ? b->options.config_len : len;
    QEP_TRY_GOTO(st, done, qep_file_write_atomic(to, text, len));
    snprintf(out->name, sizeof out->name, "%s", name);
    out->bytes = len;
    qep_hash_text(text, len, out->hash);
    *found = true;
done:
    free(from);
    free(to);
    free(data);
    return st;
}

static enum qep_status gather_entries(struct qep_build *b, char **entries) {
    for (size_t f = 0; f < b->layout.num_files; f++) {
        struct qep_file_identity identity = {0};
        QEP_TRY(qep_build_load_entry(b, &b->layout.files[f], &entries[f], &identity));
        if (entries[f] == NULL)
            return qep_fail(QEP_ERR_IO,
                            "%s/%s: not there, or not as its rank left it (is %s on a file system "
                            "that all ranks share?)",
                            b->options.dir, b->layout.files[f].name, b->options.dir);
        b->sizes.stored_bytes += identity.bytes;
    }
    return QEP_OK;
}

static enum qep_status write_manifest(struct qep_build *b, const struct qep_manifest_head *head,
                                      char *const *entries) {
    char *text = NULL, *path = NULL;
    size_t len = 0;
    enum qep_status st = QEP_OK;
    QEP_TRY_GOTO(st, done, qep_manifest_print(head, entries, b->layout.num_files, &text, &len));
    QEP_TRY_GOTO(st, done, qep_path_join(b->options.dir, "manifest.json", &path));
    st = qep_file_write_atomic(path, text, len);
done:
    free(text);
    free(path);
    return st;
}

enum qep_status qep_build_finish(struct qep_build *build) {
    struct qep_side_file side_files[QEP_MAX_SIDE_FILES];
    struct qep_manifest_head head = {.config = build->options.config,
                                     .recipe = build->options.recipe->name,
                                     .group_size = build->options.recipe->group_size,
                                     .num_shards = build->options.num_shards,
                                     .side_files = side_files};
    void *mem = NULL;
    QEP_TRY(qep_calloc(build->layout.num_files, sizeof(char *), "manifest", &mem));
    char **entries = mem;
    enum qep_status st = gather_entries(build, entries);
    for (int i = 0; st == QEP_OK && qep_side_file_names[i] != NULL; i++) {
        bool found = false;
        st =
            copy_side_file(build, qep_side_file_names[i], &side_files[head.num_side_files], &found);
        head.num_side_files += found;
    }
    if (st == QEP_OK)
        st = write_manifest(build, &head, entries);
    if (st == QEP_OK)
        st = remove_state(build);
    for (size_t f = 0; f < build->layout.num_files; f++)
        free(entries[f]);
    free(entries);
    return st;
}

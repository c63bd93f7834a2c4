/* DIR/.convert: what an unfinished conversion remembers. */
#include "base/file.h"
#include "base/mem.h"
#include "shard/build_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum qep_status build_names_add(struct build_names *names, const char *name) {
    void *items = names->items;
    QEP_TRY(qep_grow(&items, &names->cap, names->count + 1, sizeof *names->items, "names"));
    names->items = items;
    char *copy = strdup(name);
    if (copy == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "names: out of memory");
    names->items[names->count++] = copy;
    return QEP_OK;
}

bool build_names_has(const struct build_names *names, const char *name) {
    for (size_t i = 0; i < names->count; i++)
        if (strcmp(names->items[i], name) == 0)
            return true;
    return false;
}

void build_names_free(struct build_names *names) {
    for (size_t i = 0; i < names->count; i++)
        free(names->items[i]);
    free(names->items);
    *names = (struct build_names){0};
}

static bool is_weights_name(const char *name, size_t len) {
    static const char *const stems[] = {"embed", "layer-", "shard-"};
    bool ours = false;
    for (size_t i = 0; i < sizeof stems / sizeof *stems; i++)
        ours = ours || strncmp(name, stems[i], strlen(stems[i])) == 0;
    return ours && len > 4 && len < QEP_FILE_NAME_MAX && memcmp(name + len - 4, ".qep", 4) == 0 &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") >= len;
}

bool build_is_our_name(const char *name) {
    for (int i = 0; qep_side_file_names[i] != NULL; i++)
        if (strcmp(name, qep_side_file_names[i]) == 0)
            return true;
    return is_weights_name(name, strlen(name));
}

static bool is_one_of(const char *name, const char *const *list) {
    for (; *list != NULL; list++)
        if (strcmp(name, *list) == 0)
            return true;
    return false;
}

bool build_is_state_name(const char *name) {
    static const char *const names[] = {"identity", "identity.tmp",  "swap",
                                        "swap.tmp", "manifest.json", "manifest.json.tmp",
                                        "lock",     "in-use",        NULL};
    static const char *const suffixes[] = {".part", ".json", ".json.tmp", ".tmp"};
    if (is_one_of(name, names) || build_is_our_name(name))
        return true;
    if (strncmp(name, ".nfs", 4) == 0) /* an open file that was removed, on NFS */
        return true;
    size_t len = strlen(name);
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        size_t n = strlen(suffixes[i]);
        char stem[QEP_FILE_NAME_MAX];
        if (len <= n || len - n >= sizeof stem || strcmp(name + len - n, suffixes[i]) != 0)
            continue;
        snprintf(stem, sizeof stem, "%.*s", (int)(len - n), name);
        if (build_is_our_name(stem))
            return true;
    }
    return false;
}

void build_state_name(const char *name, const char *suffix, char out[BUILD_STATE_NAME_MAX]) {
    snprintf(out, BUILD_STATE_NAME_MAX, "%s%s", name, suffix);
}

/* Does the finished file still look as it was left? */
static bool same_file(const struct qep_build *b, const struct qep_layout_file *file,
                      const struct qep_file_identity *identity) {
    struct qep_seekable found = {0};
    uint64_t bytes = 0;
    int fd = -1;
    bool same = false;
    if (qep_dir_open_file(&b->state, file->name, &fd, &bytes) == QEP_OK &&
        qep_seekable_open_fd(fd, bytes, file->name, &found) == QEP_OK)
        same = found.bytes == identity->bytes && found.index_hash == identity->index_hash;
    qep_seekable_close(&found);
    if (fd >= 0)
        close(fd);
    return same;
}

enum qep_status build_load_entry(const struct qep_build *build, const struct qep_layout_file *file,
                                 char **entry, struct qep_file_identity *identity) {
    char name[BUILD_STATE_NAME_MAX], *text = NULL;
    size_t len = 0;
    *entry = NULL;
    build_state_name(file->name, ".json", name);
    if (qep_dir_entry(&build->state, name) == QEP_ENTRY_FILE &&
        qep_dir_read(&build->state, name, QEP_MANIFEST_MAX_BYTES, &text, &len) == QEP_OK &&
        len > QEP_HASH_TEXT && memcmp(text, build->identity, QEP_HASH_TEXT - 1) == 0 &&
        qep_manifest_parse_entry(text + QEP_HASH_TEXT, len - QEP_HASH_TEXT, name, identity) ==
            QEP_OK &&
        same_file(build, file, identity)) {
        memmove(text, text + QEP_HASH_TEXT, len - QEP_HASH_TEXT + 1);
        *entry = text;
        text = NULL;
    }
    free(text);
    return QEP_OK;
}

enum qep_status build_save_entry(const struct qep_build *build, const struct qep_layout_file *file,
                                 const struct qep_file_identity *identity) {
    char name[BUILD_STATE_NAME_MAX], *entry = NULL, *text = NULL;
    enum qep_status st = QEP_OK;
    void *mem = NULL;
    QEP_TRY_GOTO(
        st, done,
        qep_manifest_file_entry(build->options.inventory, build->types, file, identity, &entry));
    size_t len = strlen(entry) + QEP_HASH_TEXT;
    QEP_TRY_GOTO(st, done, qep_alloc(len + 1, 1, "state file", &mem));
    text = mem;
    snprintf(text, len + 1, "%s\n%s", build->identity, entry);
    build_state_name(file->name, ".json", name);
    st = qep_dir_write(&build->state, name, text, len);
done:
    free(text);
    free(entry);
    return st;
}

static enum qep_status check_entry(void *arg, const char *name) {
    const struct qep_build *b = arg;
    enum qep_entry entry = qep_dir_entry(&b->state, name);
    if (build_is_state_name(name) && entry == QEP_ENTRY_FILE)
        return QEP_OK;
    return qep_fail(QEP_ERR_CANTCREATE, "%s/%s: is in the way: not of a conversion of ours (%s)",
                    b->state.path, name, qep_entry_text(entry));
}

enum qep_status build_state_check(const struct qep_build *build) {
    return qep_dir_each(&build->state, check_entry, (void *)build);
}

static enum qep_status add_entry(void *arg, const char *name) {
    return build_names_add(arg, name);
}

enum qep_status build_state_clear(const struct qep_build *build, const char *but) {
    struct build_names names = {0};
    enum qep_status st = qep_dir_each(&build->state, add_entry, &names);
    for (size_t i = 0; st == QEP_OK && i < names.count; i++) {
        const char *name = names.items[i];
        bool kept = (but != NULL && strcmp(name, but) == 0) || strcmp(name, "lock") == 0 ||
                    strcmp(name, "in-use") == 0;
        if (!kept && build_is_state_name(name))
            st = qep_dir_remove(&build->state, name);
    }
    build_names_free(&names);
    return st;
}

/* What a file will have at least: exponents of bf16 shrink to a third or so, nothing else shrinks
 * much in a trained model. */
static uint64_t estimate(const struct qep_build *b, const struct qep_layout_file *file) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < file->num_specs; i++) {
        struct qep_part parts[2];
        uint32_t idx = file->specs[i];
        int n = qep_layout_parts(&b->options.inventory->specs[idx], b->types[idx],
                                 b->options.recipe->group_size, parts);
        for (int p = 0; p < n; p++)
            bytes += (uint64_t)parts[p].rows * parts[p].row_bytes /
                     (parts[p].kind == QEP_PART_HIGH ? 4 : 1);
    }
    return bytes / 10 * 9;
}

enum qep_status build_check_space(const struct qep_build *build) {
    uint64_t needed = 0;
    for (size_t f = 0; f < build->layout.num_files; f++) {
        struct qep_file_identity identity;
        char *entry = NULL;
        QEP_TRY(build_load_entry(build, &build->layout.files[f], &entry, &identity));
        needed += entry != NULL ? 0 : estimate(build, &build->layout.files[f]);
        free(entry);
    }
    return qep_path_check_space(build->options.dir, needed);
}

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

static bool is_lock(const char *name) {
    return strcmp(name, "lock") == 0 || strcmp(name, "in-use") == 0;
}

/* What may be there though no conversion began: remains of reseal, of beginning, and open files
 * that were removed, on NFS. */
static bool is_remains(const char *name) {
    static const char *const names[] = {"identity.tmp", "reseal", "reseal.tmp", NULL};
    return is_one_of(name, names) || strncmp(name, ".nfs", 4) == 0;
}

bool build_is_state_name(const char *name) {
    static const char *const names[] = {"identity",     "identity.tmp",     "swap",
                                        "swap.tmp",     "manifest.json",    "manifest.json.tmp",
                                        "manifest.old", "manifest.old.tmp", NULL};
    static const char *const suffixes[] = {".part", ".json", ".json.tmp", ".tmp"};
    if (is_one_of(name, names) || build_is_our_name(name) || is_lock(name) || is_remains(name))
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

enum qep_status build_same_file(const struct qep_dir *dir, const char *name,
                                const struct qep_file_identity *identity, bool *same) {
    struct qep_seekable found = {0};
    uint64_t bytes = 0;
    int fd = -1;
    enum qep_status st = qep_dir_open_file(dir, name, &fd, &bytes);
    if (st == QEP_OK)
        st = qep_seekable_open_fd(fd, bytes, name, &found);
    *same =
        st == QEP_OK && found.bytes == identity->bytes && found.index_hash == identity->index_hash;
    qep_seekable_close(&found);
    if (fd >= 0)
        close(fd);
    return st == QEP_ERR_SYSTEM ? st : QEP_OK;
}

/* The state of a finished file: the identity, the manifest's line, and the hash of the two, a line
 * each. What is not just this is as good as absent. */
static bool unseal_entry(const struct qep_build *build, char *text, size_t len, char **entry) {
    char hash[QEP_HASH_TEXT];
    const size_t line = QEP_HASH_TEXT; /* a hash and a line's end */
    if (len <= 2 * line)
        return false;
    qep_hash_text(text, len - line, hash);
    if (memcmp(text + len - line, hash, line - 1) != 0 ||
        memcmp(text, build->identity, line - 1) != 0)
        return false;
    text[len - line - 1] = '\0';
    *entry = text + line;
    return true;
}

/* Is the text that of an entry of this build, and the file as it says? *entry: the line within. */
static enum qep_status judge_entry(const struct qep_build *build, const char *file_name, char *text,
                                   size_t len, const char *where, char **entry,
                                   struct qep_file_identity *identity, bool *same) {
    enum qep_status st = QEP_OK;
    *same = false;
    if (!unseal_entry(build, text, len, entry))
        return QEP_OK;
    QEP_TRY_SYSTEM(st, qep_manifest_parse_entry(*entry, strlen(*entry), where, identity));
    return st == QEP_OK ? build_same_file(&build->work.state, file_name, identity, same) : QEP_OK;
}

enum qep_status build_load_entry(const struct qep_build *build, const struct qep_layout_file *file,
                                 char **entry, struct qep_file_identity *identity) {
    char name[BUILD_STATE_NAME_MAX], *text = NULL, *found = NULL;
    size_t len = 0;
    bool same = false;
    enum qep_status st = QEP_OK;
    *entry = NULL;
    build_state_name(file->name, ".json", name);
    if (qep_dir_entry(&build->work.state, name) != QEP_ENTRY_FILE)
        return QEP_OK;
    QEP_TRY_SYSTEM(st, qep_dir_read(&build->work.state, name, QEP_MANIFEST_MAX_BYTES, &text, &len));
    if (st == QEP_OK)
        st = judge_entry(build, file->name, text, len, name, &found, identity, &same);
    if (same) {
        memmove(text, found, strlen(found) + 1);
        *entry = text;
        text = NULL;
    }
    free(text);
    return st == QEP_ERR_SYSTEM ? st : QEP_OK;
}

enum qep_status build_save_entry(const struct qep_build *build, const struct qep_layout_file *file,
                                 const struct qep_file_identity *identity) {
    char name[BUILD_STATE_NAME_MAX], hash[QEP_HASH_TEXT], *entry = NULL, *text = NULL;
    enum qep_status st = QEP_OK;
    void *mem = NULL;
    QEP_TRY_GOTO(
        st, done,
        qep_manifest_file_entry(build->options.inventory, build->types, file, identity, &entry));
    size_t sealed = QEP_HASH_TEXT + strlen(entry) + 1, len = sealed + QEP_HASH_TEXT;
    QEP_TRY_GOTO(st, done, qep_alloc(len + 1, 1, "state file", &mem));
    text = mem;
    snprintf(text, sealed + 1, "%s\n%s\n", build->identity, entry);
    qep_hash_text(text, sealed, hash);
    snprintf(text + sealed, QEP_HASH_TEXT + 1, "%s\n", hash);
    build_state_name(file->name, ".json", name);
    st = qep_dir_write(&build->work.state, name, text, len);
done:
    free(text);
    free(entry);
    return st;
}

struct visit {
    const struct qep_build *build;
    bool begun; /* the state has an identity */
    uint64_t bytes;
};

static enum qep_status check_entry(void *arg, const char *name) {
    const struct visit *v = arg;
    const struct qep_dir *state = &v->build->work.state;
    enum qep_entry entry = qep_dir_entry(state, name);
    bool ours = v->begun ? build_is_state_name(name)
                         : is_lock(name) || (v->build->work.state_ours && is_remains(name));
    if (ours && (entry == QEP_ENTRY_FILE || entry == QEP_ENTRY_ABSENT))
        return QEP_OK;
    return qep_fail(QEP_ERR_CANTCREATE, "%s/%s: is in the way: not of a conversion of ours (%s)",
                    state->path, name, qep_entry_text(entry));
}

static void print_identity(const struct qep_build *b, char text[64]) {
    snprintf(text, 64, "qwen-ep conversion\n%s\n", b->identity);
}

/* Of a file that is none of ours nothing may be removed. */
enum qep_status build_state_read(const struct qep_build *b, enum build_owner *owner) {
    char *text = NULL, mine[64];
    size_t len = 0;
    *owner = BUILD_NOBODYS;
    if (qep_dir_entry(&b->work.state, "identity") == QEP_ENTRY_ABSENT)
        return QEP_OK;
    print_identity(b, mine);
    size_t title = strcspn(mine, "\n") + 1;
    bool ours = qep_dir_read(&b->work.state, "identity", sizeof mine, &text, &len) == QEP_OK &&
                len == strlen(mine) && memcmp(text, mine, title) == 0;
    if (ours)
        *owner = strcmp(text, mine) == 0 ? BUILD_SAME : BUILD_OTHER;
    free(text);
    return ours ? QEP_OK
                : qep_fail(QEP_ERR_CANTCREATE,
                           "%s/identity: is in the way: not of a conversion of ours",
                           b->work.state.path);
}

enum qep_status build_state_check(const struct qep_build *build, bool begun) {
    struct visit v = {.build = build, .begun = begun};
    return qep_dir_each(&build->work.state, check_entry, &v);
}

enum qep_status build_state_owner(const struct qep_build *build, enum build_owner *owner) {
    QEP_TRY(build_state_read(build, owner));
    return build_state_check(build, *owner != BUILD_NOBODYS);
}

enum qep_status build_state_sign(const struct qep_build *build) {
    char text[64];
    print_identity(build, text);
    return qep_dir_write(&build->work.state, "identity", text, strlen(text));
}

static enum qep_status add_entry(void *arg, const char *name) {
    return build_names_add(arg, name);
}

static bool is_kept(const char *name, const char *but) {
    return (but != NULL && strcmp(name, but) == 0) || is_lock(name) ||
           strcmp(name, "identity") == 0;
}

enum qep_status build_state_clear(const struct qep_build *build, const char *but) {
    struct build_names names = {0};
    enum qep_status st = qep_dir_each(&build->work.state, add_entry, &names);
    for (size_t i = 0; st == QEP_OK && i < names.count; i++)
        if (!is_kept(names.items[i], but) && build_is_state_name(names.items[i]))
            st = qep_dir_remove(&build->work.state, names.items[i]);
    build_names_free(&names);
    return st == QEP_OK ? qep_dir_remove(&build->work.state, "identity") : st;
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

static enum qep_status add_bytes(void *arg, const char *name) {
    struct visit *v = arg;
    uint64_t bytes = 0;
    int fd = -1;
    if (qep_dir_open_file(&v->build->work.state, name, &fd, &bytes) == QEP_OK)
        close(fd);
    v->bytes += bytes;
    return QEP_OK;
}

static enum qep_status is_finished(const struct qep_build *b, size_t file_idx, bool *finished) {
    struct qep_file_identity identity;
    char *entry = NULL;
    QEP_TRY(build_load_entry(b, &b->layout.files[file_idx], &entry, &identity));
    *finished = entry != NULL;
    free(entry);
    return QEP_OK;
}

enum qep_status build_check_space(const struct qep_build *build, bool cleared) {
    struct visit v = {.build = build};
    uint64_t needed = 0;
    for (size_t f = 0; f < build->layout.num_files; f++) {
        bool finished = false;
        if (!cleared)
            QEP_TRY(is_finished(build, f, &finished));
        needed += finished ? 0 : estimate(build, &build->layout.files[f]);
    }
    if (cleared)
        QEP_TRY(qep_dir_each(&build->work.state, add_bytes, &v));
    return qep_path_check_space(build->options.dir, needed > v.bytes ? needed - v.bytes : 0);
}

/* The new conversion takes the old one's place. Before the journal is written DIR is untouched;
 * from then on every step can be done again, so that a swap that was interrupted anywhere is
 * finished by going through it once more. Nothing is changed before all that will be changed has
 * been looked at: what the new manifest lists is put, what only the old one lists is dropped. */
#include "shard/build_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char title[] = "qwen-ep swap 3", none[] = "none";

enum { JOURNAL_MAX = sizeof title + 3 * QEP_HASH_TEXT };

/* What is swapped. */
struct swap {
    struct qep_manifest now;
    struct build_names old;
};

static enum qep_status damaged(const struct qep_build *b) {
    return qep_fail(QEP_ERR_CANTCREATE, "%s/swap: is damaged, or no journal of ours",
                    b->work.state.path);
}

static bool is_hash(const char *text) {
    return strlen(text) == QEP_HASH_TEXT - 1 &&
           strspn(text, "0123456789abcdef") == QEP_HASH_TEXT - 1;
}

static size_t print(const struct build_journal *j, char text[JOURNAL_MAX + 1]) {
    return (size_t)snprintf(text, JOURNAL_MAX + 1, "%s\n%s\n%s\n%s\n", title, j->identity, j->now,
                            j->old[0] != '\0' ? j->old : none);
}

/* Exactly what print() makes of it. */
static bool parse(struct build_journal *j, const char *text, size_t len) {
    char again[JOURNAL_MAX + 1];
    if (sscanf(text, "qwen-ep swap 3\n%32s\n%32s\n%32s", j->identity, j->now, j->old) != 3)
        return false;
    if (strcmp(j->old, none) == 0)
        j->old[0] = '\0';
    return is_hash(j->identity) && is_hash(j->now) && (j->old[0] == '\0' || is_hash(j->old)) &&
           print(j, again) == len && memcmp(again, text, len) == 0;
}

enum qep_status build_journal_read(const struct qep_build *build, struct build_journal *out) {
    char *text = NULL;
    size_t len = 0;
    *out = (struct build_journal){0};
    if (qep_dir_entry(&build->work.state, "swap") == QEP_ENTRY_ABSENT)
        return QEP_OK;
    bool good = qep_dir_read(&build->work.state, "swap", JOURNAL_MAX, &text, &len) == QEP_OK &&
                parse(out, text, len);
    free(text);
    return good ? QEP_OK : damaged(build);
}

enum qep_status build_journal_write(const struct qep_build *build,
                                    const struct build_journal *journal) {
    const struct qep_dir *state = &build->work.state;
    char text[JOURNAL_MAX + 1];
    size_t len = print(journal, text);
    QEP_TRY(qep_dir_sync(state)); /* the new conversion is there for good */
    QEP_TRY(qep_dir_write(state, "swap", text, len));
    return qep_dir_sync(state);
}

/* Reads NAME in `dir` and compares its hash. */
static enum qep_status read_hashed(const struct qep_dir *dir, const char *name, const char *hash,
                                   char **text, size_t *len) {
    char found[QEP_HASH_TEXT];
    QEP_TRY(qep_dir_read(dir, name, QEP_MANIFEST_MAX_BYTES, text, len));
    qep_hash_text(*text, *len, found);
    if (strcmp(found, hash) == 0)
        return QEP_OK;
    free(*text);
    *text = NULL;
    return qep_fail(QEP_ERR_DATA, "%s/%s: damaged: its hash is %s, the swap says %s", dir->path,
                    name, found, hash);
}

static enum qep_status read_now(const struct qep_dir *dir, const struct build_journal *j,
                                struct qep_manifest *now) {
    char *text = NULL;
    size_t len = 0;
    QEP_TRY(read_hashed(dir, "manifest.json", j->now, &text, &len));
    enum qep_status st = qep_manifest_parse(text, len, "manifest.json", now);
    free(text);
    return st;
}

/* The old manifest is in DIR, or in the state by a copy that was made before it was removed. */
static enum qep_status read_old(const struct qep_build *b, const struct build_journal *j,
                                struct build_names *old) {
    char copied[QEP_HASH_TEXT], hash[QEP_HASH_TEXT];
    struct build_names names = {0};
    enum qep_status st = build_old_read(&b->work.state, "manifest.old", old, copied);
    if (st == QEP_OK && copied[0] != '\0' && strcmp(copied, j->old) != 0)
        return damaged(b);
    if (st == QEP_OK)
        st = build_old_read(&b->work.dir, "manifest.json", &names, hash);
    if (st == QEP_OK && hash[0] != '\0' && strcmp(hash, j->old) != 0)
        st = qep_fail(QEP_ERR_CANTCREATE,
                      "%s/manifest.json: is in the way: it came while a swap was interrupted",
                      b->work.dir.path);
    if (st == QEP_OK && j->old[0] != '\0' && copied[0] == '\0' && hash[0] == '\0')
        st = damaged(b);
    for (size_t i = 0; st == QEP_OK && copied[0] == '\0' && i < names.count; i++)
        st = build_names_add(old, names.items[i]);
    build_names_free(&names);
    return st;
}

/* Where a new file is by now. */
static const struct qep_dir *place_of(const struct qep_build *b, const char *name) {
    bool put = qep_dir_entry(&b->work.state, name) == QEP_ENTRY_ABSENT;
    return put ? &b->work.dir : &b->work.state;
}

static enum qep_status check_new(const struct qep_build *b, const struct swap *s, const char *name,
                                 bool whole) {
    const struct qep_dir *place = place_of(b, name);
    if (!whole)
        return qep_fail(QEP_ERR_DATA, "%s/%s: is not what was to be put into place: damaged",
                        place->path, name);
    return place == &b->work.state ? build_old_check(b, &s->old, name) : QEP_OK;
}

static enum qep_status is_whole_side(const struct qep_build *b, const struct qep_side_file *file,
                                     bool *whole) {
    char *text = NULL, hash[QEP_HASH_TEXT] = "";
    size_t len = 0;
    enum qep_status st = QEP_OK;
    QEP_TRY_SYSTEM(
        st, qep_dir_read(place_of(b, file->name), file->name, QEP_MAX_SIDE_BYTES, &text, &len));
    if (st == QEP_OK)
        qep_hash_text(text, len, hash);
    free(text);
    *whole = strcmp(hash, file->hash) == 0;
    return QEP_OK;
}

static bool is_now(const struct swap *s, const char *name) {
    for (size_t f = 0; f < s->now.layout.num_files; f++)
        if (strcmp(s->now.layout.files[f].name, name) == 0)
            return true;
    for (int i = 0; i < s->now.num_side_files; i++)
        if (strcmp(s->now.side_files[i].name, name) == 0)
            return true;
    return false;
}

/* All that replace() will touch; changes nothing. */
static enum qep_status check_all(const struct qep_build *b, const struct swap *s) {
    bool whole = false;
    for (size_t f = 0; f < s->now.layout.num_files; f++) {
        const char *name = s->now.layout.files[f].name;
        QEP_TRY(build_same_file(place_of(b, name), name, &s->now.files[f], &whole));
        QEP_TRY(check_new(b, s, name, whole));
    }
    for (int i = 0; i < s->now.num_side_files; i++) {
        QEP_TRY(is_whole_side(b, &s->now.side_files[i], &whole));
        QEP_TRY(check_new(b, s, s->now.side_files[i].name, whole));
    }
    for (size_t i = 0; i < s->old.count; i++)
        QEP_TRY(build_old_check(b, &s->old, s->old.items[i]));
    return QEP_OK;
}

/* From here on DIR does not open. */
static enum qep_status remove_old_manifest(const struct qep_build *b) {
    char *text = NULL;
    size_t len = 0;
    if (qep_dir_entry(&b->work.dir, "manifest.json") == QEP_ENTRY_ABSENT)
        return QEP_OK;
    QEP_TRY(
        qep_dir_read_linked(&b->work.dir, "manifest.json", QEP_MANIFEST_MAX_BYTES, &text, &len));
    enum qep_status st = qep_dir_write(&b->work.state, "manifest.old", text, len);
    free(text);
    QEP_TRY(st);
    QEP_TRY(qep_dir_sync(&b->work.state));
    QEP_TRY(qep_dir_remove(&b->work.dir, "manifest.json"));
    return qep_dir_sync(&b->work.dir);
}

static enum qep_status put(const struct qep_build *b, const char *name) {
    return place_of(b, name) == &b->work.state
               ? qep_dir_rename(&b->work.state, name, &b->work.dir, name)
               : QEP_OK;
}

static enum qep_status replace(const struct qep_build *b, const struct swap *s) {
    QEP_TRY(remove_old_manifest(b));
    for (size_t f = 0; f < s->now.layout.num_files; f++)
        QEP_TRY(put(b, s->now.layout.files[f].name));
    for (int i = 0; i < s->now.num_side_files; i++)
        QEP_TRY(put(b, s->now.side_files[i].name));
    for (size_t i = 0; i < s->old.count; i++)
        if (!is_now(s, s->old.items[i]))
            QEP_TRY(qep_dir_remove(&b->work.dir, s->old.items[i]));
    QEP_TRY(qep_dir_sync(&b->work.dir));
    QEP_TRY(qep_dir_rename(&b->work.state, "manifest.json", &b->work.dir, "manifest.json"));
    return qep_dir_sync(&b->work.dir);
}

static enum qep_status check_and_replace(const struct qep_build *b,
                                         const struct build_journal *journal) {
    struct swap s = {0};
    QEP_TRY(read_now(&b->work.state, journal, &s.now));
    enum qep_status st = read_old(b, journal, &s.old);
    if (st == QEP_OK)
        st = check_all(b, &s);
    if (st == QEP_OK)
        st = replace(b, &s);
    build_names_free(&s.old);
    qep_manifest_free(&s.now);
    return st;
}

static enum qep_status check_put(const struct qep_build *b, const char *name) {
    return place_of(b, name) == &b->work.dir ? QEP_OK : damaged(b);
}

/* The new manifest is in its place already: only the state is left to go, if all else is put. */
static enum qep_status check_done(const struct qep_build *b, const struct build_journal *journal) {
    struct swap s = {0};
    if (qep_dir_entry(&b->work.dir, "manifest.json") != QEP_ENTRY_FILE)
        return damaged(b);
    QEP_TRY(read_now(&b->work.dir, journal, &s.now));
    enum qep_status st = QEP_OK;
    for (size_t f = 0; st == QEP_OK && f < s.now.layout.num_files; f++)
        st = check_put(b, s.now.layout.files[f].name);
    for (int i = 0; st == QEP_OK && i < s.now.num_side_files; i++)
        st = check_put(b, s.now.side_files[i].name);
    if (st == QEP_OK)
        st = check_all(b, &s);
    qep_manifest_free(&s.now);
    return st;
}

enum qep_status build_swap(struct qep_build *build, const struct build_journal *journal) {
    bool done = qep_dir_entry(&build->work.state, "manifest.json") == QEP_ENTRY_ABSENT;
    QEP_TRY(done ? check_done(build, journal) : check_and_replace(build, journal));
    QEP_TRY(build_state_clear(build, "swap"));
    return qep_work_remove(&build->work, "swap");
}

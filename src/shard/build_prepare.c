/* What a conversion finds in DIR, and what it may replace there. */
#include "base/file.h"
#include "base/json.h"
#include "shard/build_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TRIES = 100 };

static const char format[] = "qwen-ep shard directory";

static enum qep_status add_listed(const cJSON *list, struct build_names *names) {
    const cJSON *item = NULL;
    cJSON_ArrayForEach (item, list) {
        const cJSON *name = qep_json_get(item, "name");
        if (cJSON_IsString(name) && build_is_our_name(name->valuestring))
            QEP_TRY(build_names_add(names, name->valuestring));
    }
    return QEP_OK;
}

/* The names that a manifest of any version of ours lists; *ours false: it is none. */
static enum qep_status read_listed(const char *path, struct build_names *names, bool *ours) {
    char *text = NULL;
    size_t len = 0;
    cJSON *root = NULL;
    *ours = false;
    QEP_TRY(qep_file_read(path, QEP_MANIFEST_MAX_BYTES, &text, &len));
    enum qep_status st = QEP_OK;
    if (qep_json_parse(text, len, path, &root) == QEP_OK) {
        const cJSON *key = qep_json_get(root, "format");
        *ours = cJSON_IsString(key) && strcmp(key->valuestring, format) == 0;
    }
    if (*ours)
        st = add_listed(qep_json_get(root, "files"), names);
    if (*ours && st == QEP_OK)
        st = add_listed(qep_json_get(root, "side_files"), names);
    cJSON_Delete(root);
    free(text);
    return st;
}

/* Sets old to what the conversion in DIR consists of; *there: it has one. */
static enum qep_status find_old(struct qep_build *b, bool *there) {
    char *path = NULL;
    bool ours = false;
    build_names_free(&b->old);
    *there = qep_dir_entry(&b->dir, "manifest.json") != QEP_ENTRY_ABSENT;
    if (!*there)
        return QEP_OK;
    QEP_TRY(qep_path_join(b->dir.path, "manifest.json", &path));
    enum qep_status st = read_listed(path, &b->old, &ours);
    if (st != QEP_OK || !ours)
        st = qep_fail(QEP_ERR_CANTCREATE,
                      "%s: is in the way: no manifest of a shard directory, so that nothing here "
                      "is replaced",
                      path);
    free(path);
    return st;
}

static enum qep_status check_name(const struct qep_build *b, const char *name) {
    enum qep_entry entry = qep_dir_entry(&b->dir, name);
    bool replaced = build_names_has(&b->old, name);
    if (entry == QEP_ENTRY_ABSENT ||
        (replaced && (entry == QEP_ENTRY_FILE || entry == QEP_ENTRY_LINK)))
        return QEP_OK;
    return qep_fail(QEP_ERR_CANTCREATE,
                    "%s/%s: is in the way (%s): not of a conversion of ours, so that it is not "
                    "replaced",
                    b->dir.path, name, qep_entry_text(entry));
}

enum qep_status build_check_way(const struct qep_build *build) {
    for (size_t f = 0; f < build->layout.num_files; f++)
        QEP_TRY(check_name(build, build->layout.files[f].name));
    for (int i = 0; qep_side_file_names[i] != NULL; i++)
        QEP_TRY(check_name(build, qep_side_file_names[i]));
    return QEP_OK;
}

static enum qep_status refuse_entry(void *arg, const char *name) {
    const struct qep_build *b = arg;
    if (strcmp(name, ".convert") == 0)
        return QEP_OK;
    return qep_fail(QEP_ERR_CANTCREATE, "%s: is not empty and no shard directory: %s is there",
                    b->options.dir, name);
}

/* Is there anything that this command must not touch? `continues`: DIR/.convert is this build's. */
static enum qep_status check_old(struct qep_build *b, bool continues) {
    bool complete = false;
    const char *dir = b->options.dir;
    enum qep_status st = find_old(b, &complete);
    if (!b->options.force && complete && st == QEP_OK)
        return qep_fail(QEP_ERR_CANTCREATE,
                        "%s: is a complete shard directory already (--force replaces it)", dir);
    if (!b->options.force && !continues)
        return qep_dir_each(&b->dir, refuse_entry, b);
    QEP_TRY(st);
    return build_check_way(b);
}

/* Whose state DIR/.convert is: *same, *other or, when neither, nobody's yet. */
static enum qep_status read_identity(const struct qep_build *b, bool *same, bool *other) {
    char *text = NULL;
    size_t len = 0;
    *same = *other = false;
    if (qep_dir_entry(&b->state, "identity") == QEP_ENTRY_ABSENT)
        return QEP_OK;
    QEP_TRY(qep_dir_read(&b->state, "identity", 4096, &text, &len));
    *same = strcmp(text, b->identity) == 0;
    *other = !*same;
    free(text);
    return QEP_OK;
}

static enum qep_status refuse_other(const struct qep_build *b) {
    return qep_fail(QEP_ERR_CANTCREATE,
                    "%s: holds an unfinished conversion of another source, recipe or options "
                    "(--force starts afresh)",
                    b->options.dir);
}

/* A directory of that name whose conversion never began may still be anybody's. */
static enum qep_status settle_state(struct qep_build *b, bool *same) {
    bool other = false;
    QEP_TRY(build_state_check(b));
    QEP_TRY(read_identity(b, same, &other));
    if (other && !b->options.force)
        return refuse_other(b);
    QEP_TRY(check_old(b, *same));
    if (!*same)
        QEP_TRY(build_state_clear(b, NULL));
    QEP_TRY(build_check_space(b));
    return qep_dir_write(&b->state, "identity", b->identity, QEP_HASH_TEXT - 1);
}

/* Finishes a swap that was interrupted; *complete: it was this build's. */
static enum qep_status finish_swap(struct qep_build *b, bool *swapped, bool *complete) {
    struct build_journal journal;
    QEP_TRY(build_journal_read(b, &journal));
    enum qep_status st = QEP_OK;
    *swapped = journal.identity[0] != '\0';
    *complete = *swapped && strcmp(journal.identity, b->identity) == 0;
    if (*swapped && !*complete && !b->options.force)
        st = refuse_other(b);
    else if (*swapped)
        st = build_swap(b, &journal);
    build_journal_free(&journal);
    return st;
}

/* Opens DIR/.convert, creating it when this build may go on. */
static enum qep_status open_state(struct qep_build *b, bool *created) {
    *created = false;
    if (qep_dir_entry(&b->dir, ".convert") == QEP_ENTRY_ABSENT) {
        QEP_TRY(check_old(b, false));
        QEP_TRY(qep_dir_make(&b->dir, ".convert", created));
    }
    return qep_dir_open_in(&b->dir, ".convert", &b->state);
}

/* Leaves no trace of a conversion that was refused before it began. */
static void withdraw(struct qep_build *b) {
    if (qep_dir_entry(&b->state, "identity") == QEP_ENTRY_FILE)
        return;
    qep_dir_remove(&b->state, "lock");
    build_unlock(b);
    unlinkat(b->dir.fd, ".convert", AT_REMOVEDIR);
}

/* *again: somebody else's conversion ended meanwhile, or its swap was finished here. */
static enum qep_status prepare_once(struct qep_build *b, bool *again, bool *complete) {
    bool created = false, same = false;
    qep_dir_close(&b->state);
    QEP_TRY(open_state(b, &created));
    QEP_TRY(build_lock(b, again));
    if (*again)
        return QEP_OK;
    QEP_TRY(finish_swap(b, again, complete));
    if (*again)
        return QEP_OK;
    enum qep_status st = settle_state(b, &same);
    if (st != QEP_OK) {
        char message[QEP_ERROR_MAX];
        snprintf(message, sizeof message, "%s", qep_last_error());
        withdraw(b);
        return qep_fail(st, "%s", message);
    }
    return QEP_OK;
}

enum qep_status qep_build_prepare(struct qep_build *build, bool *complete) {
    bool again = true;
    *complete = false;
    if (qep_dir_open(build->options.dir, &build->dir) != QEP_OK) {
        QEP_TRY(qep_mkdirs(build->options.dir));
        QEP_TRY(qep_dir_open(build->options.dir, &build->dir));
    }
    for (int i = 0; again && !*complete && i < TRIES; i++)
        QEP_TRY(prepare_once(build, &again, complete));
    if (again && !*complete)
        return qep_fail(QEP_ERR_INTERRUPTED, "%s: in use by others", build->options.dir);
    return QEP_OK;
}

/* What a conversion finds in DIR, and whether it may go on. */
#include "base/file.h"
#include "shard/build_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TRIES = 100 };

/* Everything that this build will have, and everything that goes. */
static enum qep_status check_way(const struct qep_build *b) {
    for (size_t f = 0; f < b->layout.num_files; f++)
        QEP_TRY(build_old_check(b, &b->old, b->layout.files[f].name));
    for (int i = 0; qep_side_file_names[i] != NULL; i++)
        QEP_TRY(build_old_check(b, &b->old, qep_side_file_names[i]));
    for (size_t i = 0; i < b->old.count; i++)
        QEP_TRY(build_old_check(b, &b->old, b->old.items[i]));
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
    char hash[QEP_HASH_TEXT];
    const char *dir = b->options.dir;
    enum qep_status st = build_old_read(&b->work.dir, "manifest.json", &b->old, hash);
    if (!b->options.force && hash[0] != '\0')
        return qep_fail(QEP_ERR_CANTCREATE,
                        "%s: is a complete shard directory already (--force replaces it)", dir);
    if (!b->options.force && !continues)
        return qep_dir_each(&b->work.dir, refuse_entry, b);
    QEP_TRY(st);
    return check_way(b);
}

static enum qep_status refuse_other(const struct qep_build *b) {
    return qep_fail(QEP_ERR_CANTCREATE,
                    "%s: holds an unfinished conversion of another source, recipe or options "
                    "(--force starts afresh)",
                    b->options.dir);
}

static enum qep_status settle_state(struct qep_build *b) {
    enum build_owner owner = BUILD_NOBODYS;
    QEP_TRY(build_state_owner(b, &owner));
    if (owner == BUILD_OTHER && !b->options.force)
        return refuse_other(b);
    QEP_TRY(check_old(b, owner == BUILD_SAME));
    QEP_TRY(build_check_space(b, owner != BUILD_SAME));
    if (owner != BUILD_SAME)
        QEP_TRY(build_state_clear(b, NULL));
    return build_state_sign(b);
}

/* Finishes a swap that was interrupted; *complete: it was this build's. */
static enum qep_status finish_swap(struct qep_build *b, bool *swapped, bool *complete) {
    struct build_journal journal;
    bool done = false;
    QEP_TRY(build_journal_read(b, &journal));
    *swapped = journal.identity[0] != '\0';
    if (!*swapped)
        return QEP_OK;
    done = strcmp(journal.identity, b->identity) == 0;
    if (!done && !b->options.force)
        return refuse_other(b);
    QEP_TRY(build_state_check(b, true));
    QEP_TRY(build_swap(b, &journal));
    *complete = done;
    return QEP_OK;
}

/* *again: somebody else's conversion ended meanwhile, or its swap was finished here. */
static enum qep_status prepare_once(struct qep_build *b, bool *again, bool *complete) {
    if (qep_dir_entry(&b->work.dir, ".convert") == QEP_ENTRY_ABSENT)
        QEP_TRY(check_old(b, false)); /* refused without a trace */
    QEP_TRY(qep_work_lock(&b->work, again));
    if (*again)
        return QEP_OK;
    QEP_TRY(finish_swap(b, again, complete));
    return *again ? QEP_OK : settle_state(b);
}

/* Bytes of the path of the last directory on the way that is there; cuts `part`, a copy. */
static size_t there_bytes(char *part) {
    size_t len = strlen(part);
    while (len > 0 && !qep_path_exists(part)) {
        while (len > 0 && part[len - 1] == '/')
            len--;
        while (len > 0 && part[len - 1] != '/')
            len--;
        part[len] = '\0';
    }
    return len;
}

/* What was made for a conversion that was refused; a directory that is not empty stays. */
static void remove_made(const char *path, char *part, size_t there) {
    strcpy(part, path);
    for (size_t len = strlen(path); len > there; len--) {
        if (path[len] != '\0' && path[len] != '/')
            continue;
        part[len] = '\0';
        rmdir(part);
    }
}

static enum qep_status settle(struct qep_build *b, bool *complete) {
    bool again = true;
    for (int i = 0; again && !*complete && i < TRIES; i++)
        QEP_TRY(prepare_once(b, &again, complete));
    if (again && !*complete)
        return qep_fail(QEP_ERR_INTERRUPTED, "%s: in use by others", b->options.dir);
    return QEP_OK;
}

/* `part`: a copy of the directory's path, for scratch. */
static enum qep_status prepare(struct qep_build *build, char *part, bool *complete) {
    const char *dir = build->options.dir;
    size_t there = there_bytes(part);
    enum qep_status st = there < strlen(dir) ? qep_mkdirs(dir) : QEP_OK;
    if (st == QEP_OK)
        st = qep_dir_open(dir, &build->work.dir);
    if (st == QEP_OK)
        st = settle(build, complete);
    if (st == QEP_OK)
        return QEP_OK;
    qep_work_leave(&build->work);
    remove_made(dir, part, there);
    return st;
}

enum qep_status qep_build_prepare(struct qep_build *build, bool *complete) {
    *complete = false;
    QEP_TRY(build_side_read(build));
    char *part = strdup(build->options.dir);
    if (part == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", build->options.dir);
    enum qep_status st = prepare(build, part, complete);
    free(part);
    return st;
}

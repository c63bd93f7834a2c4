/* The new conversion takes the old one's place. Before the journal is written DIR is untouched;
 * from then on every step can be done again, so that a swap that was interrupted anywhere is
 * finished by going through it once more. */
#include "shard/build_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char title[] = "qwen-ep swap 1";

enum { MAX_JOURNAL_BYTES = 1 << 20 };

void build_journal_free(struct build_journal *journal) {
    build_names_free(&journal->put);
    build_names_free(&journal->drop);
    *journal = (struct build_journal){0};
}

static enum qep_status parse_line(struct build_journal *j, const char *line) {
    struct build_names *names = strncmp(line, "put ", 4) == 0    ? &j->put
                                : strncmp(line, "drop ", 5) == 0 ? &j->drop
                                                                 : NULL;
    const char *name = strchr(line, ' ');
    if (names != NULL && build_is_our_name(name + 1))
        return build_names_add(names, name + 1);
    return qep_fail(QEP_ERR_CANTCREATE, "unexpected line '%.80s'", line);
}

static enum qep_status parse(struct build_journal *j, char *text) {
    char *rest = NULL, *line = strtok_r(text, "\n", &rest);
    if (line == NULL || strcmp(line, title) != 0)
        return qep_fail(QEP_ERR_CANTCREATE, "expected '%s'", title);
    line = strtok_r(NULL, "\n", &rest);
    if (line == NULL || strlen(line) != QEP_HASH_TEXT - 1)
        return qep_fail(QEP_ERR_CANTCREATE, "expected an identity");
    memcpy(j->identity, line, QEP_HASH_TEXT);
    while ((line = strtok_r(NULL, "\n", &rest)) != NULL)
        QEP_TRY(parse_line(j, line));
    return QEP_OK;
}

enum qep_status build_journal_read(const struct qep_build *build, struct build_journal *out) {
    char *text = NULL;
    size_t len = 0;
    *out = (struct build_journal){0};
    if (qep_dir_entry(&build->state, "swap") == QEP_ENTRY_ABSENT)
        return QEP_OK;
    QEP_TRY(qep_dir_read(&build->state, "swap", MAX_JOURNAL_BYTES, &text, &len));
    enum qep_status st = parse(out, text);
    free(text);
    if (st != QEP_OK) {
        build_journal_free(out);
        st = qep_fail(QEP_ERR_CANTCREATE, "%s/swap: damaged: %s", build->state.path,
                      qep_last_error());
    }
    return st;
}

static size_t lines_bytes(const struct build_names *names) {
    size_t bytes = 0;
    for (size_t i = 0; i < names->count; i++)
        bytes += strlen(names->items[i]) + sizeof "drop \n";
    return bytes;
}

static size_t print_lines(char *out, size_t cap, const char *verb,
                          const struct build_names *names) {
    size_t n = 0;
    for (size_t i = 0; i < names->count; i++)
        n += (size_t)snprintf(out + n, cap - n, "%s %s\n", verb, names->items[i]);
    return n;
}

enum qep_status build_journal_write(const struct qep_build *build,
                                    const struct build_journal *journal) {
    size_t cap = 128 + lines_bytes(&journal->put) + lines_bytes(&journal->drop);
    char *text = malloc(cap);
    if (text == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "%s/swap: out of memory", build->state.path);
    size_t n = (size_t)snprintf(text, cap, "%s\n%s\n", title, journal->identity);
    n += print_lines(text + n, cap - n, "put", &journal->put);
    n += print_lines(text + n, cap - n, "drop", &journal->drop);
    enum qep_status st = qep_dir_sync(&build->state); /* what it lists is there for good */
    if (st == QEP_OK)
        st = qep_dir_write(&build->state, "swap", text, n);
    free(text);
    return st == QEP_OK ? qep_dir_sync(&build->state) : st;
}

/* A name that is in neither place was put by nobody. */
static enum qep_status put(const struct qep_build *b, const char *name) {
    if (qep_dir_entry(&b->state, name) != QEP_ENTRY_ABSENT)
        return qep_dir_rename(&b->state, name, &b->dir, name);
    if (qep_dir_entry(&b->dir, name) != QEP_ENTRY_ABSENT)
        return QEP_OK;
    return qep_fail(QEP_ERR_IO, "%s/%s: was to be put into place and is gone", b->state.path, name);
}

static enum qep_status replace(const struct qep_build *b, const struct build_journal *j) {
    QEP_TRY(qep_dir_remove(&b->dir, "manifest.json"));
    QEP_TRY(qep_dir_sync(&b->dir));
    for (size_t i = 0; i < j->put.count; i++)
        QEP_TRY(put(b, j->put.items[i]));
    for (size_t i = 0; i < j->drop.count; i++)
        QEP_TRY(qep_dir_remove(&b->dir, j->drop.items[i]));
    QEP_TRY(qep_dir_sync(&b->dir));
    QEP_TRY(qep_dir_rename(&b->state, "manifest.json", &b->dir, "manifest.json"));
    return qep_dir_sync(&b->dir);
}

/* The journal goes last: until then it tells that the rest may go. */
static enum qep_status remove_state(struct qep_build *b) {
    QEP_TRY(build_state_clear(b, "swap"));
    QEP_TRY(qep_dir_remove(&b->state, "lock")); /* still held: others find a new one */
    QEP_TRY(qep_dir_remove(&b->state, "swap"));
    build_unlock(b);
    qep_dir_close(&b->state);
    if (unlinkat(b->dir.fd, ".convert", AT_REMOVEDIR) != 0 && errno != ENOENT &&
        errno != ENOTEMPTY && errno != EEXIST)
        return qep_fail(QEP_ERR_CANTCREATE, "%s/.convert: cannot remove: %s", b->dir.path,
                        strerror(errno));
    return QEP_OK;
}

enum qep_status build_swap(struct qep_build *build, const struct build_journal *journal) {
    if (qep_dir_entry(&build->state, "manifest.json") != QEP_ENTRY_ABSENT)
        QEP_TRY(replace(build, journal));
    return remove_state(build);
}

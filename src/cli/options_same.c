#include "cli/options_same.h"

#include "base/mem.h"
#include "base/printable.h"
#include "cli/option_value.h"
#include "shard/manifest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHOWN_BYTES = 80, SHOWN_TEXT = 48 };

/* A value of whatever length: to be compared, and to be named in a message. */
struct item {
    char hash[QEP_HASH_TEXT]; /* "": not given */
    char shown[SHOWN_BYTES];
};

/* As rank 0 sends it: the same size whatever was given. */
struct items {
    struct item table; /* the options there are: builds of one version may differ */
    struct item help, version, positional;
    struct item rows[QEP_OPTIONS_MAX]; /* the tables one after the other */
};

static void show_text(struct item *item, const char *text) {
    size_t len = strlen(text);
    int shown = qep_text_cut(text, len, SHOWN_TEXT);
    if ((size_t)shown == len)
        snprintf(item->shown, sizeof item->shown, "'%s'", text);
    else
        snprintf(item->shown, sizeof item->shown, "'%.*s'... (%zu bytes)", shown, text, len);
}

static void fill_flag(struct item *item, bool given) {
    if (given)
        snprintf(item->hash, sizeof item->hash, "given");
    snprintf(item->shown, sizeof item->shown, given ? "given" : "not given");
}

static void fill_row(struct item *item, const struct qep_option *opt) {
    char number[QEP_OPTION_NUMBER_BYTES];
    const char *text = NULL;
    if (opt->kind == QEP_OPTION_FLAG) {
        fill_flag(item, *(const bool *)opt->target);
        return;
    }
    if (opt->given == NULL || *opt->given)
        text = qep_option_text(opt, number);
    if (text == NULL) {
        fill_flag(item, false);
        return;
    }
    qep_hash_text(text, strlen(text), item->hash);
    show_text(item, text);
}

/* Told apart with each word's NUL, shown with spaces. */
static enum qep_status fill_list(struct item *item, char *const *list, int count) {
    size_t bytes = 0, at = 0;
    char *text = NULL;
    for (int i = 0; i < count; i++)
        bytes += strlen(list[i]) + 1;
    if (count == 0) {
        fill_flag(item, false);
        return QEP_OK;
    }
    QEP_TRY(qep_alloc(bytes, 1, "arguments", (void **)&text));
    for (int i = 0; i < count; i++) {
        memcpy(text + at, list[i], strlen(list[i]) + 1);
        at += strlen(list[i]) + 1;
    }
    qep_hash_text(text, bytes, item->hash);
    for (size_t i = 0; i + 1 < bytes; i++)
        text[i] = text[i] == '\0' ? ' ' : text[i];
    show_text(item, text);
    free(text);
    return QEP_OK;
}

static size_t count_rows(const struct qep_option_table *tables, size_t num_tables) {
    size_t count = 0;
    for (size_t t = 0; t < num_tables; t++)
        count += tables[t].num_options;
    return count;
}

static const struct qep_option *row_at(const struct qep_option_table *tables, size_t idx) {
    for (; idx >= tables->num_options; tables++)
        idx -= tables->num_options;
    return &tables->options[idx];
}

/* Names and kinds of all rows, as one hash. */
static enum qep_status fill_table(struct item *item, const struct qep_option_table *tables,
                                  size_t num_rows) {
    const size_t row_bytes = 40;
    char *text = NULL;
    QEP_TRY(qep_calloc(num_rows + 1, row_bytes, "options", (void **)&text));
    for (size_t i = 0; i < num_rows; i++) {
        const struct qep_option *opt = row_at(tables, i);
        snprintf(text + i * row_bytes, row_bytes, "%s %d", opt->name, (int)opt->kind);
    }
    qep_hash_text(text, num_rows * row_bytes, item->hash);
    snprintf(item->shown, sizeof item->shown, "options %.8s", item->hash);
    free(text);
    return QEP_OK;
}

static enum qep_status fill(struct items *items, const struct qep_option_table *tables,
                            size_t num_rows, const struct qep_options_found *found) {
    QEP_TRY(fill_table(&items->table, tables, num_rows));
    fill_flag(&items->help, found->help);
    fill_flag(&items->version, found->version);
    for (size_t i = 0; i < num_rows; i++)
        fill_row(&items->rows[i], row_at(tables, i));
    return fill_list(&items->positional, found->positional, found->num_positional);
}

static enum qep_status compare_item(const char *prefix, const char *name, const struct item *mine,
                                    const struct item *first) {
    if (strcmp(mine->hash, first->hash) == 0)
        return QEP_OK;
    return qep_fail(QEP_ERR_USAGE, "%s%s differs: %s, rank 0 has %s", prefix, name, mine->shown,
                    first->shown);
}

static enum qep_status compare(const struct items *mine, const struct items *first,
                               const struct qep_option_table *tables, size_t num_rows,
                               enum qep_options_scope scope) {
    QEP_TRY(compare_item("", "build", &mine->table, &first->table));
    QEP_TRY(compare_item("--", "help", &mine->help, &first->help));
    QEP_TRY(compare_item("--", "version", &mine->version, &first->version));
    for (size_t i = 0; i < num_rows; i++) {
        const struct qep_option *opt = row_at(tables, i);
        if (scope == QEP_OPTIONS_ALL ? !opt->per_rank : opt->kind == QEP_OPTION_CONFIG_FILE)
            QEP_TRY(compare_item("--", opt->name, &mine->rows[i], &first->rows[i]));
    }
    return scope == QEP_OPTIONS_ALL
               ? compare_item("", "argument", &mine->positional, &first->positional)
               : QEP_OK;
}

enum qep_status qep_options_same(struct qep_comm *comm, const struct qep_option_table *tables,
                                 size_t num_tables, const struct qep_options_found *found,
                                 enum qep_options_scope scope) {
    size_t num_rows = count_rows(tables, num_tables);
    struct items *both = NULL;
    enum qep_status st = qep_calloc(2, sizeof *both, "options", (void **)&both);
    if (st == QEP_OK)
        st = fill(&both[0], tables, num_rows, found);
    st = qep_comm_agree(comm, st);
    if (st == QEP_OK) {
        both[1] = both[0];
        st = comm->ops->bcast(comm, &both[1], sizeof both[1], 0);
    }
    if (st == QEP_OK) {
        st = compare(&both[0], &both[1], tables, num_rows, scope);
        st = qep_comm_agree(comm, st);
    }
    free(both);
    return st;
}

/* The last step: side files and manifest beside the finished files, then the swap. */
#include "base/file.h"
#include "base/mem.h"
#include "checkpoint/config.h"
#include "shard/build_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The manifest's model is the one that convert has read at its start; config.json goes beside it.
 */
static enum qep_status check_config(const struct qep_build *b, const char *text, size_t len) {
    struct qep_model_config now;
    if (qep_config_parse(text, len, "config.json", &now) == QEP_OK &&
        memcmp(&now, b->options.config, sizeof now) == 0)
        return QEP_OK;
    return qep_fail(QEP_ERR_DATA, "%s/config.json: changed while it was being converted",
                    b->options.side_dir != NULL ? b->options.side_dir : ".");
}

/* *data NULL: there is no such side file. */
static enum qep_status read_side_file(const struct qep_build *b, const char *name, char **data,
                                      size_t *len) {
    const struct qep_build_options *o = &b->options;
    bool is_config = strcmp(name, "config.json") == 0;
    char *from = NULL;
    *data = NULL;
    if (is_config && o->config_text != NULL) {
        *len = o->config_len;
        *data = malloc(*len + 1);
        if (*data != NULL)
            memcpy(*data, o->config_text, *len);
        return *data != NULL ? QEP_OK : qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", name);
    }
    if (o->side_dir == NULL)
        return QEP_OK;
    QEP_TRY(qep_path_join(o->side_dir, name, &from));
    enum qep_status st = QEP_OK;
    if (qep_path_exists(from))
        st = qep_file_read(from, QEP_MAX_SIDE_BYTES, data, len);
    if (st == QEP_OK && is_config && *data != NULL)
        st = check_config(b, *data, *len);
    free(from);
    return st;
}

static enum qep_status copy_side_file(const struct qep_build *b, const char *name,
                                      struct qep_side_file *out, bool *found) {
    char *data = NULL;
    size_t len = 0;
    enum qep_status st = read_side_file(b, name, &data, &len);
    *found = st == QEP_OK && data != NULL;
    if (*found) {
        snprintf(out->name, sizeof out->name, "%s", name);
        out->bytes = len;
        qep_hash_text(data, len, out->hash);
        st = qep_dir_write(&b->state, name, data, len);
    }
    free(data);
    return st;
}

static enum qep_status gather_entries(struct qep_build *b, char **entries) {
    for (size_t f = 0; f < b->layout.num_files; f++) {
        struct qep_file_identity identity = {0};
        QEP_TRY(build_load_entry(b, &b->layout.files[f], &entries[f], &identity));
        if (entries[f] == NULL)
            return qep_fail(QEP_ERR_IO,
                            "%s/%s: not there, or not as its rank left it (is %s on a file system "
                            "that all ranks share?)",
                            b->state.path, b->layout.files[f].name, b->options.dir);
        b->sizes.stored_bytes += identity.bytes;
    }
    return QEP_OK;
}

static enum qep_status write_manifest(const struct qep_build *b,
                                      const struct qep_manifest_head *head, char *const *entries) {
    char *text = NULL;
    size_t len = 0;
    QEP_TRY(qep_manifest_print(head, entries, b->layout.num_files, &text, &len));
    enum qep_status st = qep_dir_write(&b->state, "manifest.json", text, len);
    free(text);
    return st;
}

/* What is new goes in, what only the old conversion had goes out. */
static enum qep_status plan_swap(const struct qep_build *b, const struct qep_manifest_head *head,
                                 struct build_journal *journal) {
    memcpy(journal->identity, b->identity, sizeof journal->identity);
    for (size_t f = 0; f < b->layout.num_files; f++)
        QEP_TRY(build_names_add(&journal->put, b->layout.files[f].name));
    for (int i = 0; i < head->num_side_files; i++)
        QEP_TRY(build_names_add(&journal->put, head->side_files[i].name));
    for (size_t i = 0; i < b->old.count; i++)
        if (!build_names_has(&journal->put, b->old.items[i]))
            QEP_TRY(build_names_add(&journal->drop, b->old.items[i]));
    return QEP_OK;
}

static enum qep_status swap(struct qep_build *b, const struct qep_manifest_head *head) {
    struct build_journal journal = {0};
    enum qep_status st = build_check_way(b);
    if (st == QEP_OK)
        st = plan_swap(b, head, &journal);
    if (st == QEP_OK)
        st = build_journal_write(b, &journal);
    if (st == QEP_OK)
        st = build_swap(b, &journal);
    build_journal_free(&journal);
    return st;
}

static enum qep_status copy_side_files(const struct qep_build *b, struct qep_side_file *side_files,
                                       int *count) {
    for (int i = 0; qep_side_file_names[i] != NULL; i++) {
        bool found = false;
        QEP_TRY(copy_side_file(b, qep_side_file_names[i], &side_files[*count], &found));
        *count += found;
    }
    return QEP_OK;
}

enum qep_status qep_build_finish(struct qep_build *build) {
    const struct qep_build_options *o = &build->options;
    struct qep_side_file side_files[QEP_MAX_SIDE_FILES];
    struct qep_manifest_head head = {.config = o->config,
                                     .recipe = o->recipe->name,
                                     .group_size = o->recipe->group_size,
                                     .num_shards = o->num_shards,
                                     .side_files = side_files};
    void *mem = NULL;
    QEP_TRY(qep_calloc(build->layout.num_files, sizeof(char *), "manifest", &mem));
    char **entries = mem;
    enum qep_status st = gather_entries(build, entries);
    if (st == QEP_OK)
        st = copy_side_files(build, side_files, &head.num_side_files);
    if (st == QEP_OK)
        st = write_manifest(build, &head, entries);
    if (st == QEP_OK)
        st = swap(build, &head);
    for (size_t f = 0; f < build->layout.num_files; f++)
        free(entries[f]);
    free(entries);
    return st;
}

/* The last step: side files and manifest beside the finished files, then the swap. */
#include "base/mem.h"
#include "shard/build_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum qep_status gather_entries(struct qep_build *b, char **entries) {
    for (size_t f = 0; f < b->layout.num_files; f++) {
        struct qep_file_identity identity = {0};
        QEP_TRY(build_load_entry(b, &b->layout.files[f], &entries[f], &identity));
        if (entries[f] == NULL)
            return qep_fail(QEP_ERR_IO,
                            "%s/%s: not there, or not as its rank left it (is %s on a file system "
                            "that all ranks share?)",
                            b->work.state.path, b->layout.files[f].name, b->options.dir);
        b->sizes.stored_bytes += identity.bytes;
    }
    return QEP_OK;
}

/* hash: of the manifest's whole text. */
static enum qep_status write_manifest(const struct qep_build *b,
                                      const struct qep_manifest_head *head, char *const *entries,
                                      char hash[QEP_HASH_TEXT]) {
    char *text = NULL;
    size_t len = 0;
    QEP_TRY(qep_manifest_print(head, entries, b->layout.num_files, &text, &len));
    qep_hash_text(text, len, hash);
    enum qep_status st = qep_dir_write(&b->work.state, "manifest.json", text, len);
    free(text);
    return st;
}

static enum qep_status write_side_files(const struct qep_build *b, struct qep_side_file *files,
                                        int *count) {
    for (int i = 0; qep_side_file_names[i] != NULL; i++) {
        const struct build_side *side = &b->side[i];
        struct qep_side_file *file = &files[*count];
        if (side->data == NULL)
            continue;
        snprintf(file->name, sizeof file->name, "%s", qep_side_file_names[i]);
        file->bytes = side->len;
        qep_hash_text(side->data, side->len, file->hash);
        QEP_TRY(qep_dir_write(&b->work.state, file->name, side->data, side->len));
        ++*count;
    }
    return QEP_OK;
}

static enum qep_status swap(struct qep_build *b, const char *manifest_hash) {
    struct build_journal journal;
    memcpy(journal.identity, b->identity, sizeof journal.identity);
    memcpy(journal.now, manifest_hash, sizeof journal.now);
    QEP_TRY(build_old_read(&b->work.dir, "manifest.json", &b->old, journal.old));
    QEP_TRY(build_journal_write(b, &journal));
    return build_swap(b, &journal);
}

enum qep_status qep_build_finish(struct qep_build *build) {
    const struct qep_build_options *o = &build->options;
    struct qep_side_file side_files[QEP_MAX_SIDE_FILES];
    struct qep_manifest_head head = {.config = o->config,
                                     .recipe = o->recipe->name,
                                     .group_size = o->recipe->group_size,
                                     .num_shards = o->num_shards,
                                     .side_files = side_files};
    char hash[QEP_HASH_TEXT];
    void *mem = NULL;
    QEP_TRY(qep_calloc(build->layout.num_files, sizeof(char *), "manifest", &mem));
    char **entries = mem;
    enum qep_status st = gather_entries(build, entries);
    if (st == QEP_OK)
        st = write_side_files(build, side_files, &head.num_side_files);
    if (st == QEP_OK)
        st = write_manifest(build, &head, entries, hash);
    if (st == QEP_OK)
        st = swap(build, hash);
    for (size_t f = 0; f < build->layout.num_files; f++)
        free(entries[f]);
    free(entries);
    return st;
}

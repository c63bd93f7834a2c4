/* One line a file, so that a manifest can be read and compared by eye and by diff. */
#include "shard/manifest.h"

#include "base/mem.h"
#include "checkpoint/config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const qep_side_file_names[] = {"config.json",         "generation_config.json",
                                           "tokenizer.json",      "tokenizer_config.json",
                                           "chat_template.jinja", NULL};

struct text {
    char *data;
    size_t len, cap;
};

static enum qep_status append(struct text *t, const char *piece) {
    size_t n = strlen(piece);
    void *mem = t->data;
    QEP_TRY(qep_grow(&mem, &t->cap, t->len + n + 1, 1, "manifest"));
    t->data = mem;
    memcpy(t->data + t->len, piece, n + 1);
    t->len += n;
    return QEP_OK;
}

/* For pieces of at most 500 characters. */
__attribute__((format(printf, 2, 3))) static enum qep_status appendf(struct text *t,
                                                                     const char *fmt, ...) {
    char piece[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(piece, sizeof piece, fmt, ap);
    va_end(ap);
    return append(t, piece);
}

enum qep_status qep_manifest_file_entry(const struct qep_inventory *inventory,
                                        const enum qep_weight_type *types,
                                        const struct qep_layout_file *file,
                                        const struct qep_file_identity *identity, char **text) {
    struct text t = {0};
    enum qep_status st = QEP_OK;
    *text = NULL;
    QEP_TRY_GOTO(st, fail,
                 appendf(&t,
                         "{\"name\":\"%s\",\"bytes\":%llu,\"xxh3_128\":\"%s\","
                         "\"index_xxh3\":\"%016llx\",\"tensors\":{",
                         file->name, (unsigned long long)identity->bytes, identity->hash,
                         (unsigned long long)identity->index_hash));
    for (size_t i = 0; i < file->num_specs; i++) {
        const struct qep_tensor_spec *spec = &inventory->specs[file->specs[i]];
        QEP_TRY_GOTO(st, fail,
                     appendf(&t, "%s\"%s\":[\"%s\",%lld,%lld]", i > 0 ? "," : "", spec->name,
                             qep_weight_type_name(types[file->specs[i]]), (long long)spec->rows,
                             (long long)spec->cols));
    }
    QEP_TRY_GOTO(st, fail, append(&t, "}}"));
    *text = t.data;
    return QEP_OK;
fail:
    free(t.data);
    return st;
}

static enum qep_status append_config(struct text *t, const struct qep_model_config *config) {
    cJSON *tree = NULL;
    QEP_TRY(qep_config_to_json(config, &tree));
    char *printed = cJSON_PrintUnformatted(tree);
    cJSON_Delete(tree);
    if (printed == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "manifest: out of memory");
    enum qep_status st = append(t, ",\n\"model\":");
    if (st == QEP_OK)
        st = append(t, printed);
    cJSON_free(printed);
    return st;
}

/* A recipe's name comes from a file of the user's: it is escaped. */
static enum qep_status append_recipe(struct text *t, const struct qep_manifest_head *head) {
    cJSON *name = cJSON_CreateString(head->recipe);
    char *printed = name != NULL ? cJSON_PrintUnformatted(name) : NULL;
    cJSON_Delete(name);
    if (printed == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "manifest: out of memory");
    enum qep_status st =
        appendf(t, ",\n\"recipe\":{\"name\":%s,\"group_size\":%d}", printed, (int)head->group_size);
    cJSON_free(printed);
    return st;
}

static enum qep_status append_side_files(struct text *t, const struct qep_manifest_head *head) {
    QEP_TRY(append(t, ",\n\"side_files\":["));
    for (int i = 0; i < head->num_side_files; i++)
        QEP_TRY(appendf(t, "%s\n{\"name\":\"%s\",\"bytes\":%llu,\"xxh3_128\":\"%s\"}",
                        i > 0 ? "," : "", head->side_files[i].name,
                        (unsigned long long)head->side_files[i].bytes, head->side_files[i].hash));
    return append(t, "]");
}

static enum qep_status print(const struct qep_manifest_head *head, char *const *entries,
                             size_t num_entries, struct text *t) {
    char hash[QEP_HASH_TEXT];
    QEP_TRY(appendf(t, "{\"format\":\"" QEP_MANIFEST_FORMAT "\",\n\"version\":%d",
                    QEP_MANIFEST_VERSION));
    QEP_TRY(append_recipe(t, head));
    QEP_TRY(appendf(t, ",\n\"num_shards\":%d", (int)head->num_shards));
    QEP_TRY(append_config(t, head->config));
    QEP_TRY(append_side_files(t, head));
    QEP_TRY(append(t, ",\n\"files\":["));
    for (size_t i = 0; i < num_entries; i++) {
        QEP_TRY(append(t, i > 0 ? ",\n" : "\n"));
        QEP_TRY(append(t, entries[i]));
    }
    QEP_TRY(append(t, "]"));
    qep_hash_text(t->data, t->len, hash);
    return appendf(t, ",\n\"xxh3_128\":\"%s\"}\n", hash);
}

enum qep_status qep_manifest_print(const struct qep_manifest_head *head, char *const *entries,
                                   size_t num_entries, char **text, size_t *len) {
    struct text t = {0};
    enum qep_status st = print(head, entries, num_entries, &t);
    *text = st == QEP_OK ? t.data : NULL;
    *len = t.len;
    if (st != QEP_OK)
        free(t.data);
    return st;
}

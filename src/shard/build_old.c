/* What the conversion in DIR consists of: that alone may be replaced. */
#include "base/json.h"
#include "shard/build_internal.h"

#include <stdlib.h>
#include <string.h>

static enum qep_status add_listed(const cJSON *list, struct build_names *names) {
    const cJSON *item = NULL;
    cJSON_ArrayForEach (item, list) {
        const cJSON *name = qep_json_get(item, "name");
        if (cJSON_IsString(name) && build_is_our_name(name->valuestring))
            QEP_TRY(build_names_add(names, name->valuestring));
    }
    return QEP_OK;
}

/* Any version of ours will do, and one whose seal is broken. */
static enum qep_status parse_listed(const char *text, size_t len, struct build_names *names,
                                    bool *ours) {
    cJSON *root = NULL;
    *ours = false;
    enum qep_status st = QEP_OK;
    QEP_TRY_SYSTEM(st, qep_json_parse(text, len, "manifest.json", &root));
    if (st != QEP_OK)
        return QEP_OK;
    const cJSON *key = qep_json_get(root, "format");
    *ours = cJSON_IsString(key) && strcmp(key->valuestring, QEP_MANIFEST_FORMAT) == 0;
    if (*ours)
        st = add_listed(qep_json_get(root, "files"), names);
    if (*ours && st == QEP_OK)
        st = add_listed(qep_json_get(root, "side_files"), names);
    cJSON_Delete(root);
    return st;
}

enum qep_status build_old_read(const struct qep_dir *dir, const char *name,
                               struct build_names *names, char hash[QEP_HASH_TEXT]) {
    char *text = NULL;
    size_t len = 0;
    bool ours = false;
    build_names_free(names);
    hash[0] = '\0';
    if (qep_dir_entry(dir, name) == QEP_ENTRY_ABSENT)
        return QEP_OK;
    enum qep_status st = qep_dir_read_linked(dir, name, QEP_MANIFEST_MAX_BYTES, &text, &len);
    if (st == QEP_OK)
        st = parse_listed(text, len, names, &ours);
    if (ours)
        qep_hash_text(text, len, hash);
    else if (st != QEP_ERR_SYSTEM)
        st = qep_fail(QEP_ERR_CANTCREATE,
                      "%s/%s: is in the way: no manifest of a shard directory, so that nothing "
                      "here is replaced",
                      dir->path, name);
    free(text);
    return st;
}

enum qep_status build_old_check(const struct qep_build *build, const struct build_names *old,
                                const char *name) {
    enum qep_entry entry = qep_dir_entry(&build->work.dir, name);
    bool replaced = build_names_has(old, name);
    if (entry == QEP_ENTRY_ABSENT ||
        (replaced && (entry == QEP_ENTRY_FILE || entry == QEP_ENTRY_LINK)))
        return QEP_OK;
    return qep_fail(QEP_ERR_CANTCREATE,
                    "%s/%s: is in the way (%s): not of a conversion of ours, so that it is not "
                    "replaced",
                    build->work.dir.path, name, qep_entry_text(entry));
}

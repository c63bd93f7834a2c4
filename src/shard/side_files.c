#include "shard/side_files.h"

#include "base/file.h"
#include "base/json.h"
#include "base/printable.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct qep_side_file *qep_side_files_find(const struct qep_manifest *manifest,
                                                const char *name) {
    for (int i = 0; i < manifest->num_side_files; i++)
        if (strcmp(manifest->side_files[i].name, name) == 0)
            return &manifest->side_files[i];
    return NULL;
}

enum { WORD_BYTES = 600 };

static enum qep_status refuse(const char *dir, const char *path, const char *why) {
    char word[WORD_BYTES];
    qep_text_shell_word(dir, word, sizeof word);
    return qep_fail(QEP_ERR_DATA, "%s: %s; if it is meant: qwen-ep reseal %s%s", path, why,
                    *dir == '-' ? "./" : "", word);
}

static enum qep_status verify_content(const char *dir, const char *path,
                                      const struct qep_side_file *listed) {
    char *data = NULL, hash[QEP_HASH_TEXT], why[160];
    size_t len = 0;
    QEP_TRY(qep_file_read(path, QEP_MAX_SIDE_BYTES, &data, &len));
    qep_hash_text(data, len, hash);
    free(data);
    if (len == listed->bytes && strcmp(hash, listed->hash) == 0)
        return QEP_OK;
    snprintf(why, sizeof why, "changed since the directory was made: expected hash %s, found %s",
             listed->hash, hash);
    return refuse(dir, path, why);
}

/* listed: NULL when the manifest does not have it. */
static enum qep_status verify_one(const char *dir, const char *path,
                                  const struct qep_side_file *listed) {
    bool there = qep_path_exists(path);
    if (there && listed != NULL)
        return verify_content(dir, path, listed);
    if (there)
        return refuse(dir, path, "was not there when the directory was made");
    return listed == NULL ? QEP_OK : refuse(dir, path, "missing, the manifest lists it");
}

enum qep_status qep_side_files_verify(const char *dir, const struct qep_manifest *manifest) {
    enum qep_status st = QEP_OK;
    for (int i = 0; st == QEP_OK && qep_side_file_names[i] != NULL; i++) {
        const char *name = qep_side_file_names[i];
        char *path = NULL;
        QEP_TRY(qep_path_join(dir, name, &path));
        st = verify_one(dir, path, qep_side_files_find(manifest, name));
        free(path);
    }
    return st;
}

/* Other tools have files of that name too; one of ours is told by either mark, should the other be
 * damaged. */
static bool is_ours(const char *text, size_t len) {
    static const char format[] = QEP_MANIFEST_FORMAT, seal[] = "\"xxh3_128\":";
    return memmem(text, len, format, sizeof format - 1) != NULL ||
           memmem(text, len, seal, sizeof seal - 1) != NULL;
}

static enum qep_status verify_with(const char *dir, const char *text, size_t len,
                                   const char *path) {
    struct qep_manifest manifest;
    if (!is_ours(text, len))
        return QEP_OK;
    QEP_TRY(qep_manifest_parse(text, len, path, &manifest));
    enum qep_status st = qep_side_files_verify(dir, &manifest);
    qep_manifest_free(&manifest);
    return st;
}

/* Between the old manifest and the new one side files may be of either. */
static enum qep_status refuse_swap(const char *dir) {
    char *path = NULL;
    QEP_TRY(qep_path_join(dir, ".convert/swap", &path));
    bool there = qep_path_exists(path);
    free(path);
    return there ? qep_fail(QEP_ERR_DATA,
                            "%s: its conversion was interrupted at the end; the same convert "
                            "command finishes it",
                            dir)
                 : QEP_OK;
}

enum qep_status qep_side_files_verify_dir(const char *dir) {
    char *path = NULL, *text = NULL;
    size_t len = 0;
    enum qep_status st = QEP_OK;
    QEP_TRY(qep_path_join(dir, "manifest.json", &path));
    if (qep_path_exists(path))
        st = qep_file_read(path, QEP_MANIFEST_MAX_BYTES, &text, &len);
    else
        st = refuse_swap(dir);
    if (st == QEP_OK && text != NULL)
        st = verify_with(dir, text, len, path);
    free(text);
    free(path);
    return st;
}

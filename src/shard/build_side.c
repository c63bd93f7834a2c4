/* Side files are read once, when the conversion begins: what comes beside the weights is of the
 * time at which the source was opened, whatever happens at its path afterwards. */
#include "base/file.h"
#include "checkpoint/config.h"
#include "shard/build_internal.h"

#include <stdlib.h>
#include <string.h>

/* The manifest's model is what the source was opened with. */
static enum qep_status check_config(const struct qep_build *b, const char *path,
                                    const struct build_side *file) {
    struct qep_model_config now;
    enum qep_status st = QEP_ERR_DATA;
    if (file->data != NULL)
        QEP_TRY_SYSTEM(st, qep_config_parse(file->data, file->len, path, &now));
    if (st == QEP_OK && memcmp(&now, b->options.config, sizeof now) == 0)
        return QEP_OK;
    return qep_fail(QEP_ERR_DATA, "%s: changed since it was read a moment ago", path);
}

static enum qep_status take_text(const struct qep_build *b, struct build_side *out) {
    out->data = malloc(b->options.config_len + 1);
    if (out->data == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "config.json: out of memory");
    memcpy(out->data, b->options.config_text, b->options.config_len);
    out->len = b->options.config_len;
    return QEP_OK;
}

static enum qep_status read_one(const struct qep_build *b, const char *name,
                                struct build_side *out) {
    bool is_config = strcmp(name, "config.json") == 0;
    char *path = NULL;
    if (is_config && b->options.config_text != NULL)
        return take_text(b, out);
    if (b->options.side_dir == NULL)
        return QEP_OK;
    QEP_TRY(qep_path_join(b->options.side_dir, name, &path));
    enum qep_status st = QEP_OK;
    if (qep_path_exists(path))
        st = qep_file_read(path, QEP_MAX_SIDE_BYTES, &out->data, &out->len);
    if (st == QEP_OK && is_config)
        st = check_config(b, path, out);
    free(path);
    return st;
}

enum qep_status build_side_read(struct qep_build *build) {
    build_side_free(build);
    for (int i = 0; qep_side_file_names[i] != NULL; i++)
        QEP_TRY(read_one(build, qep_side_file_names[i], &build->side[i]));
    return QEP_OK;
}

void build_side_free(struct qep_build *build) {
    for (int i = 0; i < QEP_MAX_SIDE_FILES; i++)
        free(build->side[i].data);
    memset(build->side, 0, sizeof build->side);
}

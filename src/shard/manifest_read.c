#include "shard/manifest.h"

#include "base/json.h"
#include "base/mem.h"
#include "checkpoint/config.h"
#include "quant/recipe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static const char *const type_names[] = {"f32", "bf16", "int8", "int4"};

const char *qep_weight_type_name(enum qep_weight_type type) {
    return type_names[type];
}

void qep_hash_text(const void *data, size_t len, char out[QEP_HASH_TEXT]) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, len));
    for (int i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", canonical.digest[i]);
}

static const char seal_key[] = ",\n\"xxh3_128\":\"";

/* The text ends in: ,\n"xxh3_128":"<32 hex digits>"}\n  over which the hash does not run. */
static enum qep_status check_seal(const char *text, size_t len, const char *where) {
    const size_t key = sizeof seal_key - 1, tail = key + 32 + 3;
    char hash[QEP_HASH_TEXT];
    if (len < tail || memcmp(text + len - tail, seal_key, key) != 0 ||
        memcmp(text + len - 3, "\"}\n", 3) != 0)
        return qep_fail(QEP_ERR_DATA, "%s: damaged or truncated: it does not end with its own hash",
                        where);
    qep_hash_text(text, len - tail, hash);
    if (memcmp(hash, text + len - 35, 32) != 0)
        return qep_fail(QEP_ERR_DATA,
                        "%s: damaged or edited: its hash is %s, expected %.32s as its end says",
                        where, hash, text + len - 35);
    return QEP_OK;
}

static enum qep_status get_hash(const cJSON *obj, const char *key, const char *where, size_t digits,
                                char *out) {
    const char *text = NULL;
    QEP_TRY(qep_json_string(obj, key, where, &text));
    if (strlen(text) != digits || strspn(text, "0123456789abcdef") != digits)
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\": expected %zu hex digits, found \"%.40s\"", where,
                        key, digits, text);
    memcpy(out, text, digits + 1);
    return QEP_OK;
}

static enum qep_status get_bytes(const cJSON *obj, const char *where, uint64_t *out) {
    int64_t bytes = 0;
    QEP_TRY(qep_json_int(obj, "bytes", where, 0, (int64_t)1 << 52, &bytes));
    *out = (uint64_t)bytes;
    return QEP_OK;
}

static enum qep_status parse_identity(const cJSON *obj, const char *where,
                                      struct qep_file_identity *out) {
    char index_hash[17];
    QEP_TRY(get_bytes(obj, where, &out->bytes));
    QEP_TRY(get_hash(obj, "xxh3_128", where, 32, out->hash));
    QEP_TRY(get_hash(obj, "index_xxh3", where, 16, index_hash));
    out->index_hash = strtoull(index_hash, NULL, 16);
    return QEP_OK;
}

enum qep_status qep_manifest_parse_entry(const char *text, size_t len, const char *where,
                                         struct qep_file_identity *out) {
    cJSON *root = NULL;
    QEP_TRY(qep_json_parse(text, len, where, &root));
    enum qep_status st = parse_identity(root, where, out);
    cJSON_Delete(root);
    return st;
}

/* ["int4", rows, cols] */
static enum qep_status parse_tensor(const cJSON *item, const char *where,
                                    const struct qep_tensor_spec *spec,
                                    enum qep_weight_type *type) {
    const cJSON *name = cJSON_GetArrayItem(item, 0), *rows = cJSON_GetArrayItem(item, 1),
                *cols = cJSON_GetArrayItem(item, 2);
    if (!cJSON_IsArray(item) || !cJSON_IsString(name) || !cJSON_IsNumber(rows) ||
        !cJSON_IsNumber(cols))
        return qep_fail(QEP_ERR_DATA, "%s: tensor %s: expected [type, rows, cols]", where,
                        spec->name);
    if (rows->valuedouble != (double)spec->rows || cols->valuedouble != (double)spec->cols)
        return qep_fail(QEP_ERR_DATA, "%s: tensor %s: expected shape [%lld, %lld], found [%g, %g]",
                        where, spec->name, (long long)spec->rows, (long long)spec->cols,
                        rows->valuedouble, cols->valuedouble);
    for (int i = 0; i < 4; i++)
        if (strcmp(name->valuestring, type_names[i]) == 0) {
            *type = (enum qep_weight_type)i;
            if (i >= QEP_WEIGHT_INT8 && spec->kind != QEP_TENSOR_MATRIX)
                break;
            return QEP_OK;
        }
    return qep_fail(QEP_ERR_DATA, "%s: tensor %s: unexpected type \"%.20s\"", where, spec->name,
                    name->valuestring);
}

static enum qep_status parse_file(struct qep_manifest *m, size_t file_idx, const cJSON *item,
                                  const char *where) {
    const struct qep_layout_file *file = &m->layout.files[file_idx];
    const cJSON *tensors = qep_json_get(item, "tensors"), *tensor = NULL;
    const char *name = NULL;
    size_t n = 0;
    QEP_TRY(qep_json_string(item, "name", where, &name));
    if (strcmp(name, file->name) != 0)
        return qep_fail(QEP_ERR_DATA, "%s: \"files\"[%zu]: expected %s, found \"%.60s\"", where,
                        file_idx, file->name, name);
    QEP_TRY(parse_identity(item, where, &m->files[file_idx]));
    if (!cJSON_IsObject(tensors))
        return qep_fail(QEP_ERR_DATA, "%s: %s: \"tensors\": expected an object", where, name);
    cJSON_ArrayForEach (tensor, tensors) {
        const struct qep_tensor_spec *spec =
            n < file->num_specs ? &m->inventory.specs[file->specs[n]] : NULL;
        if (spec == NULL || strcmp(spec->name, tensor->string) != 0)
            return qep_fail(QEP_ERR_DATA, "%s: %s: expected tensor %s, found \"%.80s\"", where,
                            name, spec != NULL ? spec->name : "(no more)", tensor->string);
        QEP_TRY(parse_tensor(tensor, where, spec, &m->types[file->specs[n]]));
        n++;
    }
    if (n < file->num_specs)
        return qep_fail(QEP_ERR_DATA, "%s: %s: tensor %s is missing", where, name,
                        m->inventory.specs[file->specs[n]].name);
    m->info.stored_bytes += m->files[file_idx].bytes;
    return QEP_OK;
}

static enum qep_status parse_files(struct qep_manifest *m, const cJSON *root, const char *where) {
    const cJSON *files = qep_json_get(root, "files"), *item = NULL;
    void *mem = NULL;
    size_t n = 0;
    QEP_TRY(qep_inventory_create(&m->config, &m->inventory));
    QEP_TRY(qep_layout_create(&m->config, &m->inventory, m->info.num_shards, &m->layout));
    QEP_TRY(qep_calloc(m->inventory.num_specs, sizeof *m->types, "manifest", &mem));
    m->types = mem;
    QEP_TRY(qep_calloc(m->layout.num_files, sizeof *m->files, "manifest", &mem));
    m->files = mem;
    if (!cJSON_IsArray(files) || (size_t)cJSON_GetArraySize(files) != m->layout.num_files)
        return qep_fail(QEP_ERR_DATA, "%s: \"files\": expected a list of %zu files", where,
                        m->layout.num_files);
    cJSON_ArrayForEach (item, files) {
        QEP_TRY(parse_file(m, n++, item, where));
    }
    for (size_t i = 0; i < m->inventory.num_specs; i++) {
        struct qep_part parts[2];
        int num = qep_layout_parts(&m->inventory.specs[i], m->types[i], m->info.group_size, parts);
        for (int p = 0; p < num; p++)
            m->info.tensor_bytes += (uint64_t)parts[p].rows * parts[p].row_bytes;
    }
    return QEP_OK;
}

static enum qep_status parse_side_files(struct qep_manifest *m, const cJSON *root,
                                        const char *where) {
    const cJSON *list = qep_json_get(root, "side_files"), *item = NULL;
    if (!cJSON_IsArray(list))
        return qep_fail(QEP_ERR_DATA, "%s: \"side_files\": expected a list", where);
    cJSON_ArrayForEach (item, list) {
        const char *name = NULL;
        bool known = false;
        QEP_TRY(qep_json_string(item, "name", where, &name));
        for (int i = 0; qep_side_file_names[i] != NULL; i++)
            known = known || strcmp(name, qep_side_file_names[i]) == 0;
        if (!known || m->num_side_files == QEP_MAX_SIDE_FILES)
            return qep_fail(QEP_ERR_DATA, "%s: \"side_files\": unexpected file \"%.60s\"", where,
                            name);
        struct qep_side_file *file = &m->side_files[m->num_side_files++];
        snprintf(file->name, sizeof file->name, "%s", name);
        QEP_TRY(get_bytes(item, where, &file->bytes));
        QEP_TRY(get_hash(item, "xxh3_128", where, 32, file->hash));
    }
    return QEP_OK;
}

static enum qep_status parse_head(struct qep_manifest *m, const cJSON *root, const char *where) {
    const cJSON *recipe = qep_json_get(root, "recipe");
    const char *format = NULL, *name = NULL;
    int64_t version = 0, group_size = 0, num_shards = 0;
    QEP_TRY(qep_json_string(root, "format", where, &format));
    if (strcmp(format, QEP_MANIFEST_FORMAT) != 0)
        return qep_fail(QEP_ERR_DATA,
                        "%s: no manifest of a shard directory: \"format\" is \"%.60s\"", where,
                        format);
    QEP_TRY(qep_json_int(root, "version", where, 1, 1 << 20, &version));
    if (version != QEP_MANIFEST_VERSION)
        return qep_fail(QEP_ERR_DATA, "%s: \"version\": expected %d, found %lld (convert again)",
                        where, QEP_MANIFEST_VERSION, (long long)version);
    QEP_TRY(qep_config_from_json(qep_json_get(root, "model"), where, &m->config));
    QEP_TRY(qep_json_string(recipe, "name", where, &name));
    QEP_TRY(qep_recipe_check_name(name, where));
    QEP_TRY(qep_json_int(recipe, "group_size", where, 1, 1024, &group_size));
    QEP_TRY(qep_json_int(root, "num_shards", where, 1, QEP_MAX_SHARDS, &num_shards));
    if (group_size % 32 != 0)
        return qep_fail(QEP_ERR_DATA, "%s: \"group_size\": expected a multiple of 32, found %lld",
                        where, (long long)group_size);
    snprintf(m->info.recipe, sizeof m->info.recipe, "%s", name);
    m->info.group_size = (int32_t)group_size;
    m->info.num_shards = (int32_t)num_shards;
    return QEP_OK;
}

enum qep_status qep_manifest_parse(const char *text, size_t len, const char *where,
                                   struct qep_manifest *out) {
    cJSON *root = NULL;
    enum qep_status st = QEP_OK;
    memset(out, 0, sizeof *out);
    QEP_TRY(check_seal(text, len, where));
    QEP_TRY(qep_json_parse(text, len, where, &root));
    QEP_TRY_GOTO(st, done, parse_head(out, root, where));
    QEP_TRY_GOTO(st, done, parse_side_files(out, root, where));
    QEP_TRY_GOTO(st, done, parse_files(out, root, where));
    qep_hash_text(text, len, out->info.identity);
done:
    cJSON_Delete(root);
    if (st != QEP_OK)
        qep_manifest_free(out);
    return st;
}

void qep_manifest_free(struct qep_manifest *manifest) {
    qep_inventory_free(&manifest->inventory);
    qep_layout_free(&manifest->layout);
    free(manifest->types);
    free(manifest->files);
    memset(manifest, 0, sizeof *manifest);
}

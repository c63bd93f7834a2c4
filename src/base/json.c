#include "base/json.h"

#include "base/file.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* cJSON says alike that text is no JSON and that memory is short. */
static _Thread_local bool out_of_memory;

static void *json_malloc(size_t bytes) {
    void *p = malloc(bytes);
    out_of_memory = out_of_memory || p == NULL;
    return p;
}

static void install_hooks(void) {
    cJSON_Hooks hooks = {.malloc_fn = json_malloc, .free_fn = free};
    cJSON_InitHooks(&hooks);
}

static const char *kind_of(const cJSON *item) {
    if (cJSON_IsString(item))
        return "a string";
    if (cJSON_IsNumber(item))
        return "a number";
    if (cJSON_IsBool(item))
        return "a boolean";
    if (cJSON_IsNull(item))
        return "null";
    if (cJSON_IsArray(item))
        return "a list";
    return cJSON_IsObject(item) ? "an object" : "nothing";
}

/* As many values as the text can hold at most: one, and one after each bracket and comma. */
static size_t count_values(const char *text, size_t len) {
    size_t count = 1;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (in_string && c == '\\')
            i++;
        else if (c == '"')
            in_string = !in_string;
        else if (!in_string && (c == ',' || c == '[' || c == '{'))
            count++;
    }
    return count;
}

static enum qep_status build_tree(const char *text, size_t len, const char *where, cJSON **tree,
                                  const char **end) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    size_t values = count_values(text, len);
    if (values > QEP_JSON_MAX_VALUES)
        return qep_fail(QEP_ERR_DATA, "%s: expected at most %d values, found %zu", where,
                        QEP_JSON_MAX_VALUES, values);
    pthread_once(&once, install_hooks);
    out_of_memory = false;
    *tree = cJSON_ParseWithLengthOpts(text, len, end, false);
    if (*tree != NULL)
        return QEP_OK;
    if (out_of_memory)
        return qep_fail(QEP_ERR_SYSTEM, "%s: out of memory (%zu bytes of JSON)", where, len);
    return qep_fail(QEP_ERR_DATA, "%s: invalid JSON at byte %ld", where,
                    *end != NULL ? (long)(*end - text) : 0);
}

enum qep_status qep_json_parse(const char *text, size_t len, const char *where, cJSON **out) {
    const char *end = NULL;
    *out = NULL;
    cJSON *tree = NULL;
    QEP_TRY(build_tree(text, len, where, &tree, &end));
    for (; end < text + len; end++) {
        if (strchr(" \t\r\n", *end) != NULL && *end != '\0')
            continue;
        cJSON_Delete(tree);
        return qep_fail(QEP_ERR_DATA, "%s: unexpected text after the JSON value at byte %ld", where,
                        (long)(end - text));
    }
    if (!cJSON_IsObject(tree)) {
        const char *kind = kind_of(tree);
        cJSON_Delete(tree);
        return qep_fail(QEP_ERR_DATA, "%s: expected a JSON object, found %s", where, kind);
    }
    *out = tree;
    return QEP_OK;
}

enum qep_status qep_json_read(const char *path, size_t max_bytes, cJSON **out) {
    char *text = NULL;
    size_t len = 0;
    *out = NULL;
    QEP_TRY(qep_file_read(path, max_bytes, &text, &len));
    enum qep_status st = qep_json_parse(text, len, path, out);
    free(text);
    return st;
}

const cJSON *qep_json_get(const cJSON *obj, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(obj, key);
    return cJSON_IsNull(item) ? NULL : item;
}

enum qep_status qep_json_int_opt(const cJSON *obj, const char *key, const char *where, int64_t min,
                                 int64_t max, int64_t *out) {
    const cJSON *item = qep_json_get(obj, key);
    if (item == NULL)
        return QEP_OK;
    if (!cJSON_IsNumber(item))
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\": expected a whole number, found %s", where, key,
                        kind_of(item));
    double value = item->valuedouble;
    if (!(value >= (double)min && value <= (double)max) || value != floor(value))
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\": expected a whole number in %lld..%lld, found %g",
                        where, key, (long long)min, (long long)max, value);
    *out = (int64_t)value;
    return QEP_OK;
}

enum qep_status qep_json_int(const cJSON *obj, const char *key, const char *where, int64_t min,
                             int64_t max, int64_t *out) {
    if (qep_json_get(obj, key) == NULL)
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\" is missing", where, key);
    return qep_json_int_opt(obj, key, where, min, max, out);
}

enum qep_status qep_json_double_opt(const cJSON *obj, const char *key, const char *where,
                                    double min, double max, double *out) {
    const cJSON *item = qep_json_get(obj, key);
    if (item == NULL)
        return QEP_OK;
    if (!cJSON_IsNumber(item))
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\": expected a number, found %s", where, key,
                        kind_of(item));
    if (!(item->valuedouble >= min && item->valuedouble <= max))
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\": expected a number in %g..%g, found %g", where,
                        key, min, max, item->valuedouble);
    *out = item->valuedouble;
    return QEP_OK;
}

enum qep_status qep_json_bool_opt(const cJSON *obj, const char *key, const char *where, bool *out) {
    const cJSON *item = qep_json_get(obj, key);
    if (item == NULL)
        return QEP_OK;
    if (!cJSON_IsBool(item))
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\": expected true or false, found %s", where, key,
                        kind_of(item));
    *out = cJSON_IsTrue(item);
    return QEP_OK;
}

enum qep_status qep_json_string_opt(const cJSON *obj, const char *key, const char *where,
                                    const char **out) {
    const cJSON *item = qep_json_get(obj, key);
    *out = NULL;
    if (item == NULL)
        return QEP_OK;
    if (!cJSON_IsString(item))
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\": expected a string, found %s", where, key,
                        kind_of(item));
    *out = item->valuestring;
    return QEP_OK;
}

enum qep_status qep_json_string(const cJSON *obj, const char *key, const char *where,
                                const char **out) {
    if (qep_json_get(obj, key) == NULL)
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\" is missing", where, key);
    return qep_json_string_opt(obj, key, where, out);
}

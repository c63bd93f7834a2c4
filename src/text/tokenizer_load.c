/* tokenizer.json -> struct qep_tokenizer. Every field that would change ids is either understood or
 * refused by name. */
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "text/tokenizer.h"
#include "text/tokenizer_data.h"

#include <stdlib.h>
#include <string.h>

static enum qep_status want_false(const cJSON *obj, const char *key, const char *where) {
    bool value = false;
    QEP_TRY(qep_json_bool_opt(obj, key, where, &value));
    return value ? qep_fail(QEP_ERR_DATA, "%s: \"%s\": true is not supported", where, key) : QEP_OK;
}

static enum qep_status want_empty(const cJSON *obj, const char *key, const char *where) {
    const char *value = NULL;
    QEP_TRY(qep_json_string_opt(obj, key, where, &value));
    if (value != NULL && *value != '\0')
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\": \"%s\" is not supported", where, key, value);
    return QEP_OK;
}

/* The "type" of a component, "" when the component is absent or null. */
static enum qep_status component(const cJSON *root, const char *key, const char *where,
                                 const cJSON **obj, const char **type) {
    *obj = qep_json_get(root, key);
    *type = "";
    if (*obj == NULL)
        return QEP_OK;
    if (!cJSON_IsObject(*obj))
        return qep_fail(QEP_ERR_DATA, "%s: \"%s\": expected an object", where, key);
    return qep_json_string(*obj, "type", where, type);
}

static enum qep_status load_normalizer(struct qep_tokenizer *tok, const cJSON *root,
                                       const char *where) {
    const cJSON *obj;
    const char *type;
    QEP_TRY(component(root, "normalizer", where, &obj, &type));
    if (*type != '\0' && strcmp(type, "NFC") != 0)
        return qep_fail(QEP_ERR_DATA, "%s: normalizer: expected NFC or null, found %s", where,
                        type);
    tok->nfc = obj != NULL;
    return QEP_OK;
}

static enum qep_status load_split(struct qep_tokenizer *tok, const cJSON *split,
                                  const char *where) {
    const char *type = NULL, *behavior = NULL, *regex = NULL;
    QEP_TRY(qep_json_string(split, "type", where, &type));
    if (strcmp(type, "Split") != 0)
        return qep_fail(QEP_ERR_DATA, "%s: pre_tokenizer: expected Split first, found %s", where,
                        type);
    QEP_TRY(qep_json_string(split, "behavior", where, &behavior));
    if (strcmp(behavior, "Isolated") != 0)
        return qep_fail(QEP_ERR_DATA, "%s: pre_tokenizer: Split: expected Isolated, found %s",
                        where, behavior);
    QEP_TRY(want_false(split, "invert", where));
    QEP_TRY(qep_json_string(qep_json_get(split, "pattern"), "Regex", where, &regex));
    return qep_splitter_create(regex, where, &tok->splitter);
}

static enum qep_status load_pre_tokenizer(struct qep_tokenizer *tok, const cJSON *root,
                                          const char *where) {
    const cJSON *obj;
    const char *type;
    bool use_regex = true, prefix_space = true; /* what tokenizers assumes when absent */
    QEP_TRY(component(root, "pre_tokenizer", where, &obj, &type));
    const cJSON *list = qep_json_get(obj, "pretokenizers");
    if (strcmp(type, "Sequence") != 0 || cJSON_GetArraySize(list) != 2)
        return qep_fail(QEP_ERR_DATA,
                        "%s: pre_tokenizer: expected Sequence [Split, ByteLevel], found %s", where,
                        *type != '\0' ? type : "nothing");
    const cJSON *bytes = cJSON_GetArrayItem(list, 1);
    QEP_TRY(load_split(tok, cJSON_GetArrayItem(list, 0), where));
    QEP_TRY(qep_json_string(bytes, "type", where, &type));
    if (strcmp(type, "ByteLevel") != 0)
        return qep_fail(QEP_ERR_DATA, "%s: pre_tokenizer: expected ByteLevel last, found %s", where,
                        type);
    QEP_TRY(qep_json_bool_opt(bytes, "use_regex", where, &use_regex));
    QEP_TRY(qep_json_bool_opt(bytes, "add_prefix_space", where, &prefix_space));
    if (use_regex || prefix_space)
        return qep_fail(QEP_ERR_DATA,
                        "%s: pre_tokenizer: ByteLevel: expected use_regex and add_prefix_space "
                        "false",
                        where);
    return QEP_OK;
}

static enum qep_status check_ends(const cJSON *root, const char *where) {
    const cJSON *obj;
    const char *type;
    QEP_TRY(component(root, "post_processor", where, &obj, &type));
    if (*type != '\0' && strcmp(type, "ByteLevel") != 0)
        return qep_fail(QEP_ERR_DATA, "%s: post_processor: expected ByteLevel or null, found %s",
                        where, type);
    QEP_TRY(component(root, "decoder", where, &obj, &type));
    if (strcmp(type, "ByteLevel") != 0)
        return qep_fail(QEP_ERR_DATA, "%s: decoder: expected ByteLevel, found %s", where,
                        *type != '\0' ? type : "nothing");
    return QEP_OK;
}

static enum qep_status check_model(const cJSON *model, const char *where) {
    const char *type = "BPE"; /* files of before 2020 name no type */
    if (!cJSON_IsObject(model))
        return qep_fail(QEP_ERR_DATA, "%s: \"model\": expected an object", where);
    if (qep_json_get(model, "type") != NULL)
        QEP_TRY(qep_json_string(model, "type", where, &type));
    if (strcmp(type, "BPE") != 0)
        return qep_fail(QEP_ERR_DATA, "%s: model: expected BPE, found %s", where, type);
    double dropout = 0;
    QEP_TRY(qep_json_double_opt(model, "dropout", where, 0, 0, &dropout));
    QEP_TRY(want_false(model, "byte_fallback", where));
    QEP_TRY(want_empty(model, "continuing_subword_prefix", where));
    QEP_TRY(want_empty(model, "end_of_word_suffix", where));
    if (!cJSON_IsObject(qep_json_get(model, "vocab")))
        return qep_fail(QEP_ERR_DATA, "%s: model: \"vocab\": expected an object", where);
    if (!cJSON_IsArray(qep_json_get(model, "merges")))
        return qep_fail(QEP_ERR_DATA, "%s: model: \"merges\": expected a list", where);
    return QEP_OK;
}

static enum qep_status check_vocab_size(const char *where, const char *text, int64_t id,
                                        int64_t vocab_size) {
    if (vocab_size > 0 && id >= vocab_size)
        return qep_fail(QEP_ERR_DATA,
                        "%s: token \"%s\": expected an id below the model's vocab_size %lld, found "
                        "%lld",
                        where, text, (long long)vocab_size, (long long)id);
    return QEP_OK;
}

static enum qep_status load_vocab(struct qep_tokenizer *tok, const cJSON *vocab, const char *where,
                                  int64_t vocab_size) {
    const cJSON *item;
    cJSON_ArrayForEach (item, vocab) {
        if (!cJSON_IsNumber(item) || item->valuedouble != (double)(int64_t)item->valueint)
            return qep_fail(QEP_ERR_DATA, "%s: token \"%s\": expected a whole id", where,
                            item->string);
        QEP_TRY(check_vocab_size(where, item->string, item->valueint, vocab_size));
        QEP_TRY(qep_vocab_add(&tok->vocab, where, item->string, strlen(item->string),
                              item->valueint, false, false));
    }
    qep_vocab_find_bytes(&tok->vocab);
    return QEP_OK;
}

/* The two sides of a merge, written "left right" or ["left", "right"]. */
static enum qep_status merge_sides(const cJSON *item, const char *where, long rank,
                                   const char **left, size_t *left_len, const char **right) {
    if (cJSON_IsString(item)) {
        const char *space = strchr(item->valuestring, ' ');
        if (space != NULL && strchr(space + 1, ' ') == NULL) {
            *left = item->valuestring;
            *left_len = (size_t)(space - item->valuestring);
            *right = space + 1;
            return QEP_OK;
        }
    } else if (cJSON_IsArray(item) && cJSON_GetArraySize(item) == 2 &&
               cJSON_IsString(item->child) && cJSON_IsString(item->child->next)) {
        *left = item->child->valuestring;
        *left_len = strlen(*left);
        *right = item->child->next->valuestring;
        return QEP_OK;
    }
    return qep_fail(QEP_ERR_DATA, "%s: merge %ld: expected \"left right\" or [\"left\", \"right\"]",
                    where, rank);
}

static enum qep_status load_merges(struct qep_tokenizer *tok, const cJSON *merges,
                                   const char *where) {
    struct qep_bytes joined = {0};
    const cJSON *item;
    long rank = 0;
    enum qep_status st = QEP_OK;
    cJSON_ArrayForEach (item, merges) {
        const char *left = NULL, *right = NULL;
        size_t left_len = 0;
        QEP_TRY_GOTO(st, done, merge_sides(item, where, rank, &left, &left_len, &right));
        joined.len = 0;
        QEP_TRY_GOTO(st, done, qep_bytes_append(&joined, left, left_len));
        QEP_TRY_GOTO(st, done, qep_bytes_append(&joined, right, strlen(right)));
        int32_t left_id = qep_vocab_find(&tok->vocab, left, left_len);
        int32_t right_id = qep_vocab_find(&tok->vocab, right, strlen(right));
        int32_t id = joined.len > 0 ? qep_vocab_find(&tok->vocab, joined.data, joined.len) : -1;
        if (left_id < 0 || right_id < 0 || id < 0) {
            st = qep_fail(QEP_ERR_DATA, "%s: merge %ld: \"%.*s\" is not in the vocabulary", where,
                          rank,
                          left_id < 0    ? (int)left_len
                          : right_id < 0 ? 200
                                         : (int)joined.len,
                          left_id < 0      ? left
                          : right_id < 0   ? right
                          : joined.len > 0 ? joined.data
                                           : "");
            goto done;
        }
        qep_vocab_add_merge(&tok->vocab, left_id, right_id, (int32_t)rank++, id);
    }
done:
    qep_bytes_free(&joined);
    return st;
}

static enum qep_status append_added(struct qep_added_set *set, int32_t id) {
    struct qep_ids ids = {set->ids, set->count, set->cap};
    QEP_TRY(qep_ids_append(&ids, id));
    set->ids = ids.items;
    set->count = ids.count;
    set->cap = ids.cap;
    return QEP_OK;
}

static enum qep_status load_added(struct qep_tokenizer *tok, const cJSON *item, const char *where,
                                  int64_t vocab_size) {
    const char *content = NULL;
    int64_t id = 0;
    bool special = false, normalized = false;
    QEP_TRY(qep_json_string(item, "content", where, &content));
    QEP_TRY(qep_json_int(item, "id", where, 0, QEP_VOCAB_MAX_IDS - 1, &id));
    QEP_TRY(check_vocab_size(where, content, id, vocab_size));
    if (strlen(content) > QEP_ADDED_MAX_BYTES)
        return qep_fail(QEP_ERR_DATA, "%s: added token %lld: expected at most %d bytes, found %zu",
                        where, (long long)id, QEP_ADDED_MAX_BYTES, strlen(content));
    QEP_TRY(want_false(item, "lstrip", where));
    QEP_TRY(want_false(item, "rstrip", where));
    QEP_TRY(want_false(item, "single_word", where));
    QEP_TRY(qep_json_bool_opt(item, "special", where, &special));
    QEP_TRY(qep_json_bool_opt(item, "normalized", where, &normalized));
    int32_t in_vocab = qep_vocab_find(&tok->vocab, content, strlen(content));
    if (in_vocab >= 0 && in_vocab != id)
        return qep_fail(QEP_ERR_DATA, "%s: token \"%s\" has two ids, %d and %lld", where, content,
                        in_vocab, (long long)id);
    QEP_TRY(qep_vocab_add(&tok->vocab, where, content, strlen(content), id, true, special));
    if (*content == '\0')
        return QEP_OK; /* nothing to look for */
    return append_added(normalized ? &tok->normalized : &tok->raw, (int32_t)id);
}

static enum qep_status load_all(struct qep_tokenizer *tok, const cJSON *root, const char *where,
                                int64_t vocab_size) {
    const cJSON *model = qep_json_get(root, "model"), *item;
    const cJSON *added = qep_json_get(root, "added_tokens");
    QEP_TRY(check_model(model, where));
    QEP_TRY(load_normalizer(tok, root, where));
    QEP_TRY(load_pre_tokenizer(tok, root, where));
    QEP_TRY(check_ends(root, where));
    QEP_TRY(qep_json_bool_opt(model, "ignore_merges", where, &tok->ignore_merges));
    const cJSON *vocab = qep_json_get(model, "vocab"), *merges = qep_json_get(model, "merges");
    QEP_TRY(qep_vocab_init(&tok->vocab, (size_t)cJSON_GetArraySize(vocab),
                           (size_t)cJSON_GetArraySize(merges)));
    QEP_TRY(load_vocab(tok, vocab, where, vocab_size));
    QEP_TRY(load_merges(tok, merges, where));
    if (added != NULL && !cJSON_IsArray(added))
        return qep_fail(QEP_ERR_DATA, "%s: \"added_tokens\": expected a list", where);
    cJSON_ArrayForEach (item, added) {
        QEP_TRY(load_added(tok, item, where, vocab_size));
    }
    QEP_TRY(qep_added_set_index(&tok->raw, &tok->vocab));
    return qep_added_set_index(&tok->normalized, &tok->vocab);
}

enum qep_status qep_tokenizer_parse(const char *json, size_t len, const char *where,
                                    int64_t vocab_size, struct qep_tokenizer **out) {
    cJSON *root = NULL;
    void *p = NULL;
    *out = NULL;
    QEP_TRY(qep_json_parse(json, len, where, &root));
    enum qep_status st = qep_calloc(1, sizeof **out, "tokenizer", &p);
    struct qep_tokenizer *tok = p;
    if (st == QEP_OK)
        st = load_all(tok, root, where, vocab_size);
    cJSON_Delete(root);
    if (st != QEP_OK) {
        qep_tokenizer_destroy(tok);
        return st;
    }
    *out = tok;
    return QEP_OK;
}

enum qep_status qep_tokenizer_load(const char *path, int64_t vocab_size,
                                   struct qep_tokenizer **out) {
    char *json = NULL;
    size_t len = 0;
    *out = NULL;
    QEP_TRY(qep_file_read(path, QEP_TOKENIZER_MAX_BYTES, &json, &len));
    enum qep_status st = qep_tokenizer_parse(json, len, path, vocab_size, out);
    free(json);
    return st;
}

void qep_tokenizer_destroy(struct qep_tokenizer *tok) {
    if (tok == NULL)
        return;
    qep_vocab_free(&tok->vocab);
    qep_splitter_destroy(tok->splitter);
    free(tok->raw.ids);
    free(tok->normalized.ids);
    free(tok);
}

#include "cli/options_file.h"

#include "base/number.h"
#include "cli/option_value.h"
#include "text/request_json.h"

#include <stdio.h>
#include <string.h>

static struct qep_value_doc *kept; /* holds the strings that options point at */

/* The row of a key, or NULL. A file does not name a further file. */
static const struct qep_option *find(const struct qep_option_table *tables, size_t num_tables,
                                     const struct qep_value *item) {
    for (size_t t = 0; t < num_tables; t++)
        for (size_t i = 0; i < tables[t].num_options; i++) {
            const struct qep_option *opt = &tables[t].options[i];
            if (strlen(opt->name) == item->key_len &&
                memcmp(opt->name, item->key, item->key_len) == 0)
                return opt->kind == QEP_OPTION_CONFIG_FILE ? NULL : opt;
        }
    return NULL;
}

/* What the command line gives settles what contradicts it, whichever of the two a file has. */
static const struct {
    const char *given, *settles; /* names, separated by spaces */
} contradictions[] = {
    {"think", "no-think"},
    {"no-think", "think"},
    {"quiet", "verbose"},
    {"verbose", "quiet"},
    {"greedy", "temperature top-k top-p min-p"},
    {"temperature", "greedy"},
    {"top-k", "greedy"},
    {"top-p", "greedy"},
    {"min-p", "greedy"},
    {"prompt", "prompt-file prompt-tokens chat interactive"},
    {"prompt-file", "prompt prompt-tokens chat interactive"},
    {"prompt-tokens", "prompt prompt-file chat interactive"},
    {"chat", "prompt prompt-file prompt-tokens interactive system raw"},
    {"interactive", "prompt prompt-file prompt-tokens chat raw json logits"},
    {"raw", "chat interactive system"},
    {"system", "chat raw"},
    {"json", "interactive"},
    {"logits", "interactive"},
    {"model", "config weights layers"},
    {"config", "model"},
    {"weights", "model"},
    {"layers", "model"},
};

static bool has_word(const char *words, const char *word) {
    size_t len = strlen(word);
    for (const char *at = words; (at = strstr(at, word)) != NULL; at += len)
        if ((at == words || at[-1] == ' ') && (at[len] == ' ' || at[len] == '\0'))
            return true;
    return false;
}

static bool is_settled_by(const char *given, const char *name) {
    for (size_t i = 0; i < sizeof contradictions / sizeof *contradictions; i++)
        if (strcmp(contradictions[i].given, given) == 0)
            return has_word(contradictions[i].settles, name);
    return false;
}

/* Has the command line this option, or one that contradicts it? */
static bool is_settled(const struct qep_option_table *tables, size_t num_tables,
                       const struct qep_options_found *found, const char *name) {
    size_t idx = 0;
    for (size_t t = 0; t < num_tables; t++)
        for (size_t i = 0; i < tables[t].num_options; i++, idx++)
            if (found->given[idx] && (strcmp(tables[t].options[i].name, name) == 0 ||
                                      is_settled_by(tables[t].options[i].name, name)))
                return true;
    return false;
}

static bool read_value(const struct qep_option *opt, const struct qep_value *item,
                       struct qep_option_value *out) {
    if (opt->kind == QEP_OPTION_FLAG)
        return item->kind == QEP_VALUE_TRUE || item->kind == QEP_VALUE_FALSE;
    if (opt->kind == QEP_OPTION_INT)
        return item->kind == QEP_VALUE_NUMBER &&
               qep_parse_whole(item->text, item->len, (int64_t)opt->min, (int64_t)opt->max,
                               &out->whole);
    if (opt->kind == QEP_OPTION_DOUBLE)
        return item->kind == QEP_VALUE_NUMBER && qep_option_read(opt, item->text, out);
    return item->kind == QEP_VALUE_STRING && strlen(item->text) == item->len &&
           qep_option_read(opt, item->text, out);
}

static const char *kind_text(const struct qep_value *item) {
    static const char *const texts[] = {"null",     "false",  "true",     "a number",
                                        "a string", "a list", "an object"};
    return texts[item->kind];
}

static enum qep_status refuse(const struct qep_option *opt, const struct qep_value *item,
                              const char *path) {
    char expected[256], found[80];
    qep_option_expected(opt, expected, sizeof expected);
    if (item->kind == QEP_VALUE_NUMBER)
        snprintf(found, sizeof found, "%.64s", item->text);
    else if (item->kind == QEP_VALUE_STRING)
        snprintf(found, sizeof found, "\"%.64s\"%s", item->text,
                 strlen(item->text) < item->len ? " and a NUL" : "");
    else
        snprintf(found, sizeof found, "%s", kind_text(item));
    return qep_fail(QEP_ERR_DATA, "%s: \"%s\": expected %s, found %s", path, opt->name, expected,
                    found);
}

static enum qep_status take(const struct qep_option *opt, const struct qep_value *item,
                            bool settled, const char *path) {
    struct qep_option_value value = {0};
    if (item->kind == QEP_VALUE_NULL)
        return QEP_OK;
    if (!read_value(opt, item, &value))
        return refuse(opt, item, path);
    if (!settled && item->kind != QEP_VALUE_FALSE)
        qep_option_store(opt, &value);
    return QEP_OK;
}

static enum qep_status take_all(const struct qep_option_table *tables, size_t num_tables,
                                const struct qep_options_found *found, const char *path,
                                const struct qep_value *root) {
    if (root->kind != QEP_VALUE_OBJECT)
        return qep_fail(QEP_ERR_DATA, "%s: expected a JSON object, found %s", path,
                        kind_text(root));
    for (const struct qep_value *item = root->child; item != NULL; item = item->next) {
        const struct qep_option *opt = find(tables, num_tables, item);
        if (opt == NULL)
            return qep_fail(QEP_ERR_DATA, "%s: \"%.64s\"%s: not an option that a file can give",
                            path, item->key, strlen(item->key) < item->key_len ? " and a NUL" : "");
        if (item->repeated)
            return qep_fail(QEP_ERR_DATA, "%s: \"%s\": expected once, found again", path,
                            item->key);
        QEP_TRY(take(opt, item, is_settled(tables, num_tables, found, opt->name), path));
    }
    return QEP_OK;
}

enum qep_status qep_options_from_json(const struct qep_option_table *tables, size_t num_tables,
                                      const struct qep_options_found *found, const char *path,
                                      const char *json, size_t len) {
    const struct qep_value *root = NULL;
    qep_value_doc_destroy(kept);
    kept = NULL;
    QEP_TRY(qep_value_parse(json, len, path, &kept, &root));
    return take_all(tables, num_tables, found, path, root);
}

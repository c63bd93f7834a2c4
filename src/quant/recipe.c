#include "quant/recipe.h"

#include "base/json.h"
#include "base/mem.h"
#include "base/printable.h"
#include "quant/recipes_builtin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RULES = 4096 };

/* Greedy with one point to return to: linear for patterns people write, never exponential. */
bool qep_glob_match(const char *pattern, const char *text) {
    const char *star = NULL, *resume = NULL;
    while (*text != '\0') {
        if (*pattern == '*') {
            star = ++pattern;
            resume = text;
        } else if (*pattern == *text) {
            pattern++;
            text++;
        } else if (star != NULL) {
            pattern = star;
            text = ++resume;
        } else {
            return false;
        }
    }
    while (*pattern == '*')
        pattern++;
    return *pattern == '\0';
}

static enum qep_status parse_type(const char *text, const char *where, enum qep_recipe_type *out) {
    static const char *const names[] = {"keep", "bf16", "int8", "int4"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = (enum qep_recipe_type)i;
            return QEP_OK;
        }
    return qep_fail(QEP_ERR_DATA,
                    "%s: \"type\": expected keep, bf16, int8 or int4, found \"%.40s\"", where,
                    text);
}

static enum qep_status parse_rule(const cJSON *item, const char *where,
                                  struct qep_recipe_rule *rule) {
    const char *match = NULL, *type = NULL;
    QEP_TRY(qep_json_string(item, "match", where, &match));
    QEP_TRY(qep_json_string(item, "type", where, &type));
    if (*match == '\0' || strlen(match) >= sizeof rule->match)
        return qep_fail(QEP_ERR_DATA, "%s: \"match\": expected 1 to %zu characters, found %zu",
                        where, sizeof rule->match - 1, strlen(match));
    snprintf(rule->match, sizeof rule->match, "%s", match);
    return parse_type(type, where, &rule->type);
}

static enum qep_status check_keys(const cJSON *root, const char *where) {
    static const char *const known[] = {"name", "description", "group_size", "rules"};
    const cJSON *item = NULL;
    cJSON_ArrayForEach (item, root) {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            found = found || strcmp(item->string, known[i]) == 0;
        if (!found)
            return qep_fail(QEP_ERR_DATA,
                            "%s: \"%.40s\": expected name, description, group_size or rules", where,
                            item->string);
    }
    return QEP_OK;
}

enum qep_status qep_recipe_check_name(const char *name, const char *where) {
    if (*name == '\0' || strlen(name) >= QEP_RECIPE_NAME_MAX || !qep_text_is_printable(name))
        return qep_fail(QEP_ERR_DATA,
                        "%s: recipe \"name\": expected 1 to %d bytes of text without control "
                        "characters, found \"%.60s\"",
                        where, QEP_RECIPE_NAME_MAX - 1, name);
    return QEP_OK;
}

static enum qep_status parse_tree(const cJSON *root, const char *where, struct qep_recipe *out) {
    const char *name = NULL;
    const cJSON *rules = qep_json_get(root, "rules"), *item = NULL;
    int64_t group_size = 32;
    void *mem = NULL;
    QEP_TRY(check_keys(root, where));
    QEP_TRY(qep_json_string(root, "name", where, &name));
    QEP_TRY(qep_recipe_check_name(name, where));
    snprintf(out->name, sizeof out->name, "%s", name);
    QEP_TRY(qep_json_int_opt(root, "group_size", where, 1, 1024, &group_size));
    if (group_size != 32 && group_size != 64 && group_size != 128)
        return qep_fail(QEP_ERR_DATA, "%s: \"group_size\": expected 32, 64 or 128, found %lld",
                        where, (long long)group_size);
    out->group_size = (int32_t)group_size;
    int n = cJSON_IsArray(rules) ? cJSON_GetArraySize(rules) : 0;
    if (n < 1 || n > MAX_RULES)
        return qep_fail(QEP_ERR_DATA, "%s: \"rules\": expected a list of 1 to %d rules", where,
                        MAX_RULES);
    QEP_TRY(qep_calloc((size_t)n, sizeof *out->rules, "recipe", &mem));
    out->rules = mem;
    cJSON_ArrayForEach (item, rules) {
        QEP_TRY(parse_rule(item, where, &out->rules[out->num_rules++]));
    }
    return QEP_OK;
}

enum qep_status qep_recipe_parse(const char *text, size_t len, const char *where,
                                 struct qep_recipe *out) {
    cJSON *root = NULL;
    *out = (struct qep_recipe){0};
    QEP_TRY(qep_json_parse(text, len, where, &root));
    enum qep_status st = parse_tree(root, where, out);
    cJSON_Delete(root);
    if (st != QEP_OK)
        qep_recipe_free(out);
    return st;
}

bool qep_recipe_is_path(const char *name) {
    size_t n = strlen(name);
    return strchr(name, '/') != NULL || (n > 5 && strcmp(name + n - 5, ".json") == 0);
}

enum qep_status qep_recipe_builtin(const char *name, struct qep_recipe *out) {
    *out = (struct qep_recipe){0};
    for (size_t i = 0; i < sizeof qep_builtin_recipes / sizeof *qep_builtin_recipes; i++)
        if (strcmp(name, qep_builtin_recipes[i].name) == 0)
            return qep_recipe_parse(qep_builtin_recipes[i].text, qep_builtin_recipes[i].len, name,
                                    out);
    return qep_fail(QEP_ERR_USAGE,
                    "--recipe: expected bf16, q8, q4, q4-all or a .json file, found '%.80s'", name);
}

void qep_recipe_free(struct qep_recipe *recipe) {
    free(recipe->rules);
    *recipe = (struct qep_recipe){0};
}

enum qep_status qep_recipe_apply(const struct qep_recipe *recipe, const char *tensor,
                                 bool is_matrix, bool from_bf16, enum qep_weight_type *type) {
    for (size_t i = 0; i < recipe->num_rules; i++) {
        if (!qep_glob_match(recipe->rules[i].match, tensor))
            continue;
        switch (recipe->rules[i].type) {
        case QEP_RECIPE_KEEP:
            *type = from_bf16 ? QEP_WEIGHT_BF16 : QEP_WEIGHT_F32;
            return QEP_OK;
        case QEP_RECIPE_BF16:
            *type = QEP_WEIGHT_BF16;
            return QEP_OK;
        case QEP_RECIPE_INT8:
        case QEP_RECIPE_INT4:
            break;
        }
        if (!is_matrix)
            return qep_fail(QEP_ERR_DATA,
                            "recipe %s: \"%s\" quantises tensor %s, which is no matrix: expected "
                            "keep or bf16",
                            recipe->name, recipe->rules[i].match, tensor);
        *type = recipe->rules[i].type == QEP_RECIPE_INT8 ? QEP_WEIGHT_INT8 : QEP_WEIGHT_INT4;
        return QEP_OK;
    }
    return qep_fail(QEP_ERR_DATA, "recipe %s: no rule matches tensor %s", recipe->name, tensor);
}

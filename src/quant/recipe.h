/* Recipes: which canonical tensor becomes what. A recipe is a JSON file of rules, the first whose
 * pattern matches decides; the built-in ones are compiled in from configs/ (bf16, q8, q4, q4-all).
 */
#ifndef QEP_QUANT_RECIPE_H
#define QEP_QUANT_RECIPE_H

#include "base/status.h"
#include "kernels/weight.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { QEP_RECIPE_NAME_MAX = 32, QEP_RECIPE_MATCH_MAX = 128, QEP_RECIPE_MAX_BYTES = 1 << 20 };

enum qep_recipe_type {
    QEP_RECIPE_KEEP, /* bf16 stays bf16, all else becomes f32: nothing is lost */
    QEP_RECIPE_BF16, /* rounded to bf16 */
    QEP_RECIPE_INT8,
    QEP_RECIPE_INT4
};

struct qep_recipe_rule {
    char match[QEP_RECIPE_MATCH_MAX]; /* '*' stands for any run of characters */
    enum qep_recipe_type type;
};

struct qep_recipe {
    char name[QEP_RECIPE_NAME_MAX];
    int32_t group_size;            /* 32, 64 or 128 */
    struct qep_recipe_rule *rules; /* owned */
    size_t num_rules;
};

/* bf16, q8, q4 or q4-all; QEP_ERR_USAGE: another name. */
enum qep_status qep_recipe_builtin(const char *name, struct qep_recipe *out);

/* Whether --recipe means a file: the name contains '/' or ends in .json. */
bool qep_recipe_is_path(const char *name);

/* The text of a recipe file. */
enum qep_status qep_recipe_parse(const char *text, size_t len, const char *where,
                                 struct qep_recipe *out);

/* QEP_ERR_DATA unless it fits struct qep_recipe and can be shown on a terminal: names come from
 * files of others. */
enum qep_status qep_recipe_check_name(const char *name, const char *where);

void qep_recipe_free(struct qep_recipe *recipe); /* zeroes it */

/* What `recipe` makes of a tensor. from_bf16: the source hands out bf16 (else f32); is_matrix: only
 * those can be quantised. QEP_ERR_DATA: no rule matches, or an integer type for a vector. */
enum qep_status qep_recipe_apply(const struct qep_recipe *recipe, const char *tensor,
                                 bool is_matrix, bool from_bf16, enum qep_weight_type *type);

/* '*' matches any run of characters, all else itself. */
bool qep_glob_match(const char *pattern, const char *text);

#endif

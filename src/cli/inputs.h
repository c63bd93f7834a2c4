/* What options of several commands name: a model's config and a recipe. */
#ifndef QEP_CLI_INPUTS_H
#define QEP_CLI_INPUTS_H

#include "dist/comm.h"
#include "model/config.h"
#include "quant/recipe.h"

/* A config.json; its text too, which is the caller's (free, after an error as well). Collective. */
enum qep_status qep_input_config(struct qep_comm *comm, const char *path, char **text, size_t *len,
                                 struct qep_model_config *out);

/* A built-in recipe or the path of one (see qep_recipe_is_path). Collective. */
enum qep_status qep_input_recipe(struct qep_comm *comm, const char *name_or_path,
                                 struct qep_recipe *out);

#endif

#include "cli/inputs.h"

#include "checkpoint/config.h"
#include "dist/comm_input.h"

#include <stdlib.h>

enum qep_status qep_input_config(struct qep_comm *comm, const char *path, char **text, size_t *len,
                                 struct qep_model_config *out) {
    QEP_TRY(qep_comm_input(comm, path, QEP_CONFIG_MAX_BYTES, text, len));
    return qep_comm_agree(comm, qep_config_parse(*text, *len, path, out));
}

enum qep_status qep_input_recipe(struct qep_comm *comm, const char *name_or_path,
                                 struct qep_recipe *out) {
    char *text = NULL;
    size_t len = 0;
    *out = (struct qep_recipe){0};
    if (!qep_recipe_is_path(name_or_path))
        return qep_comm_agree(comm, qep_recipe_builtin(name_or_path, out));
    QEP_TRY(qep_comm_input(comm, name_or_path, QEP_RECIPE_MAX_BYTES, &text, &len));
    enum qep_status st = qep_recipe_parse(text, len, name_or_path, out);
    free(text);
    return qep_comm_agree(comm, st);
}

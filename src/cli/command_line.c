#include "cli/command_line.h"

#include "cli/options_file.h"
#include "cli/options_same.h"
#include "dist/comm_input.h"

#include <stdlib.h>

enum { MAX_CONFIG_BYTES = 1 << 20 };

static enum qep_status parse(const struct qep_command_line *line, int argc, char **argv,
                             struct qep_options_found *found) {
    QEP_TRY(qep_options_parse(line->tables, line->num_tables, argc, argv, found));
    if (found->help || found->version)
        return QEP_OK;
    if (line->directory != NULL)
        return qep_options_directory(argv[0], found, line->directory);
    if (found->num_positional > 0)
        return qep_fail(QEP_ERR_USAGE, "unexpected argument '%s'", found->positional[0]);
    return QEP_OK;
}

/* The value of the row that names a file of options, or NULL. */
static const char *options_path(const struct qep_command_line *line) {
    for (size_t t = 0; t < line->num_tables; t++)
        for (size_t i = 0; i < line->tables[t].num_options; i++) {
            const struct qep_option *opt = &line->tables[t].options[i];
            if (opt->kind == QEP_OPTION_CONFIG_FILE)
                return *(const char *const *)opt->target;
        }
    return NULL;
}

static enum qep_status take_file(struct qep_comm *comm, const struct qep_command_line *line,
                                 const struct qep_options_found *found) {
    const char *path = options_path(line);
    char *data = NULL;
    size_t len = 0;
    if (path == NULL)
        return QEP_OK;
    QEP_TRY(qep_comm_input(comm, path, MAX_CONFIG_BYTES, &data, &len));
    enum qep_status st =
        qep_options_from_json(line->tables, line->num_tables, found, path, data, len);
    free(data);
    return qep_comm_agree(comm, st);
}

enum qep_status qep_command_line_read(struct qep_comm *comm, const struct qep_command_line *line,
                                      int argc, char **argv, bool *answered) {
    const struct qep_option_table *tables = line->tables;
    struct qep_options_found found;
    *answered = false;
    QEP_TRY(qep_comm_agree(comm, parse(line, argc, argv, &found)));
    QEP_TRY(qep_options_same(comm, tables, line->num_tables, &found, QEP_OPTIONS_LEADING));
    *answered = qep_options_answer(&found, comm->rank, line->print_help, tables);
    if (*answered)
        return QEP_OK;
    QEP_TRY(take_file(comm, line, &found));
    return qep_options_same(comm, tables, line->num_tables, &found, QEP_OPTIONS_ALL);
}

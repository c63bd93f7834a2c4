/* qwen-ep reseal: makes side files that were changed on purpose part of a shard directory. */
#include "checkpoint/config.h"
#include "cli/command.h"
#include "cli/command_line.h"
#include "engine/generation_config.h"
#include "shard/side_files.h"
#include "text/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct reseal_args {
    const char *dir;
    bool answered;
};

static void print_help(const struct qep_option_table *table) {
    printf("usage: qwen-ep reseal DIR\n\n"
           "Accepts the small files of a shard directory as they are now: config.json,\n"
           "generation_config.json, tokenizer.json, tokenizer_config.json, chat_template.jinja.\n"
           "Until then `run` refuses a directory where one was changed, added or removed.\n"
           "Weights are not touched; what was accepted or dropped is printed, a line each.\n\n");
    qep_options_help(table);
}

static enum qep_status parse(struct qep_comm *comm, int argc, char **argv, struct reseal_args *a) {
    const struct qep_option_table table = {NULL, 0};
    const struct qep_command_line line = {
        .tables = &table, .num_tables = 1, .print_help = print_help, .directory = &a->dir};
    return qep_command_line_read(comm, &line, argc, argv, &a->answered);
}

static enum qep_status check_config(const struct qep_model_config *model, const char *path,
                                    const char *text, size_t len) {
    struct qep_model_config config;
    QEP_TRY(qep_config_parse(text, len, path, &config));
    if (memcmp(&config, model, sizeof config) == 0) /* both zeroed before they were filled */
        return QEP_OK;
    return qep_fail(QEP_ERR_DATA,
                    "%s: describes another model than the one that was converted: expected the "
                    "manifest's, convert again to change it",
                    path);
}

static enum qep_status check_tokenizer(const struct qep_model_config *model, const char *path,
                                       const char *text, size_t len) {
    struct qep_tokenizer *tok = NULL;
    QEP_TRY(qep_tokenizer_parse(text, len, path, model->vocab_size, &tok));
    qep_tokenizer_destroy(tok);
    return QEP_OK;
}

static enum qep_status check_object(const char *path, const char *text, size_t len) {
    cJSON *root = NULL;
    QEP_TRY(qep_json_parse(text, len, path, &root));
    cJSON_Delete(root);
    return QEP_OK;
}

/* What `run` would refuse is not accepted; any template is, --raw needs none. */
static enum qep_status check_file(const struct qep_model_config *model, const char *name,
                                  const char *path, const char *text, size_t len) {
    struct qep_generation_config generation;
    if (strcmp(name, "config.json") == 0)
        return check_config(model, path, text, len);
    if (strcmp(name, "generation_config.json") == 0)
        return qep_generation_config_parse(text, len, path, model, &generation);
    if (strcmp(name, "tokenizer.json") == 0)
        return check_tokenizer(model, path, text, len);
    if (strcmp(name, "tokenizer_config.json") == 0)
        return check_object(path, text, len);
    return QEP_OK;
}

static enum qep_status print_result(const struct qep_reseal_result *r) {
    for (int i = 0; i < r->num_accepted; i++)
        printf("accepted %s\n", r->accepted[i]);
    for (int i = 0; i < r->num_dropped; i++)
        printf("dropped %s\n", r->dropped[i]);
    if (r->num_accepted + r->num_dropped == 0)
        puts("nothing changed");
    if (fflush(stdout) != 0 || ferror(stdout))
        return qep_fail(QEP_ERR_IO, "stdout: write failed: %s", strerror(errno));
    return QEP_OK;
}

static enum qep_status reseal(const char *dir) {
    struct qep_reseal_result result;
    QEP_TRY(qep_shard_reseal(dir, check_file, &result));
    return print_result(&result);
}

enum qep_status qep_cmd_reseal(struct qep_job *job, int argc, char **argv) {
    struct reseal_args args = {0};
    QEP_TRY(parse(job->comm, argc, argv, &args));
    if (args.answered)
        return QEP_OK;
    return qep_comm_agree(job->comm, job->comm->rank == 0 ? reseal(args.dir) : QEP_OK);
}

/* qwen-ep convert: a Hugging Face checkpoint becomes a shard directory. */
#include "base/log.h"
#include "checkpoint/checkpoint.h"
#include "cli/build_cli.h"
#include "cli/command.h"
#include "cli/command_line.h"
#include "cli/inputs.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct convert_args {
    const char *from, *to, *recipe, *compress;
    int64_t group_size, shards, jobs;
    bool force, allow_nan, answered;
};

static void print_help(const struct qep_option_table *table) {
    printf("usage: qwen-ep convert --from HF_DIR --to DIR [options]\n\n"
           "Quantises and compresses a checkpoint (config.json, *.safetensors) into a shard\n"
           "directory for `qwen-ep run`. Interrupted, the same command continues. Under\n"
           "mpirun the files are split over the ranks.\n\n");
    qep_options_help(table);
}

static enum qep_status check_args(const struct convert_args *a) {
    if (a->from == NULL || a->to == NULL)
        return qep_fail(QEP_ERR_USAGE, "convert: --from and --to are needed (see --help)");
    if (a->group_size != 0 && a->group_size != 32 && a->group_size != 64 && a->group_size != 128)
        return qep_fail(QEP_ERR_USAGE, "--group-size: expected 32, 64 or 128, found %lld",
                        (long long)a->group_size);
    return QEP_OK;
}

static enum qep_status parse(struct qep_comm *comm, int argc, char **argv, struct convert_args *a) {
    const struct qep_option options[] = {
        {.name = "from",
         .kind = QEP_OPTION_PATH,
         .target = &a->from,
         .per_rank = true, /* hosts mount it where they like; what is there is compared */
         .arg = "DIR",
         .help = "Hugging Face checkpoint directory"},
        {.name = "to",
         .kind = QEP_OPTION_PATH,
         .target = &a->to,
         .arg = "DIR",
         .help = "shard directory to create"},
        {.name = "recipe",
         .kind = QEP_OPTION_PATH,
         .target = &a->recipe,
         .arg = "R",
         .help = "bf16, q8, q4 (default), q4-all or a file"},
        {.name = "group-size",
         .kind = QEP_OPTION_INT,
         .target = &a->group_size,
         .arg = "N",
         .min = 32,
         .max = 128,
         .help = "32, 64 or 128 weights per scale"},
        {.name = "shards",
         .kind = QEP_OPTION_INT,
         .target = &a->shards,
         .arg = "N",
         .min = 1,
         .max = QEP_MAX_SHARDS,
         .help = "expert files (default 8)"},
        {.name = "jobs",
         .kind = QEP_OPTION_INT,
         .target = &a->jobs,
         .per_rank = true,
         .arg = "N",
         .min = 1,
         .max = 1024,
         .help = "threads per rank (default: all CPUs)"},
        {.name = "compress",
         .kind = QEP_OPTION_CHOICE,
         .target = &a->compress,
         .choices = "auto|max",
         .help = "auto: only what shrinks by 10 %"},
        {.name = "force",
         .kind = QEP_OPTION_FLAG,
         .target = &a->force,
         .help = "replace a shard directory that is there"},
        {.name = "allow-nan",
         .kind = QEP_OPTION_FLAG,
         .target = &a->allow_nan,
         .help = "keep NaN, infinity, overflow: a run ends with 65"},
    };
    const struct qep_option_table table = {options, sizeof options / sizeof *options};
    const struct qep_command_line line = {
        .tables = &table, .num_tables = 1, .print_help = print_help};
    QEP_TRY(qep_command_line_read(comm, &line, argc, argv, &a->answered));
    return a->answered ? QEP_OK : qep_comm_agree(comm, check_args(a));
}

static enum qep_status refuse_same_dir(const char *from, const char *to) {
    struct stat a, b;
    if (stat(from, &a) == 0 && stat(to, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino)
        return qep_fail(QEP_ERR_USAGE, "--to: is the same directory as --from: %s", from);
    return QEP_OK;
}

/* What is collective comes first. */
static enum qep_status open_inputs(struct qep_comm *comm, const struct convert_args *a,
                                   struct qep_recipe *recipe, struct qep_checkpoint **ckpt) {
    QEP_TRY(qep_input_recipe(comm, a->recipe, recipe));
    QEP_TRY(refuse_same_dir(a->from, a->to));
    if (a->group_size != 0)
        recipe->group_size = (int32_t)a->group_size;
    return qep_checkpoint_open(a->from, ckpt);
}

static enum qep_status convert(struct qep_job *job, const struct convert_args *a) {
    struct qep_recipe recipe = {0};
    struct qep_checkpoint *ckpt = NULL;
    struct qep_build_options options = {
        .dir = a->to,
        .recipe = &recipe,
        .side_dir = a->from,
        .num_shards = (int32_t)a->shards,
        .num_threads = a->jobs > 0 ? (int)a->jobs : qep_default_jobs(job->comm),
        .compress = strcmp(a->compress, "max") == 0 ? QEP_COMPRESS_MAX : QEP_COMPRESS_AUTO,
        .force = a->force,
        .allow_nan = a->allow_nan,
    };
    enum qep_status st = open_inputs(job->comm, a, &recipe, &ckpt);
    if (st == QEP_OK) {
        options.config = qep_checkpoint_config(ckpt);
        options.inventory = qep_checkpoint_inventory(ckpt);
        options.source = qep_checkpoint_source(ckpt);
        options.source_identity = qep_checkpoint_identity(ckpt);
    }
    st = qep_build_run(job, "convert", &options, st);
    const char *moved = st == QEP_OK ? qep_checkpoint_moved_file(ckpt) : NULL;
    if (moved != NULL)
        qep_info("warning: %s: another file is there by now; the one opened at the start was read",
                 moved);
    qep_checkpoint_close(ckpt);
    qep_recipe_free(&recipe);
    return st;
}

enum qep_status qep_cmd_convert(struct qep_job *job, int argc, char **argv) {
    struct convert_args args = {.recipe = "q4", .compress = "auto", .shards = 8};
    QEP_TRY(parse(job->comm, argc, argv, &args));
    return args.answered ? QEP_OK : convert(job, &args);
}

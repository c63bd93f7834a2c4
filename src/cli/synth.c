/* qwen-ep synth: random weights for a config, as a Hugging Face directory or a shard directory. */
#include "base/clock.h"
#include "base/log.h"
#include "checkpoint/hf_writer.h"
#include "checkpoint/random_source.h"
#include "cli/build_cli.h"
#include "cli/command.h"
#include "cli/command_line.h"
#include "cli/inputs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct synth_args {
    const char *config, *out, *recipe;
    int64_t seed, shards, jobs;
    bool force, answered;
};

static void print_help(const struct qep_option_table *table) {
    printf("usage: qwen-ep synth --config FILE.json --out DIR [options]\n\n"
           "Random weights of any size, streamed: a Hugging Face checkpoint (config.json,\n"
           "safetensors shards, index) or, with --recipe, a shard directory at once.\n\n");
    qep_options_help(table);
}

static enum qep_status check_args(const struct synth_args *a) {
    if (a->config == NULL || a->out == NULL)
        return qep_fail(QEP_ERR_USAGE, "synth: --config and --out are needed (see --help)");
    return QEP_OK;
}

static enum qep_status parse(struct qep_comm *comm, int argc, char **argv, struct synth_args *a) {
    const struct qep_option options[] = {
        {.name = "config",
         .kind = QEP_OPTION_PATH,
         .target = &a->config,
         .arg = "FILE",
         .help = "config.json of the model (see configs/)"},
        {.name = "out",
         .kind = QEP_OPTION_PATH,
         .target = &a->out,
         .arg = "DIR",
         .help = "directory to create"},
        {.name = "seed",
         .kind = QEP_OPTION_INT,
         .target = &a->seed,
         .arg = "N",
         .min = 0,
         .max = 9007199254740992.0,
         .help = "equal seeds give equal weights (default 0)"},
        {.name = "recipe",
         .kind = QEP_OPTION_PATH,
         .target = &a->recipe,
         .arg = "R",
         .help = "make a shard directory (see convert)"},
        {.name = "shards",
         .kind = QEP_OPTION_INT,
         .target = &a->shards,
         .arg = "N",
         .min = 1,
         .max = QEP_MAX_SHARDS,
         .help = "with --recipe: expert files (default 8)"},
        {.name = "jobs",
         .kind = QEP_OPTION_INT,
         .target = &a->jobs,
         .per_rank = true,
         .arg = "N",
         .min = 1,
         .max = 1024,
         .help = "threads per rank (default: all CPUs)"},
        {.name = "force",
         .kind = QEP_OPTION_FLAG,
         .target = &a->force,
         .help = "with --recipe: replace a shard directory"},
    };
    const struct qep_option_table table = {options, sizeof options / sizeof *options};
    const struct qep_command_line line = {
        .tables = &table, .num_tables = 1, .print_help = print_help};
    QEP_TRY(qep_command_line_read(comm, &line, argc, argv, &a->answered));
    return a->answered ? QEP_OK : qep_comm_agree(comm, check_args(a));
}

struct synth {
    const struct synth_args *args;
    char *config_text; /* copied into what is made; the file may be a pipe, read once */
    size_t config_len;
    struct qep_model_config config;
    struct qep_inventory inventory;
    struct qep_random_source *random;
    struct qep_recipe recipe;
    int num_threads;
};

/* What is collective comes first. */
static enum qep_status open_inputs(struct qep_comm *comm, struct synth *s) {
    QEP_TRY(qep_input_config(comm, s->args->config, &s->config_text, &s->config_len, &s->config));
    if (s->args->recipe != NULL)
        QEP_TRY(qep_input_recipe(comm, s->args->recipe, &s->recipe));
    QEP_TRY(qep_inventory_create(&s->config, &s->inventory));
    return qep_random_source_create(&s->config, &s->inventory, (uint64_t)s->args->seed, &s->random);
}

static enum qep_status make_shards(struct qep_job *job, struct synth *s, enum qep_status st) {
    struct qep_build_options options = {.dir = s->args->out,
                                        .config = &s->config,
                                        .inventory = &s->inventory,
                                        .source_identity = (uint64_t)s->args->seed,
                                        .recipe = &s->recipe,
                                        .config_text = s->config_text,
                                        .config_len = s->config_len,
                                        .num_shards = (int32_t)s->args->shards,
                                        .num_threads = s->num_threads,
                                        .force = s->args->force};
    if (st == QEP_OK)
        options.source = qep_random_rows(s->random);
    return qep_build_run(job, "synth", &options, st);
}

static void on_progress(void *arg, uint64_t done, uint64_t total) {
    qep_progress_show(arg, "", done, total);
}

static enum qep_status write_files(struct qep_job *job, struct qep_hf_writer *writer) {
    struct qep_comm *comm = job->comm;
    enum qep_status st = comm->rank == 0 ? qep_hf_prepare(writer) : QEP_OK;
    QEP_TRY(qep_comm_agree(comm, st));
    for (size_t f = (size_t)comm->rank; st == QEP_OK && f < qep_hf_num_files(writer);
         f += (size_t)comm->num_ranks)
        st = qep_hf_write_file(writer, f);
    QEP_TRY(qep_comm_agree(comm, st));
    return qep_comm_agree(comm, comm->rank == 0 ? qep_hf_finish(writer) : QEP_OK);
}

static enum qep_status make_checkpoint(struct qep_job *job, struct synth *s, enum qep_status st) {
    struct qep_progress_line line = {.label = "synth"};
    struct qep_hf_writer *writer = NULL;
    double begin_s = qep_now_s();
    struct qep_hf_options options = {.dir = s->args->out,
                                     .config_text = s->config_text,
                                     .config_len = s->config_len,
                                     .config = &s->config,
                                     .inventory = &s->inventory,
                                     .num_threads = s->num_threads,
                                     .stop = &qep_stop_requested,
                                     .on_progress = job->comm->rank == 0 ? on_progress : NULL,
                                     .progress_arg = &line};
    if (st == QEP_OK) {
        options.source = qep_random_rows(s->random);
        st = qep_hf_writer_create(&options, &writer);
    }
    QEP_TRY(qep_comm_agree(job->comm, st));
    qep_stop_install();
    st = write_files(job, writer);
    qep_stop_restore();
    qep_progress_end(&line);
    double seconds = qep_now_s() - begin_s, bytes = (double)qep_hf_total_bytes(writer);
    if (st == QEP_OK)
        qep_info("synth: %s: %.2f GB in %zu files in %.1f s: %.2f GB/s", s->args->out, bytes / 1e9,
                 qep_hf_num_files(writer), seconds, bytes / 1e9 / (seconds + 1e-9));
    qep_hf_writer_destroy(writer);
    return st;
}

enum qep_status qep_cmd_synth(struct qep_job *job, int argc, char **argv) {
    struct synth_args args = {.shards = 8};
    QEP_TRY(parse(job->comm, argc, argv, &args));
    if (args.answered)
        return QEP_OK;
    struct synth s = {.args = &args,
                      .num_threads = args.jobs > 0 ? (int)args.jobs : qep_default_jobs(job->comm)};
    enum qep_status st = open_inputs(job->comm, &s);
    st = args.recipe != NULL ? make_shards(job, &s, st) : make_checkpoint(job, &s, st);
    qep_random_source_destroy(s.random);
    qep_recipe_free(&s.recipe);
    qep_inventory_free(&s.inventory);
    free(s.config_text);
    return st;
}

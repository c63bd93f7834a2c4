/* qwen-ep inspect: what is in a shard directory, per file and per rank; --verify reads all of it.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/streams.h"
#include "base/team.h"
#include "cli/build_cli.h"
#include "cli/command.h"
#include "cli/command_line.h"
#include "dist/watchdog.h"
#include "model/rank_bytes.h"
#include "shard/verify.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

struct inspect_args {
    const char *dir, *attention;
    int64_t ranks, jobs;
    bool verify, answered;
};

static void print_help(const struct qep_option_table *table) {
    printf("usage: qwen-ep inspect DIR [options]\n\n"
           "Shows model, recipe and sizes of a shard directory. Under mpirun --verify splits\n"
           "the files over the ranks.\n\n");
    qep_options_help(table);
}

static enum qep_status parse(struct qep_comm *comm, int argc, char **argv, struct inspect_args *a) {
    const struct qep_option options[] = {
        {.name = "verify",
         .kind = QEP_OPTION_FLAG,
         .target = &a->verify,
         .help = "read everything, check every frame and hash"},
        {.name = "ranks",
         .kind = QEP_OPTION_INT,
         .target = &a->ranks,
         .arg = "P",
         .min = 1,
         .max = 65536,
         .help = "show what each of P ranks would hold"},
        {.name = "attention",
         .kind = QEP_OPTION_CHOICE,
         .target = &a->attention,
         .choices = "layers|sequences",
         .help = "with --ranks (default layers)"},
        {.name = "jobs",
         .kind = QEP_OPTION_INT,
         .target = &a->jobs,
         .per_rank = true,
         .arg = "N",
         .min = 1,
         .max = 1024,
         .help = "threads per rank (default: all CPUs)"},
    };
    const struct qep_option_table table = {options, sizeof options / sizeof *options};
    const struct qep_command_line line = {
        .tables = &table, .num_tables = 1, .print_help = print_help, .directory = &a->dir};
    return qep_command_line_read(comm, &line, argc, argv, &a->answered);
}

static void print_model(const struct qep_shard_dir *dir) {
    const struct qep_model_config *c = qep_shard_dir_config(dir);
    const struct qep_shard_info *info = qep_shard_dir_info(dir);
    int full = 0;
    for (int32_t i = 0; i < c->num_hidden_layers; i++)
        full += c->layer_types[i] == QEP_LAYER_FULL_ATTENTION;
    printf("model     %s: %d layers (%d full attention), hidden %d, vocabulary %d%s\n",
           c->model_type, (int)c->num_hidden_layers, full, (int)c->hidden_size, (int)c->vocab_size,
           c->tie_word_embeddings ? ", tied embeddings" : "");
    if (c->num_experts > 0)
        printf("experts   %d, %d per token, intermediate %d, shared %d\n", (int)c->num_experts,
               (int)c->num_experts_per_tok, (int)c->moe_intermediate_size,
               (int)c->shared_expert_intermediate_size);
    printf("recipe    %s, groups of %d\n", info->recipe, (int)info->group_size);
    printf("identity  %s\n", info->identity);
    printf("sizes     %.3f GB of tensors, %.3f GB in files\n", (double)info->tensor_bytes / 1e9,
           (double)info->stored_bytes / 1e9);
}

static void print_types(const struct qep_manifest *m) {
    uint64_t bytes[4] = {0};
    size_t counts[4] = {0};
    for (size_t i = 0; i < m->inventory.num_specs; i++) {
        bytes[m->types[i]] += qep_tensor_bytes(m, i);
        counts[m->types[i]]++;
    }
    for (int t = 0; t < 4; t++)
        if (counts[t] > 0)
            printf("  %-6s  %7zu tensors  %10.3f MB\n",
                   qep_weight_type_name((enum qep_weight_type)t), counts[t],
                   (double)bytes[t] / 1e6);
}

static enum qep_status print_files(const struct qep_shard_dir *dir) {
    const struct qep_manifest *m = qep_shard_dir_manifest(dir);
    printf("\n%-22s %8s %8s %14s %14s %6s\n", "file", "tensors", "frames", "content", "stored",
           "ratio");
    for (size_t f = 0; f < m->layout.num_files; f++) {
        const struct qep_seekable *file = qep_shard_dir_file(dir, f);
        QEP_TRY(qep_stdout_printf("%-22s %8zu %8zu %14llu %14llu %6.3f\n", m->layout.files[f].name,
                                  m->layout.files[f].num_specs, file->num_frames,
                                  (unsigned long long)file->content_bytes,
                                  (unsigned long long)file->bytes,
                                  (double)file->bytes / ((double)file->content_bytes + 1e-9)));
    }
    return QEP_OK;
}

static enum qep_status print_ranks(const struct qep_shard_dir *dir,
                                   const struct inspect_args *args) {
    const struct qep_manifest *m = qep_shard_dir_manifest(dir);
    struct qep_placement *p = NULL;
    void *mem = NULL;
    QEP_TRY(qep_placement_create(
        &m->config, (int)args->ranks,
        args->attention[0] == 'l' ? QEP_ATTENTION_LAYERS : QEP_ATTENTION_SEQUENCES, &p));
    enum qep_status st =
        qep_calloc((size_t)args->ranks, sizeof(struct qep_rank_bytes), "ranks", &mem);
    struct qep_rank_bytes *ranks = mem;
    if (st == QEP_OK) {
        qep_rank_bytes(dir, p, ranks);
        printf("\nbytes of weights with --attention %s\n%5s %11s %13s %13s %13s %13s\n",
               args->attention, "rank", "experts", "experts MB", "dense MB", "head MB", "embed MB");
    }
    for (int r = 0; st == QEP_OK && r < p->num_ranks; r++)
        st = qep_stdout_printf("%5d %5d..%-4d %13.2f %13.2f %13.2f %13.2f\n", r,
                               (int)p->experts[r].begin, (int)p->experts[r].end,
                               (double)ranks[r].experts / 1e6, (double)ranks[r].dense / 1e6,
                               (double)ranks[r].head / 1e6, (double)ranks[r].embed / 1e6);
    free(ranks);
    qep_placement_destroy(p);
    return st;
}

struct verify_job {
    const struct qep_shard_dir *dir;
    const struct qep_comm *comm;
    struct qep_progress_line line;
    atomic_size_t next;
    atomic_ullong done_bytes;
    atomic_flag locked; /* st and error */
    enum qep_status st;
    char error[QEP_ERROR_MAX];
};

static void verify_files(void *arg, int thread_idx, int num_threads) {
    struct verify_job *job = arg;
    const struct qep_manifest *m = qep_shard_dir_manifest(job->dir);
    (void)num_threads;
    for (;;) {
        size_t f = atomic_fetch_add(&job->next, 1) * (size_t)job->comm->num_ranks +
                   (size_t)job->comm->rank;
        if (f >= m->layout.num_files || qep_stop_requested)
            return;
        enum qep_status st = qep_shard_verify_file(job->dir, f);
        while (atomic_flag_test_and_set(&job->locked))
            qep_sleep_us(50);
        if (st != QEP_OK && job->st == QEP_OK) {
            job->st = st;
            snprintf(job->error, sizeof job->error, "%s", qep_last_error());
        }
        atomic_flag_clear(&job->locked);
        atomic_fetch_add(&job->done_bytes, m->files[f].bytes);
        if (thread_idx == 0 && job->comm->rank == 0)
            qep_progress_show(&job->line, m->layout.files[f].name, atomic_load(&job->done_bytes),
                              m->info.stored_bytes / (uint64_t)job->comm->num_ranks);
    }
}

static enum qep_status verify(const struct qep_job *job, const struct qep_shard_dir *dir,
                              const struct inspect_args *args) {
    struct verify_job v = {
        .dir = dir, .comm = job->comm, .line = {.label = "verify"}, .locked = ATOMIC_FLAG_INIT};
    struct qep_team *team = NULL;
    double begin_s = qep_now_s();
    QEP_TRY(qep_team_create(args->jobs > 0 ? (int)args->jobs : qep_default_jobs(job->comm), &team));
    qep_team_run(team, verify_files, &v);
    qep_team_destroy(team);
    qep_progress_end(&v.line);
    if (v.st != QEP_OK)
        return qep_fail(v.st, "%s", v.error);
    if (qep_stop_requested)
        return qep_fail(QEP_ERR_INTERRUPTED, "inspect: interrupted");
    if (job->comm->rank == 0)
        QEP_TRY(qep_shard_verify_side_files(dir));
    double seconds = qep_now_s() - begin_s;
    qep_info("verify: every frame and hash is right: %.2f GB in %.1f s: %.2f GB/s",
             (double)qep_shard_dir_info(dir)->stored_bytes / 1e9, seconds,
             (double)qep_shard_dir_info(dir)->stored_bytes / 1e9 / (seconds + 1e-9));
    return QEP_OK;
}

static enum qep_status show(const struct qep_shard_dir *dir, const struct inspect_args *args) {
    print_model(dir);
    print_types(qep_shard_dir_manifest(dir));
    QEP_TRY(print_files(dir));
    if (args->ranks > 0)
        QEP_TRY(print_ranks(dir, args));
    return qep_stdout_flush();
}

/* A rank that is through may still hear that another was asked to stop: the handlers stay until all
 * are through. */
static enum qep_status verify_together(const struct qep_job *job, const struct qep_shard_dir *dir,
                                       const struct inspect_args *args) {
    qep_stop_install();
    enum qep_status st = qep_comm_agree(job->comm, verify(job, dir, args));
    qep_stop_restore();
    return st;
}

enum qep_status qep_cmd_inspect(struct qep_job *job, int argc, char **argv) {
    struct inspect_args args = {.attention = "layers"};
    struct qep_shard_dir *dir = NULL;
    QEP_TRY(parse(job->comm, argc, argv, &args));
    if (args.answered)
        return QEP_OK;
    qep_watchdog_stamp(job->comm->dog, "opening the directory", -1, -1);
    enum qep_status st = qep_comm_agree(job->comm, qep_shard_dir_open(args.dir, &dir));
    if (st == QEP_OK) /* hosts may have different ones by one name */
        st = qep_comm_same(job->comm, "weights (manifest)", qep_shard_dir_info(dir)->identity);
    if (st == QEP_OK)
        st = qep_comm_agree(job->comm, job->comm->rank == 0 ? show(dir, &args) : QEP_OK);
    qep_watchdog_stamp(job->comm->dog, "verifying", -1, -1);
    if (st == QEP_OK && args.verify)
        st = verify_together(job, dir, &args);
    qep_shard_dir_close(dir);
    return st;
}

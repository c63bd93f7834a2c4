#include "tests/support/run_model.h"

#include "base/log.h"
#include "cli/command.h"
#include "cli/common.h"
#include "engine/generate.h"

#include <check.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct job {
    struct qep_engine_options options;
    const struct model_run *run;
    struct model_output *out;
    size_t cap;
};

static enum qep_status keep_row(void *ctx, int32_t token_id, const float *logits) {
    struct job *job = ctx;
    struct model_output *out = job->out;
    (void)token_id;
    if (out->num_rows == job->cap) {
        job->cap = job->cap * 2 + 64;
        out->logits = realloc(out->logits, job->cap * out->vocab_size * sizeof(float));
    }
    memcpy(out->logits + out->num_rows++ * out->vocab_size, logits,
           out->vocab_size * sizeof(float));
    return QEP_OK;
}

static enum qep_status coordinate(struct job *job, struct qep_engine *engine) {
    struct qep_generate_result res;
    const struct qep_sampling greedy = {
        .temperature = 1, .top_p = 1, .repetition_penalty = 1, .greedy = true};
    job->out->vocab_size = (size_t)qep_engine_config(engine)->vocab_size;
    const struct qep_generate_request request = {
        .prompt_ids = job->run->prompt,
        .num_prompt = job->run->num_prompt,
        .max_new_tokens = job->run->max_new,
        .prefill_chunk = job->run->prefill_chunk > 0 ? job->run->prefill_chunk : 512,
        .sampling = job->run->sampling != NULL ? *job->run->sampling : greedy,
        .ignore_eos = true,
        .num_ids = (int32_t)job->out->vocab_size,
        .on_row = job->run->no_rows ? NULL : keep_row,
        .row_ctx = job};
    QEP_TRY(qep_generate(engine, &request, &res));
    job->out->token_ids = res.token_ids;
    job->out->num_tokens = res.num_tokens;
    return qep_engine_stop(engine);
}

static enum qep_status rank_main(struct qep_comm *comm, void *arg) {
    struct job *job = arg;
    struct qep_engine *engine = NULL;
    QEP_TRY(qep_engine_create(comm, &job->options, &engine));
    enum qep_status st = comm->rank == 0 ? coordinate(job, engine) : qep_engine_serve(engine);
    qep_engine_destroy(engine);
    return st;
}

static enum qep_status run_over(const char *transport, int ranks, const struct model_run *run,
                                struct model_output *out) {
    struct qep_common common = {.transport = transport, .ranks = ranks};
    struct job job = {.options = QEP_ENGINE_OPTIONS_DEFAULT, .run = run, .out = out};
    struct qep_comm *self = NULL;
    memset(out, 0, sizeof *out);
    job.options.model = run->dir;
    job.options.backend = run->backend != NULL ? run->backend : "reference";
    job.options.activations = run->activations != NULL ? run->activations : "auto";
    job.options.attention = run->attention != NULL ? run->attention : "layers";
    job.options.kv_type = run->kv_type != NULL ? run->kv_type : "auto";
    job.options.threads = run->threads > 0 ? run->threads : 1;
    job.options.bind = "keep";
    job.options.timeout_s = 0;
    if (run->prefill_chunk > 0)
        job.options.prefill_chunk = run->prefill_chunk;
    if (run->device_transport != NULL)
        job.options.device_transport = run->device_transport;
    if (run->cuda_graphs != NULL)
        job.options.cuda_graphs = run->cuda_graphs;
    ck_assert_int_eq(qep_comm_self_create(&self), QEP_OK);
    enum qep_status st = qep_common_launch(self, &common, rank_main, &job);
    qep_comm_destroy(self);
    return st;
}

void model_run(const struct model_run *run, struct model_output *out) {
    enum qep_status st = run_over("threads", run->ranks > 0 ? run->ranks : 1, run, out);
    ck_assert_msg(st == QEP_OK, "%s (%s): %s", run->dir,
                  run->backend != NULL ? run->backend : "reference", qep_last_error());
}

enum qep_status model_try(const struct model_run *run, struct model_output *out) {
    ck_assert_int_le(run->ranks, 1);
    return run_over("self", 0, run, out);
}

void model_output_free(struct model_output *out) {
    free(out->logits);
    free(out->token_ids);
    memset(out, 0, sizeof *out);
}

static char *convert(const char *hf_dir, char *to, const char *recipe, int shards) {
    struct qep_comm *self = NULL;
    char count[16], from[512], recipe_arg[512];
    qep_log_set_level(QEP_LOG_QUIET);
    snprintf(count, sizeof count, "%d", shards);
    snprintf(from, sizeof from, "%s", hf_dir);
    snprintf(recipe_arg, sizeof recipe_arg, "%s", recipe);
    char *argv[] = {"convert",  "--from",   from,  "--to",   to,  "--recipe",
                    recipe_arg, "--shards", count, "--jobs", "1", NULL};
    ck_assert_int_eq(qep_comm_self_create(&self), QEP_OK);
    struct qep_job job = {.comm = self};
    enum qep_status st = qep_cmd_convert(&job, (int)(sizeof argv / sizeof argv[0]) - 1, argv);
    ck_assert_msg(st == QEP_OK, "convert %s: %s", hf_dir, qep_last_error());
    qep_comm_destroy(self);
    return to;
}

char *model_convert(const char *hf_dir, const char *parent, const char *recipe, int shards) {
    static int serial;
    char *to = NULL;
    ck_assert_int_ge(asprintf(&to, "%s/%s-%d", parent, recipe, serial++), 0);
    return convert(hf_dir, to, recipe, shards > 0 ? shards : 8);
}

char *model_convert_as(const char *hf_dir, const char *parent, const char *recipe,
                       const char *name) {
    char *to = NULL;
    ck_assert_int_ge(asprintf(&to, "%s/%s", parent, name), 0);
    return convert(hf_dir, to, recipe, 8);
}

char *temp_dir(void) {
    char *dir = strdup("/tmp/qep-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    return dir;
}

static int remove_one(const char *path, const struct stat *sb, int flag, struct FTW *ftw) {
    (void)sb;
    (void)flag;
    (void)ftw;
    return remove(path);
}

void remove_tree(const char *path) {
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

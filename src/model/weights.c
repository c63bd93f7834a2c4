/* Loading is a list of jobs (one matrix or vector each) that the team works off: first planned, so
 * that every error of shape or type comes before the first byte is read, then run in parallel. */
#include "model/weights.h"

#include "base/clock.h"
#include "base/mem.h"
#include "dist/drain.h"
#include "kernels/device_ops.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum job_kind { JOB_LINEAR, JOB_VECTOR };

struct job {
    enum job_kind kind;
    char name[96];              /* canonical tensor name; for vocabulary blocks the name's front */
    int32_t block0, num_blocks; /* num_blocks > 0: NAME + block number, rows joined */
    struct qep_weight **weight;
    float **vector;
    float offset; /* added to every value of a vector */
};

struct loader {
    struct qep_backend *be;
    const struct qep_shard_dir *dir;
    struct qep_weights *w;
    enum qep_activations activations;
    struct job *jobs;
    size_t num_jobs, job_cap;
    atomic_size_t next;
    atomic_bool failed;
    pthread_mutex_t lock; /* guards the fields below and the byte counts */
    enum qep_status status;
    char message[QEP_ERROR_MAX];
};

static enum qep_status add_job(struct loader *ld, const struct job *job) {
    QEP_TRY(
        qep_grow((void **)&ld->jobs, &ld->job_cap, ld->num_jobs + 1, sizeof *ld->jobs, "weights"));
    ld->jobs[ld->num_jobs++] = *job;
    return QEP_OK;
}

static enum qep_status add_vector(struct loader *ld, const char *name, float offset,
                                  float **target) {
    struct job job = {.kind = JOB_VECTOR, .vector = target, .offset = offset};
    snprintf(job.name, sizeof job.name, "%s", name);
    return add_job(ld, &job);
}

/* The activation type a matrix of this weight type is multiplied with. Small, sensitive matrices
 * (router, gates) always take f32. */
static enum qep_status pick_act(const struct loader *ld, const char *name,
                                enum qep_weight_type type, enum qep_act_type *act) {
    static const char *const text[] = {"auto", "bf16", "int8", "fp32"};
    bool is_int = type == QEP_WEIGHT_INT8 || type == QEP_WEIGHT_INT4;
    switch (ld->activations) {
    case QEP_ACTIVATIONS_AUTO:
        *act = is_int ? QEP_ACT_INT8 : QEP_ACT_BF16;
        if (is_int && !ld->be->ops->supports(ld->be, type, *act))
            *act = QEP_ACT_BF16;
        if (!ld->be->ops->supports(ld->be, type, *act))
            *act = QEP_ACT_F32;
        break;
    case QEP_ACTIVATIONS_BF16:
        *act = QEP_ACT_BF16;
        break;
    case QEP_ACTIVATIONS_INT8:
        *act = QEP_ACT_INT8;
        break;
    case QEP_ACTIVATIONS_FP32:
        *act = QEP_ACT_F32;
        break;
    }
    if (!ld->be->ops->supports(ld->be, type, *act))
        return qep_fail(
            QEP_ERR_USAGE,
            "--activations %s: the %s backend has no such product for the weights of %s",
            text[ld->activations], ld->be->ops->name, name);
    return QEP_OK;
}

static enum qep_status add_linear_as(struct loader *ld, const char *name, bool f32_act,
                                     struct qep_linear *lin) {
    int64_t rows = 0, cols = 0;
    struct job job = {.kind = JOB_LINEAR, .weight = &lin->weight};
    QEP_TRY(qep_shard_stat(ld->dir, name, &lin->type, &rows, &cols));
    lin->rows = (int32_t)rows;
    lin->cols = (int32_t)cols;
    lin->act = QEP_ACT_F32;
    if (!f32_act)
        QEP_TRY(pick_act(ld, name, lin->type, &lin->act));
    snprintf(job.name, sizeof job.name, "%s", name);
    return add_job(ld, &job);
}

/* Formats "layers.L.SUFFIX". */
static const char *layer_name(char *buf, size_t n, int32_t layer, const char *suffix) {
    snprintf(buf, n, "layers.%d.%s", layer, suffix);
    return buf;
}

struct named_linear {
    const char *suffix;
    bool f32_act;
    struct qep_linear *target;
};

struct named_vector {
    const char *suffix;
    float offset;
    float **target;
};

static enum qep_status add_linears(struct loader *ld, int32_t layer,
                                   const struct named_linear *list, size_t n) {
    char name[96];
    for (size_t i = 0; i < n; i++)
        QEP_TRY(add_linear_as(ld, layer_name(name, sizeof name, layer, list[i].suffix),
                              list[i].f32_act, list[i].target));
    return QEP_OK;
}

static enum qep_status add_vectors(struct loader *ld, int32_t layer,
                                   const struct named_vector *list, size_t n) {
    char name[96];
    for (size_t i = 0; i < n; i++)
        QEP_TRY(add_vector(ld, layer_name(name, sizeof name, layer, list[i].suffix), list[i].offset,
                           list[i].target));
    return QEP_OK;
}

#define COUNT(list) (sizeof(list) / sizeof(list)[0])

static enum qep_status plan_attention(struct loader *ld, int32_t l, struct qep_layer_weights *w) {
    const struct named_linear linears[] = {{"self_attn.q_proj.weight", false, &w->q_proj},
                                           {"self_attn.k_proj.weight", false, &w->k_proj},
                                           {"self_attn.v_proj.weight", false, &w->v_proj},
                                           {"self_attn.o_proj.weight", false, &w->o_proj}};
    const struct named_vector vectors[] = {{"self_attn.q_norm.weight", 1.0f, &w->q_norm},
                                           {"self_attn.k_norm.weight", 1.0f, &w->k_norm}};
    QEP_TRY(add_linears(ld, l, linears, COUNT(linears)));
    return add_vectors(ld, l, vectors, COUNT(vectors));
}

static enum qep_status plan_deltanet(struct loader *ld, int32_t l, struct qep_layer_weights *w) {
    const struct named_linear linears[] = {
        {"linear_attn.in_proj_qkv.weight", false, &w->in_proj_qkv},
        {"linear_attn.in_proj_z.weight", false, &w->in_proj_z},
        {"linear_attn.in_proj_a.weight", true, &w->in_proj_a},
        {"linear_attn.in_proj_b.weight", true, &w->in_proj_b},
        {"linear_attn.out_proj.weight", false, &w->out_proj}};
    const struct named_vector vectors[] = {{"linear_attn.conv1d.weight", 0.0f, &w->conv1d},
                                           {"linear_attn.A_log", 0.0f, &w->A_log},
                                           {"linear_attn.dt_bias", 0.0f, &w->dt_bias},
                                           {"linear_attn.norm.weight", 0.0f, &w->norm}};
    QEP_TRY(add_linears(ld, l, linears, COUNT(linears)));
    return add_vectors(ld, l, vectors, COUNT(vectors));
}

static enum qep_status plan_mlp(struct loader *ld, int32_t l, struct qep_layer_weights *w) {
    const struct named_linear dense[] = {{"mlp.gate_proj.weight", false, &w->gate_proj},
                                         {"mlp.up_proj.weight", false, &w->up_proj},
                                         {"mlp.down_proj.weight", false, &w->down_proj}};
    const struct named_linear moe[] = {
        {"mlp.gate.weight", true, &w->gate},
        {"mlp.shared_expert_gate.weight", true, &w->shared_expert_gate},
        {"mlp.shared_expert.gate_proj.weight", false, &w->shared_gate_proj},
        {"mlp.shared_expert.up_proj.weight", false, &w->shared_up_proj},
        {"mlp.shared_expert.down_proj.weight", false, &w->shared_down_proj}};
    const struct qep_model_config *config = ld->w->config;
    if (config->num_experts == 0)
        return add_linears(ld, l, dense, COUNT(dense));
    return add_linears(ld, l, moe, config->shared_expert_intermediate_size > 0 ? COUNT(moe) : 1);
}

static enum qep_status plan_experts(struct loader *ld, int32_t l, struct qep_layer_weights *w,
                                    struct qep_range mine) {
    char name[96];
    enum qep_weight_type up_type, down_type;
    enum qep_act_type up_act, down_act;
    int64_t rows, cols;
    snprintf(name, sizeof name, "layers.%d.mlp.experts.0.gate_up_proj", l);
    QEP_TRY(qep_shard_stat(ld->dir, name, &up_type, &rows, &cols));
    QEP_TRY(pick_act(ld, name, up_type, &up_act));
    snprintf(name, sizeof name, "layers.%d.mlp.experts.0.down_proj", l);
    QEP_TRY(qep_shard_stat(ld->dir, name, &down_type, &rows, &cols));
    QEP_TRY(pick_act(ld, name, down_type, &down_act));
    if (up_act != down_act)
        return qep_fail(QEP_ERR_USAGE,
                        "--activations auto: gate_up_proj and down_proj of layer %d want different "
                        "activations; name one",
                        l);
    w->expert_act = up_act;
    size_t n = (size_t)(mine.end - mine.begin);
    w->expert_gate_up = calloc(n + 1, sizeof(struct qep_weight *));
    w->expert_down = calloc(n + 1, sizeof(struct qep_weight *));
    if (w->expert_gate_up == NULL || w->expert_down == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "weights: out of memory");
    for (int32_t e = mine.begin; e < mine.end; e++) {
        struct job job = {.kind = JOB_LINEAR, .weight = &w->expert_gate_up[e - mine.begin]};
        snprintf(job.name, sizeof job.name, "layers.%d.mlp.experts.%d.gate_up_proj", l, e);
        QEP_TRY(add_job(ld, &job));
        job.weight = &w->expert_down[e - mine.begin];
        snprintf(job.name, sizeof job.name, "layers.%d.mlp.experts.%d.down_proj", l, e);
        QEP_TRY(add_job(ld, &job));
    }
    return QEP_OK;
}

static bool owns_layer(const struct qep_placement *pl, int32_t layer, int rank) {
    return pl->attention == QEP_ATTENTION_SEQUENCES || qep_owner(pl, layer, 0) == rank;
}

static enum qep_status plan_layer(struct loader *ld, const struct qep_placement *pl, int rank,
                                  int32_t l) {
    struct qep_layer_weights *w = &ld->w->layers[l];
    if (ld->w->config->num_experts > 0)
        QEP_TRY(plan_experts(ld, l, w, pl->experts[rank]));
    if (!owns_layer(pl, l, rank))
        return QEP_OK;
    const struct named_vector norms[] = {
        {"input_layernorm.weight", 1.0f, &w->input_layernorm},
        {"post_attention_layernorm.weight", 1.0f, &w->post_attention_layernorm}};
    QEP_TRY(add_vectors(ld, l, norms, COUNT(norms)));
    if (ld->w->config->layer_types[l] == QEP_LAYER_FULL_ATTENTION)
        QEP_TRY(plan_attention(ld, l, w));
    else
        QEP_TRY(plan_deltanet(ld, l, w));
    return plan_mlp(ld, l, w);
}

/* lm_head.weight.block.B, B in [block0, block0 + n), as one matrix. */
static enum qep_status plan_blocks(struct loader *ld, int32_t block0, int32_t n,
                                   struct qep_linear *lin) {
    struct job job = {
        .kind = JOB_LINEAR, .block0 = block0, .num_blocks = n, .weight = &lin->weight};
    int64_t rows = 0, cols = 0;
    QEP_TRY(qep_shard_stat(ld->dir, "lm_head.weight.block.0", &lin->type, &rows, &cols));
    QEP_TRY(pick_act(ld, "lm_head.weight", lin->type, &lin->act));
    lin->cols = (int32_t)cols;
    lin->rows = 0;
    ld->w->head_act = lin->act;
    if (n == 0)
        return QEP_OK;
    int64_t vocab = ld->w->config->vocab_size, begin = block0 * rows, end = (block0 + n) * rows;
    lin->rows = (int32_t)((end < vocab ? end : vocab) - begin);
    snprintf(job.name, sizeof job.name, "lm_head.weight.block.");
    return add_job(ld, &job);
}

static enum qep_status plan_model(struct loader *ld, const struct qep_placement *pl, int rank) {
    struct qep_weights *w = ld->w;
    const struct qep_model_config *config = w->config;
    for (int32_t l = 0; l < w->num_layers; l++)
        QEP_TRY(plan_layer(ld, pl, rank, l));
    struct qep_range blocks = pl->vocab_blocks[rank];
    QEP_TRY(plan_blocks(ld, blocks.begin, blocks.end - blocks.begin, &w->lm_head));
    if (owns_layer(pl, w->num_layers, rank))
        QEP_TRY(add_vector(ld, "norm.weight", 1.0f, &w->norm));
    if (!owns_layer(pl, 0, rank))
        return QEP_OK;
    if (config->tie_word_embeddings)
        return plan_blocks(ld, 0, qep_num_vocab_blocks(config->vocab_size), &w->embed_tokens);
    return add_linear_as(ld, "embed_tokens.weight", true, &w->embed_tokens);
}

/* Appends `more` below `all` (same columns and type). */
static enum qep_status append_rows(struct qep_host_weight *all,
                                   const struct qep_host_weight *more) {
    size_t have = qep_weight_data_bytes(all->type, all->rows, all->cols);
    size_t add = qep_weight_data_bytes(more->type, more->rows, more->cols);
    size_t scales = qep_weight_num_scales(all->rows, all->cols, all->group_size);
    size_t add_scales = qep_weight_num_scales(more->rows, more->cols, more->group_size);
    if (all->type != more->type || all->cols != more->cols || all->group_size != more->group_size)
        return qep_fail(QEP_ERR_DATA, "lm_head.weight: its blocks differ in type or width");
    void *data = realloc(all->data, have + add);
    if (data == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "lm_head.weight: out of memory (%zu bytes)", have + add);
    all->data = data;
    memcpy((char *)data + have, more->data, add);
    if (add_scales > 0) {
        void *grown = realloc(all->scales, (scales + add_scales) * sizeof *all->scales);
        if (grown == NULL)
            return qep_fail(QEP_ERR_SYSTEM, "lm_head.weight: out of memory");
        all->scales = grown;
        memcpy(all->scales + scales, more->scales, add_scales * sizeof *all->scales);
    }
    all->rows += more->rows;
    return QEP_OK;
}

static enum qep_status read_host(const struct loader *ld, const struct job *job,
                                 struct qep_host_weight *host, uint64_t *stored) {
    if (job->num_blocks == 0 && job->kind == JOB_LINEAR && ld->be->joins_planes)
        return qep_shard_load_planes(ld->dir, job->name, host, stored);
    if (job->num_blocks == 0)
        return qep_shard_load(ld->dir, job->name, host, stored);
    for (int32_t b = 0; b < job->num_blocks; b++) {
        char name[128];
        struct qep_host_weight block = {0};
        snprintf(name, sizeof name, "%s%d", job->name, job->block0 + b);
        QEP_TRY(qep_shard_load(ld->dir, name, &block, stored));
        if (b == 0) {
            *host = block;
            continue;
        }
        enum qep_status st = append_rows(host, &block);
        qep_host_weight_free(&block);
        QEP_TRY(st);
    }
    return QEP_OK;
}

static enum qep_status host_to_f32(const struct qep_host_weight *host, float offset, float **out) {
    size_t n = (size_t)host->rows * (size_t)host->cols;
    void *mem = NULL;
    QEP_TRY(qep_alloc(n, sizeof(float), "weights", &mem));
    *out = mem;
    for (size_t i = 0; i < n; i++) {
        float value = host->type == QEP_WEIGHT_F32
                          ? ((const float *)host->data)[i]
                          : qep_bf16_to_f32(((const uint16_t *)host->data)[i]);
        (*out)[i] = value + offset;
    }
    return QEP_OK;
}

static enum qep_status upload_vector(struct loader *ld, const struct job *job,
                                     const struct qep_host_weight *host) {
    float *values = NULL;
    void *dev = NULL;
    size_t bytes = (size_t)host->rows * (size_t)host->cols * sizeof(float);
    if (host->type != QEP_WEIGHT_F32 && host->type != QEP_WEIGHT_BF16)
        return qep_fail(QEP_ERR_DATA, "%s: %s is quantised, expected bf16 or f32",
                        qep_shard_dir_path(ld->dir), job->name);
    QEP_TRY(host_to_f32(host, job->offset, &values));
    enum qep_status st = ld->be->ops->alloc(ld->be, bytes, job->name, &dev);
    if (st == QEP_OK)
        st = ld->be->ops->upload(ld->be, dev, values, bytes);
    *job->vector = dev;
    free(values);
    return st;
}

static enum qep_status run_job(struct loader *ld, const struct job *job) {
    struct qep_host_weight host = {0};
    uint64_t stored = 0;
    double start = qep_now_s();
    enum qep_status st = read_host(ld, job, &host, &stored);
    double read = qep_now_s();
    if (st == QEP_OK) {
        st = job->kind == JOB_VECTOR ? upload_vector(ld, job, &host)
                                     : ld->be->ops->weight_create(ld->be, &host, job->weight);
        pthread_mutex_lock(&ld->lock);
        ld->w->stored_bytes += stored;
        ld->w->read_s += read - start;
        ld->w->place_s += qep_now_s() - read;
        ld->w->tensor_bytes += qep_weight_data_bytes(host.type, host.rows, host.cols) +
                               2 * qep_weight_num_scales(host.rows, host.cols, host.group_size);
        pthread_mutex_unlock(&ld->lock);
    }
    qep_host_weight_free(&host);
    return st;
}

static void work(void *arg, int thread_idx, int num_threads) {
    struct loader *ld = arg;
    (void)thread_idx;
    (void)num_threads;
    while (!atomic_load(&ld->failed)) {
        size_t i = atomic_fetch_add(&ld->next, 1);
        if (i >= ld->num_jobs)
            return;
        enum qep_status st = qep_drain_requested()
                                 ? qep_fail(QEP_ERR_INTERRUPTED, "interrupted while loading")
                                 : run_job(ld, &ld->jobs[i]);
        if (st == QEP_OK)
            continue;
        pthread_mutex_lock(&ld->lock);
        if (!atomic_exchange(&ld->failed, true)) {
            ld->status = st;
            snprintf(ld->message, sizeof ld->message, "%s", qep_last_error());
        }
        pthread_mutex_unlock(&ld->lock);
    }
}

static void finish(struct loader *ld) {
    free(ld->jobs);
    pthread_mutex_destroy(&ld->lock);
}

/* The weights without contents, and the list of what is to be loaded. */
static enum qep_status begin(struct loader *ld, const struct qep_placement *placement, int rank,
                             struct qep_weights **out) {
    void *mem = NULL;
    *out = NULL;
    pthread_mutex_init(&ld->lock, NULL);
    QEP_TRY(qep_calloc(1, sizeof(struct qep_weights), "weights", &mem));
    struct qep_weights *w = ld->w = *out = mem;
    w->be = ld->be;
    w->config = qep_shard_dir_config(ld->dir);
    w->num_layers = w->config->num_hidden_layers;
    w->num_local_experts = placement->experts[rank].end - placement->experts[rank].begin;
    QEP_TRY(qep_calloc((size_t)w->num_layers, sizeof *w->layers, "weights", (void **)&w->layers));
    return plan_model(ld, placement, rank);
}

enum qep_status qep_weights_load(struct qep_backend *be, struct qep_team *team,
                                 const struct qep_shard_dir *dir,
                                 const struct qep_placement *placement, int rank,
                                 enum qep_activations activations, struct qep_weights **out) {
    struct loader ld = {.be = be, .dir = dir, .activations = activations};
    enum qep_status st = begin(&ld, placement, rank, out);
    if (st == QEP_OK) {
        qep_team_run(team, work, &ld);
        if (atomic_load(&ld.failed))
            st = qep_fail(ld.status, "%s", ld.message);
    }
    finish(&ld);
    if (st != QEP_OK) {
        qep_weights_destroy(*out);
        *out = NULL;
    }
    return st;
}

static enum qep_status need_of_job(const struct loader *ld, const struct job *job,
                                   struct qep_weights_need *need) {
    const struct qep_device_ops *dev = ld->be->device;
    enum qep_weight_type type;
    int64_t rows, cols;
    uint64_t loading = 0;
    char name[sizeof job->name + 16];
    snprintf(name, sizeof name, job->num_blocks > 0 ? "%s0" : "%s", job->name);
    QEP_TRY(qep_shard_stat(ld->dir, name, &type, &rows, &cols));
    if (job->kind == JOB_VECTOR) {
        need->bytes += dev->block_bytes(ld->be, (size_t)rows * (size_t)cols * sizeof(float));
        return QEP_OK;
    }
    if (job->num_blocks > 0) { /* joined; the last block of the vocabulary may be shorter */
        int64_t left = ld->w->config->vocab_size - job->block0 * rows;
        rows = job->num_blocks * rows < left ? job->num_blocks * rows : left;
    }
    bool scaled = type == QEP_WEIGHT_INT8 || type == QEP_WEIGHT_INT4;
    const struct qep_weight_dims dims = {.type = type,
                                         .rows = (int32_t)rows,
                                         .cols = (int32_t)cols,
                                         .group_size =
                                             scaled ? qep_shard_dir_info(ld->dir)->group_size : 0};
    need->bytes += dev->weight_bytes(ld->be, &dims, &loading);
    need->loading = loading > need->loading ? loading : need->loading;
    return QEP_OK;
}

enum qep_status qep_weights_plan(struct qep_backend *be, const struct qep_shard_dir *dir,
                                 const struct qep_placement *placement, int rank,
                                 enum qep_activations activations, struct qep_weights **out,
                                 struct qep_weights_need *need) {
    struct loader ld = {.be = be, .dir = dir, .activations = activations};
    *need = (struct qep_weights_need){0};
    enum qep_status st = begin(&ld, placement, rank, out);
    for (size_t i = 0; st == QEP_OK && i < ld.num_jobs; i++)
        st = need_of_job(&ld, &ld.jobs[i], need);
    finish(&ld);
    if (st != QEP_OK) {
        qep_weights_destroy(*out);
        *out = NULL;
    }
    return st;
}

static void free_layer(struct qep_weights *w, struct qep_layer_weights *lw) {
    struct qep_linear *linears[] = {&lw->q_proj,
                                    &lw->k_proj,
                                    &lw->v_proj,
                                    &lw->o_proj,
                                    &lw->in_proj_qkv,
                                    &lw->in_proj_z,
                                    &lw->in_proj_a,
                                    &lw->in_proj_b,
                                    &lw->out_proj,
                                    &lw->gate,
                                    &lw->shared_expert_gate,
                                    &lw->shared_gate_proj,
                                    &lw->shared_up_proj,
                                    &lw->shared_down_proj,
                                    &lw->gate_proj,
                                    &lw->up_proj,
                                    &lw->down_proj};
    float *vectors[] = {lw->input_layernorm, lw->post_attention_layernorm,
                        lw->q_norm,          lw->k_norm,
                        lw->conv1d,          lw->A_log,
                        lw->dt_bias,         lw->norm};
    for (size_t i = 0; i < COUNT(linears); i++)
        w->be->ops->weight_destroy(w->be, linears[i]->weight);
    for (size_t i = 0; i < COUNT(vectors); i++)
        w->be->ops->free(w->be, vectors[i]);
    for (int32_t e = 0; e < w->num_local_experts; e++) {
        if (lw->expert_gate_up != NULL)
            w->be->ops->weight_destroy(w->be, lw->expert_gate_up[e]);
        if (lw->expert_down != NULL)
            w->be->ops->weight_destroy(w->be, lw->expert_down[e]);
    }
    free(lw->expert_gate_up);
    free(lw->expert_down);
}

void qep_weights_destroy(struct qep_weights *w) {
    if (w == NULL)
        return;
    for (int32_t l = 0; w->layers != NULL && l < w->num_layers; l++)
        free_layer(w, &w->layers[l]);
    w->be->ops->weight_destroy(w->be, w->embed_tokens.weight);
    w->be->ops->weight_destroy(w->be, w->lm_head.weight);
    w->be->ops->free(w->be, w->norm);
    free(w->layers);
    free(w);
}

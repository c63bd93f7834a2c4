#include "engine/engine.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "checkpoint/config.h"
#include "engine/wire.h"
#include "shard/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qep_engine {
    struct qep_comm *comm;
    struct qep_engine_options options;
    struct qep_engine_facts facts;
    struct qep_shard_dir *dir;
    struct qep_team *team;
    struct qep_backend *be;
    struct qep_placement *placement;
    struct qep_model *model;
    struct qep_watchdog *dog;
    enum qep_activations activations;
    enum qep_kv_type kv_type;
    enum qep_attention_mode attention;
    int64_t step;
    bool broken;
};

/* Index of `text` in a list that ends with NULL, or -1. */
static int find_name(const char *text, const char *const *names) {
    for (int i = 0; names[i] != NULL; i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    return -1;
}

static enum qep_status check_options(struct qep_engine *e) {
    static const char *const activations[] = {"auto", "bf16", "int8", "fp32", NULL};
    static const char *const kv_types[] = {"f32", "bf16", "int8", NULL};
    const struct qep_engine_options *o = &e->options;
    int act = find_name(o->activations, activations), kv = find_name(o->kv_type, kv_types);
    bool reference = strcmp(o->backend, "reference") == 0;
    if (o->model == NULL && o->random.config == NULL)
        return qep_fail(QEP_ERR_USAGE, "--model DIR is missing");
    if (strcmp(o->backend, "cuda") == 0)
        return qep_fail(QEP_ERR_UNAVAILABLE, "--backend cuda: this build has no CUDA backend");
    if (act < 0)
        return qep_fail(QEP_ERR_USAGE, "--activations: unknown value '%s'", o->activations);
    if (reference && act != QEP_ACTIVATIONS_AUTO && act != QEP_ACTIVATIONS_FP32)
        return qep_fail(QEP_ERR_USAGE,
                        "--activations %s: the reference backend computes in fp32 only",
                        o->activations);
    bool f32 = reference || act == QEP_ACTIVATIONS_FP32;
    e->activations = (enum qep_activations)act;
    e->kv_type = kv >= 0 ? (enum qep_kv_type)kv : f32 ? QEP_KV_F32 : QEP_KV_BF16;
    e->facts.kv_type = kv_types[e->kv_type];
    e->facts.activations = reference ? "fp32" : activations[act];
    return QEP_OK;
}

/* The lowest ISA level that all ranks have, so that all compute the same bits. */
static enum qep_status agree_isa(struct qep_engine *e, const char **isa) {
    int32_t mine = qep_cpu_isa_level(), lowest = mine;
    void *mem = NULL;
    QEP_TRY(qep_alloc((size_t)e->comm->num_ranks, sizeof mine, "ISA levels", &mem));
    int32_t *all = mem;
    enum qep_status st = e->comm->ops->allgather(e->comm, &mine, all, sizeof mine);
    for (int p = 0; st == QEP_OK && p < e->comm->num_ranks; p++)
        lowest = all[p] < lowest ? all[p] : lowest;
    *isa = strcmp(e->options.isa, "auto") == 0 ? qep_cpu_isa_name(lowest) : e->options.isa;
    free(all);
    return st;
}

static enum qep_status start_cpus(struct qep_engine *e) {
    QEP_TRY(qep_cpus_divide(e->comm, strcmp(e->options.bind, "keep") != 0, &e->facts.cpus));
    e->facts.num_threads =
        e->options.threads > 0 ? (int)e->options.threads : e->facts.cpus.num_cpus;
    return qep_team_create(e->facts.num_threads, &e->team);
}

static enum qep_status start_backend(struct qep_engine *e, const char *isa) {
    if (strcmp(e->options.backend, "reference") == 0)
        QEP_TRY(qep_backend_reference_create(&e->be));
    else
        QEP_TRY(qep_backend_cpu_create(e->team, isa, &e->be));
    e->facts.backend = e->be->ops->name;
    e->facts.isa = e->be->isa;
    return QEP_OK;
}

static uint64_t available_memory(void) {
    char line[128];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    if (f == NULL)
        return UINT64_MAX;
    while (fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    fclose(f);
    return kib == 0 ? UINT64_MAX : kib * 1024;
}

/* Does every rank say yes? */
static enum qep_status agree_all(struct qep_comm *comm, bool mine, bool *all) {
    int32_t vote = mine ? 1 : 0;
    void *mem = NULL;
    QEP_TRY(qep_alloc((size_t)comm->num_ranks, sizeof vote, "votes", &mem));
    int32_t *votes = mem;
    enum qep_status st = comm->ops->allgather(comm, &vote, votes, sizeof vote);
    *all = true;
    for (int p = 0; st == QEP_OK && p < comm->num_ranks; p++)
        *all = *all && votes[p] == 1;
    free(votes);
    return st;
}

/* Bytes of the routed experts of all layers, from the shapes of the first. */
static enum qep_status expert_bytes(const struct qep_shard_dir *dir, uint64_t *bytes) {
    static const char *const names[] = {"layers.0.mlp.experts.0.gate_up_proj",
                                        "layers.0.mlp.experts.0.down_proj"};
    const struct qep_model_config *c = qep_shard_dir_config(dir);
    *bytes = 0;
    for (int i = 0; i < 2 && c->num_experts > 0; i++) {
        enum qep_weight_type type;
        int64_t rows, cols;
        QEP_TRY(qep_shard_stat(dir, names[i], &type, &rows, &cols));
        *bytes += (uint64_t)qep_weight_data_bytes(type, rows, cols) * (uint64_t)c->num_experts *
                  (uint64_t)c->num_hidden_layers;
    }
    return QEP_OK;
}

/* Would this rank hold its experts, all dense weights and its sequences' states in half of its free
 * memory? */
static enum qep_status sequences_fit(const struct qep_engine *e, bool *fit) {
    const struct qep_model_config *c = qep_shard_dir_config(e->dir);
    uint64_t experts = 0, ranks = (uint64_t)e->comm->num_ranks, linear_layers = 0;
    QEP_TRY(expert_bytes(e->dir, &experts));
    for (int32_t l = 0; l < c->num_hidden_layers; l++)
        linear_layers += c->layer_types[l] == QEP_LAYER_LINEAR_ATTENTION ? 1 : 0;
    uint64_t state = (uint64_t)4 * linear_layers * (uint64_t)c->linear_num_value_heads *
                     (uint64_t)c->linear_key_head_dim * (uint64_t)c->linear_value_head_dim;
    uint64_t slots = ((uint64_t)e->options.num_slots + ranks - 1) / ranks;
    uint64_t total = qep_shard_dir_info(e->dir)->tensor_bytes;
    uint64_t dense = total > experts ? total - experts : 0;
    uint64_t room = available_memory() / 2 / (uint64_t)e->comm->num_local_ranks;
    *fit = dense + experts / ranks + slots * state <= room;
    return QEP_OK;
}

/* One sequence gains nothing from replicated dense weights; several share the work of the dense
 * part. */
static enum qep_status choose_attention(struct qep_engine *e) {
    const char *wanted = e->options.attention;
    bool sequences = strcmp(wanted, "sequences") == 0, mine = false, fit = false;
    e->facts.attention_why = "as asked";
    if (strcmp(wanted, "auto") == 0 && e->options.num_slots == 1) {
        e->facts.attention_why = "one sequence";
    } else if (strcmp(wanted, "auto") == 0) {
        QEP_TRY(sequences_fit(e, &mine));
        QEP_TRY(agree_all(e->comm, mine, &fit));
        sequences = fit;
        e->facts.attention_why = fit ? "several sequences, dense weights fit every rank"
                                     : "dense weights do not fit every rank";
    }
    e->attention = sequences ? QEP_ATTENTION_SEQUENCES : QEP_ATTENTION_LAYERS;
    e->facts.attention = sequences ? "sequences" : "layers";
    return QEP_OK;
}

/* Everything that must be equal on all ranks, in words. */
static enum qep_status compare_identities(struct qep_engine *e) {
    char options[200];
    const struct qep_engine_options *o = &e->options;
    snprintf(options, sizeof options, "%s/%s/%s/%s/%s ctx %lld slots %lld", o->backend,
             e->facts.isa, o->activations, e->facts.attention, e->facts.kv_type, (long long)o->ctx,
             (long long)o->num_slots);
    QEP_TRY(qep_comm_same(e->comm, "build", QEP_VERSION " " __VERSION__));
    QEP_TRY(qep_comm_same(e->comm, "weights (manifest)", qep_shard_dir_info(e->dir)->identity));
    return qep_comm_same(e->comm, "options", options);
}

/* --ctx, or the smaller of the model's and what half of the free memory holds in KV blocks. */
static enum qep_status choose_ctx(struct qep_engine *e) {
    const struct qep_model_config *c = qep_shard_dir_config(e->dir);
    int64_t max = c->max_position_embeddings, mine = max;
    if (e->options.ctx > max)
        return qep_fail(QEP_ERR_USAGE, "--ctx %lld: the model has %lld positions",
                        (long long)e->options.ctx, (long long)max);
    uint64_t per_block = 0;
    for (int32_t l = 0; l < c->num_hidden_layers; l++)
        if (c->layer_types[l] == QEP_LAYER_FULL_ATTENTION &&
            (e->attention == QEP_ATTENTION_SEQUENCES ||
             qep_owner(e->placement, l, 0) == e->comm->rank))
            per_block += qep_kv_block_bytes(e->kv_type, c->num_key_value_heads, c->head_dim);
    uint64_t memory = available_memory() / 2 / (uint64_t)e->comm->num_local_ranks;
    if (per_block > 0) {
        uint64_t blocks = memory / per_block / (uint64_t)e->options.num_slots;
        if (blocks < (uint64_t)(max / QEP_KV_BLOCK))
            mine = (int64_t)(blocks > 0 ? blocks : 1) * QEP_KV_BLOCK;
    }
    void *mem = NULL;
    QEP_TRY(qep_alloc((size_t)e->comm->num_ranks, sizeof mine, "context sizes", &mem));
    int64_t *all = mem;
    enum qep_status st = e->comm->ops->allgather(e->comm, &mine, all, sizeof mine);
    for (int p = 0; st == QEP_OK && p < e->comm->num_ranks; p++)
        mine = all[p] < mine ? all[p] : mine;
    free(all);
    e->facts.ctx = (int32_t)(e->options.ctx > 0 ? e->options.ctx : mine);
    return st;
}

static enum qep_status load_model(struct qep_engine *e) {
    const struct qep_model_config *config = qep_shard_dir_config(e->dir);
    const struct qep_model_options options = {.activations = e->activations,
                                              .kv_type = e->kv_type,
                                              .num_slots = (int32_t)e->options.num_slots,
                                              .ctx = e->facts.ctx};
    struct qep_weights *weights = NULL;
    double start = qep_now_s();
    QEP_TRY(qep_weights_load(e->be, e->team, e->dir, e->placement, e->comm->rank, e->activations,
                             &weights));
    e->facts.load_s = qep_now_s() - start;
    e->facts.stored_bytes = weights->stored_bytes;
    e->facts.tensor_bytes = weights->tensor_bytes;
    enum qep_status st =
        qep_model_create(e->comm, e->be, config, e->placement, weights, &options, &e->model);
    if (st != QEP_OK)
        qep_weights_destroy(weights);
    return st;
}

static enum qep_status open_random(const struct qep_random_model *r, struct qep_shard_dir **dir) {
    struct qep_model_config config;
    struct qep_recipe recipe = {0};
    QEP_TRY(qep_config_read(r->config, &config));
    if (r->num_layers > config.num_hidden_layers)
        return qep_fail(QEP_ERR_USAGE, "--layers %lld: %s has %d", (long long)r->num_layers,
                        r->config, config.num_hidden_layers);
    if (r->num_layers > 0)
        config.num_hidden_layers = (int32_t)r->num_layers;
    QEP_TRY(qep_recipe_load(r->recipe, &recipe));
    enum qep_status st = qep_shard_dir_random(&config, &recipe, 0, dir);
    qep_recipe_free(&recipe);
    return st;
}

static enum qep_status open_model(struct qep_engine *e) {
    return e->options.random.config != NULL ? open_random(&e->options.random, &e->dir)
                                            : qep_shard_dir_open(e->options.model, &e->dir);
}

static enum qep_status start(struct qep_engine *e) {
    const char *isa = NULL;
    QEP_TRY(qep_comm_agree(e->comm, check_options(e)));
    QEP_TRY(qep_comm_agree(e->comm, open_model(e)));
    QEP_TRY(agree_isa(e, &isa));
    QEP_TRY(qep_comm_agree(e->comm, start_cpus(e)));
    QEP_TRY(qep_comm_agree(e->comm, start_backend(e, isa)));
    QEP_TRY(qep_comm_agree(e->comm, choose_attention(e)));
    QEP_TRY(compare_identities(e));
    e->facts.recipe = qep_shard_dir_info(e->dir)->recipe;
    e->facts.transport = e->comm->ops->name;
    QEP_TRY(qep_comm_agree(e->comm,
                           qep_placement_create(qep_shard_dir_config(e->dir), e->comm->num_ranks,
                                                e->attention, &e->placement)));
    QEP_TRY(qep_comm_agree(e->comm, choose_ctx(e)));
    QEP_TRY(qep_comm_agree(e->comm, load_model(e)));
    QEP_TRY(qep_comm_agree(e->comm, qep_watchdog_create(e->comm, e->options.timeout_s, &e->dog)));
    qep_model_set_watchdog(e->model, e->dog);
    return QEP_OK;
}

enum qep_status qep_engine_create(struct qep_comm *comm, const struct qep_engine_options *options,
                                  struct qep_engine **out) {
    void *mem = NULL;
    *out = NULL;
    enum qep_status st = qep_calloc(1, sizeof(struct qep_engine), "engine", &mem);
    QEP_TRY(qep_comm_agree(comm, st));
    struct qep_engine *e = mem;
    e->comm = comm;
    e->options = *options;
    st = start(e);
    if (st == QEP_OK)
        *out = e;
    else
        qep_engine_destroy(e);
    return st;
}

void qep_engine_destroy(struct qep_engine *e) {
    if (e == NULL)
        return;
    qep_watchdog_destroy(e->dog);
    qep_model_destroy(e->model);
    qep_placement_destroy(e->placement);
    if (e->be != NULL)
        e->be->ops->destroy(e->be);
    qep_team_destroy(e->team);
    qep_shard_dir_close(e->dir);
    free(e);
}

const struct qep_model_config *qep_engine_config(const struct qep_engine *e) {
    return qep_shard_dir_config(e->dir);
}

const struct qep_engine_facts *qep_engine_get_facts(const struct qep_engine *e) {
    return &e->facts;
}

const struct qep_model *qep_engine_model(const struct qep_engine *e) {
    return e->model;
}

struct qep_comm *qep_engine_comm(const struct qep_engine *e) {
    return e->comm;
}

enum qep_status qep_engine_step(struct qep_engine *e, struct qep_plan *plan,
                                qep_logits_fn *on_logits, void *ctx) {
    plan->step = e->step++;
    qep_watchdog_stamp(e->dog, "plan", -1, (long)plan->step);
    enum qep_status st = qep_wire_broadcast(e->comm, plan);
    if (st == QEP_OK)
        st = qep_model_forward(e->model, plan, on_logits, ctx);
    e->broken = st != QEP_OK;
    return st;
}

bool qep_engine_is_broken(const struct qep_engine *e) {
    return e->broken;
}

static enum qep_status send_kind(struct qep_engine *e, enum qep_plan_kind kind) {
    struct qep_plan plan;
    qep_plan_init(&plan);
    qep_plan_clear(&plan, kind, e->step++);
    qep_watchdog_stamp(e->dog, "plan", -1, (long)plan.step);
    return qep_wire_broadcast(e->comm, &plan);
}

enum qep_status qep_engine_idle(struct qep_engine *e) {
    QEP_TRY(send_kind(e, QEP_PLAN_IDLE));
    qep_watchdog_rest(e->dog);
    return QEP_OK;
}

enum qep_status qep_engine_stop(struct qep_engine *e) {
    QEP_TRY(send_kind(e, QEP_PLAN_STOP));
    qep_watchdog_rest(e->dog);
    return QEP_OK;
}

enum qep_status qep_engine_serve(struct qep_engine *e) {
    struct qep_plan plan;
    enum qep_status st = QEP_OK;
    qep_plan_init(&plan);
    for (;;) {
        QEP_TRY_GOTO(st, done, qep_wire_broadcast(e->comm, &plan));
        if (plan.kind == QEP_PLAN_STOP)
            break;
        if (plan.kind == QEP_PLAN_IDLE) {
            qep_watchdog_rest(e->dog);
            continue;
        }
        qep_watchdog_stamp(e->dog, "plan", -1, (long)plan.step);
        QEP_TRY_GOTO(st, done, qep_model_forward(e->model, &plan, NULL, NULL));
        qep_watchdog_stamp(e->dog, "waiting for a plan", -1, (long)plan.step);
    }
    qep_watchdog_rest(e->dog);
done:
    e->broken = st != QEP_OK;
    qep_plan_free(&plan);
    return st;
}

/* Start-up: options, directory, backend, placement, weights; every phase agreed on. */
#include "engine/engine_internal.h"

#include "base/clock.h"
#include "base/mem.h"
#include "shard/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    bool cuda = strcmp(o->backend, "cuda") == 0;
    if (o->model == NULL && o->random.config == NULL)
        return qep_fail(QEP_ERR_USAGE, "--model DIR is missing");
    if (act < 0)
        return qep_fail(QEP_ERR_USAGE, "--activations: unknown value '%s'", o->activations);
    if (reference && act != QEP_ACTIVATIONS_AUTO && act != QEP_ACTIVATIONS_FP32)
        return qep_fail(QEP_ERR_USAGE,
                        "--activations %s: the reference backend computes in fp32 only",
                        o->activations);
    if (cuda && act != QEP_ACTIVATIONS_AUTO && act != QEP_ACTIVATIONS_BF16)
        return qep_fail(QEP_ERR_USAGE, "--activations %s: the cuda backend takes bf16 (auto)",
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
    int32_t mine = qep_cpu_isa_level(), lowest = mine, *all = NULL;
    QEP_TRY(qep_comm_gather(e->comm, &mine, sizeof mine, "ISA levels", (void **)&all));
    for (int p = 0; p < e->comm->num_ranks; p++)
        lowest = all[p] < lowest ? all[p] : lowest;
    *isa = strcmp(e->options.isa, "auto") == 0 ? qep_cpu_isa_name(lowest) : e->options.isa;
    free(all);
    return QEP_OK;
}

static enum qep_status start_cpus(struct qep_engine *e) {
    QEP_TRY(qep_cpus_divide(e->comm, strcmp(e->options.bind, "keep") != 0, &e->facts.cpus));
    e->facts.num_threads =
        e->options.threads > 0 ? (int)e->options.threads : e->facts.cpus.num_cpus;
    return qep_team_create(e->facts.num_threads, &e->team);
}

static enum qep_status start_backend(struct qep_engine *e, const char *isa) {
    if (strcmp(e->facts.backend, "reference") == 0)
        QEP_TRY(qep_backend_reference_create(&e->be));
    else if (strcmp(e->facts.backend, "cuda") == 0)
        QEP_TRY(engine_start_gpu(e));
    else
        QEP_TRY(qep_backend_cpu_create(e->team, isa, &e->be));
    e->facts.isa = e->be->isa;
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
        QEP_TRY(qep_comm_agree(e->comm, engine_sequences_fit(e, &mine)));
        QEP_TRY(engine_agree_all(e->comm, mine, &fit));
        sequences = fit;
        e->facts.attention_why = fit ? "several sequences, dense weights fit every rank"
                                     : "dense weights do not fit every rank";
    }
    e->attention = sequences ? QEP_ATTENTION_SEQUENCES : QEP_ATTENTION_LAYERS;
    e->facts.attention = sequences ? "sequences" : "layers";
    return QEP_OK;
}

/* What the ranks do together from here on follows from these. A command line has been compared
 * before, option by option; other users of the engine have not. */
static enum qep_status compare_options(struct qep_engine *e) {
    char text[250];
    const struct qep_engine_options *o = &e->options;
    snprintf(text, sizeof text,
             "%s %s/%s/%s/%s/%s/%s graphs %s ctx %lld slots %lld chunk %lld timeout %g",
             o->random.config != NULL ? "random" : "dir", o->backend, o->isa, o->activations,
             o->attention, o->kv_type, o->device_transport, o->cuda_graphs, (long long)o->ctx,
             (long long)o->num_slots, (long long)o->prefill_chunk, o->timeout_s);
    return qep_comm_same(e->comm, "the set of options", text);
}

static enum qep_status load_model(struct qep_engine *e) {
    const struct qep_model_config *config = qep_shard_dir_config(e->dir);
    const struct qep_model_options options = {.activations = e->activations,
                                              .kv_type = e->kv_type,
                                              .num_slots = (int32_t)e->options.num_slots,
                                              .ctx = e->facts.ctx,
                                              .device_comm = e->dc,
                                              .device_graphs =
                                                  strcmp(e->options.cuda_graphs, "on") == 0};
    struct qep_weights *weights = NULL;
    double start = qep_now_s();
    QEP_TRY(qep_weights_load(e->be, e->team, e->dir, e->placement, e->comm->rank, e->activations,
                             &weights));
    enum qep_status st = e->be->ops->sync(e->be);
    e->facts.load_s = qep_now_s() - start;
    e->facts.stored_bytes = weights->stored_bytes;
    e->facts.tensor_bytes = weights->tensor_bytes;
    e->facts.load_read_s = weights->read_s;
    e->facts.load_place_s = weights->place_s;
    if (st == QEP_OK)
        st = qep_model_create(e->comm, e->be, config, e->placement, weights, &options, &e->model);
    if (st != QEP_OK)
        qep_weights_destroy(weights);
    return st;
}

static enum qep_status open_model(struct qep_engine *e) {
    const struct qep_random_model *r = &e->options.random;
    return r->config != NULL ? qep_shard_dir_random(r->config, r->recipe, 0, &e->dir)
                             : qep_shard_dir_open(e->options.model, &e->dir);
}

static void enter(const struct qep_engine *e, const char *phase) {
    qep_watchdog_stamp(e->comm->dog, phase, -1, -1);
}

enum qep_status engine_start(struct qep_engine *e) {
    const char *isa = NULL;
    enter(e, "start: options");
    QEP_TRY(compare_options(e));
    QEP_TRY(qep_comm_agree(e->comm, check_options(e)));
    enter(e, "start: opening the directory");
    QEP_TRY(qep_comm_agree(e->comm, open_model(e)));
    QEP_TRY(qep_comm_same(e->comm, "weights (manifest)", qep_shard_dir_info(e->dir)->identity));
    enter(e, "start: CPUs");
    QEP_TRY(engine_choose_backend(e));
    QEP_TRY(agree_isa(e, &isa));
    QEP_TRY(qep_comm_agree(e->comm, start_cpus(e)));
    enter(e, "start: backend");
    QEP_TRY(qep_comm_agree(e->comm, start_backend(e, isa)));
    QEP_TRY(engine_connect_gpus(e));
    enter(e, "start: placement");
    QEP_TRY(choose_attention(e));
    e->facts.recipe = qep_shard_dir_info(e->dir)->recipe;
    if (e->facts.transport == NULL)
        e->facts.transport = e->comm->ops->name;
    QEP_TRY(qep_comm_agree(e->comm,
                           qep_placement_create(qep_shard_dir_config(e->dir), e->comm->num_ranks,
                                                e->attention, &e->placement)));
    QEP_TRY(engine_choose_ctx(e));
    QEP_TRY(qep_comm_agree(e->comm, engine_check_gpu_memory(e)));
    enter(e, "loading");
    QEP_TRY(qep_comm_agree(e->comm, load_model(e)));
    qep_model_set_watchdog(e->model, e->comm->dog);
    enter(e, "ready");
    return QEP_OK;
}

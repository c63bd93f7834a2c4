#include "cli/common.h"

#include "base/log.h"
#include "cli/command_line.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { MAX_THREAD_RANKS = 256 };

void qep_common_init(struct qep_common *c, struct qep_option table[QEP_NUM_COMMON_OPTIONS]) {
    *c = (struct qep_common){
        .engine = QEP_ENGINE_OPTIONS_DEFAULT, .transport = "auto", .progress = "auto"};
    struct qep_engine_options *e = &c->engine;
    const struct qep_option rows[QEP_NUM_COMMON_OPTIONS] = {
        {"model", 'm', QEP_OPTION_PATH, &e->model, "DIR", "shard directory (made by convert)", 0, 0,
         NULL, NULL, true},
        {"backend", 0, QEP_OPTION_CHOICE, &e->backend, NULL, "compute", 0, 0,
         "auto|cpu|cuda|reference", NULL, false},
        {"isa", 0, QEP_OPTION_CHOICE, &e->isa, "NAME",
         "baseline, avx2, avx512 (auto: best of all ranks)", 0, 0, "auto|baseline|avx2|avx512",
         NULL, false},
        {"threads", 't', QEP_OPTION_INT, &e->threads, "N",
         "threads per rank (0: cores / local ranks)", 0, 1024, NULL, NULL, true},
        {"bind", 0, QEP_OPTION_CHOICE, &e->bind, "auto|keep",
         "divide the host's CPUs, or keep as launched", 0, 0, "auto|keep", NULL, true},
        {"activations", 0, QEP_OPTION_CHOICE, &e->activations, "TYPE", "auto, bf16, int8, fp32", 0,
         0, "auto|bf16|int8|fp32", NULL, false},
        {"attention", 0, QEP_OPTION_CHOICE, &e->attention, "MODE", "auto, layers, sequences", 0, 0,
         "auto|layers|sequences", NULL, false},
        {"ctx", 'c', QEP_OPTION_INT, &e->ctx, "N",
         "positions per sequence (0: what model and memory allow)", 0, 1 << 24, NULL, NULL, false},
        {"kv-type", 0, QEP_OPTION_CHOICE, &e->kv_type, "TYPE", "auto, f32, bf16, int8", 0, 0,
         "auto|f32|bf16|int8", NULL, false},
        {"transport", 0, QEP_OPTION_CHOICE, &c->transport, "NAME", "auto, self, threads, mpi, nccl",
         0, 0, "auto|self|threads|mpi|nccl", NULL, false},
        {"ranks", 0, QEP_OPTION_INT, &c->ranks, "P", "ranks, with --transport threads", 1,
         MAX_THREAD_RANKS, NULL, NULL, false},
        {"timeout", 0, QEP_OPTION_DOUBLE, &e->timeout_s, "S",
         "end the job after S s without progress (0: never)", 0, 1e9, NULL, NULL, false},
        {"progress", 0, QEP_OPTION_CHOICE, &c->progress, "WHEN", "auto, always, never", 0, 0,
         "auto|always|never", NULL, true},
        {"quiet", 'q', QEP_OPTION_FLAG, &c->quiet, NULL, "only results and errors", 0, 0, NULL,
         NULL, true},
        {"verbose", 'v', QEP_OPTION_FLAG, &c->verbose, NULL, "details of every rank", 0, 0, NULL,
         NULL, true},
        {"config-file", 0, QEP_OPTION_CONFIG_FILE, &c->config_file, "F",
         "options from a JSON object", 0, 0, NULL, NULL, false},
        {"cuda-graphs", 0, QEP_OPTION_CHOICE, &e->cuda_graphs, "on|off",
         "decode steps on a GPU as captured graphs", 0, 0, "on|off", NULL, false},
        {"slots", 0, QEP_OPTION_INT, &e->num_slots, "N", "sequences at once", 1, 4096, NULL, NULL,
         false}};
    memcpy(table, rows, sizeof rows);
}

enum qep_status qep_common_parse(struct qep_comm *comm, struct qep_common *common,
                                 const struct qep_option_table *own,
                                 const struct qep_option_table *shared,
                                 void (*print_help)(const struct qep_option_table *own), int argc,
                                 char **argv) {
    const struct qep_option_table tables[2] = {*own, *shared};
    const struct qep_command_line line = {
        .tables = tables, .num_tables = 2, .print_help = print_help};
    QEP_TRY(qep_command_line_read(comm, &line, argc, argv, &common->answered));
    if (common->answered)
        return QEP_OK;
    const char *t = common->transport;
    common->engine.device_transport = strcmp(t, "auto") == 0 || strcmp(t, "self") == 0 ? "auto"
                                      : strcmp(t, "nccl") == 0                         ? "nccl"
                                                                                       : "staged";
    if (common->quiet || common->verbose)
        qep_log_set_level(common->quiet ? QEP_LOG_QUIET : QEP_LOG_VERBOSE);
    return QEP_OK;
}

/* One thread that plays a rank. */
struct player {
    struct qep_comm *comm;
    qep_rank_fn *fn;
    void *arg;
    enum qep_status status;
    char message[QEP_ERROR_MAX];
};

static void *play(void *p) {
    struct player *me = p;
    me->status = me->fn(me->comm, me->arg);
    if (me->status != QEP_OK)
        snprintf(me->message, sizeof me->message, "%s", qep_last_error());
    if (me->status != QEP_OK && !me->comm->failure_shared)
        qep_comm_give_up(me->comm, me->status, "%s", me->message);
    qep_comm_destroy(me->comm);
    return NULL;
}

static enum qep_status launch_threads(int num_ranks, qep_rank_fn *fn, void *arg) {
    struct qep_comm *comms[MAX_THREAD_RANKS];
    struct player players[MAX_THREAD_RANKS];
    pthread_t threads[MAX_THREAD_RANKS];
    QEP_TRY(qep_comm_threads_create(num_ranks, comms));
    for (int r = 0; r < num_ranks; r++)
        players[r] = (struct player){.comm = comms[r], .fn = fn, .arg = arg};
    for (int r = 1; r < num_ranks; r++)
        if (pthread_create(&threads[r], NULL, play, &players[r]) != 0)
            qep_comm_give_up(comms[0], QEP_ERR_SYSTEM, "cannot start the thread of rank %d", r);
    play(&players[0]);
    for (int r = 1; r < num_ranks; r++)
        pthread_join(threads[r], NULL);
    return players[0].status == QEP_OK ? QEP_OK
                                       : qep_fail(players[0].status, "%s", players[0].message);
}

enum qep_status qep_common_launch(struct qep_comm *comm, const struct qep_common *common,
                                  qep_rank_fn *fn, void *arg) {
    const char *t = common->transport;
    enum qep_status st = QEP_OK;
    bool nccl = strcmp(t, "nccl") == 0;
    bool threads = strcmp(t, "threads") == 0 || (nccl && comm->num_ranks == 1 && common->ranks > 0);
    if (threads && comm->num_ranks > 1)
        st = qep_fail(QEP_ERR_USAGE,
                      "--transport threads runs in one process, not under a launcher of %d",
                      comm->num_ranks);
    else if (strcmp(t, "self") == 0 && comm->num_ranks > 1)
        st = qep_fail(QEP_ERR_USAGE, "--transport self is one rank, the launcher started %d",
                      comm->num_ranks);
    else if (strcmp(t, "mpi") == 0 && strcmp(comm->ops->name, "mpi") != 0)
        st = qep_fail(QEP_ERR_USAGE, "--transport mpi needs a launcher (mpirun, srun --mpi=pmix)");
    else if (common->ranks > 0 && !threads)
        st = qep_fail(QEP_ERR_USAGE,
                      "--ranks goes with --transport threads; use mpirun -np %lld otherwise",
                      (long long)common->ranks);
    QEP_TRY(qep_comm_agree(comm, st));
    if (threads)
        return launch_threads(common->ranks > 0 ? (int)common->ranks : 1, fn, arg);
    return fn(comm, arg);
}

static double rate(uint64_t bytes, double seconds) {
    return seconds > 0 ? 1e-9 * (double)bytes / seconds : 0.0;
}

void qep_common_report(const struct qep_engine *engine) {
    const struct qep_engine_facts *f = qep_engine_get_facts(engine);
    const struct qep_comm *comm = qep_engine_comm(engine);
    const struct qep_model_config *c = qep_engine_config(engine);
    if (comm->rank != 0)
        return;
    qep_info("model: %s, %d layers, %d experts top-%d, recipe %s, ctx %d", c->model_type,
             c->num_hidden_layers, c->num_experts, c->num_experts_per_tok, f->recipe, f->ctx);
    qep_info(
        "ranks: %d over %s, %d on this host; %d of %d CPUs (%s), %d threads each; attention by "
        "%s (%s)",
        comm->num_ranks, f->transport, comm->num_local_ranks, f->cpus.num_cpus,
        f->cpus.num_host_cpus, f->cpus.list, f->num_threads, f->attention, f->attention_why);
    qep_info("backend: %s (%s), activations %s, KV %s", f->backend, f->isa, f->activations,
             f->kv_type);
    qep_info("loaded: %.2f GB of weights from %.2f GB of files in %.2f s (%.2f GB/s) by rank 0",
             1e-9 * (double)f->tensor_bytes, 1e-9 * (double)f->stored_bytes, f->load_s,
             rate(f->tensor_bytes, f->load_s));
    qep_detail("loading, a thread: %.2f GB/s read and unpacked, %.2f GB/s %s",
               rate(f->tensor_bytes, f->load_read_s), rate(f->tensor_bytes, f->load_place_s),
               strcmp(f->backend, "cuda") == 0 ? "sent and queued for repacking" : "repacked");
}

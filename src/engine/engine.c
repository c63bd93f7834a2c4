#include "engine/engine_internal.h"

#include "base/log.h"
#include "base/mem.h"
#include "engine/wire.h"
#include "model/rank_bytes.h"

#include <stdlib.h>

enum qep_status qep_engine_create(struct qep_comm *comm, const struct qep_engine_options *options,
                                  struct qep_engine **out) {
    void *mem = NULL;
    *out = NULL;
    enum qep_status st = qep_calloc(1, sizeof(struct qep_engine), "engine", &mem);
    QEP_TRY(qep_comm_agree(comm, st));
    struct qep_engine *e = mem;
    e->comm = comm;
    e->options = *options;
    st = engine_start(e);
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
    /* Peers may be lost: ending the transport would wait for them, and find errors of its own. */
    if (e->broken && e->dc != NULL && e->comm->num_ranks > 1)
        return;
    qep_model_destroy(e->model);
    qep_device_comm_destroy(e->dc);
    qep_placement_destroy(e->placement);
    if (e->be != NULL)
        e->be->ops->destroy(e->be);
    qep_team_destroy(e->team);
    qep_shard_dir_close(e->dir);
    free(e);
}

double qep_engine_step_bytes(const struct qep_engine *e, int64_t batch, int64_t depth) {
    return qep_step_bytes(e->dir, e->kv_type, batch, depth);
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

enum qep_status qep_engine_probe(struct qep_engine *e, struct qep_plan *plan, bool *found,
                                 struct qep_nonfinite *out) {
    plan->step = e->step++;
    qep_watchdog_stamp(e->dog, "plan", -1, (long)plan->step);
    enum qep_status st = qep_wire_broadcast(e->comm, plan);
    if (st == QEP_OK)
        st = qep_model_probe(e->model, plan, found, out);
    e->broken = st != QEP_OK;
    return st;
}

int32_t qep_engine_decode_capacity(const struct qep_engine *e) {
    return qep_model_decode_capacity(e->model);
}

enum qep_status qep_engine_decode(struct qep_engine *e, struct qep_plan *plan, float *row) {
    plan->step = e->step++;
    qep_watchdog_stamp(e->dog, "plan", -1, (long)plan->step);
    enum qep_status st = qep_wire_broadcast(e->comm, plan);
    if (st == QEP_OK)
        st = qep_model_decode(e->model, plan, row);
    e->broken = st != QEP_OK;
    return st;
}

enum qep_status qep_engine_decode_take(struct qep_engine *e, int32_t *tokens) {
    qep_watchdog_stamp(e->dog, "decode", -1, (long)e->step);
    enum qep_status st = qep_model_decode_take(e->model, tokens);
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

/* What a worker does with a plan of work. */
static enum qep_status follow(struct qep_engine *e, const struct qep_plan *plan) {
    struct qep_nonfinite where;
    bool found;
    if (plan->kind == QEP_PLAN_RUN)
        return qep_model_forward(e->model, plan, NULL, NULL);
    if (plan->kind == QEP_PLAN_PROBE)
        return qep_model_probe(e->model, plan, &found, &where);
    return qep_model_decode(e->model, plan, NULL);
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
        QEP_TRY_GOTO(st, done, follow(e, &plan));
        qep_watchdog_stamp(e->dog, "waiting for a plan", -1, (long)plan.step);
    }
    qep_watchdog_rest(e->dog);
done:
    e->broken = st != QEP_OK;
    qep_plan_free(&plan);
    return st;
}

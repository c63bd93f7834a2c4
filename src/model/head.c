/* The head: owners of the last layer normalise the wanted rows and send them to every rank; each
 * rank computes its vocabulary range; rank 0 joins the ranges in order. Slices bound the memory for
 * long --logits runs. */
#include "model/internal.h"

#include "base/clock.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

#define OPS (m->be->ops)

enum { SLICE_ROWS = MODEL_HEAD_ROWS };

/* One slice of wanted rows, known to all ranks. */
struct slice {
    int32_t n;
    int32_t phase_row[SLICE_ROWS];
    int32_t owner[SLICE_ROWS];
    int32_t
        position[SLICE_ROWS]; /* of the row in rank order: rows of rank 0 first, then rank 1, ... */
};

static void order_slice(const struct qep_model *m, struct slice *s) {
    int32_t at = 0;
    for (int32_t i = 0; i < s->n; i++)
        s->owner[i] = qep_owner(m->placement, m->config->num_hidden_layers,
                                m->phase.row_slot[s->phase_row[i]]);
    for (int p = 0; p < m->comm->num_ranks; p++)
        for (int32_t i = 0; i < s->n; i++)
            if (s->owner[i] == p)
                s->position[i] = at++;
}

/* Index of a phase row among the rows this rank owns. */
static int32_t local_index(const struct qep_model *m, int32_t phase_row) {
    int32_t n = 0;
    for (int32_t g = 0; g < phase_row; g++)
        n += qep_owner(m->placement, m->config->num_hidden_layers, m->phase.row_slot[g]) ==
             m->comm->rank;
    return n;
}

/* Normalises and converts this rank's rows of the slice into `send`. */
static enum qep_status own_rows(struct qep_model *m, const struct slice *s, size_t row_bytes,
                                char *send) {
    size_t cols = (size_t)m->config->hidden_size;
    const float *hidden = m->scratch[SCRATCH_HIDDEN].data;
    void *normed, *act;
    QEP_TRY(model_scratch(m, SCRATCH_NORMED, cols, 4, &normed));
    QEP_TRY(model_scratch(m, SCRATCH_HEAD, (size_t)SLICE_ROWS * row_bytes, 1, &act));
    int32_t sent = 0;
    for (int32_t i = 0; i < s->n; i++) {
        if (s->owner[i] != m->comm->rank)
            continue;
        const float *x = hidden + (size_t)local_index(m, s->phase_row[i]) * cols;
        const struct qep_rows_out out = {normed, act, row_bytes, m->weights->head_act};
        QEP_TRY(OPS->rms_norm(m->be, out, x, m->weights->norm, 1, m->config->hidden_size,
                              (float)m->config->rms_norm_eps));
        QEP_TRY(OPS->download(m->be, send + (size_t)sent++ * row_bytes, act, row_bytes));
    }
    return QEP_OK;
}

/* All rows of the slice to all ranks, in rank order. */
static enum qep_status share_rows(struct qep_model *m, const struct slice *s, size_t row_bytes,
                                  void **rows) {
    struct qep_messages *msg = &m->messages;
    void *send;
    qep_messages_clear(msg);
    for (int32_t i = 0; i < s->n; i++)
        msg->recv_bytes[s->owner[i]] += row_bytes;
    qep_messages_lay_out(msg); /* every rank gets the same rows: send_offset is 0 */
    for (int p = 0; p < m->comm->num_ranks; p++)
        msg->send_bytes[p] = msg->recv_bytes[m->comm->rank];
    QEP_TRY(model_staging(m, STAGING_HEAD_SEND, (size_t)SLICE_ROWS * row_bytes, &send));
    QEP_TRY(model_staging(m, STAGING_HEAD_RECV, (size_t)SLICE_ROWS * row_bytes, rows));
    QEP_TRY(own_rows(m, s, row_bytes, send));
    return m->comm->ops->alltoallv(m->comm, send, msg->send_bytes, msg->send_offset, *rows,
                                   msg->recv_bytes, msg->recv_offset);
}

/* Logits of this rank's vocabulary rows, [n, local rows], on the host. */
static enum qep_status local_logits(struct qep_model *m, int32_t n, size_t row_bytes,
                                    const void *rows, void **out) {
    const struct qep_linear *head = &m->weights->lm_head;
    size_t bytes = (size_t)n * (size_t)head->rows * 4;
    void *act, *logits;
    QEP_TRY(model_staging(m, STAGING_LOGITS_SEND, bytes, out));
    if (head->rows == 0)
        return QEP_OK;
    QEP_TRY(model_scratch(m, SCRATCH_HEAD, (size_t)SLICE_ROWS * row_bytes, 1, &act));
    QEP_TRY(model_scratch(m, SCRATCH_LOGITS, bytes, 1, &logits));
    QEP_TRY(OPS->upload(m->be, act, rows, (size_t)n * row_bytes));
    const struct qep_product product = {
        .weight = head->weight, .out = logits, .whole_rows = m->config->vocab_size};
    QEP_TRY(OPS->matmul(m->be, &product, 1, act, row_bytes, head->act, n, 1));
    return OPS->download(m->be, *out, logits, bytes);
}

enum qep_status model_gather_logits(struct qep_model *m, int32_t n, const void *mine,
                                    void *joined) {
    struct qep_messages *msg = &m->messages;
    qep_messages_clear(msg);
    msg->send_bytes[0] = (size_t)n * (size_t)m->weights->lm_head.rows * 4;
    for (int p = 0; m->comm->rank == 0 && p < m->comm->num_ranks; p++) {
        struct qep_range range = m->placement->vocab_rows[p];
        msg->recv_bytes[p] = (size_t)n * (size_t)(range.end - range.begin) * 4;
    }
    qep_messages_lay_out(msg);
    return m->comm->ops->alltoallv(m->comm, mine, msg->send_bytes, msg->send_offset, joined,
                                   msg->recv_bytes, msg->recv_offset);
}

static enum qep_status deliver(struct qep_model *m, const struct slice *s, const char *joined,
                               qep_logits_fn *on_logits, void *ctx) {
    void *row;
    QEP_TRY(model_staging(m, STAGING_ROW, (size_t)m->config->vocab_size * 4, &row));
    for (int32_t i = 0; i < s->n; i++) {
        const char *part = joined;
        char *out = row;
        for (int p = 0; p < m->comm->num_ranks; p++) {
            struct qep_range range = m->placement->vocab_rows[p];
            size_t bytes = (size_t)(range.end - range.begin) * 4;
            memcpy(out, part + (size_t)s->position[i] * bytes, bytes);
            out += bytes;
            part += (size_t)s->n * bytes;
        }
        QEP_TRY(on_logits(ctx, m->phase.plan_row[s->phase_row[i]], row));
    }
    return QEP_OK;
}

static enum qep_status run_slice(struct qep_model *m, struct slice *s, qep_logits_fn *on_logits,
                                 void *ctx) {
    size_t row_bytes = qep_act_row_bytes(m->weights->head_act, m->config->hidden_size);
    void *rows, *mine, *joined;
    if (s->n == 0)
        return QEP_OK;
    qep_watchdog_stamp(m->dog, "head", -1, m->step);
    order_slice(m, s);
    QEP_TRY(share_rows(m, s, row_bytes, &rows));
    QEP_TRY(local_logits(m, s->n, row_bytes, rows, &mine));
    size_t joined_bytes = m->comm->rank == 0 ? (size_t)s->n * (size_t)m->config->vocab_size * 4 : 0;
    QEP_TRY(model_staging(m, STAGING_LOGITS_RECV, joined_bytes, &joined));
    QEP_TRY(model_gather_logits(m, s->n, mine, joined));
    if (m->comm->rank == 0)
        QEP_TRY(deliver(m, s, joined, on_logits, ctx));
    s->n = 0;
    return QEP_OK;
}

enum qep_status model_head(struct qep_model *m, qep_logits_fn *on_logits, void *ctx) {
    struct slice s = {.n = 0};
    double t0 = qep_now_s();
    for (int32_t i = 0; i < m->phase.num_spans; i++) {
        const struct qep_plan_span *span = &m->phase.spans[i];
        int32_t first = span->logits == QEP_LOGITS_ALL ? 0 : span->num_rows - 1;
        for (int32_t r = first; r < span->num_rows && span->logits != QEP_LOGITS_NONE; r++) {
            s.phase_row[s.n++] = span->row0 + r;
            if (s.n == SLICE_ROWS)
                QEP_TRY(run_slice(m, &s, on_logits, ctx));
        }
    }
    QEP_TRY(run_slice(m, &s, on_logits, ctx));
    m->times.head += qep_now_s() - t0;
    return QEP_OK;
}

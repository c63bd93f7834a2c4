#include "dist/messages.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { NUM_LISTS = 4 };

enum qep_status qep_messages_create(int num_ranks, struct qep_messages *out) {
    size_t n = (size_t)num_ranks, *lists = NULL;
    QEP_TRY(qep_calloc(NUM_LISTS * n, sizeof *lists, "message sizes", (void **)&lists));
    *out = (struct qep_messages){.num_ranks = num_ranks,
                                 .send_bytes = lists,
                                 .send_offset = lists + n,
                                 .recv_bytes = lists + 2 * n,
                                 .recv_offset = lists + 3 * n};
    return QEP_OK;
}

void qep_messages_free(struct qep_messages *m) {
    free(m->send_bytes);
    memset(m, 0, sizeof *m);
}

void qep_messages_clear(struct qep_messages *m) {
    memset(m->send_bytes, 0, NUM_LISTS * (size_t)m->num_ranks * sizeof *m->send_bytes);
}

void qep_messages_one(struct qep_messages *m, int me, int from, int to, size_t bytes) {
    qep_messages_clear(m);
    for (int p = 0; me == from && p < m->num_ranks; p++)
        m->send_bytes[p] = to == QEP_EVERY_RANK || to == p ? bytes : 0;
    if (to == QEP_EVERY_RANK || to == me)
        m->recv_bytes[from] = bytes;
}

static size_t lay_out(const size_t *bytes, size_t *offset, int num_ranks) {
    size_t at = 0;
    for (int p = 0; p < num_ranks; p++) {
        offset[p] = at;
        at += bytes[p];
    }
    return at;
}

size_t qep_messages_lay_out(struct qep_messages *m) {
    lay_out(m->send_bytes, m->send_offset, m->num_ranks);
    return lay_out(m->recv_bytes, m->recv_offset, m->num_ranks);
}

bool qep_messages_are_equal(const struct qep_messages *m) {
    for (int p = 0; p < m->num_ranks; p++)
        if (m->send_bytes[p] == 0 || m->send_bytes[p] != m->send_bytes[0] ||
            m->recv_bytes[p] != m->send_bytes[0])
            return false;
    return true;
}

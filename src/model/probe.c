/* Where the first value that is not finite arises: the layers of a prefill, looked at one by one.
 */
#include "model/internal.h"

#include <math.h>
#include <stdlib.h>

/* Rows are looked at twice a layer: as the layer takes them, and after its mixer. */
static int32_t key_of(int32_t layer, bool after_mixer) {
    return 2 * layer + (after_mixer ? 1 : 0);
}

static int32_t position_of(const struct phase *ph, int32_t row) {
    int32_t s = 0;
    while (row >= ph->local.spans[s].row0 + ph->local.spans[s].num_rows)
        s++;
    return ph->local.spans[s].position + row - ph->local.spans[s].row0;
}

/* The first of n rows [n, cols] that holds NaN or infinity; n: none. */
static int32_t find_row(const float *x, int32_t n, int32_t cols) {
    for (int32_t i = 0; i < n; i++)
        for (int32_t c = 0; c < cols; c++)
            if (!isfinite(x[(size_t)i * (size_t)cols + (size_t)c]))
                return i;
    return n;
}

enum qep_status model_probe_rows(struct qep_model *m, int32_t layer, bool after_mixer) {
    int32_t n = m->phase.local.num_rows, cols = m->config->hidden_size;
    size_t bytes = (size_t)n * (size_t)cols * sizeof(float);
    void *rows;
    if (!m->probing || n == 0 || m->probe.key != INT32_MAX)
        return QEP_OK;
    QEP_TRY(model_staging(m, STAGING_PROBE, bytes, &rows));
    QEP_TRY(m->be->ops->download(m->be, rows, m->scratch[SCRATCH_HIDDEN].data, bytes));
    int32_t row = find_row(rows, n, cols);
    if (row < n)
        m->probe = (struct model_probe){key_of(layer, after_mixer), position_of(&m->phase, row)};
    return QEP_OK;
}

/* The first finding of all ranks: the lowest key, which one rank alone has looked at. */
static enum qep_status share(struct qep_model *m, struct model_probe *first) {
    struct model_probe *all = NULL;
    QEP_TRY(qep_comm_gather(m->comm, &m->probe, sizeof *all, "probe", (void **)&all));
    *first = m->probe;
    for (int r = 0; r < m->comm->num_ranks; r++)
        if (all[r].key < first->key)
            *first = all[r];
    free(all);
    return QEP_OK;
}

static struct qep_nonfinite describe(const struct qep_model_config *c, struct model_probe first) {
    int32_t layer = first.key / 2;
    if (first.key == 0)
        return (struct qep_nonfinite){-1, first.position, "embedding"};
    if (first.key % 2 == 0)
        return (struct qep_nonfinite){layer - 1, first.position,
                                      c->num_experts > 0 ? "experts" : "mlp"};
    bool full = c->layer_types[layer] == QEP_LAYER_FULL_ATTENTION;
    return (struct qep_nonfinite){layer, first.position, full ? "attention" : "deltanet"};
}

enum qep_status qep_model_probe(struct qep_model *m, const struct qep_plan *plan, bool *found,
                                struct qep_nonfinite *out) {
    struct model_probe first;
    m->probe = (struct model_probe){INT32_MAX, 0};
    m->probing = true;
    enum qep_status st = qep_model_forward(m, plan, NULL, NULL);
    m->probing = false;
    QEP_TRY(st);
    QEP_TRY(share(m, &first));
    *found = first.key != INT32_MAX;
    if (*found)
        *out = describe(m->config, first);
    return QEP_OK;
}

#include "dist/comm.h"

#include "base/log.h"
#include "base/mem.h"
#include "base/temporary.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAME_TEXT_BYTES = 256 };

void qep_comm_destroy(struct qep_comm *comm) {
    if (comm != NULL)
        comm->ops->destroy(comm);
}

static bool env_above_one(const char *name) {
    const char *text = getenv(name);
    return text != NULL && strtol(text, NULL, 10) > 1;
}

bool qep_comm_launched_by_mpi(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_ID",
                                        "MPI_LOCALNRANKS"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (getenv(names[i]) != NULL)
            return true;
    /* srun without PMIx: qep_comm_mpi_create says what is wrong. */
    return env_above_one("SLURM_STEP_NUM_TASKS");
}

/* Did every rank bring rank `first`'s status with the same message? Collective. */
static enum qep_status failed_alike(struct qep_comm *comm, enum qep_status st, const char *own,
                                    enum qep_status first_st, const char *first_text, bool *alike) {
    unsigned char mine = st == first_st && strcmp(own, first_text) == 0;
    unsigned char *all = NULL;
    QEP_TRY(qep_alloc((size_t)comm->num_ranks, 1, "agreement of the ranks", (void **)&all));
    enum qep_status op = comm->ops->allgather(comm, &mine, all, 1);
    *alike = true;
    for (int r = 0; op == QEP_OK && r < comm->num_ranks; r++)
        *alike = *alike && all[r] != 0;
    free(all);
    return op;
}

/* The slow path of qep_comm_agree: rank `first` tells its message to all. */
static enum qep_status share_failure(struct qep_comm *comm, enum qep_status st, int first,
                                     enum qep_status first_st) {
    char own[QEP_ERROR_MAX], text[QEP_ERROR_MAX];
    bool alike = true;
    snprintf(own, sizeof own, "%s", st == QEP_OK ? "" : qep_last_error());
    memcpy(text, own, sizeof text);
    QEP_TRY(comm->ops->bcast(comm, text, sizeof text, first));
    text[sizeof text - 1] = '\0';
    QEP_TRY(failed_alike(comm, st, own, first_st, text, &alike));
    comm->failure_shared = true;
    if (text[0] == '\0')
        snprintf(text, sizeof text, "%s", qep_status_text(first_st));
    if (alike)
        return qep_fail(first_st, "%s", text);
    return qep_fail(first_st, "rank %d: %s", first, text);
}

enum qep_status qep_comm_agree(struct qep_comm *comm, enum qep_status st) {
    int32_t mine = (int32_t)st;
    int32_t *all = NULL;
    if (comm->num_ranks == 1) {
        comm->failure_shared = comm->failure_shared || st != QEP_OK;
        return st;
    }
    QEP_TRY(
        qep_alloc((size_t)comm->num_ranks, sizeof *all, "agreement of the ranks", (void **)&all));
    enum qep_status op = comm->ops->allgather(comm, &mine, all, sizeof mine);
    int first = 0;
    while (op == QEP_OK && first < comm->num_ranks && all[first] == QEP_OK)
        first++;
    enum qep_status first_st =
        op == QEP_OK && first < comm->num_ranks ? (enum qep_status)all[first] : QEP_OK;
    free(all);
    if (op != QEP_OK || first_st == QEP_OK)
        return op;
    return share_failure(comm, st, first, first_st);
}

enum qep_status qep_comm_same(struct qep_comm *comm, const char *what, const char *text) {
    char first[SAME_TEXT_BYTES] = {0};
    enum qep_status st = QEP_OK;
    if (strlen(text) >= sizeof first)
        st = qep_fail(QEP_ERR_BUG, "%s is longer than %d bytes", what, SAME_TEXT_BYTES - 1);
    else if (comm->rank == 0)
        snprintf(first, sizeof first, "%s", text);
    QEP_TRY(comm->ops->bcast(comm, first, sizeof first, 0));
    if (st == QEP_OK && strncmp(first, text, sizeof first) != 0)
        st = qep_fail(QEP_ERR_USAGE, "%s differs: '%s', rank 0 has '%s'", what, text, first);
    return qep_comm_agree(comm, st);
}

enum qep_status qep_comm_gather(struct qep_comm *comm, const void *mine, size_t bytes,
                                const char *what, void **all) {
    enum qep_status st = qep_alloc((size_t)comm->num_ranks, bytes, what, all);
    st = qep_comm_agree(comm, st);
    if (st == QEP_OK)
        st = comm->ops->allgather(comm, mine, *all, bytes);
    if (st == QEP_OK)
        return QEP_OK;
    free(*all);
    *all = NULL;
    return st;
}

enum qep_status qep_comm_barrier(struct qep_comm *comm) {
    unsigned char mine = 0;
    unsigned char *all = NULL;
    QEP_TRY(qep_alloc((size_t)comm->num_ranks, 1, "barrier", (void **)&all));
    enum qep_status st = comm->ops->allgather(comm, &mine, all, 1);
    free(all);
    return st;
}

_Noreturn void qep_comm_give_up(struct qep_comm *comm, enum qep_status st, const char *fmt, ...) {
    static pthread_mutex_t speaking = PTHREAD_MUTEX_INITIALIZER; /* never unlocked */
    char text[QEP_ERROR_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    pthread_mutex_lock(&speaking);
    qep_temporaries_remove();
    qep_error_line("rank %d: %s", comm->rank, text);
    comm->ops->abort(comm, (int)st);
    abort();
}

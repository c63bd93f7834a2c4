#include "dist/comm_input.h"

#include "base/file.h"
#include "base/mem.h"

#include <stdlib.h>

static enum qep_status make_room(size_t bytes, const char *path, char **data) {
    void *mem = NULL;
    QEP_TRY(qep_calloc(bytes + 1, 1, path, &mem));
    *data = mem;
    return QEP_OK;
}

static enum qep_status share(struct qep_comm *comm, const char *path, char **data, size_t *len) {
    enum qep_status st = QEP_OK;
    QEP_TRY(comm->ops->bcast(comm, len, sizeof *len, 0));
    if (comm->rank != 0)
        st = make_room(*len, path, data);
    QEP_TRY(qep_comm_agree(comm, st));
    return *len > 0 ? comm->ops->bcast(comm, *data, *len, 0) : QEP_OK;
}

enum qep_status qep_comm_input(struct qep_comm *comm, const char *path, size_t max_bytes,
                               char **data, size_t *len) {
    enum qep_status st = QEP_OK;
    *data = NULL;
    *len = 0;
    if (comm->rank == 0)
        st = qep_input_read(path, max_bytes, data, len);
    st = qep_comm_agree(comm, st);
    if (st == QEP_OK)
        st = share(comm, path, data, len);
    if (st == QEP_OK)
        return QEP_OK;
    free(*data);
    *data = NULL;
    return st;
}

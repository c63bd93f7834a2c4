#include "cli/logits_file.h"

#include "base/file.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    HEADER_BYTES = 248
}; /* JSON padded with spaces, so that rows can be written before n is known */

struct qep_logits_file {
    char *path, *tmp;
    int fd;
    int32_t vocab_size;
    int32_t *ids;
    size_t num_rows, id_cap;
};

enum qep_status qep_logits_file_create(const char *path, int32_t vocab_size,
                                       struct qep_logits_file **out) {
    void *mem = NULL;
    char zeros[8 + HEADER_BYTES] = {0};
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof(struct qep_logits_file), "logits file", &mem));
    struct qep_logits_file *f = mem;
    f->fd = -1;
    f->vocab_size = vocab_size;
    enum qep_status st = QEP_OK;
    f->path = strdup(path);
    if (f->path == NULL || asprintf(&f->tmp, "%s.tmp", path) < 0) {
        st = qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", path);
        goto fail;
    }
    f->fd = open(f->tmp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (f->fd < 0) {
        st = qep_fail(QEP_ERR_CANTCREATE, "%s: cannot create: %s", f->tmp, strerror(errno));
        goto fail;
    }
    QEP_TRY_GOTO(st, fail, qep_file_write_all(f->fd, f->tmp, zeros, sizeof zeros));
    *out = f;
    return QEP_OK;
fail:
    qep_logits_file_destroy(f);
    return st;
}

enum qep_status qep_logits_file_add(struct qep_logits_file *f, int32_t token_id,
                                    const float *logits) {
    QEP_TRY(qep_grow((void **)&f->ids, &f->id_cap, f->num_rows + 1, sizeof *f->ids, "logits file"));
    QEP_TRY(qep_file_write_all(f->fd, f->tmp, logits, (size_t)f->vocab_size * sizeof *logits));
    f->ids[f->num_rows++] = token_id;
    return QEP_OK;
}

enum qep_status qep_logits_file_finish(struct qep_logits_file *f) {
    char header[8 + HEADER_BYTES + 1];
    size_t rows = f->num_rows, logits = rows * (size_t)f->vocab_size * 4;
    QEP_TRY(qep_file_write_all(f->fd, f->tmp, f->ids, rows * sizeof *f->ids));
    int n =
        snprintf(header + 8, HEADER_BYTES + 1,
                 "{\"logits\":{\"dtype\":\"F32\",\"shape\":[%zu,%d],\"data_offsets\":[0,%zu]},"
                 "\"token_ids\":{\"dtype\":\"I32\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}}",
                 rows, f->vocab_size, logits, rows, logits, logits + rows * 4);
    memset(header + 8 + n, ' ', HEADER_BYTES - (size_t)n);
    for (int i = 0; i < 8; i++)
        header[i] = (char)((uint64_t)HEADER_BYTES >> (8 * i) & 0xff);
    if (lseek(f->fd, 0, SEEK_SET) < 0)
        return qep_fail(QEP_ERR_IO, "%s: seek failed: %s", f->tmp, strerror(errno));
    QEP_TRY(qep_file_write_all(f->fd, f->tmp, header, 8 + HEADER_BYTES));
    int failed = close(f->fd);
    f->fd = -1;
    if (failed != 0)
        return qep_fail(QEP_ERR_IO, "%s: close failed: %s", f->tmp, strerror(errno));
    if (rename(f->tmp, f->path) != 0)
        return qep_fail(QEP_ERR_CANTCREATE, "%s: cannot rename into place: %s", f->path,
                        strerror(errno));
    free(f->tmp);
    f->tmp = NULL;
    return QEP_OK;
}

void qep_logits_file_destroy(struct qep_logits_file *f) {
    if (f == NULL)
        return;
    if (f->fd >= 0)
        close(f->fd);
    if (f->tmp != NULL)
        unlink(f->tmp);
    free(f->tmp);
    free(f->path);
    free(f->ids);
    free(f);
}

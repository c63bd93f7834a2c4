#include "cli/logits_file.h"

#include "base/mem.h"
#include "base/output.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    HEADER_BYTES = 248
}; /* JSON padded with spaces, so that rows can be written before n is known */

struct qep_logits_file {
    struct qep_output *output;
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
    f->vocab_size = vocab_size;
    enum qep_status st = qep_output_create(path, "--logits", QEP_OUTPUT_SEEKS, &f->output);
    if (st == QEP_OK)
        st = qep_output_write(f->output, zeros, sizeof zeros);
    if (st == QEP_OK)
        *out = f;
    else
        qep_logits_file_destroy(f);
    return st;
}

enum qep_status qep_logits_file_add(struct qep_logits_file *f, int32_t token_id,
                                    const float *logits) {
    QEP_TRY(qep_grow((void **)&f->ids, &f->id_cap, f->num_rows + 1, sizeof *f->ids, "logits file"));
    QEP_TRY(qep_output_write(f->output, logits, (size_t)f->vocab_size * sizeof *logits));
    f->ids[f->num_rows++] = token_id;
    return QEP_OK;
}

enum qep_status qep_logits_file_finish(struct qep_logits_file *f) {
    char header[8 + HEADER_BYTES + 1];
    size_t rows = f->num_rows, logits = rows * (size_t)f->vocab_size * 4;
    QEP_TRY(qep_output_write(f->output, f->ids, rows * sizeof *f->ids));
    int n =
        snprintf(header + 8, HEADER_BYTES + 1,
                 "{\"logits\":{\"dtype\":\"F32\",\"shape\":[%zu,%d],\"data_offsets\":[0,%zu]},"
                 "\"token_ids\":{\"dtype\":\"I32\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}}",
                 rows, f->vocab_size, logits, rows, logits, logits + rows * 4);
    memset(header + 8 + n, ' ', HEADER_BYTES - (size_t)n);
    for (int i = 0; i < 8; i++)
        header[i] = (char)((uint64_t)HEADER_BYTES >> (8 * i) & 0xff);
    QEP_TRY(qep_output_rewind(f->output));
    QEP_TRY(qep_output_write(f->output, header, 8 + HEADER_BYTES));
    return qep_output_finish(f->output);
}

void qep_logits_file_destroy(struct qep_logits_file *f) {
    if (f == NULL)
        return;
    qep_output_destroy(f->output);
    free(f->ids);
    free(f);
}

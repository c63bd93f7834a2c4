/* --logits FILE: safetensors with logits F32 [n, vocab_size] and token_ids I32 [n], nothing that
 * varies with ranks, threads or time. Rows are written as they come. */
#ifndef QEP_CLI_LOGITS_FILE_H
#define QEP_CLI_LOGITS_FILE_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

struct qep_logits_file;

/* Opens the output (base/output.h tells the errors). */
enum qep_status qep_logits_file_create(const char *path, int32_t vocab_size,
                                       struct qep_logits_file **out);

/* Appends one row; QEP_ERR_IO (disk full). */
enum qep_status qep_logits_file_add(struct qep_logits_file *file, int32_t token_id,
                                    const float *logits);

/* Writes header and ids and puts the file in its place. */
enum qep_status qep_logits_file_finish(struct qep_logits_file *file);

/* Closes; an unfinished file is removed. NULL is fine. */
void qep_logits_file_destroy(struct qep_logits_file *file);

#endif

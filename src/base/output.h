/* A file that a command writes at a path the user named. It is there whole or not at all: written
 * to a temporary beside the target and renamed over it by qep_output_finish. Symbolic links are
 * followed. What exists and is no regular file (a FIFO, a terminal, /dev/null, a pipe as /dev/fd/N)
 * is written through and never replaced. */
#ifndef QEP_BASE_OUTPUT_H
#define QEP_BASE_OUTPUT_H

#include "base/status.h"

#include <stddef.h>

enum qep_output_kind {
    QEP_OUTPUT_SEEKS, /* the format is not written front to back */
    QEP_OUTPUT_STREAM
};

struct qep_output;

/* Judges the path and opens the output, before the work whose result it takes. `option` (or NULL)
 * stands before the path in messages. QEP_ERR_USAGE: an empty path, a target that is this process's
 * own stdin, stdout or stderr, or one that the format cannot be written to. QEP_ERR_CANTCREATE: a
 * directory, a socket, no such or no writable parent, a file that may not be written or replaced.
 * QEP_ERR_INTERRUPTED: the process was asked to stop. A FIFO waits here for its reader. */
enum qep_status qep_output_create(const char *path, const char *option, enum qep_output_kind kind,
                                  struct qep_output **out);

/* At the current position. QEP_ERR_IO (disk full); once failed, finish fails too. */
enum qep_status qep_output_write(struct qep_output *output, const void *data, size_t bytes);
enum qep_status qep_output_printf(struct qep_output *output, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Back to the first byte; QEP_OUTPUT_SEEKS only. */
enum qep_status qep_output_rewind(struct qep_output *output);

/* Syncs, closes and puts the file in its place. On failure the target is as it was:
 * QEP_ERR_IO, QEP_ERR_CANTCREATE, QEP_ERR_INTERRUPTED (qep_temporaries_remove was called). */
enum qep_status qep_output_finish(struct qep_output *output);

/* An output that was not finished is removed. NULL is fine. */
void qep_output_destroy(struct qep_output *output);

#endif

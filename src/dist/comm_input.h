/* A file that an option names, for all ranks of a job. */
#ifndef QEP_DIST_COMM_INPUT_H
#define QEP_DIST_COMM_INPUT_H

#include "dist/comm.h"

/* Rank 0 reads (see qep_input_read), all ranks get the bytes: a pipe can be read only once, and
 * other hosts may have another file there. *data is the caller's (free), NUL-terminated past *len.
 * Collective: all ranks fail alike. */
enum qep_status qep_comm_input(struct qep_comm *comm, const char *path, size_t max_bytes,
                               char **data, size_t *len);

#endif

/* What this process has done so far, for a watchdog that cannot see into its work: bytes read,
 * written, converted or made up. Between two messages a rank may read or compute for hours; while
 * this count moves, nobody takes it for stuck. */
#ifndef QEP_BASE_PROGRESS_H
#define QEP_BASE_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Adds to the count; for every piece of work that a slow disk or a busy host does within seconds,
 * from any thread. */
void qep_progress(size_t bytes);

uint64_t qep_progress_count(void);

/* Round a call that waits for a person, another program or the kernel's own pace (stdin, a pipe, a
 * reader of stdout, fsync), where no count can move. Nests; any thread. */
void qep_outside_begin(void);
void qep_outside_end(void);

bool qep_is_outside(void);

#endif

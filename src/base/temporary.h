/* Files that must not outlive the process: what an output is written to before it is renamed to the
 * name that the user gave. They stand in a fixed table, so that a signal handler can remove them.
 */
#ifndef QEP_BASE_TEMPORARY_H
#define QEP_BASE_TEMPORARY_H

#include "base/status.h"

#include <stdbool.h>

struct qep_temporary; /* an entry of the table */

/* Makes an empty file of an unpredictable name in the directory of `beside` (mode 0666 less the
 * umask) and opens it for reading and writing; *fd is the caller's. From then on it is removed by
 * exit(), by qep_temporaries_remove and by every signal whose default action ends the process.
 * Messages begin with `label`. QEP_ERR_CANTCREATE; QEP_ERR_INTERRUPTED after
 * qep_temporaries_remove. Threads may call it at the same time. */
enum qep_status qep_temporary_create(const char *beside, const char *label,
                                     struct qep_temporary **out, int *fd);

/* Gives the file the name of `target`, in its own directory, replacing the file that has it.
 * QEP_ERR_CANTCREATE (no regular file has it, too); QEP_ERR_INTERRUPTED when the file was removed
 * meanwhile. `temporary` stays the caller's. */
enum qep_status qep_temporary_rename(struct qep_temporary *temporary, const char *target,
                                     const char *label);

/* Removes the file unless it was renamed. NULL is fine. */
void qep_temporary_destroy(struct qep_temporary *temporary);

/* Removes all temporaries of this process, now: it was asked to stop and may be killed before it
 * returns from what it does. None can be made after this. Async-signal-safe; keeps errno. */
void qep_temporaries_remove(void);

bool qep_temporaries_were_removed(void); /* async-signal-safe */

#endif

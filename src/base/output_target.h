/* What a path that a user gives for an output stands for. */
#ifndef QEP_BASE_OUTPUT_TARGET_H
#define QEP_BASE_OUTPUT_TARGET_H

#include "base/output.h"

#include <limits.h>
#include <stdbool.h>
#include <sys/stat.h>

struct qep_output_target {
    char path[PATH_MAX]; /* where links lead; of a target written through: as given */
    bool exists;
    bool through; /* no regular file: to be opened and written as it is */
    struct stat sb;
};

/* Errors as qep_output_create's; messages begin with `label`. Opens and changes nothing. */
enum qep_status qep_output_target_find(const char *path, const char *label,
                                       enum qep_output_kind kind, struct qep_output_target *out);

#endif

/* Limits that a process's cgroups set: the smallest over a group and its parents counts. */
#ifndef QEP_DIST_CGROUP_H
#define QEP_DIST_CGROUP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The smallest of what of_dir says (UINT64_MAX: no limit) about the directories of this process's
 * groups, v2 or of the v1 `controller`, and their parents. `self` is the text of
 * /proc/self/cgroup, `root` is /sys/fs/cgroup. */
uint64_t qep_cgroup_least(const char *self, const char *root, const char *controller,
                          uint64_t (*of_dir)(const char *dir));

/* The text of dir/name, cut to cap - 1 bytes; false when there is none. */
bool qep_cgroup_read(const char *dir, const char *name, char *text, size_t cap);

/* Bytes that the groups' memory limits still allow, page cache taken for free; UINT64_MAX: no
 * limit. */
uint64_t qep_cgroup_memory_left(const char *self, const char *root);

#endif

/* The ranks of one host divide its CPUs. */
#ifndef QEP_DIST_CPUS_H
#define QEP_DIST_CPUS_H

#include "dist/comm.h"

struct qep_cpu_share {
    int num_cpus; /* CPUs this rank may use (at least 1; ranks share when there are more ranks than
                     CPUs) */
    int num_host_cpus; /* CPUs of the host's cgroup in all */
    char list[128];    /* "0-3" style, for the summary */
};

/* bind: widen the affinity to all CPUs that the cgroup allows (launchers bind np <= 2 to one core
 * each), take this local rank's part, set it as the process's affinity. Without bind (keep): only
 * reads the affinity. The threads transport never binds (its ranks share a process) but divides the
 * count. cgroup v1/v2 CPU quotas lower num_cpus. A rank alone (self) keeps the affinity it was
 * given, be it by taskset or numactl. Call it before starting threads: they inherit the affinity.
 */
enum qep_status qep_cpus_divide(const struct qep_comm *comm, bool bind, struct qep_cpu_share *out);

/* CPUs of this host that the job's ranks may use together (cpuset and quota); at least 1. */
int qep_cpus_allowed(void);

/* The CPUs that a cgroup's quota grants, at least 1, or 0 when there is none: the smallest over the
 * group and its parents. `self` is the text of /proc/self/cgroup, `root` is /sys/fs/cgroup. */
int qep_cpus_quota(const char *self, const char *root);

/* The CPUs ids[0..num_ids) of local rank `local_rank`: the part [*begin, *end), contiguous; a
 * single one, round robin, when there are fewer CPUs than ranks. */
void qep_cpus_part(int num_ids, int local_rank, int num_local_ranks, int *begin, int *end);

#endif

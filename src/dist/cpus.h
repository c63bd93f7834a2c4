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
 * count. cgroup v1/v2 CPU quotas lower num_cpus. */
enum qep_status qep_cpus_divide(const struct qep_comm *comm, bool bind, struct qep_cpu_share *out);

#endif

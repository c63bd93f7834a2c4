/* CPU quotas of cgroups: v2 `cpu.max` ("200000 100000" or "max 100000"), v1 `cpu.cfs_quota_us` and
 * `cpu.cfs_period_us`. */
#include "dist/cgroup.h"
#include "dist/cpus.h"

#include <stdio.h>
#include <stdlib.h>

/* The quota of one directory in whole CPUs, at least 1; UINT64_MAX: none. */
static uint64_t quota_of_dir(const char *dir) {
    char text[64], period_text[64];
    long long quota, period;
    if (qep_cgroup_read(dir, "cpu.max", text, sizeof text)) {
        if (sscanf(text, "%lld %lld", &quota, &period) != 2)
            return UINT64_MAX;
    } else if (qep_cgroup_read(dir, "cpu.cfs_quota_us", text, sizeof text) &&
               qep_cgroup_read(dir, "cpu.cfs_period_us", period_text, sizeof period_text)) {
        quota = strtoll(text, NULL, 10);
        period = strtoll(period_text, NULL, 10);
    } else {
        return UINT64_MAX;
    }
    if (quota <= 0 || period <= 0)
        return UINT64_MAX;
    long long cpus = quota / period;
    return cpus < 1 ? 1 : cpus > 1 << 20 ? 1 << 20 : (uint64_t)cpus;
}

int qep_cpus_quota(const char *self, const char *root) {
    uint64_t least = qep_cgroup_least(self, root, "cpu", quota_of_dir);
    return least == UINT64_MAX ? 0 : (int)least;
}

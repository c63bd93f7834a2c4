/* Affinity of the ranks of one host. What a launcher did is told apart by three signs: its own
 * process's affinity (the parent's) is wider than ours; Open MPI says that it bound us; srun gave
 * us less than the node's allotment. */
#include "dist/cpus.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_CPUS = 8192 };

struct cpu_mask {
    cpu_set_t sets[MAX_CPUS / CPU_SETSIZE]; /* one long set, addressed by the _S macros */
};

struct cpu_place {
    int package, core, cpu;
};

static bool mask_get(pid_t pid, struct cpu_mask *mask) {
    memset(mask, 0, sizeof *mask);
    return sched_getaffinity(pid, sizeof *mask, mask->sets) == 0;
}

static int mask_count(const struct cpu_mask *mask) {
    return CPU_COUNT_S(sizeof *mask, mask->sets);
}

static bool mask_contains(const struct cpu_mask *outer, const struct cpu_mask *inner) {
    struct cpu_mask both;
    CPU_AND_S(sizeof both, both.sets, outer->sets, inner->sets);
    return CPU_EQUAL_S(sizeof both, both.sets, inner->sets) != 0;
}

/* All CPUs of the cpuset: the kernel cuts a full mask down to them. Leaves the affinity wide. */
static bool mask_widen(struct cpu_mask *mask) {
    memset(mask, 0xff, sizeof *mask);
    return sched_setaffinity(0, sizeof *mask, mask->sets) == 0 && mask_get(0, mask);
}

static long env_long(const char *name) {
    const char *text = getenv(name);
    return text == NULL ? 0 : strtol(text, NULL, 10);
}

/* The CPUs that the ranks of this host divide. *divided: the launcher has given each rank its own.
 * Leaves the affinity as it was. */
static bool find_host_mask(struct cpu_mask *host, bool *divided) {
    struct cpu_mask own, wide;
    *divided = false;
    if (!mask_get(0, &own))
        return false;
    *host = own;
    if (!qep_comm_launched_by_mpi())
        return true;
    if (mask_get(getppid(), &wide) && mask_count(&wide) > mask_count(&own) &&
        mask_contains(&wide, &own)) {
        *host = wide;
    } else if (env_long("OMPI_MCA_orte_bound_at_launch") != 0) {
        if (mask_widen(&wide))
            *host = wide;
        sched_setaffinity(0, sizeof own, own.sets);
    }
    /* Without a cgroup around the job, Slurm's part of the node is known by its count only. */
    long allotted = env_long("SLURM_CPUS_ON_NODE");
    if (allotted > 0 && mask_count(host) > allotted && mask_count(&own) <= allotted) {
        *host = own;
        *divided = true;
    }
    if (mask_count(&own) < allotted && getenv("OMPI_MCA_ess_base_jobid") == NULL)
        *divided = true; /* srun started us, and bound us */
    if (*divided)
        *host = own;
    return true;
}

static int read_int(const char *path) {
    int value = -1;
    FILE *file = fopen(path, "re");
    if (file != NULL) {
        if (fscanf(file, "%d", &value) != 1)
            value = -1;
        fclose(file);
    }
    return value;
}

static int compare_places(const void *pa, const void *pb) {
    const struct cpu_place *a = pa, *b = pb;
    if (a->package != b->package)
        return a->package < b->package ? -1 : 1;
    if (a->core != b->core)
        return a->core < b->core ? -1 : 1;
    return (a->cpu > b->cpu) - (a->cpu < b->cpu);
}

/* The CPUs of a mask, cores of one package together, hardware threads of one core together, so that
 * contiguous parts share as little as possible. Returns their number. */
static int sort_cpus(const struct cpu_mask *mask, struct cpu_place *places) {
    int n = 0;
    for (int cpu = 0; cpu < MAX_CPUS; cpu++) {
        char path[96];
        if (!CPU_ISSET_S((size_t)cpu, sizeof *mask, mask->sets))
            continue;
        struct cpu_place *place = &places[n++];
        place->cpu = cpu;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/physical_package_id",
                 cpu);
        place->package = read_int(path);
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/core_id", cpu);
        place->core = read_int(path);
    }
    qsort(places, (size_t)n, sizeof *places, compare_places);
    return n;
}

static void format_list(const struct cpu_mask *mask, char *text, size_t cap) {
    size_t len = 0;
    text[0] = '\0';
    for (int cpu = 0; cpu < MAX_CPUS; cpu++) {
        if (!CPU_ISSET_S((size_t)cpu, sizeof *mask, mask->sets))
            continue;
        int last = cpu;
        while (last + 1 < MAX_CPUS && CPU_ISSET_S((size_t)(last + 1), sizeof *mask, mask->sets))
            last++;
        if (len + 20 > cap) {
            snprintf(text + len, cap - len, ",...");
            return;
        }
        const char *comma = len > 0 ? "," : "";
        int n = cpu == last ? snprintf(text + len, cap - len, "%s%d", comma, cpu)
                            : snprintf(text + len, cap - len, "%s%d-%d", comma, cpu, last);
        len += (size_t)n;
        cpu = last;
    }
}

void qep_cpus_part(int num_ids, int local_rank, int num_local_ranks, int *begin, int *end) {
    if (num_ids < num_local_ranks) {
        *begin = num_ids < 1 ? 0 : local_rank % num_ids;
        *end = *begin + 1;
        return;
    }
    *begin = (int)((long)num_ids * local_rank / num_local_ranks);
    *end = (int)((long)num_ids * (local_rank + 1) / num_local_ranks);
}

static int limit_by_quota(int num_cpus) {
    char text[4096] = "";
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (file != NULL) {
        size_t len = fread(text, 1, sizeof text - 1, file);
        text[len] = '\0';
        fclose(file);
    }
    int quota = qep_cpus_quota(text, "/sys/fs/cgroup");
    int limited = quota > 0 && quota < num_cpus ? quota : num_cpus;
    return limited < 1 ? 1 : limited;
}

int qep_cpus_allowed(void) {
    struct cpu_mask host;
    bool divided;
    if (!find_host_mask(&host, &divided))
        return 1;
    return limit_by_quota(mask_count(&host));
}

/* Makes this rank's part of the host's CPUs the process's affinity. */
static enum qep_status bind_part(const struct qep_comm *comm, const struct cpu_mask *host,
                                 struct cpu_mask *part) {
    static struct cpu_place places[MAX_CPUS];
    int begin, end;
    int n = sort_cpus(host, places);
    qep_cpus_part(n, comm->local_rank, comm->num_local_ranks, &begin, &end);
    memset(part, 0, sizeof *part);
    for (int i = begin; i < end && i < n; i++)
        CPU_SET_S((size_t)places[i].cpu, sizeof *part, part->sets);
    if (sched_setaffinity(0, sizeof *part, part->sets) != 0)
        return qep_fail(QEP_ERR_SYSTEM,
                        "cannot bind the rank to its CPUs: %s (--bind keep leaves "
                        "the launcher's binding)",
                        strerror(errno));
    return QEP_OK;
}

enum qep_status qep_cpus_divide(const struct qep_comm *comm, bool bind, struct qep_cpu_share *out) {
    struct cpu_mask host, own;
    bool divided = false;
    memset(out, 0, sizeof *out);
    if (!mask_get(0, &own) || !find_host_mask(&host, &divided))
        return qep_fail(QEP_ERR_SYSTEM, "cannot read the CPU affinity: %s", strerror(errno));
    bool in_process = strcmp(comm->ops->name, "threads") == 0;
    if (in_process)
        host = own;
    int num_host = mask_count(&host);
    out->num_host_cpus = limit_by_quota(num_host);
    if (bind && !in_process && !divided && comm->num_local_ranks > 1) {
        QEP_TRY(bind_part(comm, &host, &own));
    } else if (bind && !in_process && !divided && mask_count(&own) < num_host) {
        /* Alone on this host, but the launcher bound us to less. */
        if (sched_setaffinity(0, sizeof host, host.sets) == 0)
            own = host;
    }
    format_list(&own, out->list, sizeof out->list);
    /* An affinity that all ranks of the host share is divided by count; so is the quota. */
    bool shared = !divided && mask_count(&own) == num_host;
    int quota_part = out->num_host_cpus / comm->num_local_ranks;
    out->num_cpus = shared ? num_host / comm->num_local_ranks : mask_count(&own);
    if (!divided && out->num_host_cpus < num_host && out->num_cpus > quota_part)
        out->num_cpus = quota_part;
    if (out->num_cpus < 1)
        out->num_cpus = 1;
    return QEP_OK;
}

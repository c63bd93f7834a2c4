#include "dir_fixture.h"
#include "dist/cgroup.h"
#include "dist/cpus.h"

#include <check.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void write_file(const char *root, const char *dir, const char *name, const char *text) {
    char path[256];
    join(path, sizeof path, root, dir);
    ck_assert_int_eq(qep_mkdirs(path), QEP_OK);
    spill(path, name, text, strlen(text));
}

START_TEST(quota_of_cgroup_v2) {
    char root[64];
    scratch_dir(root);
    write_file(root, "a/b", "cpu.max", "max 100000\n");
    ck_assert_int_eq(qep_cpus_quota("0::/a/b\n", root), 0);
    write_file(root, "a", "cpu.max", "250000 100000\n");
    ck_assert_int_eq(qep_cpus_quota("0::/a/b\n", root), 2);
    write_file(root, "a/b", "cpu.max", "50000 100000\n");
    ck_assert_int_eq(qep_cpus_quota("0::/a/b\n", root), 1);
    ck_assert_int_eq(qep_cpus_quota("0::/a\n", root), 2);
    ck_assert_int_eq(qep_cpus_quota("0::/\n", root), 0);
    ck_assert_int_eq(qep_cpus_quota("0::/a/gone\n", root), 2);
    write_file(root, ".", "cpu.max", "700000 100000\n");
    ck_assert_int_eq(qep_cpus_quota("0::/\n", root), 7);
    ck_assert_int_eq(qep_cpus_quota("", root), 0);
    ck_assert_int_eq(qep_cpus_quota("nonsense\n:\n0:x\n", root), 0);
    remove_tree(root);
}
END_TEST

START_TEST(quota_of_cgroup_v1) {
    char root[64];
    static const char self[] = "5:cpuset:/job\n4:cpu,cpuacct:/job\n0::/\n";
    scratch_dir(root);
    ck_assert_int_eq(qep_cpus_quota(self, root), 0);
    write_file(root, "cpuset/job", "cpu.cfs_quota_us", "100000\n");
    write_file(root, "cpuset/job", "cpu.cfs_period_us", "100000\n");
    ck_assert_int_eq(qep_cpus_quota(self, root), 0);
    write_file(root, "cpu,cpuacct/job", "cpu.cfs_quota_us", "-1\n");
    write_file(root, "cpu,cpuacct/job", "cpu.cfs_period_us", "100000\n");
    ck_assert_int_eq(qep_cpus_quota(self, root), 0);
    write_file(root, "cpu,cpuacct/job", "cpu.cfs_quota_us", "300000\n");
    ck_assert_int_eq(qep_cpus_quota(self, root), 3);
    /* Debian mounts the pair as two links; the group of the container's own root */
    write_file(root, "cpu", "cpu.cfs_quota_us", "200000\n");
    write_file(root, "cpu", "cpu.cfs_period_us", "100000\n");
    ck_assert_int_eq(qep_cpus_quota(self, root), 2);
    remove_tree(root);
}
END_TEST

START_TEST(memory_left_in_cgroup_v2) {
    char root[64];
    static const char self[] = "0::/a/b\n";
    scratch_dir(root);
    ck_assert(qep_cgroup_memory_left(self, root) == UINT64_MAX);
    write_file(root, "a", "memory.max", "max\n");
    ck_assert(qep_cgroup_memory_left(self, root) == UINT64_MAX);
    write_file(root, "a", "memory.max", "1000000\n");
    ck_assert_uint_eq(qep_cgroup_memory_left(self, root), 1000000);
    write_file(root, "a", "memory.current", "700000\n");
    ck_assert_uint_eq(qep_cgroup_memory_left(self, root), 300000);
    /* Page cache is given back when it is needed. */
    write_file(root, "a", "memory.stat", "anon 1\ninactive_file 200000\nactive_file 50000\n");
    ck_assert_uint_eq(qep_cgroup_memory_left(self, root), 550000);
    write_file(root, "a", "memory.current", "1700000\n");
    ck_assert_uint_eq(qep_cgroup_memory_left(self, root), 0);
    write_file(root, "a", "memory.current", "nonsense\n");
    ck_assert_uint_eq(qep_cgroup_memory_left(self, root), 1000000);
    write_file(root, "a/b", "memory.max", "400000\n"); /* the group's own is smaller */
    ck_assert_uint_eq(qep_cgroup_memory_left(self, root), 400000);
    ck_assert_uint_eq(qep_cgroup_memory_left("0::/a\n", root), 1000000);
    ck_assert(qep_cgroup_memory_left("0::/\n", root) == UINT64_MAX);
    ck_assert(qep_cgroup_memory_left("", root) == UINT64_MAX);
    write_file(root, "a/b", "memory.max", "\n");
    ck_assert_uint_eq(qep_cgroup_memory_left(self, root), 1000000);
    remove_tree(root);
}
END_TEST

START_TEST(memory_left_in_cgroup_v1) {
    char root[64];
    static const char self[] = "5:cpuset:/job\n9:memory:/slurm/job\n0::/\n";
    scratch_dir(root);
    write_file(root, "memory/slurm/job", "memory.limit_in_bytes", "9223372036854771712\n");
    ck_assert(qep_cgroup_memory_left(self, root) == UINT64_MAX);
    write_file(root, "memory/slurm", "memory.limit_in_bytes", "8000000\n");
    write_file(root, "memory/slurm", "memory.usage_in_bytes", "3000000\n");
    write_file(root, "memory/slurm", "memory.stat",
               "inactive_file 1\ntotal_inactive_file 500000\ntotal_active_file 500000\n");
    ck_assert_uint_eq(qep_cgroup_memory_left(self, root), 6000000);
    write_file(root, "cpuset/job", "memory.limit_in_bytes", "1\n"); /* another controller's */
    ck_assert_uint_eq(qep_cgroup_memory_left(self, root), 6000000);
    remove_tree(root);
}
END_TEST

START_TEST(parts_cover_the_cpus) {
    for (int n = 1; n <= 20; n++) {
        for (int ranks = 1; ranks <= 24; ranks++) {
            int at = 0;
            for (int r = 0; r < ranks; r++) {
                int begin, end;
                qep_cpus_part(n, r, ranks, &begin, &end);
                ck_assert_int_lt(begin, end);
                if (n < ranks) {
                    ck_assert_int_eq(begin, r % n);
                    ck_assert_int_eq(end, begin + 1);
                    continue;
                }
                ck_assert_int_eq(begin, at);
                at = end;
            }
            ck_assert(n < ranks || at == n);
        }
    }
}
END_TEST

static int num_cpus_now(void) {
    cpu_set_t set;
    ck_assert_int_eq(sched_getaffinity(0, sizeof set, &set), 0);
    return CPU_COUNT(&set);
}

START_TEST(threads_divide_by_count_and_never_bind) {
    struct qep_comm *comms[3];
    struct qep_cpu_share share;
    int before = num_cpus_now();
    ck_assert_int_eq(qep_comm_threads_create(3, comms), QEP_OK);
    for (int r = 0; r < 3; r++) {
        ck_assert_int_eq(qep_cpus_divide(comms[r], true, &share), QEP_OK);
        ck_assert_int_ge(share.num_cpus, 1);
        ck_assert_int_le(share.num_cpus, before < 3 ? 1 : before / 3);
        ck_assert_int_le(share.num_host_cpus, before);
        ck_assert_uint_gt(strlen(share.list), 0);
        qep_comm_destroy(comms[r]);
    }
    ck_assert_int_eq(num_cpus_now(), before);
}
END_TEST

START_TEST(a_rank_alone_keeps_what_it_was_given) {
    struct qep_comm *comm = NULL;
    struct qep_cpu_share share;
    cpu_set_t set;
    unsetenv("OMPI_COMM_WORLD_SIZE");
    ck_assert_int_eq(sched_getaffinity(0, sizeof set, &set), 0);
    size_t first = 0;
    while (!CPU_ISSET(first, &set))
        first++;
    CPU_ZERO(&set);
    CPU_SET(first, &set);
    ck_assert_int_eq(sched_setaffinity(0, sizeof set, &set), 0); /* as taskset would */
    ck_assert_int_eq(qep_comm_self_create(&comm), QEP_OK);
    ck_assert_int_eq(qep_cpus_divide(comm, true, &share), QEP_OK);
    ck_assert_int_eq(share.num_cpus, 1);
    ck_assert_int_eq(atoi(share.list), (int)first);
    ck_assert_int_eq(num_cpus_now(), 1);
    qep_comm_destroy(comm);
}
END_TEST

/* What Open MPI does with np <= 2: a rank that may use one core only, its parent all of them. */
START_TEST(the_launchers_binding_is_widened) {
    struct qep_comm *comm = NULL;
    struct qep_cpu_share share;
    cpu_set_t all, one;
    int before = num_cpus_now(), status = 0;
    ck_assert_int_eq(sched_getaffinity(0, sizeof all, &all), 0);
    size_t first = 0;
    while (!CPU_ISSET(first, &all))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
        if (sched_setaffinity(0, sizeof one, &one) != 0 || qep_comm_self_create(&comm) != QEP_OK)
            _exit(1);
        if (qep_cpus_allowed() > before || num_cpus_now() != 1)
            _exit(2);
        if (qep_cpus_divide(comm, false, &share) != QEP_OK || num_cpus_now() != 1)
            _exit(3);
        if (qep_cpus_divide(comm, true, &share) != QEP_OK || num_cpus_now() != before)
            _exit(4);
        qep_comm_destroy(comm);
        _exit(0);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    ck_assert_int_eq(WEXITSTATUS(status), 0);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cpus");
    TCase *tcase = tcase_create("cpus");
    tcase_add_test(tcase, quota_of_cgroup_v2);
    tcase_add_test(tcase, quota_of_cgroup_v1);
    tcase_add_test(tcase, memory_left_in_cgroup_v2);
    tcase_add_test(tcase, memory_left_in_cgroup_v1);
    tcase_add_test(tcase, parts_cover_the_cpus);
    tcase_add_test(tcase, threads_divide_by_count_and_never_bind);
    tcase_add_test(tcase, a_rank_alone_keeps_what_it_was_given);
    tcase_add_test(tcase, the_launchers_binding_is_widened);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

/* CPU quotas of cgroups: v2 `cpu.max` ("200000 100000" or "max 100000"), v1 `cpu.cfs_quota_us` and
 * `cpu.cfs_period_us`. */
#include "dist/cpus.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 4096 };

static bool read_text(const char *dir, const char *name, char *text, size_t cap) {
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    size_t len = fread(text, 1, cap - 1, file);
    text[len] = '\0';
    fclose(file);
    return len > 0;
}

/* The quota of one directory in whole CPUs, at least 1; 0: none. */
static int quota_of_dir(const char *dir) {
    char text[64], period_text[64];
    long long quota, period;
    if (read_text(dir, "cpu.max", text, sizeof text)) {
        if (sscanf(text, "%lld %lld", &quota, &period) != 2)
            return 0;
    } else if (read_text(dir, "cpu.cfs_quota_us", text, sizeof text) &&
               read_text(dir, "cpu.cfs_period_us", period_text, sizeof period_text)) {
        quota = strtoll(text, NULL, 10);
        period = strtoll(period_text, NULL, 10);
    } else {
        return 0;
    }
    if (quota <= 0 || period <= 0)
        return 0;
    long long cpus = quota / period;
    return cpus < 1 ? 1 : cpus > 1 << 20 ? 1 << 20 : (int)cpus;
}

/* The smallest quota of `root`/`path` and its parents up to `root`. */
static int quota_of_path(const char *root, const char *path) {
    char dir[PATH_BYTES];
    int least = 0;
    size_t root_len = strlen(root);
    int n = snprintf(dir, sizeof dir, "%s%s", root, path);
    if (n < 0 || (size_t)n >= sizeof dir)
        return 0;
    for (;;) {
        int quota = quota_of_dir(dir);
        if (quota > 0 && (least == 0 || quota < least))
            least = quota;
        char *slash = strrchr(dir, '/');
        if (slash == NULL || (size_t)(slash - dir) < root_len)
            return least;
        *slash = '\0';
    }
}

/* Is `cpu` one of the comma-separated controllers of a v1 line? */
static bool names_cpu(const char *controllers, size_t len) {
    for (size_t at = 0; at < len;) {
        size_t end = at;
        while (end < len && controllers[end] != ',')
            end++;
        if (end - at == 3 && memcmp(controllers + at, "cpu", 3) == 0)
            return true;
        at = end + 1;
    }
    return false;
}

static int least_quota(int a, int b) {
    return a == 0 || (b != 0 && b < a) ? b : a;
}

/* One line "id:controllers:path" of /proc/self/cgroup. */
static int quota_of_line(const char *line, size_t len, const char *root) {
    char path[PATH_BYTES / 2], dir[PATH_BYTES / 2];
    const char *first = memchr(line, ':', len);
    if (first == NULL)
        return 0;
    const char *second = memchr(first + 1, ':', len - (size_t)(first + 1 - line));
    if (second == NULL)
        return 0;
    size_t controllers_len = (size_t)(second - first - 1);
    int path_len = (int)(len - (size_t)(second + 1 - line));
    if ((size_t)path_len >= sizeof path)
        return 0;
    snprintf(path, sizeof path, "%.*s", path_len, second + 1);
    if (controllers_len == 0)
        return quota_of_path(root, path);
    if (!names_cpu(first + 1, controllers_len))
        return 0;
    int n = snprintf(dir, sizeof dir, "%s/%.*s", root, (int)controllers_len, first + 1);
    if (n < 0 || (size_t)n >= sizeof dir)
        return 0;
    int quota = quota_of_path(dir, path);
    n = snprintf(dir, sizeof dir, "%s/cpu", root);
    return n < 0 || (size_t)n >= sizeof dir ? quota : least_quota(quota, quota_of_path(dir, path));
}

int qep_cpus_quota(const char *self, const char *root) {
    int least = 0;
    for (const char *line = self; *line != '\0';) {
        size_t len = strcspn(line, "\n");
        least = least_quota(least, quota_of_line(line, len, root));
        line += len + (line[len] == '\n');
    }
    return least;
}

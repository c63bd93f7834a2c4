#include "dist/cgroup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 4096 };

bool qep_cgroup_read(const char *dir, const char *name, char *text, size_t cap) {
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

static uint64_t lesser(uint64_t a, uint64_t b) {
    return b < a ? b : a;
}

/* `root`/`path` and its parents up to `root`. */
static uint64_t least_of_path(const char *root, const char *path,
                              uint64_t (*of_dir)(const char *dir)) {
    char dir[PATH_BYTES];
    uint64_t least = UINT64_MAX;
    size_t root_len = strlen(root);
    int n = snprintf(dir, sizeof dir, "%s%s", root, path);
    if (n < 0 || (size_t)n >= sizeof dir)
        return UINT64_MAX;
    for (;;) {
        least = lesser(least, of_dir(dir));
        char *slash = strrchr(dir, '/');
        if (slash == NULL || (size_t)(slash - dir) < root_len)
            return least;
        *slash = '\0';
    }
}

/* Is `controller` one of the comma-separated ones of a v1 line? */
static bool is_named(const char *controllers, size_t len, const char *controller) {
    size_t name_len = strlen(controller);
    for (size_t at = 0; at < len;) {
        size_t end = at;
        while (end < len && controllers[end] != ',')
            end++;
        if (end - at == name_len && memcmp(controllers + at, controller, name_len) == 0)
            return true;
        at = end + 1;
    }
    return false;
}

/* One line "id:controllers:path" of /proc/self/cgroup. */
static uint64_t least_of_line(const char *line, size_t len, const char *root,
                              const char *controller, uint64_t (*of_dir)(const char *dir)) {
    char path[PATH_BYTES / 2], dir[PATH_BYTES / 2];
    const char *first = memchr(line, ':', len);
    if (first == NULL)
        return UINT64_MAX;
    const char *second = memchr(first + 1, ':', len - (size_t)(first + 1 - line));
    if (second == NULL)
        return UINT64_MAX;
    size_t controllers_len = (size_t)(second - first - 1);
    int path_len = (int)(len - (size_t)(second + 1 - line));
    if ((size_t)path_len >= sizeof path)
        return UINT64_MAX;
    snprintf(path, sizeof path, "%.*s", path_len, second + 1);
    if (controllers_len == 0)
        return least_of_path(root, path, of_dir);
    if (!is_named(first + 1, controllers_len, controller))
        return UINT64_MAX;
    int n = snprintf(dir, sizeof dir, "%s/%.*s", root, (int)controllers_len, first + 1);
    if (n < 0 || (size_t)n >= sizeof dir)
        return UINT64_MAX;
    uint64_t least = least_of_path(dir, path, of_dir);
    n = snprintf(dir, sizeof dir, "%s/%s", root, controller);
    return n < 0 || (size_t)n >= sizeof dir ? least
                                            : lesser(least, least_of_path(dir, path, of_dir));
}

uint64_t qep_cgroup_least(const char *self, const char *root, const char *controller,
                          uint64_t (*of_dir)(const char *dir)) {
    uint64_t least = UINT64_MAX;
    for (const char *line = self; *line != '\0';) {
        size_t len = strcspn(line, "\n");
        least = lesser(least, least_of_line(line, len, root, controller, of_dir));
        line += len + (line[len] == '\n');
    }
    return least;
}

/* ---- memory ---- */

/* The number in a file of its own; false for "max" and what is no number. */
static bool read_number(const char *dir, const char *name, uint64_t *value) {
    char text[64], *end;
    if (!qep_cgroup_read(dir, name, text, sizeof text) || text[0] < '0' || text[0] > '9')
        return false;
    *value = strtoull(text, &end, 10);
    return *end == '\0' || *end == '\n';
}

/* The line "KEY NUMBER" of a memory.stat; 0: none. */
static uint64_t stat_of(const char *stat, const char *key) {
    size_t len = strlen(key);
    for (const char *line = stat; line != NULL && *line != '\0';) {
        if (strncmp(line, key, len) == 0 && line[len] == ' ')
            return strtoull(line + len + 1, NULL, 10);
        line = strchr(line, '\n');
        line = line != NULL ? line + 1 : NULL;
    }
    return 0;
}

/* v2: memory.max "max" or bytes; v1: memory.limit_in_bytes, near 2^63 for none. */
static uint64_t memory_left_of_dir(const char *dir) {
    const uint64_t none = (uint64_t)1 << 62;
    char stat[8192];
    uint64_t limit, used = 0, cache = 0;
    bool v2 = read_number(dir, "memory.max", &limit);
    if (!v2 && !read_number(dir, "memory.limit_in_bytes", &limit))
        return UINT64_MAX;
    if (limit >= none)
        return UINT64_MAX;
    if (!read_number(dir, v2 ? "memory.current" : "memory.usage_in_bytes", &used))
        used = 0;
    if (qep_cgroup_read(dir, "memory.stat", stat, sizeof stat))
        cache = stat_of(stat, v2 ? "inactive_file" : "total_inactive_file") +
                stat_of(stat, v2 ? "active_file" : "total_active_file");
    used = used > cache ? used - cache : 0;
    return limit > used ? limit - used : 0;
}

uint64_t qep_cgroup_memory_left(const char *self, const char *root) {
    return qep_cgroup_least(self, root, "memory", memory_left_of_dir);
}

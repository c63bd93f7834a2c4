#include "cli/spare.h"

#include "shard/manifest.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool is_file(const char *path, struct stat *sb) {
    return path != NULL && stat(path, sb) == 0 && S_ISREG(sb->st_mode);
}

static enum qep_status refuse(const char *option, const char *output, const char *what) {
    return qep_fail(QEP_ERR_USAGE, "%s: %s: would replace what this command reads: %s", option,
                    output, what);
}

enum qep_status qep_spare_file(const char *option, const char *output, const char *input) {
    struct stat out, in;
    if (is_file(output, &out) && is_file(input, &in) && out.st_dev == in.st_dev &&
        out.st_ino == in.st_ino)
        return refuse(option, output, input);
    return QEP_OK;
}

static bool is_part(const char *name) {
    size_t len = strlen(name);
    for (int i = 0; qep_side_file_names[i] != NULL; i++)
        if (strcmp(name, qep_side_file_names[i]) == 0)
            return true;
    return strcmp(name, "manifest.json") == 0 || (len > 4 && strcmp(name + len - 4, ".qep") == 0);
}

enum qep_status qep_spare_model(const char *option, const char *output, const char *dir) {
    struct stat out, in;
    DIR *d = dir != NULL && is_file(output, &out) ? opendir(dir) : NULL;
    enum qep_status st = QEP_OK;
    if (d == NULL)
        return QEP_OK;
    for (struct dirent *e; st == QEP_OK && (e = readdir(d)) != NULL;)
        if (is_part(e->d_name) && fstatat(dirfd(d), e->d_name, &in, 0) == 0 &&
            in.st_dev == out.st_dev && in.st_ino == out.st_ino)
            st = refuse(option, output, dir);
    closedir(d);
    return st;
}

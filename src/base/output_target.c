#include "base/output_target.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LINKS = 40 };

static enum qep_status cannot_create(const char *label, int why) {
    return qep_fail(QEP_ERR_CANTCREATE, "%s: cannot create: %s", label, strerror(why));
}

static bool same_file(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Replaces the last component of `path` by the `len` bytes at `link`; false when too long. */
static bool go_along(char path[PATH_MAX], const char *link, size_t len) {
    char *slash = strrchr(path, '/');
    size_t keep = *link == '/' || slash == NULL ? 0 : (size_t)(slash - path) + 1;
    if (keep + len >= PATH_MAX)
        return false;
    memcpy(path + keep, link, len);
    path[keep + len] = '\0';
    return true;
}

/* The name behind the links, which may lead to nothing yet: where open(O_CREAT) would make it. */
static enum qep_status follow_links(const char *path, const char *label, char out[PATH_MAX]) {
    char link[PATH_MAX];
    if (strlen(path) >= PATH_MAX)
        return cannot_create(label, ENAMETOOLONG);
    strcpy(out, path);
    for (int i = 0; i <= MAX_LINKS; i++) {
        ssize_t len = readlink(out, link, sizeof link);
        if (len < 0)
            return errno == EINVAL || errno == ENOENT ? QEP_OK : cannot_create(label, errno);
        if (len == 0 || !go_along(out, link, (size_t)len))
            return cannot_create(label, ENAMETOOLONG);
    }
    return cannot_create(label, ELOOP);
}

static enum qep_status refuse_own_stream(const struct stat *sb, const char *label) {
    static const char *const names[] = {"stdin", "stdout", "stderr"};
    struct stat own;
    for (int fd = 0; fd < 3; fd++)
        if (fstat(fd, &own) == 0 && same_file(&own, sb))
            return qep_fail(QEP_ERR_USAGE, "%s: is what this program's %s is", label, names[fd]);
    return QEP_OK;
}

/* In a directory like /tmp only the owner of a file may rename over it. */
static enum qep_status check_sticky(const struct qep_output_target *t, const char *label) {
    char dir[PATH_MAX];
    struct stat sb;
    strcpy(dir, t->path);
    go_along(dir, ".", 1);
    uid_t me = geteuid();
    if (stat(dir, &sb) == 0 && (sb.st_mode & S_ISVTX) != 0 && me != 0 && me != sb.st_uid &&
        me != t->sb.st_uid)
        return cannot_create(label, EPERM);
    return QEP_OK;
}

static enum qep_status check_regular(const char *path, const char *label,
                                     const struct qep_output_target *t) {
    struct stat found;
    QEP_TRY(refuse_own_stream(&t->sb, label));
    if (lstat(t->path, &found) != 0 || !same_file(&found, &t->sb))
        return qep_fail(QEP_ERR_CANTCREATE, "%s: is a file without a name", label);
    if (faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) != 0)
        return qep_fail(QEP_ERR_CANTCREATE, "%s: cannot write: %s", label, strerror(errno));
    return check_sticky(t, label);
}

/* A FIFO is judged before it is opened, which would wait for its reader. */
static enum qep_status check_through(const char *path, const char *label, enum qep_output_kind kind,
                                     struct qep_output_target *out) {
    mode_t mode = out->sb.st_mode;
    if (S_ISDIR(mode) || S_ISSOCK(mode))
        return qep_fail(QEP_ERR_CANTCREATE, "%s: is a %s, expected a file", label,
                        S_ISDIR(mode) ? "directory" : "socket");
    if (S_ISFIFO(mode) && kind == QEP_OUTPUT_SEEKS)
        return qep_fail(QEP_ERR_USAGE, "%s: is a pipe, which cannot be sought, expected a file",
                        label);
    if (S_ISFIFO(mode))
        QEP_TRY(refuse_own_stream(&out->sb, label));
    if (strlen(path) >= PATH_MAX)
        return cannot_create(label, ENAMETOOLONG);
    strcpy(out->path, path);
    out->through = true;
    return QEP_OK;
}

enum qep_status qep_output_target_find(const char *path, const char *label,
                                       enum qep_output_kind kind, struct qep_output_target *out) {
    memset(out, 0, sizeof *out);
    if (*path == '\0')
        return qep_fail(QEP_ERR_USAGE, "%s'': expected the name of a file", label);
    out->exists = stat(path, &out->sb) == 0;
    if (!out->exists && errno != ENOENT)
        return cannot_create(label, errno);
    if (out->exists && !S_ISREG(out->sb.st_mode))
        return check_through(path, label, kind, out);
    QEP_TRY(follow_links(path, label, out->path));
    return out->exists ? check_regular(path, label, out) : QEP_OK;
}

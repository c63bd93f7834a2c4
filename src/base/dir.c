#include "base/dir.h"

#include "base/file.h"
#include "base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Memory is nobody's entry. */
static enum qep_status or_memory(enum qep_status st) {
    return errno == ENOMEM ? QEP_ERR_SYSTEM : st;
}

/* What failed is in errno. */
static enum qep_status fail_entry(const struct qep_dir *dir, const char *name, enum qep_status st,
                                  const char *what) {
    return qep_fail(or_memory(st), "%s/%s: cannot %s: %s", dir->path, name, what, strerror(errno));
}

static enum qep_status finish_open(int fd, char *path, struct qep_dir *out) {
    if (fd >= 0 && path != NULL) {
        *out = (struct qep_dir){.path = path, .fd = fd};
        return QEP_OK;
    }
    if (fd >= 0)
        close(fd);
    free(path);
    return qep_fail(QEP_ERR_SYSTEM, "directory: out of memory");
}

enum qep_status qep_dir_open(const char *path, struct qep_dir *out) {
    *out = QEP_DIR_CLOSED;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return qep_fail(or_memory(QEP_ERR_CANTCREATE), "%s: cannot open: %s", path,
                        strerror(errno));
    return finish_open(fd, strdup(path), out);
}

enum qep_status qep_dir_open_in(const struct qep_dir *parent, const char *name,
                                struct qep_dir *out) {
    char *path = NULL;
    *out = QEP_DIR_CLOSED;
    enum qep_entry entry = qep_dir_entry(parent, name);
    if (entry != QEP_ENTRY_DIR && entry != QEP_ENTRY_ABSENT)
        return qep_fail(QEP_ERR_CANTCREATE, "%s/%s: is %s, expected a directory of our own",
                        parent->path, name, qep_entry_text(entry));
    int fd = openat(parent->fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return fail_entry(parent, name, QEP_ERR_CANTCREATE, "open");
    if (qep_path_join(parent->path, name, &path) != QEP_OK)
        path = NULL;
    return finish_open(fd, path, out);
}

void qep_dir_close(struct qep_dir *dir) {
    if (dir->path != NULL && dir->fd >= 0)
        close(dir->fd);
    free(dir->path);
    *dir = QEP_DIR_CLOSED;
}

enum qep_entry qep_dir_entry(const struct qep_dir *dir, const char *name) {
    struct stat sb;
    if (fstatat(dir->fd, name, &sb, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? QEP_ENTRY_ABSENT : QEP_ENTRY_OTHER;
    if (S_ISREG(sb.st_mode))
        return QEP_ENTRY_FILE;
    if (S_ISLNK(sb.st_mode))
        return QEP_ENTRY_LINK;
    return S_ISDIR(sb.st_mode) ? QEP_ENTRY_DIR : QEP_ENTRY_OTHER;
}

const char *qep_entry_text(enum qep_entry entry) {
    static const char *const texts[] = {"not there", "a file", "a symbolic link", "a directory",
                                        "no regular file"};
    return texts[entry];
}

enum qep_status qep_dir_make(const struct qep_dir *dir, const char *name, bool *created) {
    *created = mkdirat(dir->fd, name, 0777) == 0;
    return *created || errno == EEXIST
               ? QEP_OK
               : fail_entry(dir, name, QEP_ERR_CANTCREATE, "create the directory");
}

enum qep_status qep_dir_create(const struct qep_dir *dir, const char *name, int *fd) {
    enum qep_entry entry = qep_dir_entry(dir, name);
    *fd = -1;
    if (entry != QEP_ENTRY_ABSENT && entry != QEP_ENTRY_FILE)
        return qep_fail(QEP_ERR_CANTCREATE, "%s/%s: is in the way: %s", dir->path, name,
                        qep_entry_text(entry));
    QEP_TRY(qep_dir_remove(dir, name));
    *fd = openat(dir->fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    return *fd >= 0 ? QEP_OK : fail_entry(dir, name, QEP_ERR_CANTCREATE, "create");
}

/* follow: 0 or O_NOFOLLOW. */
static enum qep_status open_file(const struct qep_dir *dir, const char *name, int follow, int *fd,
                                 uint64_t *bytes) {
    struct stat sb;
    *fd = openat(dir->fd, name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | follow);
    if (*fd >= 0 && fstat(*fd, &sb) == 0 && S_ISREG(sb.st_mode)) {
        *bytes = (uint64_t)sb.st_size;
        return QEP_OK;
    }
    if (*fd < 0 && errno == ENOENT)
        return fail_entry(dir, name, QEP_ERR_NOINPUT, "open");
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return qep_fail(QEP_ERR_DATA, "%s/%s: is %s, expected a regular file", dir->path, name,
                    qep_entry_text(qep_dir_entry(dir, name)));
}

enum qep_status qep_dir_open_file(const struct qep_dir *dir, const char *name, int *fd,
                                  uint64_t *bytes) {
    return open_file(dir, name, O_NOFOLLOW, fd, bytes);
}

static enum qep_status read_all(int fd, const char *path, size_t bytes, size_t max_bytes,
                                char **data) {
    void *mem = NULL;
    if (bytes > max_bytes)
        return qep_fail(QEP_ERR_DATA, "%s: %zu bytes, at most %zu are allowed here", path, bytes,
                        max_bytes);
    QEP_TRY(qep_alloc(bytes + 1, 1, path, &mem));
    enum qep_status st = qep_file_pread(fd, path, mem, bytes, 0);
    if (st != QEP_OK) {
        free(mem);
        return st;
    }
    *data = mem;
    (*data)[bytes] = '\0';
    return QEP_OK;
}

static enum qep_status read_file(const struct qep_dir *dir, const char *name, int follow,
                                 size_t max_bytes, char **data, size_t *len) {
    char *path = NULL;
    uint64_t bytes = 0;
    int fd = -1;
    *data = NULL;
    *len = 0;
    QEP_TRY(qep_path_join(dir->path, name, &path));
    enum qep_status st = open_file(dir, name, follow, &fd, &bytes);
    if (st == QEP_OK)
        st = read_all(fd, path, (size_t)bytes, max_bytes, data);
    if (st == QEP_OK)
        *len = (size_t)bytes;
    if (fd >= 0)
        close(fd);
    free(path);
    return st;
}

enum qep_status qep_dir_read(const struct qep_dir *dir, const char *name, size_t max_bytes,
                             char **data, size_t *len) {
    return read_file(dir, name, O_NOFOLLOW, max_bytes, data, len);
}

enum qep_status qep_dir_read_linked(const struct qep_dir *dir, const char *name, size_t max_bytes,
                                    char **data, size_t *len) {
    return read_file(dir, name, 0, max_bytes, data, len);
}

static enum qep_status write_and_close(int fd, const char *path, const void *data, size_t bytes) {
    enum qep_status st = qep_file_write_all(fd, path, data, bytes);
    if (st == QEP_OK && qep_file_sync(fd) != 0 && errno != EINVAL)
        st = qep_fail(QEP_ERR_IO, "%s: fsync failed: %s", path, strerror(errno));
    if (close(fd) != 0 && st == QEP_OK)
        st = qep_fail(QEP_ERR_IO, "%s: close failed: %s", path, strerror(errno));
    return st;
}

enum qep_status qep_dir_write(const struct qep_dir *dir, const char *name, const void *data,
                              size_t bytes) {
    char *path = NULL, *tmp = NULL;
    int fd = -1;
    enum qep_status st = QEP_OK;
    QEP_TRY_GOTO(st, done, qep_path_join(dir->path, name, &path));
    if (asprintf(&tmp, "%s.tmp", name) < 0) {
        tmp = NULL;
        st = qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", path);
        goto done;
    }
    QEP_TRY_GOTO(st, done, qep_dir_create(dir, tmp, &fd));
    st = write_and_close(fd, path, data, bytes);
    if (st == QEP_OK)
        st = qep_dir_rename(dir, tmp, dir, name);
    if (st != QEP_OK)
        unlinkat(dir->fd, tmp, 0);
done:
    free(tmp);
    free(path);
    return st;
}

enum qep_status qep_dir_rename(const struct qep_dir *from, const char *from_name,
                               const struct qep_dir *to, const char *to_name) {
    return renameat(from->fd, from_name, to->fd, to_name) == 0
               ? QEP_OK
               : fail_entry(to, to_name, QEP_ERR_CANTCREATE, "rename into place");
}

enum qep_status qep_dir_remove(const struct qep_dir *dir, const char *name) {
    return unlinkat(dir->fd, name, 0) == 0 || errno == ENOENT
               ? QEP_OK
               : fail_entry(dir, name, QEP_ERR_CANTCREATE, "remove");
}

enum qep_status qep_dir_each(const struct qep_dir *dir,
                             enum qep_status (*fn)(void *arg, const char *name), void *arg) {
    int fd = openat(dir->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    enum qep_status st = QEP_OK;
    if (d == NULL) {
        st = qep_fail(or_memory(QEP_ERR_CANTCREATE), "%s: cannot list: %s", dir->path,
                      strerror(errno));
        if (fd >= 0)
            close(fd);
        return st;
    }
    for (struct dirent *e; st == QEP_OK && (e = readdir(d)) != NULL;)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            st = fn(arg, e->d_name);
    closedir(d);
    return st;
}

enum qep_status qep_dir_sync(const struct qep_dir *dir) {
    return qep_file_sync(dir->fd) == 0 || errno == EINVAL || errno == EROFS || errno == EBADF
               ? QEP_OK
               : qep_fail(QEP_ERR_IO, "%s: fsync failed: %s", dir->path, strerror(errno));
}

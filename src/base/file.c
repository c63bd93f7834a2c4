#include "base/file.h"

#include "base/mem.h"
#include "base/output.h"
#include "base/progress.h"
#include "base/streams.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Of one read or write: so much comes within a watchdog's patience from a very slow disk, too. */
enum { PIECE_BYTES = 1 << 20 };

static const char *kind_of(mode_t mode) {
    switch (mode & S_IFMT) {
    case S_IFDIR:
        return "a directory";
    case S_IFIFO:
        return "a FIFO";
    case S_IFSOCK:
        return "a socket";
    case S_IFCHR:
    case S_IFBLK:
        return "a device";
    default:
        return "no regular file";
    }
}

static enum qep_status fail_kind(const char *path, mode_t mode) {
    return qep_fail(QEP_ERR_DATA, "%s: is %s, expected a regular file", path, kind_of(mode));
}

/* Why open failed: some things of the wrong kind cannot even be opened. */
static enum qep_status fail_open(const char *path, int error) {
    char target[256];
    struct stat sb;
    if (stat(path, &sb) == 0 && !S_ISREG(sb.st_mode))
        return fail_kind(path, sb.st_mode);
    ssize_t n = error == ENOENT || error == ELOOP ? readlink(path, target, sizeof target) : -1;
    if (n >= 0)
        return qep_fail(QEP_ERR_DATA, "%s: is a dangling link to %.*s, expected a regular file",
                        path, (int)n, target);
    return qep_fail(QEP_ERR_NOINPUT, "%s: cannot open: %s", path, strerror(error));
}

static enum qep_status check_open(int fd, const char *path, uint64_t *bytes) {
    struct stat sb;
    if (fstat(fd, &sb) != 0)
        return qep_fail(QEP_ERR_IO, "%s: fstat failed: %s", path, strerror(errno));
    *bytes = (uint64_t)sb.st_size;
    return S_ISREG(sb.st_mode) ? QEP_OK : fail_kind(path, sb.st_mode);
}

enum qep_status qep_file_open(const char *path, int *fd, uint64_t *bytes) {
    *fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (*fd < 0)
        return fail_open(path, errno);
    enum qep_status st = check_open(*fd, path, bytes);
    if (st != QEP_OK) {
        close(*fd);
        *fd = -1;
    }
    return st;
}

enum qep_status qep_file_pread(int fd, const char *path, void *out, size_t bytes, uint64_t offset) {
    char *dst = out;
    while (bytes > 0) {
        size_t piece = bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
        ssize_t got = pread(fd, dst, piece, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return qep_fail(QEP_ERR_IO, "%s: read at byte %llu failed: %s", path,
                            (unsigned long long)offset, strerror(errno));
        if (got == 0)
            return qep_fail(QEP_ERR_DATA,
                            "%s: truncated: the file ends at byte %llu, %zu more expected", path,
                            (unsigned long long)offset, bytes);
        qep_progress((size_t)got);
        dst += got;
        bytes -= (size_t)got;
        offset += (uint64_t)got;
    }
    return QEP_OK;
}

enum qep_status qep_file_read_fd(int fd, const char *path, size_t max_bytes, char **data,
                                 size_t *len) {
    void *buf = NULL;
    size_t cap = 0, used = 0;
    enum qep_status st = QEP_OK;
    for (;;) {
        QEP_TRY_GOTO(st, done, qep_grow(&buf, &cap, used + 65536, 1, path));
        QEP_TRY_GOTO(st, done, qep_stream_wait(fd, path));
        ssize_t got = read(fd, (char *)buf + used, cap - used - 1);
        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (got < 0) {
            st = qep_fail(QEP_ERR_IO, "%s: read failed: %s", path, strerror(errno));
            goto done;
        }
        if (got == 0)
            break;
        qep_progress((size_t)got);
        used += (size_t)got;
        if (used > max_bytes) {
            st = qep_fail(QEP_ERR_DATA, "%s: larger than the %zu bytes allowed here", path,
                          max_bytes);
            goto done;
        }
    }
    ((char *)buf)[used] = '\0';
    *data = buf;
    *len = used;
    buf = NULL;
done:
    free(buf);
    return st;
}

enum qep_status qep_file_read(const char *path, size_t max_bytes, char **data, size_t *len) {
    int fd = -1;
    uint64_t bytes = 0;
    *data = NULL;
    *len = 0;
    QEP_TRY(qep_file_open(path, &fd, &bytes));
    enum qep_status st =
        bytes > max_bytes ? qep_fail(QEP_ERR_DATA, "%s: %llu bytes, at most %zu are allowed here",
                                     path, (unsigned long long)bytes, max_bytes)
                          : qep_file_read_fd(fd, path, max_bytes, data, len);
    close(fd);
    return st;
}

/* O_NONBLOCK: a FIFO's writer is waited for by qep_stream_wait. */
static enum qep_status open_input(const char *path, int *fd) {
    struct stat sb;
    *fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (*fd < 0)
        return qep_fail(QEP_ERR_NOINPUT, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(*fd, &sb) == 0 && !S_ISDIR(sb.st_mode))
        return QEP_OK;
    close(*fd);
    return qep_fail(QEP_ERR_NOINPUT, "%s: is a directory, expected a file", path);
}

enum qep_status qep_input_read(const char *path, size_t max_bytes, char **data, size_t *len) {
    int fd = -1;
    *data = NULL;
    *len = 0;
    QEP_TRY(open_input(path, &fd));
    enum qep_status st = qep_file_read_fd(fd, path, max_bytes, data, len);
    close(fd);
    return st;
}

enum qep_status qep_file_write_all(int fd, const char *path, const void *data, size_t bytes) {
    const char *src = data;
    while (bytes > 0) {
        ssize_t put = write(fd, src, bytes < PIECE_BYTES ? bytes : PIECE_BYTES);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return qep_fail(QEP_ERR_IO, "%s: write failed: %s", path, strerror(errno));
        qep_progress((size_t)put);
        src += put;
        bytes -= (size_t)put;
    }
    return QEP_OK;
}

int qep_file_sync(int fd) {
    qep_outside_begin(); /* gigabytes may be on their way to a slow disk */
    int failed = fsync(fd);
    int why = errno;
    qep_outside_end();
    errno = why;
    return failed;
}

enum qep_status qep_file_write_atomic(const char *path, const void *data, size_t bytes) {
    struct qep_output *output = NULL;
    QEP_TRY(qep_output_create(path, NULL, QEP_OUTPUT_SEEKS, &output));
    enum qep_status st = qep_output_write(output, data, bytes);
    if (st == QEP_OK)
        st = qep_output_finish(output);
    qep_output_destroy(output);
    return st;
}

static enum qep_status make_one_dir(const char *path) {
    if (mkdir(path, 0777) == 0 || (errno == EEXIST && qep_path_is_dir(path)))
        return QEP_OK;
    return qep_fail(QEP_ERR_CANTCREATE, "%s: cannot create directory: %s", path, strerror(errno));
}

enum qep_status qep_mkdirs(const char *path) {
    char *copy = strdup(path);
    enum qep_status st = QEP_OK;
    if (copy == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", path);
    for (char *p = copy + 1; *copy != '\0' && *p != '\0'; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        if (!qep_path_is_dir(copy))
            QEP_TRY_GOTO(st, done, make_one_dir(copy));
        *p = '/';
    }
    st = make_one_dir(copy);
done:
    free(copy);
    return st;
}

bool qep_path_exists(const char *path) {
    struct stat sb;
    return lstat(path, &sb) == 0;
}

bool qep_path_is_dir(const char *path) {
    struct stat sb;
    return stat(path, &sb) == 0 && S_ISDIR(sb.st_mode);
}

enum qep_status qep_path_check_space(const char *dir, uint64_t bytes) {
    struct statvfs fs;
    if (statvfs(dir, &fs) != 0 || fs.f_blocks == 0)
        return QEP_OK;
    uint64_t left = (uint64_t)fs.f_bavail * fs.f_frsize;
    return bytes <= left ? QEP_OK
                         : qep_fail(QEP_ERR_CANTCREATE,
                                    "%s: %.3f GB are still to be written, %.3f GB are free", dir,
                                    (double)bytes / 1e9, (double)left / 1e9);
}

enum qep_status qep_path_check_dir(const char *path) {
    if (qep_path_is_dir(path))
        return QEP_OK;
    return qep_fail(QEP_ERR_NOINPUT,
                    qep_path_exists(path) ? "%s: is not a directory" : "%s: no such directory",
                    path);
}

enum qep_status qep_path_join(const char *dir, const char *name, char **out) {
    size_t n = strlen(dir) + strlen(name) + 2;
    void *mem = NULL;
    QEP_TRY(qep_alloc(n, 1, "path", &mem));
    snprintf(mem, n, "%s/%s", dir, name);
    *out = mem;
    return QEP_OK;
}

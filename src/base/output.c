#include "base/output.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/output_target.h"
#include "base/progress.h"
#include "base/temporary.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct qep_output {
    char *label; /* "--option PATH", before every message */
    int fd;
    struct qep_output_target target;
    struct qep_temporary *temporary; /* NULL: written through */
    bool broken;                     /* bytes are missing */
};

static enum qep_status refuse_unsought(const struct qep_output *o) {
    if (!isatty(o->fd) && lseek(o->fd, 0, SEEK_CUR) >= 0)
        return QEP_OK;
    return qep_fail(QEP_ERR_USAGE, "%s: cannot be sought, expected a file", o->label);
}

/* Is what was opened what the path stood for when it was judged? */
static bool is_judged(const struct qep_output *o) {
    struct stat sb;
    return fstat(o->fd, &sb) == 0 && sb.st_dev == o->target.sb.st_dev &&
           sb.st_ino == o->target.sb.st_ino;
}

/* Without O_CREAT and O_TRUNC: it is there and stays what it is. A FIFO has no writing end before
 * somebody reads (ENXIO): that is waited for in a way that a signal ends however early it comes. */
static enum qep_status open_through(struct qep_output *o, enum qep_output_kind kind) {
    const struct timespec pause = {.tv_nsec = 20000000};
    int flags = O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    qep_outside_begin();
    while ((o->fd = open(o->target.path, flags)) < 0 && errno == ENXIO &&
           S_ISFIFO(o->target.sb.st_mode) && !qep_temporaries_were_removed())
        nanosleep(&pause, NULL);
    qep_outside_end();
    if (qep_temporaries_were_removed())
        return qep_fail(QEP_ERR_INTERRUPTED, "%s: interrupted", o->label);
    if (o->fd < 0 || fcntl(o->fd, F_SETFL, O_WRONLY) != 0)
        return qep_fail(QEP_ERR_CANTCREATE, "%s: cannot open: %s", o->label, strerror(errno));
    if (!is_judged(o))
        return qep_fail(QEP_ERR_CANTCREATE, "%s: became another file meanwhile", o->label);
    return kind == QEP_OUTPUT_SEEKS ? refuse_unsought(o) : QEP_OK;
}

/* What replaces a file looks like it, as far as this user may make it so. */
static void take_after(int fd, const struct stat *sb) {
    int refused = fchown(fd, sb->st_uid, sb->st_gid);
    if (refused != 0)
        refused = fchown(fd, (uid_t)-1, sb->st_gid);
    refused = fchmod(fd, sb->st_mode & 0777);
    (void)refused;
}

static enum qep_status open_temporary(struct qep_output *o) {
    QEP_TRY(qep_temporary_create(o->target.path, o->label, &o->temporary, &o->fd));
    if (o->target.exists)
        take_after(o->fd, &o->target.sb);
    return QEP_OK;
}

static enum qep_status open_output(struct qep_output *o, const char *path, const char *option,
                                   enum qep_output_kind kind) {
    if (asprintf(&o->label, "%s%s%s", option != NULL ? option : "", option != NULL ? " " : "",
                 path) < 0) {
        o->label = NULL;
        return qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", path);
    }
    QEP_TRY(qep_output_target_find(path, o->label, kind, &o->target));
    return o->target.through ? open_through(o, kind) : open_temporary(o);
}

enum qep_status qep_output_create(const char *path, const char *option, enum qep_output_kind kind,
                                  struct qep_output **out) {
    struct qep_output *o = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof *o, "output", (void **)&o));
    o->fd = -1;
    enum qep_status st = open_output(o, path, option, kind);
    if (st == QEP_OK)
        *out = o;
    else
        qep_output_destroy(o);
    return st;
}

enum qep_status qep_output_write(struct qep_output *output, const void *data, size_t bytes) {
    bool through = output->temporary == NULL; /* to a reader that may take its time */
    if (through)
        qep_outside_begin();
    enum qep_status st = qep_file_write_all(output->fd, output->label, data, bytes);
    if (through)
        qep_outside_end();
    output->broken = output->broken || st != QEP_OK;
    return st;
}

enum qep_status qep_output_printf(struct qep_output *output, const char *fmt, ...) {
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int len = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (len < 0) {
        output->broken = true;
        return qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", output->label);
    }
    enum qep_status st = qep_output_write(output, text, (size_t)len);
    free(text);
    return st;
}

enum qep_status qep_output_rewind(struct qep_output *output) {
    return lseek(output->fd, 0, SEEK_SET) == 0
               ? QEP_OK
               : qep_fail(QEP_ERR_IO, "%s: seek failed: %s", output->label, strerror(errno));
}

/* Some errors of writing are only told here. EINVAL: nothing to sync (a pipe). */
static enum qep_status close_checked(struct qep_output *o) {
    enum qep_status st = QEP_OK;
    if (qep_file_sync(o->fd) != 0 && errno != EINVAL)
        st = qep_fail(QEP_ERR_IO, "%s: fsync failed: %s", o->label, strerror(errno));
    int failed = close(o->fd);
    o->fd = -1;
    if (failed != 0 && errno != EINTR && st == QEP_OK)
        st = qep_fail(QEP_ERR_IO, "%s: close failed: %s", o->label, strerror(errno));
    return st;
}

enum qep_status qep_output_finish(struct qep_output *output) {
    if (output->broken)
        return qep_fail(QEP_ERR_IO, "%s: a write failed before", output->label);
    QEP_TRY(close_checked(output));
    return output->temporary == NULL
               ? QEP_OK
               : qep_temporary_rename(output->temporary, output->target.path, output->label);
}

void qep_output_destroy(struct qep_output *output) {
    if (output == NULL)
        return;
    if (output->fd >= 0)
        close(output->fd);
    qep_temporary_destroy(output->temporary);
    free(output->label);
    free(output);
}

#include "base/streams.h"

#include "base/mem.h"
#include "base/progress.h"
#include "base/temporary.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { WAIT_MS = 100 };

/* A link itself: every read and write is EBADF, and it cannot be opened again by the names
 * /dev/stdin and /dev/stdout, which a /dev/null could. Where there is no /proc, a socket that leads
 * nowhere. */
static int open_nothing(void) {
    int fd = open("/proc/self", O_PATH | O_NOFOLLOW);
    return fd >= 0 ? fd : socket(AF_UNIX, SOCK_STREAM, 0);
}

static enum qep_status fill_closed(int fd) {
    if (fcntl(fd, F_GETFD) >= 0)
        return QEP_OK;
    if (fd == STDOUT_FILENO) /* so that it fails where that is looked at, with its reason */
        setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    if (open_nothing() == fd)
        return QEP_OK;
    return qep_fail(QEP_ERR_SYSTEM, "cannot stand in for closed descriptor %d: %s", fd,
                    strerror(errno));
}

enum qep_status qep_streams_init(void) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        QEP_TRY(fill_closed(fd));
    return QEP_OK;
}

/* Only being asked to stop interrupts: other signals are not handled. */
static enum qep_status write_failed(void) {
    return errno == EINTR ? qep_fail(QEP_ERR_INTERRUPTED, "stdout: interrupted")
                          : qep_fail(QEP_ERR_IO, "stdout: write failed: %s", strerror(errno));
}

enum qep_status qep_stdout_write(const void *data, size_t bytes) {
    qep_outside_begin();
    size_t put = bytes > 0 ? fwrite(data, 1, bytes, stdout) : 0;
    qep_outside_end();
    return put == bytes ? qep_stdout_flush() : write_failed();
}

enum qep_status qep_stdout_printf(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    qep_outside_begin();
    int len = vprintf(fmt, ap);
    qep_outside_end();
    va_end(ap);
    return len < 0 ? write_failed() : QEP_OK;
}

enum qep_status qep_stdout_flush(void) {
    qep_outside_begin();
    int failed = fflush(stdout);
    qep_outside_end();
    if (failed != 0)
        return write_failed();
    return ferror(stdout) ? qep_fail(QEP_ERR_IO, "stdout: an earlier write failed") : QEP_OK;
}

static bool wait_readable(int fd) {
    struct pollfd waited = {.fd = fd, .events = POLLIN};
    do {
        int n = poll(&waited, 1, WAIT_MS); /* short: a signal may come just before it */
        if (n > 0 || (n < 0 && errno != EINTR))
            return true; /* what is wrong, the read will say */
    } while (!qep_temporaries_were_removed());
    return false;
}

enum qep_status qep_stream_wait(int fd, const char *label) {
    qep_outside_begin();
    bool readable = wait_readable(fd);
    qep_outside_end();
    if (readable)
        return QEP_OK;
    return qep_fail(QEP_ERR_INTERRUPTED, "%s: interrupted while waiting for it", label);
}

/* What was read of stdin beyond the last line. */
static struct {
    char data[1 << 16];
    size_t begin, end;
} ahead;

static enum qep_status read_ahead(void) {
    ahead.begin = ahead.end = 0;
    for (;;) {
        QEP_TRY(qep_stream_wait(STDIN_FILENO, "stdin"));
        ssize_t n = read(STDIN_FILENO, ahead.data, sizeof ahead.data);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return qep_fail(QEP_ERR_IO, "stdin: read failed: %s", strerror(errno));
        ahead.end = (size_t)n;
        return QEP_OK;
    }
}

enum qep_status qep_stdin_line(char **line, size_t *cap, ssize_t *len) {
    size_t used = 0;
    bool ended = false;
    *len = -1;
    while (!ended) {
        if (ahead.begin == ahead.end)
            QEP_TRY(read_ahead());
        const char *from = ahead.data + ahead.begin;
        size_t n = ahead.end - ahead.begin;
        const char *end = memchr(from, '\n', n);
        ended = end != NULL || n == 0;
        n = end != NULL ? (size_t)(end - from) + 1 : n;
        QEP_TRY(qep_grow((void **)line, cap, used + n + 1, 1, "stdin"));
        memcpy(*line + used, from, n);
        used += n;
        ahead.begin += n;
    }
    (*line)[used] = '\0';
    *len = used > 0 ? (ssize_t)used : -1;
    return QEP_OK;
}

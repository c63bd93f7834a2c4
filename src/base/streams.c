#include "base/streams.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* O_PATH: every read and write is EBADF, and so they stay when opened again as /dev/stdin or
 * /dev/stdout, which a /dev/null would not. */
static enum qep_status fill_closed(int fd) {
    if (fcntl(fd, F_GETFD) >= 0 || open("/", O_PATH | O_DIRECTORY) == fd)
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
    if (bytes > 0 && fwrite(data, 1, bytes, stdout) != bytes)
        return write_failed();
    return qep_stdout_flush();
}

enum qep_status qep_stdout_printf(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int len = vprintf(fmt, ap);
    va_end(ap);
    return len < 0 ? write_failed() : QEP_OK;
}

enum qep_status qep_stdout_flush(void) {
    if (fflush(stdout) != 0)
        return write_failed();
    return ferror(stdout) ? qep_fail(QEP_ERR_IO, "stdout: an earlier write failed") : QEP_OK;
}

enum qep_status qep_stdin_line(char **line, size_t *cap, ssize_t *len) {
    *len = getline(line, cap, stdin);
    if (*len >= 0 || !ferror(stdin))
        return QEP_OK;
    if (errno == EINTR) {
        clearerr(stdin);
        return qep_fail(QEP_ERR_INTERRUPTED, "stdin: interrupted");
    }
    return qep_fail(QEP_ERR_IO, "stdin: read failed: %s", strerror(errno));
}

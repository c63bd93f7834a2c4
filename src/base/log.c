#include "base/log.h"

#include "base/printable.h"
#include "base/progress.h"
#include "base/temporary.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static enum qep_log_level log_level = QEP_LOG_NORMAL;
static int log_rank = 0;

/* The process, or the job, is to end with an error's line, so that one does not wait for ever. */
enum { LAST_WORDS_MS = 2000 };

void qep_log_init(enum qep_log_level level, int rank, int num_ranks) {
    (void)num_ranks;
    log_level = level;
    log_rank = rank;
}

void qep_log_set_level(enum qep_log_level level) {
    log_level = level;
}

enum qep_log_level qep_log_get_level(void) {
    return log_level;
}

/* A terminal may be held (Ctrl-S), and a pager read nothing for hours. */
static bool is_writable(int wait_ms) {
    struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
    return poll(&out, 1, wait_ms) > 0;
}

/* What is said on the way waits for its reader, unless the process is asked to stop meanwhile. */
static bool wait_for_reader(void) {
    bool writable;
    qep_outside_begin();
    while (!(writable = is_writable(100)) && !qep_temporaries_were_removed()) {
    }
    qep_outside_end();
    return writable;
}

bool qep_log_is_read(void) {
    return is_writable(0);
}

static void write_line(const char *prefix, bool last, const char *fmt, va_list ap) {
    char line[2048];
    int n = snprintf(line, sizeof line, "%s", prefix);
    vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, ap);
    qep_text_printable(line);
    size_t len = strlen(line);
    line[len++] = '\n';
    if (!(last ? is_writable(LAST_WORDS_MS) : wait_for_reader()))
        return;
    ssize_t ignored = write(STDERR_FILENO, line, len);
    (void)ignored;
}

void qep_info(const char *fmt, ...) {
    if (log_level == QEP_LOG_QUIET || log_rank != 0)
        return;
    va_list ap;
    va_start(ap, fmt);
    write_line("", false, fmt, ap);
    va_end(ap);
}

void qep_detail(const char *fmt, ...) {
    if (log_level != QEP_LOG_VERBOSE)
        return;
    char prefix[32];
    snprintf(prefix, sizeof prefix, "[%d] ", log_rank);
    va_list ap;
    va_start(ap, fmt);
    write_line(prefix, false, fmt, ap);
    va_end(ap);
}

void qep_error_line(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    write_line("qwen-ep: ", true, fmt, ap);
    va_end(ap);
}

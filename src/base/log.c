#include "base/log.h"

#include "base/printable.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static enum qep_log_level log_level = QEP_LOG_NORMAL;
static int log_rank = 0;

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

static void write_line(const char *prefix, const char *fmt, va_list ap) {
    char line[2048];
    int n = snprintf(line, sizeof line, "%s", prefix);
    vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, ap);
    qep_text_printable(line);
    size_t len = strlen(line);
    line[len++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, len);
    (void)ignored;
}

void qep_info(const char *fmt, ...) {
    if (log_level == QEP_LOG_QUIET || log_rank != 0)
        return;
    va_list ap;
    va_start(ap, fmt);
    write_line("", fmt, ap);
    va_end(ap);
}

void qep_detail(const char *fmt, ...) {
    if (log_level != QEP_LOG_VERBOSE)
        return;
    char prefix[32];
    snprintf(prefix, sizeof prefix, "[%d] ", log_rank);
    va_list ap;
    va_start(ap, fmt);
    write_line(prefix, fmt, ap);
    va_end(ap);
}

void qep_error_line(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    write_line("qwen-ep: ", fmt, ap);
    va_end(ap);
}

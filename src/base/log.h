/* Text for people on stderr: one write() a line, so lines of several ranks never mix. */
#ifndef QEP_BASE_LOG_H
#define QEP_BASE_LOG_H

#include <stdbool.h>

enum qep_log_level { QEP_LOG_QUIET, QEP_LOG_NORMAL, QEP_LOG_VERBOSE };

/* Process-wide: level, and the rank shown before lines of other ranks than 0. Set once by main. */
void qep_log_init(enum qep_log_level level, int rank, int num_ranks);
void qep_log_set_level(enum qep_log_level level);
enum qep_log_level qep_log_get_level(void);

/* A line of information (shown unless --quiet), of detail (shown with --verbose), and an error line
 * `qwen-ep: ...` (always shown). printf form, no line end;
 * what a terminal would obey becomes '?'. Information comes from rank 0 only. A line waits
 * for whoever reads stderr, outside (base/progress.h), until the process is asked to stop; an error
 * line is dropped after two seconds, since an end follows it. */
__attribute__((format(printf, 1, 2))) void qep_info(const char *fmt, ...);
__attribute__((format(printf, 1, 2))) void qep_detail(const char *fmt, ...);
__attribute__((format(printf, 1, 2))) void qep_error_line(const char *fmt, ...);

/* Would a line be taken at once? For what need not be shown, such as a bar. */
bool qep_log_is_read(void);

#endif

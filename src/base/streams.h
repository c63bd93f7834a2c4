/* stdin, stdout and stderr as this process was given them. */
#ifndef QEP_BASE_STREAMS_H
#define QEP_BASE_STREAMS_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* First thing in main. A descriptor of the three that is closed is filled with one that can neither
 * be read nor written, so that no file of ours gets its number. Writing to a pipe without reader,
 * and beyond the limit of a file's size, fails (EPIPE, EFBIG) instead of ending the process.
 * QEP_ERR_SYSTEM. */
enum qep_status qep_streams_init(void);

/* Writes and flushes; 0 bytes (data NULL too) only flush. QEP_ERR_IO; QEP_ERR_INTERRUPTED when a
 * signal handler ran while it waited for a reader. */
enum qep_status qep_stdout_write(const void *data, size_t bytes);

/* printf whose failure is told where it happens, with its reason: for output that outgrows stdout's
 * buffer. Errors as above. */
enum qep_status qep_stdout_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* What printf buffered; also fails when a write before did. Errors as above. */
enum qep_status qep_stdout_flush(void);

/* Waits until `fd` has something to read or has ended; returns at once for files. `label` is for
 * messages. QEP_ERR_INTERRUPTED when the process is asked to stop, however early that came. */
enum qep_status qep_stream_wait(int fd, const char *label);

/* A line of stdin with its end in *line (getline's: free), *len < 0 at the end of input.
 * QEP_ERR_IO; QEP_ERR_INTERRUPTED as above. Nobody else reads stdin. */
enum qep_status qep_stdin_line(char **line, size_t *cap, ssize_t *len);

#endif

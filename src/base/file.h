/* Files: whole reads, positioned reads, atomic writes, directories. Every error names the path.
 * QEP_ERR_NOINPUT: cannot open for reading; QEP_ERR_CANTCREATE: cannot create (permission, missing
 * parent); QEP_ERR_IO: a read or write failed (disk full included); QEP_ERR_DATA: shorter than
 * needed, too large, or something else than a file.
 *
 * Two ways to open, for two kinds of names: what a directory holds must be a regular file, and is
 * refused at once when it is not; what the user names in an option may be a pipe. */
#ifndef QEP_BASE_FILE_H
#define QEP_BASE_FILE_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Opens a regular file for reading; links are followed. *bytes is its size, *fd the caller's (-1
 * after an error). Never waits: a FIFO, socket, device, directory or dangling link is
 * QEP_ERR_DATA, which says what was found. */
enum qep_status qep_file_open(const char *path, int *fd, uint64_t *bytes);

/* Reads such a file of at most max_bytes; *data is NUL-terminated past *len and owned by the caller
 * (free). */
enum qep_status qep_file_read(const char *path, size_t max_bytes, char **data, size_t *len);

/* The same for a name from an option, which may be a pipe, FIFO or character device too and is
 * waited for. QEP_ERR_NOINPUT: a directory; QEP_ERR_INTERRUPTED: a signal came meanwhile. */
enum qep_status qep_input_read(const char *path, size_t max_bytes, char **data, size_t *len);

/* Either of the two. */
typedef enum qep_status qep_read_fn(const char *path, size_t max_bytes, char **data, size_t *len);
/* The same from where `fd` stands to its end; `path` is for messages. */
enum qep_status qep_file_read_fd(int fd, const char *path, size_t max_bytes, char **data,
                                 size_t *len);

/* Reads exactly `bytes` at `offset`. */
enum qep_status qep_file_pread(int fd, const char *path, void *out, size_t bytes, uint64_t offset);

/* Writes all bytes at the current position. */
enum qep_status qep_file_write_all(int fd, const char *path, const void *data, size_t bytes);

/* fsync, however long it takes. */
int qep_file_sync(int fd);

/* Puts a file in its place at once (base/output.h): it is there whole or not at all. */
enum qep_status qep_file_write_atomic(const char *path, const void *data, size_t bytes);

/* Creates a directory and its missing parents; an existing directory is fine. */
enum qep_status qep_mkdirs(const char *path);

bool qep_path_exists(const char *path); /* an entry is there, be it a dangling link */
bool qep_path_is_dir(const char *path);

/* QEP_ERR_NOINPUT unless `path` is a directory. */
enum qep_status qep_path_check_dir(const char *path);

/* QEP_ERR_CANTCREATE when the file system of the directory has less than `bytes` left for us; one
 * that does not tell is taken to have them. */
enum qep_status qep_path_check_space(const char *dir, uint64_t bytes);

/* dir + "/" + name in *out (free). */
enum qep_status qep_path_join(const char *dir, const char *name, char **out);

#endif

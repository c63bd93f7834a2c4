/* Files: whole reads, positioned reads, atomic writes, directories. Every error names the path.
 * QEP_ERR_NOINPUT: cannot open for reading; QEP_ERR_CANTCREATE: cannot create (permission, missing
 * parent); QEP_ERR_IO: a read or write failed (disk full included); QEP_ERR_DATA: shorter than
 * needed. */
#ifndef QEP_BASE_FILE_H
#define QEP_BASE_FILE_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Reads a regular file (or a pipe) of at most max_bytes; *data is NUL-terminated past *len and
 * owned by the caller (free). */
enum qep_status qep_file_read(const char *path, size_t max_bytes, char **data, size_t *len);

/* The same from where `fd` stands to its end; `path` is for messages. */
enum qep_status qep_file_read_fd(int fd, const char *path, size_t max_bytes, char **data,
                                 size_t *len);

/* Opens for reading; directories are refused. *bytes is the file's size. */
enum qep_status qep_file_open(const char *path, int *fd, uint64_t *bytes);

/* Reads exactly `bytes` at `offset`. */
enum qep_status qep_file_pread(int fd, const char *path, void *out, size_t bytes, uint64_t offset);

/* Writes all bytes at the current position. */
enum qep_status qep_file_write_all(int fd, const char *path, const void *data, size_t bytes);

/* Puts a file in its place at once (base/output.h): it is there whole or not at all. */
enum qep_status qep_file_write_atomic(const char *path, const void *data, size_t bytes);

/* Creates a directory and its missing parents; an existing directory is fine. */
enum qep_status qep_mkdirs(const char *path);

bool qep_path_exists(const char *path);
bool qep_path_is_dir(const char *path);

/* dir + "/" + name in *out (free). */
enum qep_status qep_path_join(const char *dir, const char *name, char **out);

#endif

/* A directory held open, and its entries by name: what we create, replace or remove in a directory
 * goes through its descriptor and never through a symbolic link, so that nobody who can write there
 * leads us elsewhere. Names are plain ones, without '/'. Errors name the entry's path.
 * QEP_ERR_CANTCREATE: cannot be created, replaced or removed, or is not of the kind it should be;
 * QEP_ERR_IO: a read, write or sync failed. */
#ifndef QEP_BASE_DIR_H
#define QEP_BASE_DIR_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qep_dir {
    char *path; /* owned; as messages show it */
    int fd;     /* owned; -1: closed */
};

#define QEP_DIR_CLOSED ((struct qep_dir){.path = NULL, .fd = -1})

/* Opens the directory that a user named: links on the way are followed. Close it in any case. */
enum qep_status qep_dir_open(const char *path, struct qep_dir *out);

/* Opens `name` inside parent, which must be a directory itself and no link to one. */
enum qep_status qep_dir_open_in(const struct qep_dir *parent, const char *name,
                                struct qep_dir *out);
void qep_dir_close(struct qep_dir *dir); /* back to QEP_DIR_CLOSED; a closed one is fine */

enum qep_entry { QEP_ENTRY_ABSENT, QEP_ENTRY_FILE, QEP_ENTRY_LINK, QEP_ENTRY_DIR, QEP_ENTRY_OTHER };
enum qep_entry qep_dir_entry(const struct qep_dir *dir, const char *name);
const char *qep_entry_text(enum qep_entry entry); /* "a symbolic link" */

/* Creates a subdirectory; *created is false when one is there already. */
enum qep_status qep_dir_make(const struct qep_dir *dir, const char *name, bool *created);

/* A new empty file to write; a regular file of that name is removed first. *fd is the caller's. */
enum qep_status qep_dir_create(const struct qep_dir *dir, const char *name, int *fd);

/* Opens a regular file to read; *bytes is its size. Never blocks. QEP_ERR_DATA: no regular file. */
enum qep_status qep_dir_open_file(const struct qep_dir *dir, const char *name, int *fd,
                                  uint64_t *bytes);

/* A whole regular file of at most max_bytes; *data is NUL-terminated past *len, the caller's. */
enum qep_status qep_dir_read(const struct qep_dir *dir, const char *name, size_t max_bytes,
                             char **data, size_t *len);

/* The same, links followed: for what was there before us. */
enum qep_status qep_dir_read_linked(const struct qep_dir *dir, const char *name, size_t max_bytes,
                                    char **data, size_t *len);

/* Writes NAME.tmp, syncs it and renames it: the file is there whole or not at all. For directories
 * of our own, where no other NAME.tmp can be. */
enum qep_status qep_dir_write(const struct qep_dir *dir, const char *name, const void *data,
                              size_t bytes);

/* Renames over whatever file or link is there. */
enum qep_status qep_dir_rename(const struct qep_dir *from, const char *from_name,
                               const struct qep_dir *to, const char *to_name);

/* Removes a file or a link; an absent one is fine. */
enum qep_status qep_dir_remove(const struct qep_dir *dir, const char *name);

/* Calls fn for every entry but . and .. until it fails. */
enum qep_status qep_dir_each(const struct qep_dir *dir,
                             enum qep_status (*fn)(void *arg, const char *name), void *arg);

/* Makes renames and removals last. */
enum qep_status qep_dir_sync(const struct qep_dir *dir);

#endif

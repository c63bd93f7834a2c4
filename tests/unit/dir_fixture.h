/* Scratch directories and files for the tests of checkpoints and shard directories. */
#ifndef QEP_TESTS_DIR_FIXTURE_H
#define QEP_TESTS_DIR_FIXTURE_H

#include "base/file.h"

#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A fresh directory name in out[64]; the directory exists. */
static inline void scratch_dir(char out[64]) {
    snprintf(out, 64, "/tmp/qep-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(out));
}

static inline void remove_tree(const char *path) {
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    ck_assert_int_eq(system(command), 0);
}

static inline void copy_tree(const char *from, const char *to) {
    char command[512];
    snprintf(command, sizeof command, "cp -r '%s/.' '%s' && chmod -R u+w '%s'", from, to, to);
    ck_assert_int_eq(system(command), 0);
}

static inline bool same_trees(const char *a, const char *b) {
    char command[512];
    snprintf(command, sizeof command, "diff -r '%s' '%s' >/dev/null", a, b);
    return system(command) == 0;
}

static inline void join(char *out, size_t out_bytes, const char *dir, const char *name) {
    snprintf(out, out_bytes, "%s/%s", dir, name);
}

/* Not inlined: gcc 12 takes its local for a dangling pointer where it is. */
__attribute__((noinline, unused)) static char *slurp(const char *dir, const char *name,
                                                     size_t *len) {
    char path[512], *data = NULL;
    join(path, sizeof path, dir, name);
    ck_assert_msg(qep_file_read(path, 1u << 30, &data, len) == QEP_OK, "%s", qep_last_error());
    return data;
}

static inline void spill(const char *dir, const char *name, const void *data, size_t len) {
    char path[512];
    join(path, sizeof path, dir, name);
    ck_assert_msg(qep_file_write_atomic(path, data, len) == QEP_OK, "%s", qep_last_error());
}

/* The last error names what it should. */
static inline void assert_error_has(const char *part) {
    ck_assert_msg(strstr(qep_last_error(), part) != NULL, "expected '%s' in '%s'", part,
                  qep_last_error());
    ck_assert_ptr_null(strchr(qep_last_error(), '\n'));
}

#endif

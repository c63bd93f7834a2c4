/* Shared by the files of a build: build.c (what is built, by whom), build_prepare.c (what is in the
 * way), build_lock.c (who may), build_state.c (DIR/.convert), build_finish.c and build_swap.c (new
 * for old), pipeline.c (one file).
 *
 * All that is made lies in DIR/.convert until it is complete; then the swap puts it into DIR. */
#ifndef QEP_SHARD_BUILD_INTERNAL_H
#define QEP_SHARD_BUILD_INTERNAL_H

#include "base/dir.h"
#include "shard/build.h"
#include "shard/manifest.h"

/* A set of names. */
struct build_names {
    char **items; /* owned, each too */
    size_t count, cap;
};
enum qep_status build_names_add(struct build_names *names, const char *name);
bool build_names_has(const struct build_names *names, const char *name);
void build_names_free(struct build_names *names); /* and back to {0} */

struct build_lock {
    int fd;    /* -1: not held */
    bool file; /* by DIR/.convert/in-use being there */
};

struct qep_build {
    struct qep_build_options options;
    struct qep_layout layout;
    enum qep_weight_type *types;
    char identity[QEP_HASH_TEXT]; /* of source, recipe and options */
    struct qep_dir dir, state;    /* DIR and DIR/.convert */
    struct build_lock lock;       /* rank 0's */
    struct build_names old;       /* files of the conversion that this one replaces */
    struct qep_build_sizes sizes;
    struct qep_build_progress progress;
};

/* Writes one .qep file to fd, which is closed in any case; `path` is for messages. */
enum qep_status qep_pipeline_run(struct qep_build *build, const struct qep_layout_file *file,
                                 int fd, const char *path, struct qep_file_identity *out);

bool qep_build_stopped(const struct qep_build *build);

/* build_state.c: a plain name that a conversion can have in DIR: NAME.qep or a side file's; one
 * that it can have in DIR/.convert. */
bool build_is_our_name(const char *name);
bool build_is_state_name(const char *name);

/* NAME<suffix> in out[0..QEP_FILE_NAME_MAX + 16). */
enum { BUILD_STATE_NAME_MAX = QEP_FILE_NAME_MAX + 16 };
void build_state_name(const char *name, const char *suffix, char out[BUILD_STATE_NAME_MAX]);

/* The manifest line of a finished file from its state file; *entry NULL when it is not finished. */
enum qep_status build_load_entry(const struct qep_build *build, const struct qep_layout_file *file,
                                 char **entry, struct qep_file_identity *identity);
enum qep_status build_save_entry(const struct qep_build *build, const struct qep_layout_file *file,
                                 const struct qep_file_identity *identity);

/* QEP_ERR_CANTCREATE names an entry of DIR/.convert that no conversion made. */
enum qep_status build_state_check(const struct qep_build *build);

/* Removes all entries of DIR/.convert but `but` (NULL: all) and the lock's. */
enum qep_status build_state_clear(const struct qep_build *build, const char *but);

/* QEP_ERR_CANTCREATE when what is left to write will not fit. */
enum qep_status build_check_space(const struct qep_build *build);

/* build_lock.c: takes the lock in DIR/.convert. QEP_ERR_INTERRUPTED: "in use by ...". *gone: the
 * directory went away meanwhile, all is to be done again. */
enum qep_status build_lock(struct qep_build *build, bool *gone);
void build_unlock(struct qep_build *build);

/* build_swap.c. A journal in DIR/.convert says what the swap puts and drops; from the moment it is
 * there a swap is finished rather than begun again, by whoever comes first. */
struct build_journal {
    char identity[QEP_HASH_TEXT]; /* "": no swap is under way */
    struct build_names put, drop;
};
enum qep_status build_journal_read(const struct qep_build *build, struct build_journal *out);
enum qep_status build_journal_write(const struct qep_build *build,
                                    const struct build_journal *journal);
void build_journal_free(struct build_journal *journal);

/* Old manifest away, renames, new manifest; then the state goes, the journal last, and the lock. */
enum qep_status build_swap(struct qep_build *build, const struct build_journal *journal);

/* build_prepare.c: QEP_ERR_CANTCREATE names what is in DIR under a name that this build needs, and
 * not of the conversion that it replaces. */
enum qep_status build_check_way(const struct qep_build *build);

#endif

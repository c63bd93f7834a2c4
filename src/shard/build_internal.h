/* Shared by the files of a build: build.c (what is built, by whom), build_side.c (what goes beside
 * the weights), build_prepare.c (what is in the way), build_old.c (what is replaced), build_state.c
 * (DIR/.convert), build_finish.c and build_swap.c (new for old), pipeline.c (one file).
 *
 * All that is made lies in DIR/.convert until it is complete; then the swap puts it into DIR. */
#ifndef QEP_SHARD_BUILD_INTERNAL_H
#define QEP_SHARD_BUILD_INTERNAL_H

#include "shard/build.h"
#include "shard/manifest.h"
#include "shard/work.h"

/* A set of names. */
struct build_names {
    char **items; /* owned, each too */
    size_t count, cap;
};
enum qep_status build_names_add(struct build_names *names, const char *name);
bool build_names_has(const struct build_names *names, const char *name);
void build_names_free(struct build_names *names); /* and back to {0} */

/* A side file of the source; data NULL: there is none. */
struct build_side {
    char *data; /* owned */
    size_t len;
};

struct qep_build {
    struct qep_build_options options;
    struct qep_layout layout;
    enum qep_weight_type *types;
    char identity[QEP_HASH_TEXT];               /* of source, recipe and options */
    struct qep_work work;                       /* DIR and DIR/.convert; locked by rank 0 */
    struct build_names old;                     /* files of the conversion that this one replaces */
    struct build_side side[QEP_MAX_SIDE_FILES]; /* rank 0's, as they were at the start */
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

/* Whose DIR/.convert is: of this very build, of another one, or of none that began. */
enum build_owner { BUILD_NOBODYS, BUILD_SAME, BUILD_OTHER };

/* QEP_ERR_CANTCREATE names an entry of DIR/.convert that no conversion made; `begun`: one is known
 * to be there. */
enum qep_status build_state_check(const struct qep_build *build, bool begun);
enum qep_status build_state_owner(const struct qep_build *build, enum build_owner *owner);
/* The same without a look at the entries: others may be at work there. */
enum qep_status build_state_read(const struct qep_build *build, enum build_owner *owner);
enum qep_status build_state_sign(const struct qep_build *build); /* it is this build's now */

/* Removes all entries of DIR/.convert but the lock's and `but` (NULL: none), the identity last. */
enum qep_status build_state_clear(const struct qep_build *build, const char *but);

/* QEP_ERR_CANTCREATE when what is left to write will not fit; `cleared`: what is in DIR/.convert
 * goes first. */
enum qep_status build_check_space(const struct qep_build *build, bool cleared);

/* Opens a finished file, in DIR/.convert or DIR: does it look as `identity` says? */
bool build_same_file(const struct qep_dir *dir, const char *name,
                     const struct qep_file_identity *identity);

/* build_side.c: reads them from the source; config.json must be the one that was converted. */
enum qep_status build_side_read(struct qep_build *build);
void build_side_free(struct qep_build *build);

/* build_old.c: the files that the manifest `name` of a conversion lists, and the hash of its text;
 * hash "": there is none. QEP_ERR_CANTCREATE: it is no manifest of ours. */
enum qep_status build_old_read(const struct qep_dir *dir, const char *name,
                               struct build_names *names, char hash[QEP_HASH_TEXT]);

/* QEP_ERR_CANTCREATE names what is in DIR as `name` and not of the old conversion. */
enum qep_status build_old_check(const struct qep_build *build, const struct build_names *old,
                                const char *name);

/* build_swap.c. The journal in DIR/.convert says that a swap has begun, whose, and the hashes of
 * both manifests: from then on it is finished rather than begun again, by whoever comes first. */
struct build_journal {
    char identity[QEP_HASH_TEXT];                /* "": no swap is under way */
    char now[QEP_HASH_TEXT], old[QEP_HASH_TEXT]; /* old "": there was none */
};
enum qep_status build_journal_read(const struct qep_build *build, struct build_journal *out);
enum qep_status build_journal_write(const struct qep_build *build,
                                    const struct build_journal *journal);

/* Looks at everything first: QEP_ERR_DATA: a new file is damaged; QEP_ERR_CANTCREATE: something is
 * in the way. Then: old manifest away, renames, new manifest; the state goes, the journal last. */
enum qep_status build_swap(struct qep_build *build, const struct build_journal *journal);

#endif

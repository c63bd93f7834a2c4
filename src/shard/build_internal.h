/* Shared by build.c (files and their order), build_dir.c (the directory) and pipeline.c (one file).
 */
#ifndef QEP_SHARD_BUILD_INTERNAL_H
#define QEP_SHARD_BUILD_INTERNAL_H

#include "shard/build.h"
#include "shard/manifest.h"

struct qep_build {
    struct qep_build_options options;
    struct qep_layout layout;
    enum qep_weight_type *types;
    char identity[QEP_HASH_TEXT]; /* of source, recipe and options */
    char *state_dir;              /* DIR/.convert */
    struct qep_build_sizes sizes;
    struct qep_build_progress progress;
};

/* Writes one .qep file to `path` with all threads. */
enum qep_status qep_pipeline_run(struct qep_build *build, const struct qep_layout_file *file,
                                 const char *path, struct qep_file_identity *out);

/* DIR/.convert/NAME<suffix>; owned by the caller. */
enum qep_status qep_build_state_path(const struct qep_build *build, const char *name,
                                     const char *suffix, char **out);

/* The manifest line of a finished file from its state file; *entry NULL when it is not finished. */
enum qep_status qep_build_load_entry(const struct qep_build *build,
                                     const struct qep_layout_file *file, char **entry,
                                     struct qep_file_identity *identity);

bool qep_build_stopped(const struct qep_build *build);

#endif

/* The small files beside the weights: config, tokenizer, template, defaults. They decide answers as
 * much as weights do, so the manifest has their hashes. */
#ifndef QEP_SHARD_SIDE_FILES_H
#define QEP_SHARD_SIDE_FILES_H

#include "shard/manifest.h"
#include "shard/shard.h"

/* The manifest's entry, or NULL. */
const struct qep_side_file *qep_side_files_find(const struct qep_manifest *manifest,
                                                const char *name);

/* Compares DIR's side files with the manifest's list: each listed one is there and unchanged, no
 * other that would be used is there. QEP_ERR_DATA names the file and, where that helps, the command
 * that accepts it. */
enum qep_status qep_side_files_verify(const char *dir, const struct qep_manifest *manifest);

/* The same for a directory that may be a Hugging Face one: without a manifest.json of ours there is
 * nothing to compare. Weights are not looked at. */
enum qep_status qep_side_files_verify_dir(const char *dir);

/* Whether a side file may become part of a directory of `model`: QEP_ERR_DATA says why not.
 * text[0..len) is NUL-terminated. */
typedef enum qep_status qep_side_file_check(const struct qep_model_config *model, const char *name,
                                            const char *path, const char *text, size_t len);

struct qep_reseal_result {
    struct qep_side_file files[QEP_MAX_SIDE_FILES]; /* what the manifest lists now */
    int num_files;
    const char *accepted[QEP_MAX_SIDE_FILES], *dropped[QEP_MAX_SIDE_FILES]; /* names, borrowed */
    int num_accepted, num_dropped;
};

/* Makes the side files that DIR has now part of it: a new manifest.json, as a conversion with these
 * files would have written it; weights stay. Nothing changes when a check fails or when all files
 * are as the manifest says. QEP_ERR_INTERRUPTED: DIR is in use by a conversion;
 * QEP_ERR_CANTCREATE: one was interrupted; else as qep_shard_dir_open and writing. */
enum qep_status qep_shard_reseal(const char *dir, qep_side_file_check *check,
                                 struct qep_reseal_result *out);

#endif

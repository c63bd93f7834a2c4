/* Makes a shard directory from any source of rows. The order of calls, with several ranks:
 *   create (all ranks: decides types and files, touches nothing)
 *   prepare (rank 0)   files (all ranks, each its own)   finish (rank 0: manifest, swap)
 * Everything is made in DIR/.convert, whose finished files are remembered, so an interrupted build
 * continues; the result is the same bytes either way. Only finish touches what DIR held before: an
 * old conversion opens until the new one is complete, and a swap that is interrupted is finished by
 * the same command (docs/decisions/006-swap.md). Whoever prepares holds a lock until destroy. */
#ifndef QEP_SHARD_BUILD_H
#define QEP_SHARD_BUILD_H

#include "base/status.h"
#include "checkpoint/source.h"
#include "quant/recipe.h"
#include "shard/frame.h"
#include "shard/layout.h"

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

struct qep_build_progress {
    uint64_t done_bytes, total_bytes; /* of this rank, as bf16 */
    const char *file;
};

/* All pointers are borrowed and outlive the build. */
struct qep_build_options {
    const char *dir;
    const struct qep_model_config *config;
    const struct qep_inventory *inventory;
    struct qep_row_source source;
    uint64_t source_identity; /* a build resumes only the same one */
    const struct qep_recipe *recipe;
    const char *side_dir;    /* side files are copied from here; may be NULL */
    const char *config_text; /* instead of side_dir/config.json; may be NULL */
    size_t config_len;
    int32_t num_shards;
    int num_threads;
    enum qep_compress compress;
    bool force; /* replace the conversion, finished or not, that is there */
    bool allow_nan;
    const volatile sig_atomic_t *stop; /* set: leave with QEP_ERR_INTERRUPTED; may be NULL */
    void (*on_progress)(void *arg, const struct qep_build_progress *progress); /* may be NULL */
    void *progress_arg;
};

struct qep_build; /* opaque */

/* QEP_ERR_DATA: the recipe does not fit the model. */
enum qep_status qep_build_create(const struct qep_build_options *options, struct qep_build **out);
void qep_build_destroy(struct qep_build *build); /* NULL is fine */

/* Hex; of all that decides the result, the source as it was opened included: equal on all ranks. */
const char *qep_build_identity(const struct qep_build *build);

/* Reads side files, creates DIR or looks at what is there, and locks it. *complete: a swap of this
 * very build was interrupted and has been finished now; nothing is left to do. QEP_ERR_CANTCREATE:
 * a complete directory or another build's remains without force; in any case, a file in the way
 * that is not of a conversion of ours, or too little space. QEP_ERR_INTERRUPTED: in use by another
 * process. */
enum qep_status qep_build_prepare(struct qep_build *build, bool *complete);

/* Builds the files that fall to `rank`; finished ones are kept. QEP_ERR_INTERRUPTED when stopped;
 * QEP_ERR_DATA when the source changed meanwhile. */
enum qep_status qep_build_files(struct qep_build *build, int rank, int num_ranks);

/* Writes side files and manifest, puts all into DIR in the old conversion's place. */
enum qep_status qep_build_finish(struct qep_build *build);

struct qep_build_sizes {
    uint64_t source_bytes;         /* all tensors as the source has them */
    uint64_t tensor_bytes;         /* as stored, uncompressed */
    uint64_t stored_bytes;         /* files; valid after finish */
    size_t num_files, num_resumed; /* of this rank: kept from an earlier run */
};
struct qep_build_sizes qep_build_sizes(const struct qep_build *build);

#endif

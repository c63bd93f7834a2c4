/* Makes a shard directory from any source of rows. The order of calls, with several ranks:
 *   create (all ranks: decides types and files, touches nothing)
 *   prepare (rank 0)   files (all ranks, each its own)   finish (rank 0: manifest)
 * Until finish has renamed the manifest into place nothing in DIR opens. Finished files are
 * remembered in DIR/.convert, so an interrupted build continues; the result is the same bytes
 * either way. */
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
    const char *side_dir;    /* side files are copied from here */
    const char *config_text; /* instead of side_dir/config.json; may be NULL */
    size_t config_len;
    int32_t num_shards;
    int num_threads;
    enum qep_compress compress;
    bool force; /* replace whatever shard directory is there */
    bool allow_nan;
    const volatile sig_atomic_t *stop; /* set: leave with QEP_ERR_INTERRUPTED; may be NULL */
    void (*on_progress)(void *arg, const struct qep_build_progress *progress); /* may be NULL */
    void *progress_arg;
};

struct qep_build; /* opaque */

/* QEP_ERR_DATA: the recipe does not fit the model. */
enum qep_status qep_build_create(const struct qep_build_options *options, struct qep_build **out);
void qep_build_destroy(struct qep_build *build); /* NULL is fine */

/* Creates DIR or looks at what is there. QEP_ERR_CANTCREATE: a complete directory, another build's
 * remains or foreign files, without force. */
enum qep_status qep_build_prepare(struct qep_build *build);

/* Builds the files that fall to `rank`; finished ones are kept. QEP_ERR_INTERRUPTED when stopped.
 */
enum qep_status qep_build_files(struct qep_build *build, int rank, int num_ranks);

/* Copies side files, writes the manifest, removes DIR/.convert. */
enum qep_status qep_build_finish(struct qep_build *build);

struct qep_build_sizes {
    uint64_t source_bytes;         /* all tensors as the source has them */
    uint64_t tensor_bytes;         /* as stored, uncompressed */
    uint64_t stored_bytes;         /* files; valid after finish */
    size_t num_files, num_resumed; /* of this rank: kept from an earlier run */
};
struct qep_build_sizes qep_build_sizes(const struct qep_build *build);

#endif

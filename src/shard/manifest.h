/* manifest.json: what a shard directory consists of. Written last, by rename; its final member is
 * the hash of all text before it, and it holds the hashes of everything else. */
#ifndef QEP_SHARD_MANIFEST_H
#define QEP_SHARD_MANIFEST_H

#include "base/status.h"
#include "checkpoint/inventory.h"
#include "shard/layout.h"
#include "shard/seekable.h"
#include "shard/shard.h"

#include <stdbool.h>
#include <stddef.h>

#define QEP_MANIFEST_FORMAT "qwen-ep shard directory" /* the value of "format": it is ours */

enum {
    QEP_MANIFEST_VERSION = 1,
    QEP_MANIFEST_MAX_BYTES = 64 << 20,
    QEP_MAX_SIDE_FILES = 8,
    QEP_MAX_SIDE_BYTES = 64 << 20
};

/* A file copied as it came. */
struct qep_side_file {
    char name[QEP_FILE_NAME_MAX];
    uint64_t bytes;
    char hash[QEP_HASH_TEXT];
};

struct qep_manifest {
    struct qep_model_config config;
    struct qep_shard_info info;
    struct qep_inventory inventory;
    struct qep_layout layout;
    enum qep_weight_type *types;     /* [inventory.num_specs] */
    struct qep_file_identity *files; /* [layout.num_files] */
    struct qep_side_file side_files[QEP_MAX_SIDE_FILES];
    int num_side_files;
};

/* The names that are copied when they exist; the list ends with NULL. config.json comes first. */
extern const char *const qep_side_file_names[];

const char *qep_weight_type_name(enum qep_weight_type type); /* f32, bf16, int8, int4 */

/* Parses and validates text[0..len); everything in *out is owned by it (qep_manifest_free). */
enum qep_status qep_manifest_parse(const char *text, size_t len, const char *where,
                                   struct qep_manifest *out);
void qep_manifest_free(struct qep_manifest *manifest); /* zeroes it */

/* The line that describes one file; *text is owned by the caller. */
enum qep_status qep_manifest_file_entry(const struct qep_inventory *inventory,
                                        const enum qep_weight_type *types,
                                        const struct qep_layout_file *file,
                                        const struct qep_file_identity *identity, char **text);

/* Reads identity and name back from such a line. */
enum qep_status qep_manifest_parse_entry(const char *text, size_t len, const char *where,
                                         struct qep_file_identity *out);

/* What the manifest says besides its files. */
struct qep_manifest_head {
    const struct qep_model_config *config;
    const char *recipe;
    int32_t group_size, num_shards;
    const struct qep_side_file *side_files;
    int num_side_files;
};

/* The whole text from the head and the files' lines in layout order; owned by the caller. */
enum qep_status qep_manifest_print(const struct qep_manifest_head *head, char *const *entries,
                                   size_t num_entries, char **text, size_t *len);

/* Hex XXH3-128. */
void qep_hash_text(const void *data, size_t len, char out[QEP_HASH_TEXT]);

#endif

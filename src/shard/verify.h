/* The parts of an open shard directory for those that look behind tensor names: loading, inspection
 * and the check of everything. */
#ifndef QEP_SHARD_VERIFY_H
#define QEP_SHARD_VERIFY_H

#include "shard/manifest.h"
#include "shard/random.h"
#include "shard/shard.h"

#include <stdint.h>

/* Where a tensor lies; all pointers are borrowed from the directory. */
struct qep_shard_location {
    const struct qep_seekable *file;         /* NULL when the tensor is made: */
    const struct qep_random_tensors *random; /* NULL when it is read */
    const struct qep_tensor_spec *spec;
    size_t spec_idx;
    enum qep_weight_type type;
    uint64_t part_offsets[2]; /* content offsets of its parts (shard/layout.h) */
};
enum qep_status qep_shard_locate(const struct qep_shard_dir *dir, const char *name,
                                 struct qep_shard_location *out);

const struct qep_manifest *qep_shard_dir_manifest(const struct qep_shard_dir *dir);
const struct qep_seekable *qep_shard_dir_file(const struct qep_shard_dir *dir, size_t file_idx);

/* Reads one file whole: its hash and every frame. */
enum qep_status qep_shard_verify_file(const struct qep_shard_dir *dir, size_t file_idx);

/* Compares the side files with their hashes (see shard/side_files.h). */
enum qep_status qep_shard_verify_side_files(const struct qep_shard_dir *dir);

#endif

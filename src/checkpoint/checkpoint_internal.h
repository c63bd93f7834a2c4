/* Shared by checkpoint.c (files), mapping.c (names) and rows.c (reading). */
#ifndef QEP_CHECKPOINT_CHECKPOINT_INTERNAL_H
#define QEP_CHECKPOINT_CHECKPOINT_INTERNAL_H

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"

#include <stdbool.h>

/* One tensor of the checkpoint under its name without prefix. */
struct qep_entry {
    const char *name; /* borrowed from the header */
    const struct qep_st_tensor *tensor;
    const struct qep_st_file *file;
    bool used;
};

/* Canonical rows [0, rows) of a section lie in `entry` at (r / run) * stride + base + r % run. */
struct qep_section {
    struct qep_entry *entry;
    int64_t rows, run, stride, base;
};

/* A canonical tensor is its sections one after the other: one, except gate | up of unfused experts
 * and q | k | v of the packed form. */
struct qep_view {
    struct qep_section sections[3];
    int num_sections;
};

struct qep_checkpoint {
    char *dir;
    struct qep_model_config config;
    struct qep_inventory inventory;
    struct qep_st_file *files;
    size_t num_files;
    struct qep_entry *entries; /* sorted by name */
    size_t num_entries;
    struct qep_view *views; /* [inventory.num_specs] */
    uint64_t identity;
    uint64_t bytes;
};

/* Builds entries and views; refuses what it cannot explain. */
enum qep_status qep_checkpoint_map(struct qep_checkpoint *ckpt);

#endif

/* The writer's plan: which tensors with which rows in which file. */
#ifndef QEP_CHECKPOINT_HF_PLAN_H
#define QEP_CHECKPOINT_HF_PLAN_H

#include "checkpoint/hf_writer.h"

#include <stdbool.h>

/* One tensor on disk: the rows of specs first, first + stride, ... one after the other. */
struct qep_hf_tensor {
    char name[128];
    size_t first, stride, count;
    int ndim;
    int64_t shape[3];
    enum qep_row_type type;
    uint64_t offset, bytes; /* in the data of its file */
};

struct qep_hf_file {
    char name[80];
    size_t first, count; /* of the tensors */
    uint64_t bytes;
};

struct qep_hf_writer {
    struct qep_hf_options options;
    struct qep_hf_tensor *tensors;
    size_t num_tensors, cap_tensors;
    struct qep_hf_file *files;
    size_t num_files, cap_files;
    uint64_t total_bytes, done_bytes;
};

enum qep_status qep_hf_plan(struct qep_hf_writer *writer);

/* The header with its 8-byte length; *text is owned by the caller. */
enum qep_status qep_hf_header(const struct qep_hf_writer *writer, const struct qep_hf_file *file,
                              char **text, size_t *len);

#endif

/* safetensors headers and positioned reads; files are never mapped. A header is trusted only after
 * every field was checked against the official rules: names unique, dtypes known, shapes without
 * overflow, data_offsets in order, without holes or overlaps, agreeing with dtype x shape and
 * ending exactly at the end of the file. Errors name file, tensor, expected and found. */
#ifndef QEP_CHECKPOINT_SAFETENSORS_H
#define QEP_CHECKPOINT_SAFETENSORS_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

enum { QEP_SAFETENSORS_MAX_HEADER = 100000000, QEP_SAFETENSORS_MAX_NDIM = 8 };

enum qep_dtype {
    QEP_DTYPE_BF16,
    QEP_DTYPE_F16,
    QEP_DTYPE_F32,
    QEP_DTYPE_I8,
    QEP_DTYPE_U8,
    QEP_DTYPE_OTHER /* known to the format, of no use here */
};

struct qep_st_tensor {
    char *name;
    enum qep_dtype dtype;
    char dtype_name[12];
    int ndim;
    int64_t shape[QEP_SAFETENSORS_MAX_NDIM];
    uint64_t offset; /* from the start of the data section */
    uint64_t bytes;
};

/* The tensors of one file in the order of their data. */
struct qep_st_header {
    struct qep_st_tensor *tensors; /* owned, with their names */
    size_t num_tensors;
};

struct qep_st_file {
    char *path; /* owned */
    int fd;     /* owned */
    uint64_t file_bytes;
    struct stat opened;   /* as it was before anything was read */
    uint64_t data_start;  /* 8 + header length */
    uint64_t header_hash; /* identifies the header's bytes */
    struct qep_st_header header;
};

/* Parses the JSON of a header; data_bytes is the size of the data section. */
enum qep_status qep_st_header_parse(const char *json, size_t len, uint64_t data_bytes,
                                    const char *where, struct qep_st_header *out);
void qep_st_header_free(struct qep_st_header *header);

/* Opens a file and validates its header. */
enum qep_status qep_st_file_open(const char *path, struct qep_st_file *out);
void qep_st_file_close(struct qep_st_file *file); /* a zeroed one is fine */

/* QEP_ERR_DATA when size or modification time of the open file are others than at opening. */
enum qep_status qep_st_file_check(const struct qep_st_file *file);

/* Is something else at its path by now? No proof of harm: inodes change on some network file
 * systems. */
bool qep_st_file_moved(const struct qep_st_file *file);

/* "[2, 3]" for messages. */
void qep_st_shape_text(int ndim, const int64_t *shape, char *out, size_t out_bytes);

#endif

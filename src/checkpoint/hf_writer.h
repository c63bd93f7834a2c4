/* Writes a Hugging Face checkpoint directory from a source of canonical rows: config.json,
 * safetensors shards of about 5 GB with fused experts, and their index, which comes last. */
#ifndef QEP_CHECKPOINT_HF_WRITER_H
#define QEP_CHECKPOINT_HF_WRITER_H

#include "base/status.h"
#include "checkpoint/source.h"
#include "model/config.h"

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

/* All pointers are borrowed and outlive the writer. */
struct qep_hf_options {
    const char *dir;
    const char *config_text; /* becomes config.json as it is */
    size_t config_len;
    const struct qep_model_config *config;
    const struct qep_inventory *inventory;
    struct qep_row_source source;
    uint64_t shard_bytes; /* 0: 5 GB */
    int num_threads;
    const volatile sig_atomic_t *stop;                             /* may be NULL */
    void (*on_progress)(void *arg, uint64_t done, uint64_t total); /* may be NULL */
    void *progress_arg;
};

struct qep_hf_writer; /* opaque */

/* Plans the files; touches nothing. */
enum qep_status qep_hf_writer_create(const struct qep_hf_options *options,
                                     struct qep_hf_writer **out);
void qep_hf_writer_destroy(struct qep_hf_writer *writer); /* NULL is fine */

size_t qep_hf_num_files(const struct qep_hf_writer *writer);
uint64_t qep_hf_total_bytes(const struct qep_hf_writer *writer);

/* Creates the directory. QEP_ERR_CANTCREATE when it is there and not empty. */
enum qep_status qep_hf_prepare(struct qep_hf_writer *writer);

/* Writes one shard with all threads, under its name only when it is whole. */
enum qep_status qep_hf_write_file(struct qep_hf_writer *writer, size_t file_idx);

/* config.json and the index, when all files are there. */
enum qep_status qep_hf_finish(struct qep_hf_writer *writer);

#endif

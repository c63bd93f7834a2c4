/* Runs a shard directory in this process, on any number of ranks (threads transport), and keeps
 * every row of logits. */
#ifndef QEP_TESTS_RUN_MODEL_H
#define QEP_TESTS_RUN_MODEL_H

#include "engine/sampler.h"

#include <stddef.h>
#include <stdint.h>

struct model_run {
    const char *dir, *backend, *activations, *attention, *kv_type;
    int ranks, threads, prefill_chunk;
    const int32_t *prompt;
    int32_t num_prompt, max_new;
    /* GPUs: nccl or staged between them; graphs on or off */
    const char *device_transport, *cuda_graphs;
    const struct qep_sampling *sampling; /* NULL: greedy */
    bool no_rows;                        /* no logits are kept: a GPU decodes on its own */
};

struct model_output {
    float *logits; /* [num_rows, vocab_size] */
    size_t num_rows, vocab_size;
    int32_t *token_ids; /* generated */
    int32_t num_tokens;
};

/* Fields left 0 / NULL: reference, auto, layers, auto, 1 rank, 1 thread, chunk 512, auto, on. Fails
 * the running test on an error. */
void model_run(const struct model_run *run, struct model_output *out);
/* The same on one rank, but gives the error back: where ranks are threads it ends the process. */
enum qep_status model_try(const struct model_run *run, struct model_output *out);
void model_output_free(struct model_output *out);

/* Converts a Hugging Face directory into a fresh one below `parent`; returns its path (free).
 * shards 0: default. */
char *model_convert(const char *hf_dir, const char *parent, const char *recipe, int shards);

/* The same with a recipe file and a name for the new directory. */
char *model_convert_as(const char *hf_dir, const char *parent, const char *recipe,
                       const char *name);

/* A fresh temporary directory (free), and its removal with everything in it. */
char *temp_dir(void);
void remove_tree(const char *path);

#endif

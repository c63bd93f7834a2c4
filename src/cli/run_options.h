/* What `run` was asked for. */
#ifndef QEP_CLI_RUN_OPTIONS_H
#define QEP_CLI_RUN_OPTIONS_H

#include "cli/common.h"
#include "engine/sampler.h"

struct qep_run_options {
    struct qep_common common;
    const char *prompt, *prompt_file, *prompt_tokens, *chat;
    bool interactive;
    const char *system, *template_as;
    bool raw, think, no_think, no_special;
    int64_t max_new_tokens;
    bool ignore_eos, json;
    struct qep_sampling sampling; /* only the fields given count */
    bool temperature_given, top_k_given, top_p_given, min_p_given, presence_given, repetition_given,
        seed_given;
    int64_t seed;
    const char *logits;
};

/* Collective: parses and checks combinations. */
enum qep_status qep_run_options_parse(struct qep_comm *comm, int argc, char **argv,
                                      struct qep_run_options *out);

#endif

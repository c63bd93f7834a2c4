/* From options to prompt ids, on rank 0. */
#ifndef QEP_CLI_RUN_PROMPT_H
#define QEP_CLI_RUN_PROMPT_H

#include "cli/run_options.h"
#include "text/text.h"

/* Builds the ids of --prompt, --prompt-file, --prompt-tokens or --chat (appends to ids).
 * QEP_ERR_USAGE, QEP_ERR_NOINPUT, QEP_ERR_DATA as the input deserves. Ill-formed UTF-8 is read as
 * U+FFFD. */
enum qep_status qep_run_prompt(const struct qep_run_options *options, const struct qep_text *text,
                               struct qep_ids *ids);

/* A conversation under construction (-i): a JSON list of messages. Start from {0}. */
struct qep_talk {
    struct qep_bytes json; /* without the closing bracket */
};

enum qep_status qep_talk_add(struct qep_talk *talk, const char *role, const char *content,
                             size_t len);
void qep_talk_free(struct qep_talk *talk);

/* Renders and encodes the conversation so far with a generation prompt. */
enum qep_status qep_talk_encode(const struct qep_talk *talk, const struct qep_run_options *options,
                                const struct qep_text *text, struct qep_ids *ids);

#endif

/* What a model directory says about text: its tokenizer and its chat template. */
#ifndef QEP_TEXT_TEXT_H
#define QEP_TEXT_TEXT_H

#include "base/status.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

#include <stdbool.h>
#include <stdint.h>

struct qep_text {
    struct qep_tokenizer *tok; /* NULL: the directory has no tokenizer.json */
    enum qep_chat_form form;   /* QEP_CHAT_NONE: no template, or an unknown one */
    char *template_where;      /* the file the template was found in; NULL: none */
};

/* Opens dir/tokenizer.json and recognises dir/chat_template.jinja, or else the chat_template inside
 * dir/tokenizer_config.json. Missing files are fine, and so is an unknown template (rendering is
 * then refused). template_as (NULL: none) names a form to use whatever the directory holds.
 * vocab_size as in qep_tokenizer_load. Close *text in any case. */
enum qep_status qep_text_open(const char *dir, const char *template_as, int64_t vocab_size,
                              struct qep_text *text);

/* The same from single files that the user names (see qep_input_read); either path may be NULL, a
 * named file must exist. */
enum qep_status qep_text_open_files(const char *tokenizer_path, const char *template_path,
                                    const char *template_as, int64_t vocab_size,
                                    struct qep_text *text);

void qep_text_close(struct qep_text *text); /* and back to {0} */

/* QEP_ERR_DATA unless there is a tokenizer; a known template. The message says what to do. */
enum qep_status qep_text_need_tokenizer(const struct qep_text *text);
enum qep_status qep_text_need_template(const struct qep_text *text);

/* Renders and encodes a conversation. `no_special`: special tokens that the user wrote are ordinary
 * text. `chat` is scratch from {0} that holds the rendered text afterwards. Appends to ids. */
enum qep_status qep_text_encode_chat(const struct qep_text *text,
                                     const struct qep_chat_request *request, bool no_special,
                                     struct qep_chat_text *chat, struct qep_ids *ids);

/* Encodes plain text, with or without special tokens. Appends to ids. */
enum qep_status qep_text_encode(const struct qep_text *text, const char *data, size_t len,
                                bool no_special, struct qep_ids *ids);

#endif

/* The official chat templates of the Qwen3.5 family, in C, byte for byte what Jinja makes of them
 * (transformers' settings). A directory's template is recognised by its bytes; an unknown one is
 * refused rather than guessed.
 *
 *   qwen3.5        35B-A3B and most others
 *   qwen3.5-0.8b   thinking is off unless enable_thinking is true
 *   qwen3.6        preserve_thinking; values of tool calls as JSON */
#ifndef QEP_TEXT_CHAT_TEMPLATE_H
#define QEP_TEXT_CHAT_TEMPLATE_H

#include "base/status.h"
#include "text/chat_text.h"
#include "text/request_json.h"

#include <stdbool.h>
#include <stddef.h>

enum qep_chat_form {
    QEP_CHAT_NONE, /* no or an unknown template: rendering is refused */
    QEP_CHAT_QWEN35,
    QEP_CHAT_QWEN35_08B,
    QEP_CHAT_QWEN36
};

const char *qep_chat_form_name(enum qep_chat_form form);

/* "qwen3.5", "qwen3.5-0.8b" or "qwen3.6"; QEP_ERR_USAGE otherwise. */
enum qep_status qep_chat_form_by_name(const char *name, enum qep_chat_form *form);

/* The form whose official template has exactly these bytes, or QEP_CHAT_NONE. */
enum qep_chat_form qep_chat_form_of(const char *template_text, size_t len);

/* What a template may ask of a variable: is it given, is it literally true, literally false. */
enum qep_chat_switch { QEP_CHAT_ABSENT, QEP_CHAT_FALSE, QEP_CHAT_TRUE, QEP_CHAT_OTHER };

struct qep_chat_request {
    const struct qep_value *messages; /* borrowed; NULL = absent */
    const struct qep_value *tools;    /* borrowed; NULL = absent */
    enum qep_chat_switch enable_thinking, preserve_thinking;
    bool add_generation_prompt, add_vision_id;
};

/* Takes the fields out of a request: an object with "messages" (and "tools", "enable_thinking",
 * "add_generation_prompt", "preserve_thinking", "add_vision_id"; others are ignored), or just a
 * list of messages. Only a literal false is false; null is absent. add_generation_prompt is as
 * given when absent. Borrows from root. */
enum qep_status qep_chat_request_read(const struct qep_value *root, bool add_generation_prompt,
                                      struct qep_chat_request *request);

/* Renders into *out (cleared first). QEP_ERR_DATA with the template's own message where it raises
 * one, and for QEP_CHAT_NONE. */
enum qep_status qep_chat_render(enum qep_chat_form form, const struct qep_chat_request *request,
                                struct qep_chat_text *out);

#endif

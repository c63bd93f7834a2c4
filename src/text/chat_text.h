/* Text that knows which of its bytes came from the user. */
#ifndef QEP_TEXT_CHAT_TEXT_H
#define QEP_TEXT_CHAT_TEXT_H

#include "text/bytes.h"

#include <stddef.h>

/* Start from {0}. `plain` are the byte ranges that came out of messages and tools, ascending and
 * disjoint; the rest is the template's own. */
struct qep_chat_text {
    struct qep_bytes text;
    struct qep_text_span *plain;
    size_t num_plain, plain_cap;
};

void qep_chat_text_free(struct qep_chat_text *chat);  /* and back to {0} */
void qep_chat_text_clear(struct qep_chat_text *chat); /* empty, memory kept */

/* Appends text of the template. */
enum qep_status qep_chat_append(struct qep_chat_text *chat, const char *text);

/* Appends text of the user. */
enum qep_status qep_chat_append_plain(struct qep_chat_text *chat, const char *text, size_t len);

/* Declares everything from `begin` to the end to be the user's. */
enum qep_status qep_chat_mark_plain(struct qep_chat_text *chat, size_t begin);

/* Appends a part of another text with its marks. */
enum qep_status qep_chat_append_part(struct qep_chat_text *chat, const struct qep_chat_text *from,
                                     struct qep_text_span part);

#endif

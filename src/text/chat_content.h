/* The render_content macro of the templates: a message's content -> text. */
#ifndef QEP_TEXT_CHAT_CONTENT_H
#define QEP_TEXT_CHAT_CONTENT_H

#include "text/chat_text.h"
#include "text/request_json.h"

#include <stdbool.h>

struct qep_chat_vision {
    bool add_vision_id;
    size_t num_images, num_videos;
};

enum qep_chat_content_use {
    QEP_CHAT_CONTENT_SYSTEM, /* no images, no videos */
    QEP_CHAT_CONTENT_LOOK,   /* do not count them */
    QEP_CHAT_CONTENT_COUNT
};

/* Renders `content` (NULL = undefined) into *out, cleared first. */
enum qep_status qep_chat_content(const struct qep_value *content, enum qep_chat_content_use use,
                                 struct qep_chat_vision *vision, struct qep_chat_text *out);

#endif

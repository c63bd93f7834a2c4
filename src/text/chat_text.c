#include "text/chat_text.h"

#include "base/mem.h"

#include <stdlib.h>

void qep_chat_text_free(struct qep_chat_text *chat) {
    qep_bytes_free(&chat->text);
    free(chat->plain);
    *chat = (struct qep_chat_text){0};
}

void qep_chat_text_clear(struct qep_chat_text *chat) {
    chat->text.len = 0;
    chat->num_plain = 0;
}

enum qep_status qep_chat_append(struct qep_chat_text *chat, const char *text) {
    return qep_bytes_append_str(&chat->text, text);
}

enum qep_status qep_chat_mark_plain(struct qep_chat_text *chat, size_t begin) {
    size_t end = chat->text.len;
    if (begin == end)
        return QEP_OK;
    if (chat->num_plain > 0 && chat->plain[chat->num_plain - 1].end == begin) {
        chat->plain[chat->num_plain - 1].end = end;
        return QEP_OK;
    }
    void *grown = chat->plain;
    QEP_TRY(
        qep_grow(&grown, &chat->plain_cap, chat->num_plain + 1, sizeof *chat->plain, "chat text"));
    chat->plain = grown;
    chat->plain[chat->num_plain++] = (struct qep_text_span){begin, end};
    return QEP_OK;
}

enum qep_status qep_chat_append_plain(struct qep_chat_text *chat, const char *text, size_t len) {
    size_t begin = chat->text.len;
    QEP_TRY(qep_bytes_append(&chat->text, text, len));
    return qep_chat_mark_plain(chat, begin);
}

enum qep_status qep_chat_append_part(struct qep_chat_text *chat, const struct qep_chat_text *from,
                                     struct qep_text_span part) {
    size_t at = part.begin;
    for (size_t i = 0; i < from->num_plain && at < part.end; i++) {
        struct qep_text_span plain = from->plain[i];
        if (plain.end <= at)
            continue;
        if (plain.begin > at) {
            size_t stop = plain.begin < part.end ? plain.begin : part.end;
            QEP_TRY(qep_bytes_append(&chat->text, from->text.data + at, stop - at));
            at = stop;
        }
        if (at < part.end) {
            size_t stop = plain.end < part.end ? plain.end : part.end;
            QEP_TRY(qep_chat_append_plain(chat, from->text.data + at, stop - at));
            at = stop;
        }
    }
    return at < part.end ? qep_bytes_append(&chat->text, from->text.data + at, part.end - at)
                         : QEP_OK;
}

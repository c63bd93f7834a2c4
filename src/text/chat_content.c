#include "text/chat_content.h"

#include "text/python_text.h"

#include <stdio.h>
#include <string.h>

/* Python's `text in item`; false for what has no `in` is told apart by can_contain. */
static bool contains(const struct qep_value *item, const char *text) {
    if (item->kind == QEP_VALUE_OBJECT)
        return qep_value_get(item, text) != NULL;
    if (item->kind == QEP_VALUE_STRING)
        return memmem(item->text, item->len, text, strlen(text)) != NULL;
    for (const struct qep_value *v = item->child; v != NULL; v = v->next)
        if (qep_value_is_string(v, text))
            return true;
    return false;
}

static bool can_contain(const struct qep_value *item) {
    return item->kind == QEP_VALUE_OBJECT || item->kind == QEP_VALUE_STRING ||
           item->kind == QEP_VALUE_LIST;
}

static bool has_type(const struct qep_value *item, const char *type) {
    return qep_value_is_string(qep_value_get(item, "type"), type);
}

static enum qep_status append_vision(struct qep_chat_text *out, const char *label, size_t *count,
                                     const char *marks, enum qep_chat_content_use use,
                                     bool add_vision_id) {
    char text[48];
    if (use == QEP_CHAT_CONTENT_COUNT)
        ++*count;
    if (add_vision_id) {
        snprintf(text, sizeof text, "%s %zu: ", label, *count);
        QEP_TRY(qep_chat_append(out, text));
    }
    return qep_chat_append(out, marks);
}

static enum qep_status append_item(const struct qep_value *item, enum qep_chat_content_use use,
                                   struct qep_chat_vision *vision, struct qep_chat_text *out) {
    if (!can_contain(item))
        return qep_fail(QEP_ERR_DATA, "Unexpected item type in content.");
    if (contains(item, "image") || contains(item, "image_url") || has_type(item, "image")) {
        if (use == QEP_CHAT_CONTENT_SYSTEM)
            return qep_fail(QEP_ERR_DATA, "System message cannot contain images.");
        return append_vision(out, "Picture", &vision->num_images,
                             "<|vision_start|><|image_pad|><|vision_end|>", use,
                             vision->add_vision_id);
    }
    if (contains(item, "video") || has_type(item, "video")) {
        if (use == QEP_CHAT_CONTENT_SYSTEM)
            return qep_fail(QEP_ERR_DATA, "System message cannot contain videos.");
        return append_vision(out, "Video", &vision->num_videos,
                             "<|vision_start|><|video_pad|><|vision_end|>", use,
                             vision->add_vision_id);
    }
    if (!contains(item, "text"))
        return qep_fail(QEP_ERR_DATA, "Unexpected item type in content.");
    const struct qep_value *text = qep_value_get(item, "text");
    if (text == NULL)
        return QEP_OK; /* a string or list has no .text: undefined prints nothing */
    size_t begin = out->text.len;
    QEP_TRY(qep_python_str(&out->text, text));
    return qep_chat_mark_plain(out, begin);
}

enum qep_status qep_chat_content(const struct qep_value *content, enum qep_chat_content_use use,
                                 struct qep_chat_vision *vision, struct qep_chat_text *out) {
    qep_chat_text_clear(out);
    if (content == NULL || content->kind == QEP_VALUE_NULL)
        return QEP_OK;
    if (content->kind == QEP_VALUE_STRING)
        return qep_chat_append_plain(out, content->text, content->len);
    if (content->kind != QEP_VALUE_LIST)
        return qep_fail(QEP_ERR_DATA, "Unexpected content type.");
    for (const struct qep_value *item = content->child; item != NULL; item = item->next)
        QEP_TRY(append_item(item, use, vision, out));
    return QEP_OK;
}

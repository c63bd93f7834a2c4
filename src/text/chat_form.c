/* Which official template is it? Recognised by length and hash of its bytes; any other template
 * may want any other text, so it is never guessed. */
#include "text/chat_template.h"

#include <string.h>

#define XXH_INLINE_ALL /* header only: this room links no hash library */
#include <xxhash.h>

static const struct {
    enum qep_chat_form form;
    const char *name;
    size_t len;         /* bytes of the official chat_template.jinja */
    uint64_t high, low; /* its XXH3-128 */
} forms[] = {
    {QEP_CHAT_QWEN35, "qwen3.5", 7756, 0x427b80bb3dda26b1u, 0x0ed0a1d8b9d7e0beu},
    {QEP_CHAT_QWEN35_08B, "qwen3.5-0.8b", 7755, 0xb20ce3c106c0a721u, 0xea7113e61d9a8bcfu},
    {QEP_CHAT_QWEN36, "qwen3.6", 7764, 0x572380022568fa7bu, 0x579b2c2e5ecdae85u},
};

enum { NUM_FORMS = sizeof forms / sizeof forms[0] };

const char *qep_chat_form_name(enum qep_chat_form form) {
    for (size_t i = 0; i < NUM_FORMS; i++)
        if (forms[i].form == form)
            return forms[i].name;
    return "none";
}

enum qep_status qep_chat_form_by_name(const char *name, enum qep_chat_form *form) {
    for (size_t i = 0; i < NUM_FORMS; i++) {
        if (strcmp(forms[i].name, name) == 0) {
            *form = forms[i].form;
            return QEP_OK;
        }
    }
    return qep_fail(QEP_ERR_USAGE,
                    "chat template: expected one of qwen3.5|qwen3.5-0.8b|qwen3.6, found '%s'",
                    name);
}

enum qep_chat_form qep_chat_form_of(const char *template_text, size_t len) {
    for (size_t i = 0; i < NUM_FORMS; i++) {
        if (forms[i].len != len)
            continue;
        XXH128_hash_t hash = XXH3_128bits(template_text, len);
        if (hash.high64 == forms[i].high && hash.low64 == forms[i].low)
            return forms[i].form;
    }
    return QEP_CHAT_NONE;
}

static enum qep_chat_switch switch_of(const struct qep_value *root, const char *key) {
    const struct qep_value *value = qep_value_get_given(root, key);
    if (value == NULL)
        return QEP_CHAT_ABSENT;
    return value->kind == QEP_VALUE_TRUE    ? QEP_CHAT_TRUE
           : value->kind == QEP_VALUE_FALSE ? QEP_CHAT_FALSE
                                            : QEP_CHAT_OTHER;
}

static bool switch_on(enum qep_chat_switch value, bool when_absent) {
    return value == QEP_CHAT_ABSENT ? when_absent : value != QEP_CHAT_FALSE;
}

enum qep_status qep_chat_request_read(const struct qep_value *root, bool add_generation_prompt,
                                      struct qep_chat_request *request) {
    *request = (struct qep_chat_request){.add_generation_prompt = add_generation_prompt};
    if (root->kind == QEP_VALUE_LIST) {
        request->messages = root;
        return QEP_OK;
    }
    if (root->kind != QEP_VALUE_OBJECT)
        return qep_fail(QEP_ERR_DATA, "request: expected an object or a list of messages");
    request->messages = qep_value_get_given(root, "messages");
    if (request->messages != NULL && request->messages->kind != QEP_VALUE_LIST)
        return qep_fail(QEP_ERR_DATA, "request: \"messages\": expected a list");
    request->tools = qep_value_get_given(root, "tools");
    request->enable_thinking = switch_of(root, "enable_thinking");
    request->preserve_thinking = switch_of(root, "preserve_thinking");
    request->add_generation_prompt =
        switch_on(switch_of(root, "add_generation_prompt"), add_generation_prompt);
    request->add_vision_id = switch_on(switch_of(root, "add_vision_id"), false);
    return QEP_OK;
}

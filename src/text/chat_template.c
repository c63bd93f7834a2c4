/* Follows chat_template.jinja line by line, so that the order of its errors is kept as well. */
#include "text/chat_template.h"

#include "text/chat_content.h"
#include "text/python_text.h"

#include <string.h>

static const char tools_head[] =
    "<|im_start|>system\n# Tools\n\nYou have access to the following functions:\n\n<tools>";

static const char tools_tail[] =
    "\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO "
    "suffix:\n\n<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\n"
    "value_1\n</parameter>\n<parameter=example_parameter_2>\nThis is the value for the second "
    "parameter\nthat can span\nmultiple lines\n</parameter>\n</function>\n</tool_call>\n\n"
    "<IMPORTANT>\nReminder:\n- Function calls MUST follow the specified format: an inner "
    "<function=...></function> block must be nested within <tool_call></tool_call> XML tags\n- "
    "Required parameters MUST be specified\n- You may provide optional reasoning for your function "
    "call in natural language BEFORE the function call, but NOT after\n- If there is no function "
    "call available, answer the question like normal with your current knowledge and do not tell "
    "the user about function calls\n</IMPORTANT>";

struct render {
    enum qep_chat_form form;
    const struct qep_chat_request *request;
    struct qep_chat_text *out;
    struct qep_chat_text content; /* of the message at hand */
    struct qep_chat_vision vision;
    size_t last_query;
};

static bool has_role(const struct qep_value *message, const char *role) {
    return qep_value_is_string(qep_value_get(message, "role"), role);
}

/* render_content(...)|trim: the part of r->content without outer white space. */
static enum qep_status trimmed_content(struct render *r, const struct qep_value *message,
                                       enum qep_chat_content_use use, struct qep_text_span *part) {
    QEP_TRY(qep_chat_content(qep_value_get(message, "content"), use, &r->vision, &r->content));
    *part = (struct qep_text_span){0, r->content.text.len};
    qep_python_strip(r->content.text.data, &part->begin, &part->end);
    return QEP_OK;
}

static bool starts_with(const struct qep_chat_text *c, struct qep_text_span part,
                        const char *text) {
    size_t len = strlen(text);
    return part.end - part.begin >= len && memcmp(c->text.data + part.begin, text, len) == 0;
}

static bool ends_with(const struct qep_chat_text *c, struct qep_text_span part, const char *text) {
    size_t len = strlen(text);
    return part.end - part.begin >= len && memcmp(c->text.data + part.end - len, text, len) == 0;
}

static enum qep_status append_tool(struct render *r, const struct qep_value *tool) {
    QEP_TRY(qep_chat_append(r->out, "\n"));
    size_t begin = r->out->text.len;
    QEP_TRY(qep_python_dumps(&r->out->text, tool));
    return qep_chat_mark_plain(r->out, begin);
}

/* Jinja iterates over a string as over a list: one "tool" a character. */
static enum qep_status append_tool_characters(struct render *r, const struct qep_value *tools) {
    for (size_t at = 0; at < tools->len;) {
        uint32_t cp;
        struct qep_value one = {.kind = QEP_VALUE_STRING, .text = tools->text + at};
        one.len = qep_utf8_next(tools->text + at, tools->len - at, &cp);
        QEP_TRY(append_tool(r, &one));
        at += one.len;
    }
    return QEP_OK;
}

static enum qep_status append_head(struct render *r, const struct qep_value *first) {
    const struct qep_value *tools = r->request->tools;
    bool has_tools = tools != NULL && ((tools->kind == QEP_VALUE_LIST && tools->count > 0) ||
                                       (tools->kind == QEP_VALUE_STRING && tools->len > 0));
    bool has_system = has_role(first, "system");
    struct qep_text_span system = {0, 0};
    if (has_tools) {
        QEP_TRY(qep_chat_append(r->out, tools_head));
        if (tools->kind == QEP_VALUE_STRING)
            QEP_TRY(append_tool_characters(r, tools));
        for (const struct qep_value *tool = tools->child; tool != NULL; tool = tool->next)
            QEP_TRY(append_tool(r, tool));
        QEP_TRY(qep_chat_append(r->out, tools_tail));
    } else if (has_system) {
        QEP_TRY(qep_chat_append(r->out, "<|im_start|>system\n"));
    }
    if (has_system)
        QEP_TRY(trimmed_content(r, first, QEP_CHAT_CONTENT_SYSTEM, &system));
    if (has_tools && system.begin < system.end)
        QEP_TRY(qep_chat_append(r->out, "\n\n"));
    QEP_TRY(qep_chat_append_part(r->out, &r->content, system));
    return has_tools || has_system ? qep_chat_append(r->out, "<|im_end|>\n") : QEP_OK;
}

/* The last user message that is not a wrapped tool response. Walking forward visits messages that
 * Jinja, walking back, never looks at, so errors in their content wait until the end. */
static enum qep_status find_last_query(struct render *r, const struct qep_value *messages) {
    bool found = false;
    enum qep_status failed = QEP_OK;
    size_t idx = 0;
    for (const struct qep_value *m = messages->child; m != NULL; m = m->next, idx++) {
        struct qep_text_span part;
        if (!has_role(m, "user"))
            continue;
        enum qep_status st = trimmed_content(r, m, QEP_CHAT_CONTENT_LOOK, &part);
        if (st != QEP_OK) {
            failed = st;
            continue;
        }
        if (starts_with(&r->content, part, "<tool_response>") &&
            ends_with(&r->content, part, "</tool_response>"))
            continue;
        r->last_query = idx;
        found = true;
        failed = QEP_OK;
    }
    if (failed != QEP_OK)
        return failed; /* the message is set */
    return found ? QEP_OK : qep_fail(QEP_ERR_DATA, "No user query found in messages.");
}

/* The first or last place of `needle` in a part, or part.end. */
static size_t find_in(const struct qep_chat_text *c, struct qep_text_span part, const char *needle,
                      bool last) {
    size_t len = strlen(needle), hit = part.end;
    for (size_t at = part.begin; at < part.end;) {
        const char *p = memmem(c->text.data + at, part.end - at, needle, len);
        if (p == NULL)
            break;
        hit = (size_t)(p - c->text.data);
        if (!last)
            break;
        at = hit + len; /* as str.split: matches do not overlap */
    }
    return hit;
}

static void skip_newlines(const struct qep_chat_text *c, struct qep_text_span *part) {
    while (part->begin < part->end && c->text.data[part->begin] == '\n')
        part->begin++;
}

/* Takes the reasoning out of "<think>...</think>answer". */
static void split_thinking(const struct qep_chat_text *c, struct qep_text_span *content,
                           struct qep_text_span *reasoning) {
    size_t first = find_in(c, *content, "</think>", false);
    if (first == content->end)
        return;
    *reasoning = (struct qep_text_span){content->begin, first};
    while (reasoning->end > reasoning->begin && c->text.data[reasoning->end - 1] == '\n')
        reasoning->end--;
    size_t open = find_in(c, *reasoning, "<think>", true);
    if (open < reasoning->end)
        reasoning->begin = open + strlen("<think>");
    skip_newlines(c, reasoning);
    content->begin = find_in(c, *content, "</think>", true) + strlen("</think>");
    skip_newlines(c, content);
}

static enum qep_status append_reasoning(struct render *r, const struct qep_value *given,
                                        struct qep_text_span in_content) {
    const char *text = r->content.text.data;
    struct qep_text_span part = in_content;
    if (given != NULL) {
        text = given->text;
        part = (struct qep_text_span){0, given->len};
    }
    qep_python_strip(text, &part.begin, &part.end);
    QEP_TRY(qep_chat_append(r->out, "<think>\n"));
    if (given != NULL)
        QEP_TRY(qep_chat_append_plain(r->out, text + part.begin, part.end - part.begin));
    else
        QEP_TRY(qep_chat_append_part(r->out, &r->content, part));
    return qep_chat_append(r->out, "\n</think>\n\n");
}

static enum qep_status append_argument(struct render *r, const struct qep_value *arg) {
    QEP_TRY(qep_chat_append(r->out, "<parameter="));
    QEP_TRY(qep_chat_append_plain(r->out, arg->key, arg->key_len));
    QEP_TRY(qep_chat_append(r->out, ">\n"));
    size_t begin = r->out->text.len;
    bool json = arg->kind == QEP_VALUE_LIST || arg->kind == QEP_VALUE_OBJECT ||
                (r->form == QEP_CHAT_QWEN36 && arg->kind != QEP_VALUE_STRING);
    QEP_TRY(json ? qep_python_dumps(&r->out->text, arg) : qep_python_str(&r->out->text, arg));
    QEP_TRY(qep_chat_mark_plain(r->out, begin));
    return qep_chat_append(r->out, "\n</parameter>\n");
}

static enum qep_status append_tool_call(struct render *r, const struct qep_value *call,
                                        const char *before) {
    const struct qep_value *function = qep_value_get(call, "function");
    if (function != NULL)
        call = function;
    const struct qep_value *name = qep_value_get(call, "name");
    if (name == NULL || name->kind != QEP_VALUE_STRING)
        return qep_fail(QEP_ERR_DATA, "tool call: \"name\": expected a string");
    QEP_TRY(qep_chat_append(r->out, before));
    QEP_TRY(qep_chat_append(r->out, "<tool_call>\n<function="));
    QEP_TRY(qep_chat_append_plain(r->out, name->text, name->len));
    QEP_TRY(qep_chat_append(r->out, ">\n"));
    const struct qep_value *arguments = qep_value_get(call, "arguments");
    if (arguments != NULL && arguments->kind != QEP_VALUE_OBJECT)
        return qep_fail(QEP_ERR_DATA, "Can only get item pairs from a mapping.");
    for (const struct qep_value *arg = arguments != NULL ? arguments->child : NULL; arg != NULL;
         arg = arg->next)
        QEP_TRY(append_argument(r, arg));
    return qep_chat_append(r->out, "</function>\n</tool_call>");
}

static enum qep_status append_tool_calls(struct render *r, const struct qep_value *calls,
                                         struct qep_text_span content) {
    if (calls == NULL)
        return QEP_OK;
    if (calls->kind == QEP_VALUE_STRING && calls->len > 0)
        return qep_fail(QEP_ERR_DATA, "tool_calls: expected a list, found a string");
    if (calls->kind != QEP_VALUE_LIST)
        return QEP_OK;
    qep_python_strip(r->content.text.data, &content.begin, &content.end);
    const char *before = content.begin < content.end ? "\n\n" : "";
    for (const struct qep_value *call = calls->child; call != NULL; call = call->next) {
        QEP_TRY(append_tool_call(r, call, before));
        before = "\n";
    }
    return QEP_OK;
}

static enum qep_status append_assistant(struct render *r, const struct qep_value *message,
                                        struct qep_text_span content, size_t idx) {
    const struct qep_value *given = qep_value_get(message, "reasoning_content");
    struct qep_text_span reasoning = {0, 0};
    if (given != NULL && given->kind != QEP_VALUE_STRING)
        given = NULL;
    if (given == NULL)
        split_thinking(&r->content, &content, &reasoning);
    bool preserve = r->form == QEP_CHAT_QWEN36 && r->request->preserve_thinking == QEP_CHAT_TRUE;
    QEP_TRY(qep_chat_append(r->out, "<|im_start|>assistant\n"));
    if (preserve || idx > r->last_query)
        QEP_TRY(append_reasoning(r, given, reasoning));
    QEP_TRY(qep_chat_append_part(r->out, &r->content, content));
    QEP_TRY(append_tool_calls(r, qep_value_get(message, "tool_calls"), content));
    return qep_chat_append(r->out, "<|im_end|>\n");
}

static enum qep_status append_tool_response(struct render *r, const struct qep_value *previous,
                                            const struct qep_value *message,
                                            struct qep_text_span content) {
    if (previous != NULL && !has_role(previous, "tool"))
        QEP_TRY(qep_chat_append(r->out, "<|im_start|>user"));
    QEP_TRY(qep_chat_append(r->out, "\n<tool_response>\n"));
    QEP_TRY(qep_chat_append_part(r->out, &r->content, content));
    QEP_TRY(qep_chat_append(r->out, "\n</tool_response>"));
    if (message->next == NULL || !has_role(message->next, "tool"))
        return qep_chat_append(r->out, "<|im_end|>\n");
    return QEP_OK;
}

static enum qep_status append_message(struct render *r, const struct qep_value *previous,
                                      const struct qep_value *message, size_t idx) {
    struct qep_text_span content;
    QEP_TRY(trimmed_content(r, message, QEP_CHAT_CONTENT_COUNT, &content));
    if (has_role(message, "system"))
        return idx == 0 ? QEP_OK
                        : qep_fail(QEP_ERR_DATA, "System message must be at the beginning.");
    if (has_role(message, "user")) {
        QEP_TRY(qep_chat_append(r->out, "<|im_start|>user\n"));
        QEP_TRY(qep_chat_append_part(r->out, &r->content, content));
        return qep_chat_append(r->out, "<|im_end|>\n");
    }
    if (has_role(message, "assistant"))
        return append_assistant(r, message, content, idx);
    if (has_role(message, "tool"))
        return append_tool_response(r, previous, message, content);
    return qep_fail(QEP_ERR_DATA, "Unexpected message role.");
}

static enum qep_status append_generation_prompt(struct render *r) {
    enum qep_chat_switch think = r->request->enable_thinking;
    bool open = r->form == QEP_CHAT_QWEN35_08B ? think == QEP_CHAT_TRUE : think != QEP_CHAT_FALSE;
    QEP_TRY(qep_chat_append(r->out, "<|im_start|>assistant\n"));
    return qep_chat_append(r->out, open ? "<think>\n" : "<think>\n\n</think>\n\n");
}

static enum qep_status render_all(struct render *r) {
    const struct qep_value *messages = r->request->messages, *previous = NULL;
    size_t idx = 0;
    if (messages == NULL || (messages->kind == QEP_VALUE_LIST && messages->count == 0))
        return qep_fail(QEP_ERR_DATA, "No messages provided.");
    if (messages->kind != QEP_VALUE_LIST)
        return qep_fail(QEP_ERR_DATA, "\"messages\": expected a list");
    QEP_TRY(append_head(r, messages->child));
    QEP_TRY(find_last_query(r, messages));
    for (const struct qep_value *m = messages->child; m != NULL; m = m->next, idx++) {
        QEP_TRY(append_message(r, previous, m, idx));
        previous = m;
    }
    return r->request->add_generation_prompt ? append_generation_prompt(r) : QEP_OK;
}

enum qep_status qep_chat_render(enum qep_chat_form form, const struct qep_chat_request *request,
                                struct qep_chat_text *out) {
    struct render r = {.form = form, .request = request, .out = out};
    r.vision.add_vision_id = request->add_vision_id;
    qep_chat_text_clear(out);
    if (form == QEP_CHAT_NONE)
        return qep_fail(QEP_ERR_DATA, "chat template: none known: expected --template-as "
                                      "qwen3.5|qwen3.5-0.8b|qwen3.6 or --raw");
    enum qep_status st = render_all(&r);
    qep_chat_text_free(&r.content);
    return st;
}

#include "cli/run_prompt.h"

#include "base/file.h"
#include "base/number.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_PROMPT_BYTES = 256 << 20 };

enum qep_status qep_talk_add(struct qep_talk *talk, const char *role, const char *content,
                             size_t len) {
    struct qep_bytes *json = &talk->json, valid = {0};
    enum qep_status st = qep_utf8_append_replaced(&valid, content, len);
    if (st == QEP_OK)
        st = qep_bytes_append_str(json, json->len == 0 ? "[{\"role\": \"" : ", {\"role\": \"");
    if (st == QEP_OK)
        st = qep_bytes_append_str(json, role);
    if (st == QEP_OK)
        st = qep_bytes_append_str(json, "\", \"content\": ");
    if (st == QEP_OK)
        st = qep_json_append_string(json, valid.data, valid.len);
    if (st == QEP_OK)
        st = qep_bytes_append_str(json, "}");
    qep_bytes_free(&valid);
    return st;
}

void qep_talk_free(struct qep_talk *talk) {
    qep_bytes_free(&talk->json);
}

/* --think and --no-think win over what a chat file says. */
static enum qep_status encode_messages(const char *json, size_t len, const char *where,
                                       const struct qep_run_options *o, const struct qep_text *text,
                                       struct qep_ids *ids) {
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    struct qep_chat_request request;
    struct qep_chat_text chat = {0};
    QEP_TRY(qep_text_need_template(text)); /* the model's fault, not the file's */
    QEP_TRY(qep_value_parse(json, len, where, &doc, &root));
    enum qep_status st = qep_chat_request_read(root, true, &request);
    if (o->think || o->no_think)
        request.enable_thinking = o->think ? QEP_CHAT_TRUE : QEP_CHAT_FALSE;
    if (st == QEP_OK)
        st = qep_text_encode_chat(text, &request, o->no_special, &chat, ids);
    if (st != QEP_OK)
        st = qep_fail(st, "%s: %s", where, qep_last_error());
    qep_chat_text_free(&chat);
    qep_value_doc_destroy(doc);
    return st;
}

enum qep_status qep_talk_encode(const struct qep_talk *talk, const struct qep_run_options *options,
                                const struct qep_text *text, struct qep_ids *ids) {
    struct qep_bytes json = {0};
    enum qep_status st = qep_bytes_append(&json, talk->json.data, talk->json.len);
    if (st == QEP_OK)
        st = qep_bytes_append_str(&json, "]");
    if (st == QEP_OK)
        st = encode_messages(json.data, json.len, "conversation", options, text, ids);
    qep_bytes_free(&json);
    return st;
}

static enum qep_status parse_ids(const char *list, struct qep_ids *ids) {
    for (const char *p = list; p != NULL;) {
        int64_t id = 0;
        if (!qep_parse_next(&p, 0, INT32_MAX, &id))
            return qep_fail(QEP_ERR_USAGE,
                            "--prompt-tokens: expected ids like 1,2,3, found '%.32s'", p);
        QEP_TRY(qep_ids_append(ids, (int32_t)id));
    }
    return QEP_OK;
}

static enum qep_status encode_user_text(const struct qep_run_options *o,
                                        const struct qep_text *text, const char *data, size_t len,
                                        struct qep_ids *ids) {
    struct qep_talk talk = {0};
    enum qep_status st = QEP_OK;
    QEP_TRY(qep_text_need_tokenizer(text));
    if (o->raw)
        return qep_text_encode(text, data, len, o->no_special, ids);
    if (o->system != NULL)
        st = qep_talk_add(&talk, "system", o->system, strlen(o->system));
    if (st == QEP_OK)
        st = qep_talk_add(&talk, "user", data, len);
    if (st == QEP_OK)
        st = qep_talk_encode(&talk, o, text, ids);
    qep_talk_free(&talk);
    return st;
}

enum qep_status qep_run_prompt(const struct qep_run_options *o, const struct qep_text *text,
                               struct qep_ids *ids) {
    char *data = NULL;
    size_t len = 0;
    if (o->prompt_tokens != NULL)
        return parse_ids(o->prompt_tokens, ids);
    if (o->prompt != NULL)
        return encode_user_text(o, text, o->prompt, strlen(o->prompt), ids);
    const char *path = o->prompt_file != NULL ? o->prompt_file : o->chat;
    QEP_TRY(qep_input_read(path, MAX_PROMPT_BYTES, &data, &len));
    enum qep_status st = qep_text_need_tokenizer(text);
    if (st == QEP_OK)
        st = o->chat != NULL ? encode_messages(data, len, path, o, text, ids)
                             : encode_user_text(o, text, data, len, ids);
    free(data);
    return st;
}

#include "text/text.h"

#include "base/file.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_TEMPLATE_BYTES = 1 << 20, MAX_CONFIG_BYTES = 16 << 20 };

static enum qep_status read_template(qep_read_fn *read, const char *path,
                                     enum qep_chat_form *form) {
    char *data = NULL;
    size_t len = 0;
    QEP_TRY(read(path, MAX_TEMPLATE_BYTES, &data, &len));
    *form = qep_chat_form_of(data, len);
    free(data);
    return QEP_OK;
}

/* "chat_template" is a string, or a list of named ones of which "default" counts. */
static const char *config_template(const cJSON *config) {
    const cJSON *item = qep_json_get(config, "chat_template"), *entry;
    if (cJSON_IsString(item))
        return item->valuestring;
    cJSON_ArrayForEach (entry, item) {
        const cJSON *name = qep_json_get(entry, "name"), *text = qep_json_get(entry, "template");
        if (cJSON_IsString(name) && cJSON_IsString(text) &&
            strcmp(name->valuestring, "default") == 0)
            return text->valuestring;
    }
    return NULL;
}

static enum qep_status read_config_template(const char *path, enum qep_chat_form *form,
                                            bool *found) {
    cJSON *config = NULL;
    QEP_TRY(qep_json_read(path, MAX_CONFIG_BYTES, &config));
    const char *text = config_template(config);
    *found = text != NULL;
    if (text != NULL)
        *form = qep_chat_form_of(text, strlen(text));
    cJSON_Delete(config);
    return QEP_OK;
}

/* Finds the directory's template; its file's path goes to text->template_where. */
static enum qep_status find_template(const char *dir, struct qep_text *text) {
    char *path = NULL;
    bool found = true;
    enum qep_status st = QEP_OK;
    QEP_TRY(qep_path_join(dir, "chat_template.jinja", &path));
    if (qep_path_exists(path)) {
        st = read_template(qep_file_read, path, &text->form);
    } else {
        free(path);
        QEP_TRY(qep_path_join(dir, "tokenizer_config.json", &path));
        found = qep_path_exists(path);
        if (found)
            st = read_config_template(path, &text->form, &found);
    }
    if (found)
        text->template_where = path;
    else
        free(path);
    return st;
}

enum qep_status qep_text_open(const char *dir, const char *template_as, int64_t vocab_size,
                              struct qep_text *text) {
    char *path = NULL;
    enum qep_status st = QEP_OK;
    *text = (struct qep_text){0};
    if (template_as != NULL)
        QEP_TRY(qep_chat_form_by_name(template_as, &text->form));
    else
        QEP_TRY(find_template(dir, text));
    QEP_TRY(qep_path_join(dir, "tokenizer.json", &path));
    if (qep_path_exists(path))
        st = qep_tokenizer_load(path, vocab_size, &text->tok);
    free(path);
    return st;
}

static enum qep_status input_tokenizer(const char *path, int64_t vocab_size,
                                       struct qep_tokenizer **tok) {
    char *json = NULL;
    size_t len = 0;
    QEP_TRY(qep_input_read(path, QEP_TOKENIZER_MAX_BYTES, &json, &len));
    enum qep_status st = qep_tokenizer_parse(json, len, path, vocab_size, tok);
    free(json);
    return st;
}

enum qep_status qep_text_open_files(const char *tokenizer_path, const char *template_path,
                                    const char *template_as, int64_t vocab_size,
                                    struct qep_text *text) {
    *text = (struct qep_text){0};
    if (template_as != NULL) {
        QEP_TRY(qep_chat_form_by_name(template_as, &text->form));
    } else if (template_path != NULL) {
        text->template_where = strdup(template_path);
        if (text->template_where == NULL)
            return qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", template_path);
        QEP_TRY(read_template(qep_input_read, template_path, &text->form));
    }
    return tokenizer_path != NULL ? input_tokenizer(tokenizer_path, vocab_size, &text->tok)
                                  : QEP_OK;
}

void qep_text_close(struct qep_text *text) {
    qep_tokenizer_destroy(text->tok);
    free(text->template_where);
    *text = (struct qep_text){0};
}

enum qep_status qep_text_need_tokenizer(const struct qep_text *text) {
    return text->tok != NULL
               ? QEP_OK
               : qep_fail(QEP_ERR_DATA, "no tokenizer.json in the model directory: expected one, "
                                        "or token ids instead of text");
}

enum qep_status qep_text_need_template(const struct qep_text *text) {
    if (text->form != QEP_CHAT_NONE)
        return QEP_OK;
    if (text->template_where != NULL)
        return qep_fail(QEP_ERR_DATA,
                        "%s: unknown chat template: expected an official one of the Qwen3.5 "
                        "family; choose one with --template-as or use none with --raw",
                        text->template_where);
    return qep_fail(QEP_ERR_DATA, "no chat template: expected chat_template.jinja in the model "
                                  "directory, --template-as NAME, or --raw for none");
}

enum qep_status qep_text_encode(const struct qep_text *text, const char *data, size_t len,
                                bool no_special, struct qep_ids *ids) {
    struct qep_text_span all = {0, len};
    QEP_TRY(qep_text_need_tokenizer(text));
    return qep_tokenizer_encode(text->tok, data, len, &all, no_special ? 1 : 0, ids);
}

enum qep_status qep_text_encode_chat(const struct qep_text *text,
                                     const struct qep_chat_request *request, bool no_special,
                                     struct qep_chat_text *chat, struct qep_ids *ids) {
    QEP_TRY(qep_text_need_template(text));
    QEP_TRY(qep_text_need_tokenizer(text));
    QEP_TRY(qep_chat_render(text->form, request, chat));
    return qep_tokenizer_encode(text->tok, chat->text.data, chat->text.len, chat->plain,
                                no_special ? chat->num_plain : 0, ids);
}

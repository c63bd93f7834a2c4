/* qwen-ep tokenize: text <-> ids and chat templates, on rank 0. */
#include "base/file.h"
#include "base/number.h"
#include "base/streams.h"
#include "cli/command.h"
#include "cli/command_line.h"
#include "dist/watchdog.h"
#include "shard/side_files.h"
#include "text/text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TEXT_BYTES = 1 << 30 };

struct tokenize {
    const char *model, *tokenizer, *template_file, *template_as;
    const char *text, *text_file, *chat, *decode;
    bool jsonl, render, no_special, skip_special, answered;
    struct qep_text opened;
    struct qep_bytes line; /* what goes to stdout next */
};

static void print_help(const struct qep_option_table *table) {
    puts("usage: qwen-ep tokenize --model DIR|--tokenizer FILE [--template FILE] INPUT\n\n"
         "Prints the token ids of a text or conversation as a JSON list, or the text of ids.\n");
    qep_options_help(table);
    puts("\nA request is {\"text\": S} or {\"messages\": [...], \"tools\", \"enable_thinking\",\n"
         "\"add_generation_prompt\", \"preserve_thinking\", \"add_vision_id\"}; --jsonl answers "
         "each "
         "line\nwith a list of ids, {\"rendered\": S} (--render) or {\"error\": S}.");
}

static enum qep_status parse(struct qep_comm *comm, struct tokenize *t, int argc, char **argv) {
    const struct qep_option options[] = {
        {.name = "model",
         .kind = QEP_OPTION_PATH,
         .target = &t->model,
         .arg = "DIR",
         .help = "take tokenizer and template from a directory"},
        {.name = "tokenizer",
         .kind = QEP_OPTION_PATH,
         .target = &t->tokenizer,
         .arg = "FILE",
         .help = "a tokenizer.json"},
        {.name = "template",
         .kind = QEP_OPTION_PATH,
         .target = &t->template_file,
         .arg = "FILE",
         .help = "a chat_template.jinja (an official one)"},
        {.name = "template-as",
         .kind = QEP_OPTION_CHOICE,
         .choices = "qwen3.5|qwen3.5-0.8b|qwen3.6",
         .target = &t->template_as,
         .arg = "NAME",
         .help = "qwen3.5, qwen3.5-0.8b or qwen3.6"},
        {.name = "text",
         .kind = QEP_OPTION_STRING,
         .target = &t->text,
         .arg = "TEXT",
         .help = "encode this text"},
        {.name = "text-file",
         .kind = QEP_OPTION_PATH,
         .target = &t->text_file,
         .arg = "FILE",
         .help = "encode a file (- is stdin)"},
        {.name = "chat",
         .kind = QEP_OPTION_PATH,
         .target = &t->chat,
         .arg = "FILE.json",
         .help = "encode a conversation"},
        {.name = "render",
         .kind = QEP_OPTION_FLAG,
         .target = &t->render,
         .help = "print the conversation's text instead of ids"},
        {.name = "decode",
         .kind = QEP_OPTION_STRING,
         .target = &t->decode,
         .arg = "IDS",
         .help = "print the text of ids: 1,2,3"},
        {.name = "skip-special",
         .kind = QEP_OPTION_FLAG,
         .target = &t->skip_special,
         .help = "leave special tokens out when decoding"},
        {.name = "jsonl",
         .kind = QEP_OPTION_FLAG,
         .target = &t->jsonl,
         .help = "one request a line on stdin, one answer a line"},
        {.name = "no-special",
         .kind = QEP_OPTION_FLAG,
         .target = &t->no_special,
         .help = "special tokens in the input are plain text"},
    };
    const struct qep_option_table table = {options, sizeof options / sizeof options[0]};
    const struct qep_command_line line = {
        .tables = &table, .num_tables = 1, .print_help = print_help};
    return qep_command_line_read(comm, &line, argc, argv, &t->answered);
}

static enum qep_status check_usage(const struct tokenize *t) {
    int inputs = (t->text != NULL) + (t->text_file != NULL) + (t->chat != NULL) +
                 (t->decode != NULL) + t->jsonl;
    if (inputs != 1)
        return qep_fail(QEP_ERR_USAGE,
                        "tokenize: expected one of --text, --text-file, --chat, --decode, --jsonl, "
                        "found %d",
                        inputs);
    if (t->model != NULL && (t->tokenizer != NULL || t->template_file != NULL))
        return qep_fail(QEP_ERR_USAGE,
                        "tokenize: expected --model or --tokenizer/--template, found both");
    if (t->model == NULL && t->tokenizer == NULL && !t->render)
        return qep_fail(QEP_ERR_USAGE, "tokenize: expected --model DIR or --tokenizer FILE");
    if (t->render && t->chat == NULL && !t->jsonl)
        return qep_fail(QEP_ERR_USAGE, "tokenize: --render needs --chat or --jsonl");
    return QEP_OK;
}

static enum qep_status write_ids(struct tokenize *t, const struct qep_ids *ids) {
    t->line.len = 0;
    QEP_TRY(qep_json_append_ids(&t->line, ids));
    QEP_TRY(qep_bytes_append_str(&t->line, "\n"));
    return qep_stdout_write(t->line.data, t->line.len);
}

static enum qep_status encode_text(struct tokenize *t, const char *data, size_t len) {
    struct qep_ids ids = {0};
    enum qep_status st = qep_text_encode(&t->opened, data, len, t->no_special, &ids);
    if (st == QEP_OK)
        st = write_ids(t, &ids);
    qep_ids_free(&ids);
    return st;
}

static enum qep_status encode_file(struct tokenize *t) {
    char *data = NULL;
    size_t len = 0;
    if (strcmp(t->text_file, "-") == 0)
        QEP_TRY(qep_file_read_fd(STDIN_FILENO, "stdin", MAX_TEXT_BYTES, &data, &len));
    else
        QEP_TRY(qep_input_read(t->text_file, MAX_TEXT_BYTES, &data, &len));
    enum qep_status st = encode_text(t, data, len);
    free(data);
    return st;
}

/* The answer to a conversation: its text as it is or as {"rendered": S}, or its ids. */
static enum qep_status answer_chat(struct tokenize *t, const struct qep_value *root, bool json,
                                   struct qep_bytes *out) {
    struct qep_chat_request request;
    struct qep_chat_text chat = {0};
    struct qep_ids ids = {0};
    enum qep_status st = QEP_OK;
    QEP_TRY(qep_chat_request_read(root, false, &request));
    if (!t->render) {
        QEP_TRY_GOTO(st, done,
                     qep_text_encode_chat(&t->opened, &request, t->no_special, &chat, &ids));
        QEP_TRY_GOTO(st, done, qep_json_append_ids(out, &ids));
        goto done;
    }
    QEP_TRY_GOTO(st, done, qep_text_need_template(&t->opened));
    QEP_TRY_GOTO(st, done, qep_chat_render(t->opened.form, &request, &chat));
    if (!json) {
        st = qep_bytes_append(out, chat.text.data, chat.text.len);
        goto done;
    }
    QEP_TRY_GOTO(st, done, qep_bytes_append_str(out, "{\"rendered\": "));
    QEP_TRY_GOTO(st, done, qep_json_append_string(out, chat.text.data, chat.text.len));
    st = qep_bytes_append_str(out, "}");
done:
    qep_ids_free(&ids);
    qep_chat_text_free(&chat);
    return st;
}

static enum qep_status encode_chat(struct tokenize *t) {
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    char *data = NULL;
    size_t len = 0;
    QEP_TRY(qep_input_read(t->chat, MAX_TEXT_BYTES, &data, &len));
    enum qep_status st = qep_value_parse(data, len, t->chat, &doc, &root);
    if (st == QEP_OK) {
        st = answer_chat(t, root, false, &t->line);
        if (st != QEP_OK)
            st = qep_fail(st, "%s: %s", t->chat, qep_last_error());
    }
    if (st == QEP_OK && !t->render)
        st = qep_bytes_append_str(&t->line, "\n");
    if (st == QEP_OK)
        st = qep_stdout_write(t->line.data, t->line.len);
    qep_value_doc_destroy(doc);
    free(data);
    return st;
}

static enum qep_status answer_request(struct tokenize *t, const char *data, size_t len) {
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    struct qep_ids ids = {0};
    QEP_TRY(qep_value_parse(data, len, NULL, &doc, &root));
    const struct qep_value *text = qep_value_get_given(root, "text");
    enum qep_status st = QEP_OK;
    if (root->kind != QEP_VALUE_OBJECT)
        st = qep_fail(QEP_ERR_DATA, "request: expected an object");
    else if (text == NULL && qep_value_get(root, "messages") == NULL)
        st = qep_fail(QEP_ERR_DATA, "request: expected \"text\" or \"messages\"");
    else if (text == NULL)
        st = answer_chat(t, root, true, &t->line);
    else if (text->kind != QEP_VALUE_STRING)
        st = qep_fail(QEP_ERR_DATA, "request: \"text\": expected a string");
    else
        st = qep_text_encode(&t->opened, text->text, text->len, t->no_special, &ids);
    if (st == QEP_OK && text != NULL)
        st = qep_json_append_ids(&t->line, &ids);
    qep_ids_free(&ids);
    qep_value_doc_destroy(doc);
    return st;
}

/* Exactly one line out for every line in, whatever it holds. */
static enum qep_status answer_line(struct tokenize *t, const char *data, size_t len) {
    t->line.len = 0;
    if (answer_request(t, data, len) != QEP_OK) {
        struct qep_bytes message = {0};
        const char *error = qep_last_error();
        enum qep_status st = qep_utf8_append_replaced(&message, error, strlen(error));
        t->line.len = 0;
        if (st == QEP_OK)
            st = qep_bytes_append_str(&t->line, "{\"error\": ");
        if (st == QEP_OK)
            st = qep_json_append_string(&t->line, message.data, message.len);
        qep_bytes_free(&message);
        QEP_TRY(st);
        QEP_TRY(qep_bytes_append_str(&t->line, "}"));
    }
    QEP_TRY(qep_bytes_append_str(&t->line, "\n"));
    return qep_stdout_write(t->line.data, t->line.len);
}

static enum qep_status answer_lines(struct tokenize *t) {
    char *line = NULL;
    size_t cap = 0;
    enum qep_status st = QEP_OK;
    for (ssize_t len; st == QEP_OK;) {
        QEP_TRY_GOTO(st, done, qep_stdin_line(&line, &cap, &len));
        if (len <= 0)
            break;
        st = answer_line(t, line, (size_t)len - (line[len - 1] == '\n'));
    }
done:
    free(line);
    return st;
}

/* Ids separated by commas or spaces, in brackets or not. */
static enum qep_status parse_ids(const char *text, const struct qep_tokenizer *tok,
                                 struct qep_ids *ids) {
    for (const char *p = text + strspn(text, " ,[]"); *p != '\0'; p += strspn(p, " ,[]")) {
        size_t len = strcspn(p, " ,]");
        int64_t id = 0;
        if (!qep_parse_int(p, len, 0, INT32_MAX, &id))
            return qep_fail(QEP_ERR_USAGE, "--decode: expected token ids such as 1,2,3, found '%s'",
                            p);
        if (!qep_tokenizer_has_id(tok, (int32_t)id))
            return qep_fail(QEP_ERR_USAGE, "--decode: no token has id %lld (ids are below %d)",
                            (long long)id, (int)qep_tokenizer_num_ids(tok));
        QEP_TRY(qep_ids_append(ids, (int32_t)id));
        p += len;
    }
    return QEP_OK;
}

static enum qep_status decode_ids(struct tokenize *t) {
    struct qep_ids ids = {0};
    enum qep_status st = qep_text_need_tokenizer(&t->opened);
    if (st == QEP_OK)
        st = parse_ids(t->decode, t->opened.tok, &ids);
    if (st == QEP_OK)
        st = qep_tokenizer_decode(t->opened.tok, ids.items, ids.count, t->skip_special, &t->line);
    if (st == QEP_OK)
        st = qep_bytes_append_str(&t->line, "\n");
    if (st == QEP_OK)
        st = qep_stdout_write(t->line.data, t->line.len);
    qep_ids_free(&ids);
    return st;
}

static enum qep_status open_text(struct tokenize *t) {
    if (t->model == NULL)
        return qep_text_open_files(t->tokenizer, t->template_file, t->template_as, 0, &t->opened);
    QEP_TRY(qep_path_check_dir(t->model));
    QEP_TRY(qep_side_files_verify_dir(t->model));
    return qep_text_open(t->model, t->template_as, 0, &t->opened);
}

static enum qep_status tokenize(struct tokenize *t) {
    QEP_TRY(check_usage(t));
    QEP_TRY(open_text(t));
    if (t->jsonl)
        return answer_lines(t);
    if (t->chat != NULL)
        return encode_chat(t);
    if (t->decode != NULL)
        return decode_ids(t);
    if (t->text_file != NULL)
        return encode_file(t);
    return encode_text(t, t->text, strlen(t->text));
}

enum qep_status qep_cmd_tokenize(struct qep_job *job, int argc, char **argv) {
    struct tokenize t = {0};
    QEP_TRY(parse(job->comm, &t, argc, argv));
    if (t.answered)
        return QEP_OK;
    qep_watchdog_stamp(job->comm->dog, "tokenizing", -1, -1);
    enum qep_status st = job->comm->rank == 0 ? tokenize(&t) : QEP_OK;
    qep_text_close(&t.opened);
    qep_bytes_free(&t.line);
    return qep_comm_agree(job->comm, st);
}

/* Any bytes as a request: parsing, printing as Python does, rendering by every template. */
#include "text/chat_template.h"
#include "text/python_text.h"

#include <assert.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_rendered(const struct qep_chat_text *chat) {
    size_t at = 0;
    assert(qep_utf8_valid_prefix(chat->text.data, chat->text.len) == chat->text.len);
    for (size_t i = 0; i < chat->num_plain; i++) {
        assert(chat->plain[i].begin >= at && chat->plain[i].end > chat->plain[i].begin);
        at = chat->plain[i].end;
    }
    assert(at <= chat->text.len);
}

/* What was printed must read back and print the same again. */
static void check_printed(const struct qep_bytes *printed) {
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    struct qep_bytes again = {0};
    if (qep_value_parse(printed->data, printed->len, NULL, &doc, &root) == QEP_OK) {
        assert(qep_python_dumps(&again, root) == QEP_OK);
        assert(again.len == printed->len);
    }
    qep_bytes_free(&again);
    qep_value_doc_destroy(doc);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct qep_value_doc *doc = NULL;
    const struct qep_value *root = NULL;
    struct qep_bytes out = {0};
    struct qep_chat_text chat = {0};
    struct qep_chat_request request;
    if (qep_value_parse((const char *)data, size, "fuzz", &doc, &root) != QEP_OK)
        return 0;
    assert(qep_python_dumps(&out, root) == QEP_OK);
    check_printed(&out);
    assert(qep_python_str(&out, root) == QEP_OK);
    if (qep_chat_request_read(root, true, &request) == QEP_OK)
        for (int form = QEP_CHAT_QWEN35; form <= QEP_CHAT_QWEN36; form++)
            if (qep_chat_render((enum qep_chat_form)form, &request, &chat) == QEP_OK)
                check_rendered(&chat);
    qep_chat_text_free(&chat);
    qep_bytes_free(&out);
    qep_value_doc_destroy(doc);
    return 0;
}

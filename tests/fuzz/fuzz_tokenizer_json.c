/* Any bytes as a tokenizer.json; one that loads encodes and decodes a text with all its ids. */
#include "text/detokenizer.h"
#include "text/tokenizer.h"

#include <assert.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] = "ab <|s|> e\xcc\x81 \xff'll 12\r\n \xe4\xbd\xa0<t>";
    const struct qep_text_span plain[] = {{0, 4}, {6, 6}, {20, 40}};
    struct qep_tokenizer *tok = NULL;
    struct qep_ids ids = {0};
    struct qep_bytes out = {0};
    if (qep_tokenizer_parse((const char *)data, size, "fuzz", 0, &tok) != QEP_OK)
        return 0;
    for (size_t num_plain = 0; num_plain <= 3; num_plain += 3)
        if (qep_tokenizer_encode(tok, text, sizeof text, plain, num_plain, &ids) == QEP_OK)
            for (size_t i = 0; i < ids.count; i++)
                assert(qep_tokenizer_has_id(tok, ids.items[i]));
    for (int32_t id = 0; id < qep_tokenizer_num_ids(tok) && id < 1000; id++)
        if (qep_tokenizer_has_id(tok, id))
            assert(qep_ids_append(&ids, id) == QEP_OK);
    assert(qep_tokenizer_decode(tok, ids.items, ids.count, false, &out) == QEP_OK);
    assert(qep_utf8_valid_prefix(out.data, out.len) == out.len);
    qep_bytes_free(&out);
    qep_ids_free(&ids);
    qep_tokenizer_destroy(tok);
    return 0;
}

#include "text/detokenizer.h"

#include <string.h>

void qep_detokenizer_init(struct qep_detokenizer *detok, const struct qep_tokenizer *tok,
                          bool skip_special) {
    *detok = (struct qep_detokenizer){.tok = tok, .skip_special = skip_special};
}

/* One byte more: it completes a character, shows that the pending bytes were none, or waits. */
static enum qep_status push_byte(struct qep_detokenizer *detok, char byte, struct qep_bytes *out) {
    detok->pending[detok->num_pending++] = byte;
    while (detok->num_pending > 0) {
        uint32_t cp;
        size_t n = qep_utf8_next(detok->pending, detok->num_pending, &cp);
        if (cp == QEP_UTF8_CUT)
            return QEP_OK;
        QEP_TRY(cp == QEP_UTF8_BAD ? qep_bytes_append_char(out, 0xFFFD)
                                   : qep_bytes_append(out, detok->pending, n));
        detok->num_pending -= n;
        memmove(detok->pending, detok->pending + n, detok->num_pending);
    }
    return QEP_OK;
}

enum qep_status qep_detokenizer_push(struct qep_detokenizer *detok, int32_t id,
                                     struct qep_bytes *out) {
    const char *bytes = NULL;
    size_t len = 0;
    bool special = false;
    QEP_TRY(qep_tokenizer_bytes(detok->tok, id, &bytes, &len, &special));
    if (special && detok->skip_special)
        return QEP_OK;
    for (size_t i = 0; i < len; i++)
        QEP_TRY(push_byte(detok, bytes[i], out));
    return QEP_OK;
}

enum qep_status qep_detokenizer_flush(struct qep_detokenizer *detok, struct qep_bytes *out) {
    bool dangling = detok->num_pending > 0;
    detok->num_pending = 0;
    return dangling ? qep_bytes_append_char(out, 0xFFFD) : QEP_OK;
}

/* The streaming detokenizer: ids in, complete UTF-8 out. A token may end inside a character, so at
 * most three bytes wait for the next push. What is not UTF-8 becomes U+FFFD exactly where Python's
 * bytes.decode(errors="replace") puts it, so the pieces joined are the text decoded at once. */
#ifndef QEP_TEXT_DETOKENIZER_H
#define QEP_TEXT_DETOKENIZER_H

#include "text/bytes.h"
#include "text/tokenizer.h"

struct qep_detokenizer {
    const struct qep_tokenizer *tok; /* borrowed, outlives this */
    bool skip_special;
    char pending[4];
    size_t num_pending;
};

void qep_detokenizer_init(struct qep_detokenizer *detok, const struct qep_tokenizer *tok,
                          bool skip_special);

/* Appends to `out` what became complete. QEP_ERR_DATA for an id without a token. */
enum qep_status qep_detokenizer_push(struct qep_detokenizer *detok, int32_t id,
                                     struct qep_bytes *out);

/* Appends U+FFFD for a dangling start of a character; ready for a new text afterwards. */
enum qep_status qep_detokenizer_flush(struct qep_detokenizer *detok, struct qep_bytes *out);

#endif

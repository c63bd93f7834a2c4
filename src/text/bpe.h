/* Byte-pair encoding of one word: merges by lowest rank, leftmost first, in n log n. */
#ifndef QEP_TEXT_BPE_H
#define QEP_TEXT_BPE_H

#include "base/status.h"
#include "text/bytes.h"
#include "text/vocab.h"

#include <stddef.h>

/* Scratch of one encode call; start from {0}. */
struct qep_bpe {
    struct qep_bpe_symbol *symbols;
    struct qep_bpe_candidate *heap;
    size_t symbols_cap, heap_cap, heap_count;
};

void qep_bpe_free(struct qep_bpe *bpe);

/* Appends the ids of word[0..len). QEP_ERR_DATA when the vocab has no token for one of its bytes.
 */
enum qep_status qep_bpe_encode(struct qep_bpe *bpe, const struct qep_vocab *vocab, const char *word,
                               size_t len, struct qep_ids *out);

#endif

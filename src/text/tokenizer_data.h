/* Inside of the tokenizer, shared by its loader and its encoder. */
#ifndef QEP_TEXT_TOKENIZER_DATA_H
#define QEP_TEXT_TOKENIZER_DATA_H

#include "text/pretokenize.h"
#include "text/vocab.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    QEP_ADDED_MAX_BYTES = 1024
}; /* of one added token; at each byte of a text one is looked for */

/* Added tokens to look for, in the order of their spellings. */
struct qep_added_set {
    int32_t *ids;
    size_t count, cap;
    size_t begin[257]; /* group of first byte b: ids[begin[b]..begin[b + 1]) */
};

struct qep_tokenizer {
    struct qep_vocab vocab;
    struct qep_splitter *splitter;
    struct qep_added_set raw;        /* cut out of the raw text */
    struct qep_added_set normalized; /* "normalized": true: cut out of the NFC text */
    bool nfc;
    bool ignore_merges; /* a word that is in the vocab is one token */
};

/* Sorts and groups a set after its last id. */
enum qep_status qep_added_set_index(struct qep_added_set *set, const struct qep_vocab *vocab);

/* The longest token of the set at text[0..len), len > 0, or -1. `skip_special`: only others count.
 */
int32_t qep_added_set_at(const struct qep_added_set *set, const struct qep_vocab *vocab,
                         const char *text, size_t len, bool skip_special);

#endif

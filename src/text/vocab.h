/* The vocabulary of a tokenizer: id -> bytes, spelling -> id, (left id, right id) -> merge. A BPE
 * token is spelled in the GPT-2 byte alphabet (256 printable characters that stand for the bytes);
 * merging works on ids alone. */
#ifndef QEP_TEXT_VOCAB_H
#define QEP_TEXT_VOCAB_H

#include "base/status.h"
#include "text/bytes.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Ids are array positions here, so a bound keeps a damaged file from asking for gigabytes: that of
 * "vocab_size" in a config.json. */
enum { QEP_VOCAB_MAX_IDS = 1 << 21 };

struct qep_token {
    size_t spelling;       /* offset in `texts`, NUL-terminated as well */
    size_t bytes;          /* offset in `texts` */
    uint32_t spelling_len; /* as written in the file */
    uint32_t num_bytes;    /* what it decodes to */
    bool present;
    bool added, special;
};

struct qep_merge {
    uint64_t pair; /* left id << 32 | right id */
    int32_t rank, id;
};

struct qep_vocab {
    struct qep_token *tokens; /* [num_ids], holes have present == false */
    size_t num_ids, tokens_cap;
    struct qep_bytes texts;
    int32_t *by_spelling; /* hash slots, -1 empty; of the vocab's tokens, not of added ones */
    size_t spelling_mask;
    struct qep_merge *merges; /* hash slots, rank -1 empty */
    size_t merge_mask;
    int merge_shift;
    uint64_t seed;        /* of both tables; odd */
    int32_t byte_id[256]; /* the token of a single byte, or -1 */
};

enum qep_status qep_vocab_init(struct qep_vocab *vocab, size_t num_spellings, size_t num_merges);
void qep_vocab_free(struct qep_vocab *vocab);

/* Adds a token under its id. QEP_ERR_DATA when the id is taken by another spelling or out of range
 * (`where` names the file). Adding the same pair again is fine. */
enum qep_status qep_vocab_add(struct qep_vocab *vocab, const char *where, const char *spelling,
                              size_t len, int64_t id, bool added, bool special);

/* After all tokens: fills byte_id. */
void qep_vocab_find_bytes(struct qep_vocab *vocab);

/* The id of a spelling in the vocab (added tokens aside), or -1. */
int32_t qep_vocab_find(const struct qep_vocab *vocab, const char *spelling, size_t len);

/* Adds or replaces a merge; at most num_merges different pairs. */
void qep_vocab_add_merge(struct qep_vocab *vocab, int32_t left, int32_t right, int32_t rank,
                         int32_t id);

/* The merge of two ids, or NULL. */
const struct qep_merge *qep_vocab_merge(const struct qep_vocab *vocab, int32_t left, int32_t right);

/* Appends bytes in the byte alphabet's spelling. */
enum qep_status qep_byte_alphabet_append(struct qep_bytes *out, const char *bytes, size_t len);

#endif

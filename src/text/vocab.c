#include "text/vocab.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define XXH_INLINE_ALL /* header only: this room links no hash library */
#include <xxhash.h>

/* GPT-2's byte alphabet: printable Latin-1 bytes stand for themselves, the other 68 take U+0100 and
 * up in byte order. */
static bool stands_for_itself(uint32_t c) {
    return (c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF);
}

static uint32_t char_of_byte(unsigned byte) {
    uint32_t next = 0x100;
    if (stands_for_itself(byte))
        return byte;
    for (unsigned b = 0; b < byte; b++)
        next += !stands_for_itself(b);
    return next;
}

/* The byte a character of the alphabet stands for, or -1. */
static int byte_of_char(uint32_t c) {
    if (c < 0x100)
        return stands_for_itself(c) ? (int)c : -1;
    if (c < 0x121)
        return (int)(c - 0x100); /* 00..20 */
    if (c < 0x143)
        return (int)(c - 0x121 + 0x7F); /* 7F..A0 */
    return c == 0x143 ? 0xAD : -1;
}

enum qep_status qep_byte_alphabet_append(struct qep_bytes *out, const char *bytes, size_t len) {
    for (size_t i = 0; i < len; i++)
        QEP_TRY(qep_bytes_append_char(out, char_of_byte((unsigned char)bytes[i])));
    return QEP_OK;
}

/* Of a vocabulary, by chance: nobody can write a file whose entries all fall into one slot. */
static uint64_t choose_seed(void) {
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != (ssize_t)sizeof seed)
        seed = (uint64_t)(uintptr_t)&seed ^ (uint64_t)getpid() << 40; /* early in a boot */
    return seed | 1;
}

static size_t spelling_slot(const struct qep_vocab *vocab, const char *text, size_t len) {
    return (size_t)XXH3_64bits_withSeed(text, len, vocab->seed) & vocab->spelling_mask;
}

/* A power of two with at most half of the slots in use. */
static size_t slots_for(size_t count) {
    size_t slots = 16;
    while (slots < 2 * count)
        slots *= 2;
    return slots;
}

enum qep_status qep_vocab_init(struct qep_vocab *vocab, size_t num_spellings, size_t num_merges) {
    size_t slots = slots_for(num_spellings), merge_slots = slots_for(num_merges);
    void *p = NULL;
    *vocab = (struct qep_vocab){.seed = choose_seed()};
    QEP_TRY(qep_alloc(slots, sizeof *vocab->by_spelling, "vocabulary", &p));
    vocab->by_spelling = p;
    vocab->spelling_mask = slots - 1;
    for (size_t i = 0; i < slots; i++)
        vocab->by_spelling[i] = -1;
    QEP_TRY(qep_alloc(merge_slots, sizeof *vocab->merges, "merges", &p));
    vocab->merges = p;
    vocab->merge_mask = merge_slots - 1;
    vocab->merge_shift = __builtin_clzll(merge_slots) + 1;
    for (size_t i = 0; i < merge_slots; i++)
        vocab->merges[i] = (struct qep_merge){.rank = -1};
    return QEP_OK;
}

void qep_vocab_free(struct qep_vocab *vocab) {
    free(vocab->tokens);
    free(vocab->by_spelling);
    free(vocab->merges);
    qep_bytes_free(&vocab->texts);
    *vocab = (struct qep_vocab){0};
}

static enum qep_status reserve_id(struct qep_vocab *vocab, size_t id) {
    void *grown = vocab->tokens;
    QEP_TRY(qep_grow(&grown, &vocab->tokens_cap, id + 1, sizeof *vocab->tokens, "token table"));
    vocab->tokens = grown;
    for (; vocab->num_ids <= id; vocab->num_ids++)
        vocab->tokens[vocab->num_ids] = (struct qep_token){0};
    return QEP_OK;
}

/* What a token decodes to: the bytes its characters stand for, or, when a character is none of the
 * alphabet, its own UTF-8 (as the ByteLevel decoder does). Added tokens are always plain text. */
static enum qep_status append_decoded(struct qep_bytes *out, const char *spelling, size_t len,
                                      bool added) {
    size_t start = out->len;
    for (size_t at = 0; at < len && !added;) {
        uint32_t cp;
        at += qep_utf8_next(spelling + at, len - at, &cp);
        int byte = byte_of_char(cp);
        if (byte < 0) {
            added = true;
            out->len = start;
        } else {
            char c = (char)byte;
            QEP_TRY(qep_bytes_append(out, &c, 1));
        }
    }
    return added ? qep_bytes_append(out, spelling, len) : QEP_OK;
}

static enum qep_status index_spelling(struct qep_vocab *vocab, const char *where,
                                      const char *spelling, size_t len, int32_t id) {
    size_t slot = spelling_slot(vocab, spelling, len);
    for (; vocab->by_spelling[slot] >= 0; slot = (slot + 1) & vocab->spelling_mask) {
        const struct qep_token *t = &vocab->tokens[vocab->by_spelling[slot]];
        if (t->spelling_len == len && memcmp(vocab->texts.data + t->spelling, spelling, len) == 0)
            return qep_fail(QEP_ERR_DATA, "%s: token \"%s\" has two ids, %d and %d", where,
                            spelling, vocab->by_spelling[slot], id);
    }
    vocab->by_spelling[slot] = id;
    return QEP_OK;
}

enum qep_status qep_vocab_add(struct qep_vocab *vocab, const char *where, const char *spelling,
                              size_t len, int64_t id, bool added, bool special) {
    if (id < 0 || id >= QEP_VOCAB_MAX_IDS || len > INT32_MAX)
        return qep_fail(QEP_ERR_DATA, "%s: token \"%s\": expected an id in 0..%d, found %lld",
                        where, spelling, QEP_VOCAB_MAX_IDS - 1, (long long)id);
    QEP_TRY(reserve_id(vocab, (size_t)id));
    struct qep_token *t = &vocab->tokens[id];
    if (t->present) {
        const char *old = vocab->texts.data + t->spelling;
        if (t->spelling_len != len || memcmp(old, spelling, len) != 0)
            return qep_fail(QEP_ERR_DATA, "%s: id %lld is both \"%s\" and \"%s\"", where,
                            (long long)id, old, spelling);
    } else {
        t->spelling = vocab->texts.len;
        t->spelling_len = (uint32_t)len;
        QEP_TRY(qep_bytes_append(&vocab->texts, spelling, len));
        QEP_TRY(qep_bytes_append(&vocab->texts, "", 1));
        t->present = true;
        if (!added)
            QEP_TRY(index_spelling(vocab, where, spelling, len, (int32_t)id));
    }
    t->bytes = vocab->texts.len;
    QEP_TRY(append_decoded(&vocab->texts, spelling, len, added));
    t->num_bytes = (uint32_t)(vocab->texts.len - t->bytes);
    t->added |= added;
    t->special |= special;
    return QEP_OK;
}

int32_t qep_vocab_find(const struct qep_vocab *vocab, const char *spelling, size_t len) {
    size_t slot = spelling_slot(vocab, spelling, len);
    for (; vocab->by_spelling[slot] >= 0; slot = (slot + 1) & vocab->spelling_mask) {
        const struct qep_token *t = &vocab->tokens[vocab->by_spelling[slot]];
        if (t->spelling_len == len && memcmp(vocab->texts.data + t->spelling, spelling, len) == 0)
            return vocab->by_spelling[slot];
    }
    return -1;
}

void qep_vocab_find_bytes(struct qep_vocab *vocab) {
    for (unsigned b = 0; b < 256; b++) {
        uint32_t c = char_of_byte(b);
        char utf8[2] = {(char)c, 0};
        size_t len = 1;
        if (c >= 0x80) {
            utf8[0] = (char)(0xC0 | c >> 6);
            utf8[1] = (char)(0x80 | (c & 0x3F));
            len = 2;
        }
        vocab->byte_id[b] = qep_vocab_find(vocab, utf8, len);
    }
}

static size_t merge_slot(const struct qep_vocab *vocab, uint64_t pair) {
    size_t slot = (size_t)(pair * vocab->seed >> vocab->merge_shift); /* universal: an odd factor */
    while (vocab->merges[slot].rank >= 0 && vocab->merges[slot].pair != pair)
        slot = (slot + 1) & vocab->merge_mask;
    return slot;
}

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

void qep_vocab_add_merge(struct qep_vocab *vocab, int32_t left, int32_t right, int32_t rank,
                         int32_t id) {
    uint64_t pair = pair_of(left, right);
    vocab->merges[merge_slot(vocab, pair)] =
        (struct qep_merge){.pair = pair, .rank = rank, .id = id};
}

const struct qep_merge *qep_vocab_merge(const struct qep_vocab *vocab, int32_t left,
                                        int32_t right) {
    const struct qep_merge *m = &vocab->merges[merge_slot(vocab, pair_of(left, right))];
    return m->rank >= 0 ? m : NULL;
}

#include "text/tokenizer.h"

#include "base/progress.h"
#include "text/bpe.h"
#include "text/detokenizer.h"
#include "text/nfc.h"
#include "text/tokenizer_data.h"

#include <string.h>

/* One encode call: the text, what is plain in it, and the scratch of its stages. */
struct encode {
    const struct qep_tokenizer *tok;
    const struct qep_text_span *plain;
    size_t num_plain;
    struct qep_ids *out;
    struct qep_split split;
    struct qep_bpe bpe;
    struct qep_bytes utf8, nfc, spelling;
};

static const struct qep_token *token_of(const struct qep_tokenizer *tok, int32_t id) {
    return &tok->vocab.tokens[id];
}

/* Pre-tokenized pieces of normalised text without added tokens -> ids. */
static enum qep_status encode_words(struct encode *e, const char *text, size_t len) {
    const struct qep_tokenizer *tok = e->tok;
    qep_split_reset(&e->split, text, len);
    for (;;) {
        struct qep_text_span piece;
        QEP_TRY(qep_split_next(&e->split, &piece));
        size_t word_len = piece.end - piece.begin;
        if (word_len == 0)
            return QEP_OK;
        qep_progress(word_len);
        const char *word = text + piece.begin;
        if (tok->ignore_merges) {
            e->spelling.len = 0;
            QEP_TRY(qep_byte_alphabet_append(&e->spelling, word, word_len));
            int32_t id = qep_vocab_find(&tok->vocab, e->spelling.data, e->spelling.len);
            if (id >= 0) {
                QEP_TRY(qep_ids_append(e->out, id));
                continue;
            }
        }
        QEP_TRY(qep_bpe_encode(&e->bpe, &tok->vocab, word, word_len, e->out));
    }
}

/* Cuts the "normalized" added tokens out of normalised text. */
static enum qep_status encode_normalized(struct encode *e, const char *text, size_t len,
                                         bool has_plain) {
    const struct qep_added_set *set = &e->tok->normalized;
    size_t done = 0;
    for (size_t at = 0; at < len && set->count > 0;) {
        int32_t id = qep_added_set_at(set, &e->tok->vocab, text + at, len - at, has_plain);
        if (id < 0) {
            at++;
            continue;
        }
        QEP_TRY(encode_words(e, text + done, at - done));
        QEP_TRY(qep_ids_append(e->out, id));
        at += token_of(e->tok, id)->spelling_len;
        done = at;
    }
    return encode_words(e, text + done, len - done);
}

/* A piece of raw text between added tokens: to valid UTF-8, to NFC, on. */
static enum qep_status encode_piece(struct encode *e, const char *text, size_t len,
                                    bool has_plain) {
    if (qep_utf8_valid_prefix(text, len) < len) {
        e->utf8.len = 0;
        QEP_TRY(qep_utf8_append_replaced(&e->utf8, text, len));
        text = e->utf8.data;
        len = e->utf8.len;
    }
    if (e->tok->nfc && len > 0) {
        e->nfc.len = 0;
        QEP_TRY(qep_nfc_append(&e->nfc, text, len));
        text = e->nfc.data;
        len = e->nfc.len;
    }
    return encode_normalized(e, text, len, has_plain);
}

/* Does a plain range reach into [begin, end)? `next` is the first range that ends after begin. */
static bool touches_plain(const struct encode *e, size_t *next, size_t begin, size_t end) {
    while (*next < e->num_plain && e->plain[*next].end <= begin)
        ++*next;
    for (size_t i = *next; i < e->num_plain && e->plain[i].begin < end; i++)
        if (e->plain[i].begin < e->plain[i].end)
            return true;
    return false;
}

static enum qep_status encode_raw(struct encode *e, const char *text, size_t len) {
    const struct qep_added_set *set = &e->tok->raw;
    size_t done = 0, next_plain = 0, done_plain = 0;
    for (size_t at = 0; at < len;) {
        int32_t id = qep_added_set_at(set, &e->tok->vocab, text + at, len - at, false);
        if (id >= 0 && token_of(e->tok, id)->special &&
            touches_plain(e, &next_plain, at, at + token_of(e->tok, id)->spelling_len))
            id = qep_added_set_at(set, &e->tok->vocab, text + at, len - at, true);
        if (id < 0) {
            at++;
            continue;
        }
        QEP_TRY(encode_piece(e, text + done, at - done, touches_plain(e, &done_plain, done, at)));
        QEP_TRY(qep_ids_append(e->out, id));
        at += token_of(e->tok, id)->spelling_len;
        done = at;
    }
    return encode_piece(e, text + done, len - done, touches_plain(e, &done_plain, done, len));
}

enum qep_status qep_tokenizer_encode(const struct qep_tokenizer *tok, const char *text, size_t len,
                                     const struct qep_text_span *plain, size_t num_plain,
                                     struct qep_ids *out) {
    struct encode e = {.tok = tok, .plain = plain, .num_plain = num_plain, .out = out};
    QEP_TRY(qep_split_begin(&e.split, tok->splitter));
    enum qep_status st = encode_raw(&e, text, len);
    qep_split_end(&e.split);
    qep_bpe_free(&e.bpe);
    qep_bytes_free(&e.utf8);
    qep_bytes_free(&e.nfc);
    qep_bytes_free(&e.spelling);
    return st;
}

int32_t qep_tokenizer_num_ids(const struct qep_tokenizer *tok) {
    return (int32_t)tok->vocab.num_ids;
}

bool qep_tokenizer_has_id(const struct qep_tokenizer *tok, int32_t id) {
    return id >= 0 && (size_t)id < tok->vocab.num_ids && token_of(tok, id)->present;
}

static int32_t find_added(const struct qep_tokenizer *tok, const struct qep_added_set *set,
                          const char *text) {
    for (size_t i = 0; i < set->count; i++)
        if (strcmp(tok->vocab.texts.data + token_of(tok, set->ids[i])->spelling, text) == 0)
            return set->ids[i];
    return -1;
}

int32_t qep_tokenizer_find(const struct qep_tokenizer *tok, const char *text) {
    int32_t id = find_added(tok, &tok->raw, text);
    if (id < 0)
        id = find_added(tok, &tok->normalized, text);
    return id >= 0 ? id : qep_vocab_find(&tok->vocab, text, strlen(text));
}

enum qep_status qep_tokenizer_bytes(const struct qep_tokenizer *tok, int32_t id, const char **bytes,
                                    size_t *len, bool *special) {
    if (!qep_tokenizer_has_id(tok, id))
        return qep_fail(QEP_ERR_DATA, "tokenizer: no token has id %d (ids are below %d)", (int)id,
                        (int)qep_tokenizer_num_ids(tok));
    const struct qep_token *t = token_of(tok, id);
    *bytes = tok->vocab.texts.data + t->bytes;
    *len = t->num_bytes;
    *special = t->special;
    return QEP_OK;
}

enum qep_status qep_tokenizer_decode(const struct qep_tokenizer *tok, const int32_t *ids,
                                     size_t count, bool skip_special, struct qep_bytes *out) {
    struct qep_detokenizer detok;
    qep_detokenizer_init(&detok, tok, skip_special);
    for (size_t i = 0; i < count; i++)
        QEP_TRY(qep_detokenizer_push(&detok, ids[i], out));
    return qep_detokenizer_flush(&detok, out);
}

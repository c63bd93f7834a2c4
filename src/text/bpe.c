#include "text/bpe.h"

#include "base/mem.h"
#include "base/temporary.h"

#include <stdbool.h>
#include <stdlib.h>

/* A word is a linked list of symbols in one array; the right part of a merge is unlinked. */
struct qep_bpe_symbol {
    int32_t id; /* -1: merged into its left neighbour */
    int32_t prev, next;
};

/* A merge that was possible when it was pushed; stale ones are recognised when popped. */
struct qep_bpe_candidate {
    int32_t rank, at, id;
};

/* Up to here a scan for the lowest rank beats the heap. */
enum { SHORT_WORD = 12, STEPS_PER_LOOK = 1 << 16 };

void qep_bpe_free(struct qep_bpe *bpe) {
    free(bpe->symbols);
    free(bpe->heap);
    *bpe = (struct qep_bpe){0};
}

static bool comes_before(const struct qep_bpe_candidate *a, const struct qep_bpe_candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static enum qep_status heap_push(struct qep_bpe *bpe, struct qep_bpe_candidate c) {
    void *grown = bpe->heap;
    QEP_TRY(qep_grow(&grown, &bpe->heap_cap, bpe->heap_count + 1, sizeof *bpe->heap, "merge heap"));
    bpe->heap = grown;
    size_t i = bpe->heap_count++;
    for (; i > 0 && comes_before(&c, &bpe->heap[(i - 1) / 2]); i = (i - 1) / 2)
        bpe->heap[i] = bpe->heap[(i - 1) / 2];
    bpe->heap[i] = c;
    return QEP_OK;
}

static struct qep_bpe_candidate heap_pop(struct qep_bpe *bpe) {
    struct qep_bpe_candidate top = bpe->heap[0], last = bpe->heap[--bpe->heap_count];
    size_t i = 0, n = bpe->heap_count;
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && comes_before(&bpe->heap[child + 1], &bpe->heap[child]))
            child++;
        if (!comes_before(&bpe->heap[child], &last))
            break;
        bpe->heap[i] = bpe->heap[child];
    }
    bpe->heap[i] = last;
    return top;
}

static enum qep_status push_pair(struct qep_bpe *bpe, const struct qep_vocab *vocab, int32_t at) {
    const struct qep_bpe_symbol *left = &bpe->symbols[at];
    if (left->next < 0)
        return QEP_OK;
    const struct qep_merge *m = qep_vocab_merge(vocab, left->id, bpe->symbols[left->next].id);
    if (m == NULL)
        return QEP_OK;
    return heap_push(bpe, (struct qep_bpe_candidate){m->rank, at, m->id});
}

static enum qep_status set_symbols(struct qep_bpe *bpe, const struct qep_vocab *vocab,
                                   const char *word, size_t len) {
    void *grown = bpe->symbols;
    if (len > INT32_MAX)
        return qep_fail(QEP_ERR_DATA, "text: a word of %zu bytes is too long", len);
    QEP_TRY(qep_grow(&grown, &bpe->symbols_cap, len, sizeof *bpe->symbols, "word"));
    bpe->symbols = grown;
    for (size_t i = 0; i < len; i++) {
        int32_t id = vocab->byte_id[(unsigned char)word[i]];
        if (id < 0)
            return qep_fail(QEP_ERR_DATA, "tokenizer: the vocabulary has no token for byte 0x%02X",
                            (unsigned)(unsigned char)word[i]);
        bpe->symbols[i] =
            (struct qep_bpe_symbol){id, (int32_t)i - 1, i + 1 < len ? (int32_t)i + 1 : -1};
    }
    return QEP_OK;
}

/* Merges the symbol at `at` with the next one. */
static void join(struct qep_bpe *bpe, int32_t at, int32_t id) {
    struct qep_bpe_symbol *left = &bpe->symbols[at], *right = &bpe->symbols[left->next];
    left->id = id;
    right->id = -1;
    left->next = right->next;
    if (left->next >= 0)
        bpe->symbols[left->next].prev = at;
}

static enum qep_status merge_long(struct qep_bpe *bpe, const struct qep_vocab *vocab, size_t len) {
    size_t steps = 0;
    bpe->heap_count = 0;
    for (size_t i = 0; i + 1 < len; i++)
        QEP_TRY(push_pair(bpe, vocab, (int32_t)i));
    while (bpe->heap_count > 0) {
        if (++steps % STEPS_PER_LOOK == 0 && qep_temporaries_were_removed())
            return qep_fail(QEP_ERR_INTERRUPTED, "interrupted within a word of %zu bytes", len);
        struct qep_bpe_candidate c = heap_pop(bpe);
        const struct qep_bpe_symbol *left = &bpe->symbols[c.at];
        if (left->id < 0 || left->next < 0)
            continue;
        const struct qep_merge *m = qep_vocab_merge(vocab, left->id, bpe->symbols[left->next].id);
        if (m == NULL || m->id != c.id)
            continue;
        join(bpe, c.at, c.id);
        if (left->prev >= 0)
            QEP_TRY(push_pair(bpe, vocab, left->prev));
        QEP_TRY(push_pair(bpe, vocab, c.at));
    }
    return QEP_OK;
}

static void merge_short(struct qep_bpe *bpe, const struct qep_vocab *vocab, size_t len) {
    const struct qep_merge *merge[SHORT_WORD] = {NULL};
    for (size_t i = 0; i + 1 < len; i++)
        merge[i] = qep_vocab_merge(vocab, bpe->symbols[i].id, bpe->symbols[i + 1].id);
    for (;;) {
        int32_t best = -1;
        for (int32_t i = 0; i >= 0; i = bpe->symbols[i].next)
            if (merge[i] != NULL && (best < 0 || merge[i]->rank < merge[best]->rank))
                best = i;
        if (best < 0)
            return;
        join(bpe, best, merge[best]->id);
        const struct qep_bpe_symbol *s = &bpe->symbols[best];
        merge[best] = s->next >= 0 ? qep_vocab_merge(vocab, s->id, bpe->symbols[s->next].id) : NULL;
        if (s->prev >= 0)
            merge[s->prev] = qep_vocab_merge(vocab, bpe->symbols[s->prev].id, s->id);
    }
}

enum qep_status qep_bpe_encode(struct qep_bpe *bpe, const struct qep_vocab *vocab, const char *word,
                               size_t len, struct qep_ids *out) {
    if (len == 0)
        return QEP_OK;
    QEP_TRY(set_symbols(bpe, vocab, word, len));
    if (len <= SHORT_WORD)
        merge_short(bpe, vocab, len);
    else
        QEP_TRY(merge_long(bpe, vocab, len));
    for (int32_t i = 0; i >= 0; i = bpe->symbols[i].next)
        QEP_TRY(qep_ids_append(out, bpe->symbols[i].id));
    return QEP_OK;
}

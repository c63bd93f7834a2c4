/* The added tokens of a text. A set is in the order of spellings, so that those which agree with
 * the text so far stand together, the one that ends there first. */
#include "base/mem.h"
#include "text/tokenizer_data.h"

#include <stdlib.h>
#include <string.h>

struct entry {
    const char *spelling;
    size_t len, position;
    int32_t id;
    bool special;
};

static const struct qep_token *token_of(const struct qep_vocab *vocab, int32_t id) {
    return &vocab->tokens[id];
}

static int compare_spellings(const struct entry *x, const struct entry *y) {
    int cmp = memcmp(x->spelling, y->spelling, x->len < y->len ? x->len : y->len);
    return cmp != 0 ? cmp : (x->len > y->len) - (x->len < y->len);
}

static int in_order(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    int cmp = compare_spellings(x, y);
    return cmp != 0 ? cmp : (x->position > y->position) - (x->position < y->position);
}

/* Of tokens that are spelled alike the first counts, and the first that is not special. */
static bool is_hidden(const struct entry *kept, size_t num_kept, const struct entry *next) {
    for (size_t i = num_kept; i-- > 0 && compare_spellings(&kept[i], next) == 0;)
        if (next->special || !kept[i].special)
            return true;
    return false;
}

static size_t drop_hidden(struct entry *entries, size_t count) {
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (!is_hidden(entries, kept, &entries[i]))
            entries[kept++] = entries[i];
    return kept;
}

static void find_groups(struct qep_added_set *set, const struct entry *entries) {
    size_t at = 0;
    for (size_t b = 0; b < 256; b++) {
        set->begin[b] = at;
        while (at < set->count && (unsigned char)*entries[at].spelling == b)
            at++;
    }
    set->begin[256] = at;
}

enum qep_status qep_added_set_index(struct qep_added_set *set, const struct qep_vocab *vocab) {
    void *p = NULL;
    QEP_TRY(qep_alloc(set->count, sizeof(struct entry), "added tokens", &p));
    struct entry *entries = p;
    for (size_t i = 0; i < set->count; i++) {
        const struct qep_token *t = token_of(vocab, set->ids[i]);
        entries[i] = (struct entry){.spelling = vocab->texts.data + t->spelling,
                                    .len = t->spelling_len,
                                    .position = i,
                                    .id = set->ids[i],
                                    .special = t->special};
    }
    qsort(entries, set->count, sizeof *entries, in_order);
    set->count = drop_hidden(entries, set->count);
    for (size_t i = 0; i < set->count; i++)
        set->ids[i] = entries[i].id;
    find_groups(set, entries);
    free(entries);
    return QEP_OK;
}

/* Tokens of [low, high) whose byte at `depth` is below `limit`, all of them longer than that; the
 * first that is not. */
static size_t first_from(const struct qep_added_set *set, const struct qep_vocab *vocab, size_t low,
                         size_t high, size_t depth, unsigned limit) {
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const char *spelling = vocab->texts.data + token_of(vocab, set->ids[mid])->spelling;
        if ((unsigned char)spelling[depth] < limit)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

int32_t qep_added_set_at(const struct qep_added_set *set, const struct qep_vocab *vocab,
                         const char *text, size_t len, bool skip_special) {
    unsigned char c = (unsigned char)*text;
    size_t low = set->begin[c], high = set->begin[c + 1];
    int32_t best = -1;
    for (size_t depth = 1; low < high; depth++) {
        bool ends_here = false;
        for (; low < high && token_of(vocab, set->ids[low])->spelling_len == depth; low++) {
            if (!ends_here && !(skip_special && token_of(vocab, set->ids[low])->special)) {
                best = set->ids[low];
                ends_here = true;
            }
        }
        if (depth == len)
            break;
        c = (unsigned char)text[depth];
        low = first_from(set, vocab, low, high, depth, c);
        high = first_from(set, vocab, low, high, depth, c + 1u);
    }
    return best;
}

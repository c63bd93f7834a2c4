/* The pre-tokenizer: the split regex of a tokenizer.json (PCRE2, UTF and UCP).
 * \s and \S are rewritten to the Unicode White_Space list, because PCRE2's \s differs from the
 * tokenizers' at U+180E. A regex may take time in proportion to the text; one that would take more
 * is an error, never "no match". */
#ifndef QEP_TEXT_PRETOKENIZE_H
#define QEP_TEXT_PRETOKENIZE_H

#include "base/status.h"
#include "text/bytes.h"

#include <stddef.h>
#include <stdint.h>

struct qep_splitter;

/* Compiles a regex; `where` names its file in messages. QEP_ERR_DATA when it is malformed, longer
 * than 16 KB, or holds what is read differently elsewhere ((*VERB), \G, \Q, \S inside a class). */
enum qep_status qep_splitter_create(const char *regex, const char *where,
                                    struct qep_splitter **out);
void qep_splitter_destroy(struct qep_splitter *splitter); /* NULL is fine */

/* One pass over a text; start with qep_split_begin, end with qep_split_end. */
struct qep_split {
    const struct qep_splitter *splitter;
    void *match_data;
    void *match_context;
    void *jit_stack;
    const char *text; /* borrowed, valid UTF-8 */
    size_t len;
    size_t at;                     /* everything before is handed out */
    size_t match_begin, match_end; /* the match that follows `at`, if pending */
    int pending;
    uint64_t units;     /* of work, left for all texts of the pass: each adds its share */
    size_t seen, reach; /* where a counted match was last, and the furthest it has been */
};

enum qep_status qep_split_begin(struct qep_split *split, const struct qep_splitter *splitter);
void qep_split_end(struct qep_split *split);

/* Points the pass at another text, which adds to what it may spend. */
void qep_split_reset(struct qep_split *split, const char *text, size_t len);

/* The next piece, matches and the gaps between them alike (behaviour "Isolated"). An empty piece
 * means the end. QEP_ERR_DATA: the regex takes too long, or too much memory; QEP_ERR_INTERRUPTED:
 * the process was asked to stop (base/temporary.h). */
enum qep_status qep_split_next(struct qep_split *split, struct qep_text_span *piece);

#endif

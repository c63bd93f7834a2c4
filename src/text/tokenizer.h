/* The tokenizer of a tokenizer.json: byte-level BPE as Hugging Face tokenizers runs it.
 *
 *   text -> added tokens cut out (leftmost, longest) -> NFC, if the file says so -> the file's own
 *   split regex -> bytes -> merges by lowest rank, leftmost first -> ids from the vocab; no BOS/EOS
 *
 * Accepted: model BPE (merges as "a b" or ["a", "b"]); normalizer null or NFC; pre_tokenizer
 * Sequence[Split(Regex, Isolated), ByteLevel(use_regex false, add_prefix_space false)];
 * post_processor null or ByteLevel; decoder ByteLevel. Anything else is QEP_ERR_DATA by name rather
 * than wrong ids. Immutable after loading: any number of threads may encode and decode. */
#ifndef QEP_TEXT_TOKENIZER_H
#define QEP_TEXT_TOKENIZER_H

#include "base/status.h"
#include "text/bytes.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { QEP_TOKENIZER_MAX_BYTES = 64 << 20 };

struct qep_tokenizer;

/* Reads `path`. vocab_size is the model's number of embedding rows: an id at or above it is
 * QEP_ERR_DATA (0: do not check). *out is owned by the caller. */
enum qep_status qep_tokenizer_load(const char *path, int64_t vocab_size,
                                   struct qep_tokenizer **out);

/* The same from memory; `where` is the name in messages. */
enum qep_status qep_tokenizer_parse(const char *json, size_t len, const char *where,
                                    int64_t vocab_size, struct qep_tokenizer **out);

void qep_tokenizer_destroy(struct qep_tokenizer *tok); /* NULL is fine */

/* One more than the largest id; ids in between may be holes (has_id false). The sampler masks
 * holes and ids from num_ids on. */
int32_t qep_tokenizer_num_ids(const struct qep_tokenizer *tok);
bool qep_tokenizer_has_id(const struct qep_tokenizer *tok, int32_t id);

/* The id of an added token or of a vocab entry (spelled as in the file), or -1. */
int32_t qep_tokenizer_find(const struct qep_tokenizer *tok, const char *text);

/* Appends the ids of text[0..len) to *out. In the byte ranges `plain` (ascending, disjoint) special
 * tokens are ordinary text: a special token that touches one is not cut out; added tokens that are
 * not special (<think>, <tool_call>) always are, as with split_special_tokens. Ill-formed UTF-8 is
 * read as U+FFFD, as Python's errors="replace". Errors: QEP_ERR_DATA when the vocab lacks a token
 * for a byte that is needed or the regex takes too long; QEP_ERR_INTERRUPTED; QEP_ERR_SYSTEM. */
enum qep_status qep_tokenizer_encode(const struct qep_tokenizer *tok, const char *text, size_t len,
                                     const struct qep_text_span *plain, size_t num_plain,
                                     struct qep_ids *out);

/* The bytes of one id, borrowed (a token may hold a part of a character); QEP_ERR_DATA for an id
 * without a token. */
enum qep_status qep_tokenizer_bytes(const struct qep_tokenizer *tok, int32_t id, const char **bytes,
                                    size_t *len, bool *special);

/* Appends the text of ids[0..count) as valid UTF-8 (ill-formed parts become U+FFFD). */
enum qep_status qep_tokenizer_decode(const struct qep_tokenizer *tok, const int32_t *ids,
                                     size_t count, bool skip_special, struct qep_bytes *out);

#endif

/* What the text tests share: data files and tokenizers made in memory. Failures end the test. */
#ifndef QEP_TESTS_TEXT_SUPPORT_H
#define QEP_TESTS_TEXT_SUPPORT_H

#include "text/request_json.h"
#include "text/tokenizer.h"

/* A whole file under tests/data/, NUL-terminated (free). */
char *text_data(const char *name, size_t *len);

/* The same, zstd-decompressed. */
char *text_data_zst(const char *name, size_t *len);

/* A parsed JSON file under tests/data/. */
const struct qep_value *text_json(const char *name, struct qep_value_doc **doc);

/* The Qwen2 tokenizer.json from its merges; merges as "a b" or as pairs. */
void text_qwen2_json(bool pairs, struct qep_bytes *json);

/* A tokenizer.json of the Qwen3.5 form: `vocab` and `merges` are JSON members after those of the
 * 256 bytes (ids 0..255 in the order of the bytes), `added` the items of added_tokens. */
void text_small_json(const char *vocab, const char *merges, const char *added,
                     struct qep_bytes *json);

/* The ids in a JSON list equal `ids`? Prints both when not. */
bool text_same_ids(const struct qep_value *expected, const struct qep_ids *ids);

/* Ids of a text as "1 2 3" in a buffer that the next call overwrites. */
const char *text_ids(const struct qep_tokenizer *tok, const char *text, size_t len, bool plain);

#endif

/* Growable byte and id lists, byte ranges, and the UTF-8 helpers of this room. Strings carry a
 * length everywhere; NUL is an ordinary character. */
#ifndef QEP_TEXT_BYTES_H
#define QEP_TEXT_BYTES_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Start from {0}; data is owned (qep_bytes_free). Appending fails only with QEP_ERR_SYSTEM. */
struct qep_bytes {
    char *data;
    size_t len, cap;
};

/* Token ids; start from {0}; items is owned (qep_ids_free). */
struct qep_ids {
    int32_t *items;
    size_t count, cap;
};

/* The bytes [begin, end) of a text. (kernels/backend.h has a span of rows.) */
struct qep_text_span {
    size_t begin, end;
};

enum qep_status qep_bytes_append(struct qep_bytes *bytes, const char *data, size_t len);
enum qep_status qep_bytes_append_str(struct qep_bytes *bytes, const char *text);
enum qep_status qep_bytes_append_char(struct qep_bytes *bytes, uint32_t codepoint);
void qep_bytes_free(struct qep_bytes *bytes); /* and back to {0} */

enum qep_status qep_ids_append(struct qep_ids *ids, int32_t id);
void qep_ids_free(struct qep_ids *ids); /* and back to {0} */

/* Looks at the UTF-8 sequence at text[0..len), len >= 1. Returns its length and *codepoint when it
 * is valid. Else *codepoint = QEP_UTF8_BAD and the length of the maximal ill-formed prefix, the
 * part that Python's errors="replace" turns into one U+FFFD; or, when `len` ends inside a sequence
 * that may still become valid, *codepoint = QEP_UTF8_CUT and len. */
#define QEP_UTF8_BAD UINT32_MAX
#define QEP_UTF8_CUT (UINT32_MAX - 1)
size_t qep_utf8_next(const char *text, size_t len, uint32_t *codepoint);

/* The offset of the first byte that is not valid UTF-8, or len. */
size_t qep_utf8_valid_prefix(const char *text, size_t len);

/* Appends text with every ill-formed part replaced by U+FFFD, as Python's errors="replace". */
enum qep_status qep_utf8_append_replaced(struct qep_bytes *out, const char *text, size_t len);

/* Is it white space to Python's str.strip()? (Unicode White_Space and U+001C..U+001F) */
bool qep_is_python_space(uint32_t codepoint);

/* text[*begin..*end) without white space at both ends, as str.strip(). The text is valid UTF-8. */
void qep_python_strip(const char *text, size_t *begin, size_t *end);

#endif

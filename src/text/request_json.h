/* JSON of requests. cJSON turns numbers into doubles and cuts strings at NUL; requests need 1 and
 * 1.0 apart, 30-digit integers whole and NUL kept, so this reader keeps a number's source text and
 * a length with every string.
 *
 * Accepts RFC 8259 exactly (no NaN, no comments, no raw control characters, valid UTF-8 only), the
 * whole input being one value that holds at most QEP_VALUE_MAX_COUNT others (of 100 bytes of memory
 * and two of text) and is at most QEP_VALUE_MAX_DEPTH deep. As Python's json: keys keep their
 * order, of duplicate keys the last value wins at the place of the first. A lone surrogate escape,
 * which has no UTF-8, becomes U+FFFD. */
#ifndef QEP_TEXT_REQUEST_JSON_H
#define QEP_TEXT_REQUEST_JSON_H

#include "base/status.h"
#include "text/bytes.h"

#include <stdbool.h>
#include <stddef.h>

enum { QEP_VALUE_MAX_DEPTH = 500, QEP_VALUE_MAX_COUNT = 4 << 20 };

enum qep_value_kind {
    QEP_VALUE_NULL,
    QEP_VALUE_FALSE,
    QEP_VALUE_TRUE,
    QEP_VALUE_NUMBER,
    QEP_VALUE_STRING,
    QEP_VALUE_LIST,
    QEP_VALUE_OBJECT
};

/* A node of the tree; text and key are NUL-terminated past their length. */
struct qep_value {
    enum qep_value_kind kind;
    const char *text; /* STRING: its UTF-8; NUMBER: its source */
    size_t len;
    const char *key; /* as a member of an object, else NULL */
    size_t key_len;
    bool repeated;           /* the key was there more than once */
    struct qep_value *child; /* LIST, OBJECT: first item */
    struct qep_value *next;
    size_t count; /* LIST, OBJECT: number of items */
};

struct qep_value_doc; /* owns all nodes and strings of a tree */

/* Parses text[0..len). On QEP_OK *root lives until qep_value_doc_destroy(*doc). QEP_ERR_DATA says
 * what and at which byte, `where` (may be NULL) in front. */
enum qep_status qep_value_parse(const char *text, size_t len, const char *where,
                                struct qep_value_doc **doc, const struct qep_value **root);
void qep_value_doc_destroy(struct qep_value_doc *doc); /* NULL is fine */

/* The member, or NULL when absent or when obj is NULL or no object. null is a value here. */
const struct qep_value *qep_value_get(const struct qep_value *obj, const char *key);

/* The member, or NULL when absent or null. */
const struct qep_value *qep_value_get_given(const struct qep_value *obj, const char *key);

bool qep_value_is_string(const struct qep_value *value, const char *text); /* NULL: false */

/* Appends a JSON string as Python's json.dumps(ensure_ascii=False) writes it. Valid UTF-8 in;
 * NULL will do for nothing. */
enum qep_status qep_json_append_string(struct qep_bytes *out, const char *text, size_t len);

/* Appends a list of ids: [1, 2, 3]. */
enum qep_status qep_json_append_ids(struct qep_bytes *out, const struct qep_ids *ids);

#endif

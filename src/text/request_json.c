#include "text/request_json.h"

#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK_BYTES = 16 << 10 };

/* Nodes and strings live in blocks that go together. */
struct block {
    struct block *next;
    size_t used, cap;
    _Alignas(16) char data[];
};

struct qep_value_doc {
    struct block *blocks;
};

struct reader {
    const char *text, *where;
    size_t len, at;
    int depth;
    size_t num_values;
    struct qep_value_doc *doc;
    struct qep_bytes scratch;
};

static enum qep_status parse_value(struct reader *r, struct qep_value *value);

static enum qep_status fail_at(const struct reader *r, size_t at, const char *what) {
    return qep_fail(QEP_ERR_DATA, "%s%sinvalid JSON at byte %zu: %s",
                    r->where != NULL ? r->where : "", r->where != NULL ? ": " : "", at, what);
}

static enum qep_status take(struct qep_value_doc *doc, size_t bytes, void **out) {
    bytes = (bytes + 15) / 16 * 16;
    struct block *b = doc->blocks;
    if (b == NULL || b->cap - b->used < bytes) {
        size_t cap = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
        void *p = NULL;
        QEP_TRY(qep_alloc(1, sizeof *b + cap, "request", &p));
        b = p;
        *b = (struct block){.next = doc->blocks, .cap = cap};
        doc->blocks = b;
    }
    *out = b->data + b->used;
    b->used += bytes;
    return QEP_OK;
}

static enum qep_status keep_text(struct reader *r, const char *text, size_t len, const char **out) {
    void *p = NULL;
    QEP_TRY(take(r->doc, len + 1, &p));
    if (len > 0)
        memcpy(p, text, len);
    ((char *)p)[len] = '\0';
    *out = p;
    return QEP_OK;
}

static int peek(const struct reader *r) {
    return r->at < r->len ? (unsigned char)r->text[r->at] : -1;
}

static void skip_space(struct reader *r) {
    for (int c = peek(r); c == ' ' || c == '\t' || c == '\n' || c == '\r'; c = peek(r))
        r->at++;
}

static bool is_digit(int c) {
    return c >= '0' && c <= '9';
}

/* Four hex digits at `at`, or -1. */
static long hex4(const struct reader *r, size_t at) {
    long value = 0;
    if (r->len - at < 4)
        return -1;
    for (size_t i = 0; i < 4; i++) {
        char c = r->text[at + i];
        int digit = is_digit(c)              ? c - '0'
                    : (c >= 'a' && c <= 'f') ? c - 'a' + 10
                    : (c >= 'A' && c <= 'F') ? c - 'A' + 10
                                             : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* \uXXXX, `at` on the first digit; a high surrogate takes the low one that follows. */
static enum qep_status read_unicode(struct reader *r) {
    long high = hex4(r, r->at);
    if (high < 0)
        return fail_at(r, r->at, "expected four hex digits");
    r->at += 4;
    if (high >= 0xD800 && high <= 0xDBFF && r->len - r->at >= 6 && r->text[r->at] == '\\' &&
        r->text[r->at + 1] == 'u') {
        long low = hex4(r, r->at + 2);
        if (low >= 0xDC00 && low <= 0xDFFF) {
            r->at += 6;
            return qep_bytes_append_char(
                &r->scratch, (uint32_t)(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)));
        }
    }
    bool lone = high >= 0xD800 && high <= 0xDFFF;
    return qep_bytes_append_char(&r->scratch, lone ? 0xFFFD : (uint32_t)high);
}

static enum qep_status read_escape(struct reader *r) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    int c = peek(r);
    if (c == 'u') {
        r->at++;
        return read_unicode(r);
    }
    const char *hit = c > 0 ? strchr(from, c) : NULL;
    if (hit == NULL)
        return fail_at(r, r->at, "unknown escape");
    r->at++;
    return qep_bytes_append(&r->scratch, &to[hit - from], 1);
}

/* The string whose opening quote is at `at`. */
static enum qep_status parse_string(struct reader *r, const char **out, size_t *out_len) {
    size_t opening = r->at++;
    r->scratch.len = 0;
    for (;;) {
        size_t run = r->at;
        while (run < r->len && (unsigned char)r->text[run] >= 0x20 && r->text[run] != '"' &&
               r->text[run] != '\\')
            run++;
        QEP_TRY(qep_bytes_append(&r->scratch, r->text + r->at, run - r->at));
        r->at = run;
        int c = peek(r);
        if (c < 0)
            return fail_at(r, opening, "unterminated string");
        if (c < 0x20)
            return fail_at(r, r->at, "control character in a string");
        r->at++;
        if (c == '"')
            break;
        QEP_TRY(read_escape(r));
    }
    *out_len = r->scratch.len;
    return keep_text(r, r->scratch.data, r->scratch.len, out);
}

static void skip_digits(struct reader *r) {
    while (is_digit(peek(r)))
        r->at++;
}

static enum qep_status parse_number(struct reader *r, struct qep_value *value) {
    size_t begin = r->at;
    if (peek(r) == '-')
        r->at++;
    if (!is_digit(peek(r)))
        return fail_at(r, begin, "expected a value");
    if (peek(r) == '0')
        r->at++;
    else
        skip_digits(r);
    if (peek(r) == '.') {
        r->at++;
        if (!is_digit(peek(r)))
            return fail_at(r, r->at, "expected a digit");
        skip_digits(r);
    }
    if (peek(r) == 'e' || peek(r) == 'E') {
        r->at++;
        if (peek(r) == '+' || peek(r) == '-')
            r->at++;
        if (!is_digit(peek(r)))
            return fail_at(r, r->at, "expected a digit");
        skip_digits(r);
    }
    value->kind = QEP_VALUE_NUMBER;
    value->len = r->at - begin;
    return keep_text(r, r->text + begin, value->len, &value->text);
}

static enum qep_status parse_word(struct reader *r, struct qep_value *value) {
    static const struct {
        const char *text;
        enum qep_value_kind kind;
    } words[] = {{"null", QEP_VALUE_NULL}, {"false", QEP_VALUE_FALSE}, {"true", QEP_VALUE_TRUE}};
    for (size_t i = 0; i < 3; i++) {
        size_t n = strlen(words[i].text);
        if (r->len - r->at >= n && memcmp(r->text + r->at, words[i].text, n) == 0) {
            value->kind = words[i].kind;
            r->at += n;
            return QEP_OK;
        }
    }
    return fail_at(r, r->at, r->at < r->len ? "expected a value" : "unexpected end");
}

static enum qep_status parse_key(struct reader *r, struct qep_value *item) {
    skip_space(r);
    if (peek(r) != '"')
        return fail_at(r, r->at, "expected a key in quotes");
    QEP_TRY(parse_string(r, &item->key, &item->key_len));
    skip_space(r);
    if (peek(r) != ':')
        return fail_at(r, r->at, "expected ':'");
    r->at++;
    return QEP_OK;
}

static bool same_key(const struct qep_value *a, const struct qep_value *b) {
    return a->key_len == b->key_len && memcmp(a->key, b->key, a->key_len) == 0;
}

/* Puts the later member's value into the earlier member's place. */
static void replace_value(struct qep_value *earlier, const struct qep_value *later) {
    struct qep_value *next = earlier->next;
    *earlier = *later;
    earlier->next = next;
    earlier->repeated = true;
}

struct member {
    struct qep_value *value;
    size_t order;
    bool duplicate;
};

static int by_key_then_order(const void *a, const void *b) {
    const struct member *x = a, *y = b;
    size_t n = x->value->key_len < y->value->key_len ? x->value->key_len : y->value->key_len;
    int cmp = memcmp(x->value->key, y->value->key, n);
    if (cmp != 0)
        return cmp;
    if (x->value->key_len != y->value->key_len)
        return x->value->key_len < y->value->key_len ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

static int by_order(const void *a, const void *b) {
    const struct member *x = a, *y = b;
    return x->order < y->order ? -1 : 1;
}

/* Resolves duplicate keys of a large object in n log n. */
static enum qep_status drop_duplicates(struct qep_value *obj) {
    void *p = NULL;
    if (obj->count < 2)
        return QEP_OK;
    QEP_TRY(qep_alloc(obj->count, sizeof(struct member), "object", &p));
    struct member *members = p;
    size_t n = 0;
    for (struct qep_value *v = obj->child; v != NULL; v = v->next, n++)
        members[n] = (struct member){v, n, false};
    qsort(members, n, sizeof *members, by_key_then_order);
    for (size_t i = 0, first = 0; i < n; i++) {
        if (i > 0 && same_key(members[i].value, members[first].value)) {
            members[i].duplicate = true;
            replace_value(members[first].value, members[i].value);
        } else {
            first = i;
        }
    }
    qsort(members, n, sizeof *members, by_order);
    struct qep_value **link = &obj->child;
    obj->count = 0;
    for (size_t i = 0; i < n; i++) {
        if (members[i].duplicate)
            continue;
        *link = members[i].value;
        link = &members[i].value->next;
        obj->count++;
    }
    *link = NULL;
    free(members);
    return QEP_OK;
}

/* The list or object whose opening bracket is at `at`. */
static enum qep_status parse_items(struct reader *r, struct qep_value *value) {
    bool is_object = peek(r) == '{';
    int closing = is_object ? '}' : ']';
    struct qep_value **link = &value->child;
    value->kind = is_object ? QEP_VALUE_OBJECT : QEP_VALUE_LIST;
    if (++r->depth > QEP_VALUE_MAX_DEPTH)
        return fail_at(r, r->at, "nested too deep");
    r->at++;
    skip_space(r);
    if (peek(r) == closing) {
        r->at++;
        r->depth--;
        return QEP_OK;
    }
    for (;;) {
        void *p = NULL;
        if (++r->num_values > QEP_VALUE_MAX_COUNT)
            return fail_at(r, r->at, "more values than are accepted");
        QEP_TRY(take(r->doc, sizeof(struct qep_value), &p));
        struct qep_value *item = p;
        *item = (struct qep_value){0};
        if (is_object)
            QEP_TRY(parse_key(r, item));
        QEP_TRY(parse_value(r, item));
        *link = item;
        link = &item->next;
        value->count++;
        skip_space(r);
        int c = peek(r);
        if (c != ',' && c != closing)
            return fail_at(r, r->at, is_object ? "expected ',' or '}'" : "expected ',' or ']'");
        r->at++;
        if (c == closing)
            break;
    }
    r->depth--;
    return is_object ? drop_duplicates(value) : QEP_OK;
}

static enum qep_status parse_value(struct reader *r, struct qep_value *value) {
    skip_space(r);
    int c = peek(r);
    if (c == '{' || c == '[')
        return parse_items(r, value);
    if (c == '"') {
        value->kind = QEP_VALUE_STRING;
        return parse_string(r, &value->text, &value->len);
    }
    if (c == '-' || is_digit(c))
        return parse_number(r, value);
    return parse_word(r, value);
}

static enum qep_status parse_whole(struct reader *r, struct qep_value *root) {
    size_t valid = qep_utf8_valid_prefix(r->text, r->len);
    if (valid < r->len)
        return fail_at(r, valid, "not UTF-8");
    QEP_TRY(parse_value(r, root));
    skip_space(r);
    return r->at == r->len ? QEP_OK : fail_at(r, r->at, "unexpected text after the value");
}

enum qep_status qep_value_parse(const char *text, size_t len, const char *where,
                                struct qep_value_doc **doc, const struct qep_value **root) {
    struct reader r = {.text = text, .where = where, .len = len};
    void *p = NULL;
    *doc = NULL;
    *root = NULL;
    QEP_TRY(qep_calloc(1, sizeof *r.doc, "request", &p));
    r.doc = p;
    enum qep_status st = take(r.doc, sizeof(struct qep_value), &p);
    if (st == QEP_OK) {
        struct qep_value *value = p;
        *value = (struct qep_value){0};
        st = parse_whole(&r, value);
        *root = value;
    }
    qep_bytes_free(&r.scratch);
    if (st != QEP_OK) {
        qep_value_doc_destroy(r.doc);
        *root = NULL;
        return st;
    }
    *doc = r.doc;
    return QEP_OK;
}

void qep_value_doc_destroy(struct qep_value_doc *doc) {
    if (doc == NULL)
        return;
    for (struct block *b = doc->blocks, *next; b != NULL; b = next) {
        next = b->next;
        free(b);
    }
    free(doc);
}

const struct qep_value *qep_value_get(const struct qep_value *obj, const char *key) {
    size_t len = strlen(key);
    if (obj == NULL || obj->kind != QEP_VALUE_OBJECT)
        return NULL;
    for (const struct qep_value *v = obj->child; v != NULL; v = v->next)
        if (v->key_len == len && memcmp(v->key, key, len) == 0)
            return v;
    return NULL;
}

const struct qep_value *qep_value_get_given(const struct qep_value *obj, const char *key) {
    const struct qep_value *value = qep_value_get(obj, key);
    return value == NULL || value->kind == QEP_VALUE_NULL ? NULL : value;
}

bool qep_value_is_string(const struct qep_value *value, const char *text) {
    return value != NULL && value->kind == QEP_VALUE_STRING && value->len == strlen(text) &&
           memcmp(value->text, text, value->len) == 0;
}

#include "text/bytes.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum qep_status qep_bytes_append(struct qep_bytes *bytes, const char *data, size_t len) {
    if (len == 0)
        return QEP_OK;
    if (len > SIZE_MAX - bytes->len)
        return qep_fail(QEP_ERR_SYSTEM, "text: too long");
    if (bytes->len + len > bytes->cap) {
        void *grown = bytes->data;
        QEP_TRY(qep_grow(&grown, &bytes->cap, bytes->len + len, 1, "text"));
        bytes->data = grown;
    }
    memcpy(bytes->data + bytes->len, data, len);
    bytes->len += len;
    return QEP_OK;
}

enum qep_status qep_bytes_append_str(struct qep_bytes *bytes, const char *text) {
    return qep_bytes_append(bytes, text, strlen(text));
}

enum qep_status qep_bytes_append_char(struct qep_bytes *bytes, uint32_t codepoint) {
    char c[4];
    if (codepoint < 0x80) {
        c[0] = (char)codepoint;
        return qep_bytes_append(bytes, c, 1);
    }
    if (codepoint < 0x800) {
        c[0] = (char)(0xC0 | codepoint >> 6);
        c[1] = (char)(0x80 | (codepoint & 0x3F));
        return qep_bytes_append(bytes, c, 2);
    }
    if (codepoint < 0x10000) {
        c[0] = (char)(0xE0 | codepoint >> 12);
        c[1] = (char)(0x80 | (codepoint >> 6 & 0x3F));
        c[2] = (char)(0x80 | (codepoint & 0x3F));
        return qep_bytes_append(bytes, c, 3);
    }
    c[0] = (char)(0xF0 | codepoint >> 18);
    c[1] = (char)(0x80 | (codepoint >> 12 & 0x3F));
    c[2] = (char)(0x80 | (codepoint >> 6 & 0x3F));
    c[3] = (char)(0x80 | (codepoint & 0x3F));
    return qep_bytes_append(bytes, c, 4);
}

void qep_bytes_free(struct qep_bytes *bytes) {
    free(bytes->data);
    *bytes = (struct qep_bytes){0};
}

enum qep_status qep_ids_append(struct qep_ids *ids, int32_t id) {
    if (ids->count == ids->cap) {
        void *grown = ids->items;
        QEP_TRY(qep_grow(&grown, &ids->cap, ids->count + 1, sizeof *ids->items, "token ids"));
        ids->items = grown;
    }
    ids->items[ids->count++] = id;
    return QEP_OK;
}

void qep_ids_free(struct qep_ids *ids) {
    free(ids->items);
    *ids = (struct qep_ids){0};
}

/* The range the second byte must lie in, by the first byte (Unicode table 3-7): this is what makes
 * overlong forms, surrogates and values above U+10FFFF ill-formed at once. */
static void second_byte_range(unsigned first, unsigned *low, unsigned *high) {
    *low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    *high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
}

size_t qep_utf8_next(const char *text, size_t len, uint32_t *codepoint) {
    const unsigned char *s = (const unsigned char *)text;
    *codepoint = QEP_UTF8_BAD;
    if (s[0] < 0x80) {
        *codepoint = s[0];
        return 1;
    }
    if (s[0] < 0xC2 || s[0] > 0xF4)
        return 1;
    size_t need = s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    uint32_t value = s[0] & (0xFFu >> (need + 1));
    unsigned low, high;
    second_byte_range(s[0], &low, &high);
    for (size_t i = 1; i < need; i++) {
        if (i == len) {
            *codepoint = QEP_UTF8_CUT;
            return len;
        }
        if (s[i] < low || s[i] > high)
            return i;
        value = value << 6 | (s[i] & 0x3Fu);
        low = 0x80;
        high = 0xBF;
    }
    *codepoint = value;
    return need;
}

size_t qep_utf8_valid_prefix(const char *text, size_t len) {
    size_t at = 0;
    while (at < len) {
        uint32_t cp;
        if ((unsigned char)text[at] < 0x80) {
            at++;
            continue;
        }
        size_t n = qep_utf8_next(text + at, len - at, &cp);
        if (cp >= QEP_UTF8_CUT)
            return at;
        at += n;
    }
    return len;
}

enum qep_status qep_utf8_append_replaced(struct qep_bytes *out, const char *text, size_t len) {
    for (size_t at = 0; at < len;) {
        size_t good = qep_utf8_valid_prefix(text + at, len - at);
        QEP_TRY(qep_bytes_append(out, text + at, good));
        at += good;
        if (at == len)
            break;
        uint32_t cp;
        at += qep_utf8_next(text + at, len - at, &cp);
        QEP_TRY(qep_bytes_append_char(out, 0xFFFD));
    }
    return QEP_OK;
}

bool qep_is_python_space(uint32_t cp) {
    if (cp < 0x80)
        return (cp >= 0x09 && cp <= 0x0D) || (cp >= 0x1C && cp <= 0x20);
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

void qep_python_strip(const char *text, size_t *begin, size_t *end) {
    uint32_t cp;
    while (*begin < *end) {
        size_t n = qep_utf8_next(text + *begin, *end - *begin, &cp);
        if (!qep_is_python_space(cp))
            break;
        *begin += n;
    }
    while (*begin < *end) {
        size_t last = *end - 1;
        while (last > *begin && ((unsigned char)text[last] & 0xC0) == 0x80)
            last--;
        qep_utf8_next(text + last, *end - last, &cp);
        if (!qep_is_python_space(cp))
            break;
        *end = last;
    }
}

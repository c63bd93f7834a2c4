#include "text/python_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { MAX_DIGITS = 17 };

/* A double as d.ddd x 10^exponent: `digits` digits of decimal value. */
struct decimal {
    char digits[MAX_DIGITS + 1];
    int num_digits, exponent;
};

static void print_decimal(double value, int num_digits, struct decimal *d) {
    char text[40];
    snprintf(text, sizeof text, "%.*e", num_digits - 1, value);
    char *e = strchr(text, 'e');
    d->exponent = atoi(e + 1);
    d->num_digits = 0;
    for (const char *p = text; p < e; p++)
        if (*p >= '0' && *p <= '9')
            d->digits[d->num_digits++] = *p;
    d->digits[d->num_digits] = '\0';
}

static double value_of(const struct decimal *d) {
    char text[48];
    snprintf(text, sizeof text, "%c.%se%d", d->digits[0], d->digits + 1, d->exponent);
    return strtod(text, NULL);
}

/* One more in the last digit; false when that would carry out of the first. */
static bool increment(struct decimal *d) {
    for (int i = d->num_digits - 1; i >= 0; i--) {
        if (d->digits[i] != '9') {
            d->digits[i]++;
            return true;
        }
        d->digits[i] = '0';
    }
    return false;
}

/* The shortest digits that read back as `value` > 0. Below a power of two doubles lie closer than
 * above, so there the digits above the nearest ones may be the ones that read back. */
static void shortest(double value, struct decimal *d) {
    for (int n = 1; n <= MAX_DIGITS; n++) {
        print_decimal(value, n, d);
        if (value_of(d) == value)
            break;
        struct decimal up = *d;
        if (increment(&up) && value_of(&up) == value) {
            *d = up;
            break;
        }
    }
    while (d->num_digits > 1 && d->digits[d->num_digits - 1] == '0')
        d->digits[--d->num_digits] = '\0';
}

/* float.__repr__ of a finite double. */
static enum qep_status append_float(struct qep_bytes *out, double value) {
    struct decimal d = {.digits = "0", .num_digits = 1};
    char text[64];
    if (signbit(value))
        QEP_TRY(qep_bytes_append_str(out, "-"));
    if (value != 0)
        shortest(fabs(value), &d);
    if (d.exponent < -4 || d.exponent >= 16)
        snprintf(text, sizeof text, "%c%s%se%c%02d", d.digits[0], d.num_digits > 1 ? "." : "",
                 d.digits + 1, d.exponent < 0 ? '-' : '+', abs(d.exponent));
    else if (d.exponent < 0)
        snprintf(text, sizeof text, "0.%.*s%s", -d.exponent - 1, "0000", d.digits);
    else if (d.num_digits <= d.exponent + 1)
        snprintf(text, sizeof text, "%s%.*s.0", d.digits, d.exponent + 1 - d.num_digits,
                 "0000000000000000");
    else
        snprintf(text, sizeof text, "%.*s.%s", d.exponent + 1, d.digits, d.digits + d.exponent + 1);
    return qep_bytes_append_str(out, text);
}

/* A number with neither point nor exponent is an int of any size and prints as written. */
static enum qep_status append_number(struct qep_bytes *out, const struct qep_value *value,
                                     bool json) {
    if (strpbrk(value->text, ".eE") == NULL)
        return qep_bytes_append_str(out, strcmp(value->text, "-0") == 0 ? "0" : value->text);
    double number = strtod(value->text, NULL);
    if (isinf(number)) {
        QEP_TRY(qep_bytes_append_str(out, number < 0 ? "-" : ""));
        return qep_bytes_append_str(out, json ? "Infinity" : "inf");
    }
    return append_float(out, number);
}

enum qep_status qep_json_append_string(struct qep_bytes *out, const char *text, size_t len) {
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    size_t done = 0;
    if (len == 0) /* text may be NULL: nothing was appended to what it is of */
        return qep_bytes_append_str(out, "\"\"");
    QEP_TRY(qep_bytes_append(out, "\"", 1));
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        char escape[8];
        const char *hit = c != 0 ? strchr(from, c) : NULL;
        if (hit != NULL)
            snprintf(escape, sizeof escape, "\\%c", to[hit - from]);
        else
            snprintf(escape, sizeof escape, "\\u%04x", (unsigned)c);
        QEP_TRY(qep_bytes_append(out, text + done, i - done));
        QEP_TRY(qep_bytes_append_str(out, escape));
        done = i + 1;
    }
    QEP_TRY(qep_bytes_append(out, text + done, len - done));
    return qep_bytes_append(out, "\"", 1);
}

enum qep_status qep_json_append_ids(struct qep_bytes *out, const struct qep_ids *ids) {
    QEP_TRY(qep_bytes_append(out, "[", 1));
    for (size_t i = 0; i < ids->count; i++) {
        char text[24];
        snprintf(text, sizeof text, "%s%d", i > 0 ? ", " : "", (int)ids->items[i]);
        QEP_TRY(qep_bytes_append_str(out, text));
    }
    return qep_bytes_append(out, "]", 1);
}

/* str.isprintable() of one character: no control, format, surrogate, private, unassigned character
 * and no separator other than the space. */
static bool is_printable(uint32_t cp) {
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    case UTF8PROC_CATEGORY_ZS:
        return cp == ' ';
    default:
        return true;
    }
}

static enum qep_status append_repr_char(struct qep_bytes *out, uint32_t cp, char quote) {
    char text[16];
    if (cp == (uint32_t)quote || cp == '\\')
        snprintf(text, sizeof text, "\\%c", (int)cp);
    else if (cp == '\n' || cp == '\r' || cp == '\t')
        snprintf(text, sizeof text, "\\%c", cp == '\n' ? 'n' : cp == '\r' ? 'r' : 't');
    else if (is_printable(cp))
        return qep_bytes_append_char(out, cp);
    else
        snprintf(text, sizeof text,
                 cp < 0x100     ? "\\x%02x"
                 : cp < 0x10000 ? "\\u%04x"
                                : "\\U%08x",
                 (unsigned)cp);
    return qep_bytes_append_str(out, text);
}

/* str.__repr__: single quotes, unless only double ones need no escape. */
static enum qep_status append_repr_string(struct qep_bytes *out, const char *text, size_t len) {
    bool single = len > 0 && memchr(text, '\'', len) != NULL;
    char quote = single && memchr(text, '"', len) == NULL ? '"' : '\'';
    QEP_TRY(qep_bytes_append(out, &quote, 1));
    for (size_t at = 0; at < len;) {
        uint32_t cp;
        at += qep_utf8_next(text + at, len - at, &cp);
        QEP_TRY(append_repr_char(out, cp, quote));
    }
    return qep_bytes_append(out, &quote, 1);
}

static enum qep_status append_value(struct qep_bytes *out, const struct qep_value *value,
                                    bool json);

static enum qep_status append_text(struct qep_bytes *out, const char *text, size_t len, bool json) {
    return json ? qep_json_append_string(out, text, len) : append_repr_string(out, text, len);
}

static enum qep_status append_items(struct qep_bytes *out, const struct qep_value *value,
                                    bool json) {
    bool is_object = value->kind == QEP_VALUE_OBJECT;
    QEP_TRY(qep_bytes_append_str(out, is_object ? "{" : "["));
    for (const struct qep_value *item = value->child; item != NULL; item = item->next) {
        if (is_object) {
            QEP_TRY(append_text(out, item->key, item->key_len, json));
            QEP_TRY(qep_bytes_append_str(out, ": "));
        }
        QEP_TRY(append_value(out, item, json));
        if (item->next != NULL)
            QEP_TRY(qep_bytes_append_str(out, ", "));
    }
    return qep_bytes_append_str(out, is_object ? "}" : "]");
}

/* json.dumps or repr. */
static enum qep_status append_value(struct qep_bytes *out, const struct qep_value *value,
                                    bool json) {
    switch (value->kind) {
    case QEP_VALUE_NULL:
        return qep_bytes_append_str(out, json ? "null" : "None");
    case QEP_VALUE_FALSE:
        return qep_bytes_append_str(out, json ? "false" : "False");
    case QEP_VALUE_TRUE:
        return qep_bytes_append_str(out, json ? "true" : "True");
    case QEP_VALUE_NUMBER:
        return append_number(out, value, json);
    case QEP_VALUE_STRING:
        return append_text(out, value->text, value->len, json);
    case QEP_VALUE_LIST:
    case QEP_VALUE_OBJECT:
        return append_items(out, value, json);
    }
    return qep_fail(QEP_ERR_BUG, "JSON value of unknown kind %d", (int)value->kind);
}

enum qep_status qep_python_dumps(struct qep_bytes *out, const struct qep_value *value) {
    return append_value(out, value, true);
}

enum qep_status qep_python_str(struct qep_bytes *out, const struct qep_value *value) {
    if (value->kind == QEP_VALUE_STRING)
        return qep_bytes_append(out, value->text, value->len);
    return append_value(out, value, false);
}

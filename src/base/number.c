#include "base/number.h"

#include <stdlib.h>
#include <string.h>

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static size_t count_digits(const char *text, size_t len) {
    size_t n = 0;
    while (n < len && is_digit(text[n]))
        n++;
    return n;
}

/* Appends a digit below zero, where there is one number more. */
static bool append_digit(int64_t *negative, int digit) {
    return !__builtin_mul_overflow(*negative, 10, negative) &&
           !__builtin_sub_overflow(*negative, digit, negative);
}

static bool finish(int64_t value, bool is_negative, int64_t min, int64_t max, int64_t *out) {
    if (is_negative ? value == 0 : value == INT64_MIN)
        return false;
    value = is_negative ? value : -value;
    if (value < min || value > max)
        return false;
    *out = value;
    return true;
}

bool qep_parse_int(const char *text, size_t len, int64_t min, int64_t max, int64_t *out) {
    bool is_negative = len > 0 && text[0] == '-';
    int64_t value = 0;
    if (len == is_negative)
        return false;
    for (size_t i = is_negative; i < len; i++)
        if (!is_digit(text[i]) || !append_digit(&value, text[i] - '0'))
            return false;
    return finish(value, is_negative, min, max, out);
}

/* Where the parts of a number lie: [-]whole[.fraction][e[-+]exponent]. */
struct parts {
    const char *whole, *fraction;
    size_t num_whole, num_fraction, len;
    int64_t exponent; /* huge ones are cut: no digits are left or needed there */
};

enum { MAX_EXPONENT = 1 << 30 };

static int64_t read_exponent(const char *text, size_t len) {
    bool is_signed = len > 0 && (text[0] == '-' || text[0] == '+');
    int64_t exponent = 0;
    for (size_t i = is_signed; i < len && exponent < MAX_EXPONENT; i++)
        exponent = exponent * 10 + (text[i] - '0');
    return is_signed && text[0] == '-' ? -exponent : exponent;
}

static bool split_exponent(const char *text, size_t len, struct parts *p) {
    size_t sign = len > 1 && (text[1] == '-' || text[1] == '+');
    if (len == 0)
        return true;
    if ((text[0] != 'e' && text[0] != 'E') || len == 1 + sign)
        return false;
    p->exponent = read_exponent(text + 1, len - 1);
    return count_digits(text + 1 + sign, len - 1 - sign) == len - 1 - sign;
}

/* False when text is no number at all. */
static bool split(const char *text, size_t len, struct parts *p) {
    size_t at = len > 0 && text[0] == '-';
    *p = (struct parts){.whole = text + at, .num_whole = count_digits(text + at, len - at)};
    at += p->num_whole;
    if (at < len && text[at] == '.') {
        p->fraction = text + ++at;
        p->num_fraction = count_digits(text + at, len - at);
        at += p->num_fraction;
    }
    return p->num_whole + p->num_fraction > 0 && split_exponent(text + at, len - at, p);
}

static int digit_at(const struct parts *p, size_t idx) {
    if (idx < p->num_whole)
        return p->whole[idx] - '0';
    return idx < p->num_whole + p->num_fraction ? p->fraction[idx - p->num_whole] - '0' : 0;
}

bool qep_parse_whole(const char *text, size_t len, int64_t min, int64_t max, int64_t *out) {
    struct parts p;
    int64_t value = 0;
    if (!split(text, len, &p))
        return false;
    int64_t num_digits = (int64_t)(p.num_whole + p.num_fraction);
    int64_t num_kept = (int64_t)p.num_whole + p.exponent; /* digits before the moved point */
    for (int64_t i = 0; i < num_digits; i++)
        if (i < num_kept ? !append_digit(&value, digit_at(&p, (size_t)i))
                         : digit_at(&p, (size_t)i) != 0)
            return false;
    for (int64_t i = num_digits; i < num_kept && value != 0; i++)
        if (!append_digit(&value, 0))
            return false;
    return finish(value, text[0] == '-', min, max, out);
}

bool qep_parse_double(const char *text, size_t len, double min, double max, double *out) {
    struct parts p;
    char *end = NULL;
    if (!split(text, len, &p))
        return false;
    double value = strtod(text, &end);
    bool is_minus_zero = text[0] == '-' && value >= 0;
    if (end != text + len || is_minus_zero || !(value >= min && value <= max))
        return false;
    *out = value;
    return true;
}

bool qep_parse_next(const char **at, int64_t min, int64_t max, int64_t *out) {
    size_t len = strcspn(*at, ",");
    if (!qep_parse_int(*at, len, min, max, out))
        return false;
    *at = (*at)[len] == ',' ? *at + len + 1 : NULL;
    return true;
}

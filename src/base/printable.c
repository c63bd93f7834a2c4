#include "base/printable.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Length of the well-formed UTF-8 character at `at`, and the character; 0: there is none. */
static size_t decode(const char *at, uint32_t *out) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)at;
    size_t n = s[0] < 0x80 ? 1 : s[0] < 0xc0 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    uint32_t c = n == 1 ? s[0] : n == 0 ? 0 : s[0] & (0x7fu >> n);
    if (s[0] >= 0xf8)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) /* the final NUL included */
            return 0;
        c = c << 6 | (s[i] & 0x3fu);
    }
    if (n > 0 && (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)))
        return 0;
    *out = c;
    return n;
}

static bool is_control(uint32_t c) {
    return c < 0x20 || (c >= 0x7f && c <= 0x9f) || c == 0x61c || c == 0x200e || c == 0x200f ||
           (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

/* Bytes of the character at `at`; *good: it may be shown. */
static size_t next(const char *at, bool *good) {
    uint32_t c = 0;
    size_t n = decode(at, &c);
    *good = n > 0 && !is_control(c);
    return n > 0 ? n : 1;
}

void qep_text_printable(char *text) {
    char *to = text;
    bool good = false;
    for (const char *from = text; *from != '\0';) {
        size_t n = next(from, &good);
        for (size_t i = 0; good && i < n; i++)
            *to++ = from[i];
        if (!good)
            *to++ = '?';
        from += n;
    }
    *to = '\0';
}

bool qep_text_is_printable(const char *text) {
    bool good = true;
    while (good && *text != '\0')
        text += next(text, &good);
    return good;
}

/* Within single quotes everything is itself but the quote. */
static void quote(const char *text, char *out, size_t out_bytes) {
    size_t n = 0;
    out[n++] = '\'';
    for (; *text != '\0' && n + 6 < out_bytes; text++) {
        const char *piece = *text == '\'' ? "'\\''" : NULL;
        if (piece != NULL)
            n += (size_t)snprintf(out + n, out_bytes - n, "%s", piece);
        else
            out[n++] = *text;
    }
    memcpy(out + n, "'", 2);
}

void qep_text_shell_word(const char *text, char *out, size_t out_bytes) {
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-+=:,@%";
    if (*text != '\0' && text[strspn(text, plain)] == '\0')
        snprintf(out, out_bytes, "%s", text);
    else
        quote(text, out, out_bytes);
}

int qep_text_cut(const char *text, size_t len, size_t max) {
    if (len <= max)
        return (int)len;
    while (max > 0 && ((unsigned char)text[max] & 0xc0) == 0x80)
        max--;
    return (int)max;
}

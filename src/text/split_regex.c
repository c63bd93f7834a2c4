/* A stranger's regex: what Oniguruma and PCRE2 read differently is spelled out or refused, and so
 * is what would let it escape from the counting of its work. */
#include "text/split_regex.h"

#include "base/mem.h"
#include "text/pretokenize.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Real ones have some 300 bytes, and 1 KB when compiled. */
enum { MAX_REGEX_BYTES = 16 << 10, SMALL_BYTES = 2 << 10, SMALL_BLIND = 64, BYTES_PER_UNIT = 512 };

static const char white_space[] = "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}"
                                  "\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";

struct rewrite {
    const char *where;
    struct qep_bytes *out;
    bool in_class;
    uint64_t repeats; /* the largest N of {N}, {N,} and {N,M} */
};

static enum qep_status unsupported(const struct rewrite *r, const char *what) {
    return qep_fail(QEP_ERR_DATA, "%s: split regex: %s is not supported", r->where, what);
}

static enum qep_status append_space_class(struct rewrite *r, bool negated) {
    if (!r->in_class)
        QEP_TRY(qep_bytes_append_str(r->out, negated ? "[^" : "["));
    QEP_TRY(qep_bytes_append_str(r->out, white_space));
    return r->in_class ? QEP_OK : qep_bytes_append_str(r->out, "]");
}

/* Bytes of what follows a backslash: a letter, or a letter and its {...}. */
static size_t escape_len(const char *p) {
    const char *end = strchr("xopPNgku", *p) != NULL && p[1] == '{' ? strchr(p, '}') : NULL;
    return end != NULL ? (size_t)(end - p) + 1 : 1;
}

/* \s and \S become lists; a negated list cannot stand inside a class. */
static enum qep_status rewrite_escape(struct rewrite *r, const char **at) {
    const char *p = *at + 1;
    if (*p == 'S' && r->in_class)
        return unsupported(r, "\\S inside [...]");
    if (*p == 'G' && !r->in_class)
        return unsupported(r, "\\G");
    if (*p == 'Q')
        return unsupported(r, "\\Q");
    *at += escape_len(p);
    if (*p == 's' || *p == 'S')
        return append_space_class(r, *p == 'S');
    return qep_bytes_append(r->out, p - 1, (size_t)(*at - p) + 2);
}

/* `[`, `[^`, and a ] right after, which is literal. */
static enum qep_status enter_class(struct rewrite *r, const char **at) {
    const char *p = *at;
    size_t lead = p[1] == '^' ? 2 : 1;
    if (p[lead] == ']')
        lead++;
    r->in_class = true;
    *at += lead - 1;
    return qep_bytes_append(r->out, p, lead);
}

static enum qep_status rewrite_plain(struct rewrite *r, const char *p) {
    if (!r->in_class && p[0] == '(' && p[1] == '*')
        return unsupported(r, "(*");
    if (*p == '{') {
        uint64_t n = strtoull(p + 1, NULL, 10);
        r->repeats = n > r->repeats ? n : r->repeats;
    }
    if (*p == ']')
        r->in_class = false;
    return qep_bytes_append(r->out, p, 1);
}

static enum qep_status rewrite(struct rewrite *r, const char *regex) {
    for (const char *p = regex; *p != '\0'; p++) {
        if (*p == '\\' && p[1] != '\0')
            QEP_TRY(rewrite_escape(r, &p));
        else if (*p == '[' && !r->in_class)
            QEP_TRY(enter_class(r, &p));
        else
            QEP_TRY(rewrite_plain(r, p));
    }
    return QEP_OK;
}

static enum qep_status compile(const struct rewrite *r, uint32_t options, pcre2_code **out) {
    int code = 0;
    PCRE2_SIZE at = 0;
    const char *pattern = r->out->len > 0 ? r->out->data : "";
    *out = pcre2_compile((PCRE2_SPTR)pattern, r->out->len,
                         PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_ANCHORED |
                             PCRE2_NO_START_OPTIMIZE | options,
                         &code, &at, NULL);
    if (*out == NULL) {
        PCRE2_UCHAR message[128] = {0};
        pcre2_get_error_message(code, message, sizeof message);
        return qep_fail(code == PCRE2_ERROR_HEAP_FAILED ? QEP_ERR_SYSTEM : QEP_ERR_DATA,
                        "%s: split regex: %s", r->where, (const char *)message);
    }
    /* Without JIT (not built in, or no executable memory) matching is slower, not different. */
    (void)pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
    return QEP_OK;
}

static void price(struct qep_splitter *s, const struct rewrite *r) {
    size_t bytes = 0;
    uint32_t behind = 0, back = 0;
    pcre2_pattern_info(s->counted, PCRE2_INFO_SIZE, &bytes);
    pcre2_pattern_info(s->counted, PCRE2_INFO_MAXLOOKBEHIND, &behind);
    pcre2_pattern_info(s->counted, PCRE2_INFO_BACKREFMAX, &back);
    s->units_per_unit = 1 + bytes / BYTES_PER_UNIT;
    s->blind = r->repeats > behind ? r->repeats : behind;
    s->refers_back = back > 0;
    s->small = bytes <= SMALL_BYTES && s->blind <= SMALL_BLIND;
}

static enum qep_status build(struct qep_splitter *s, const char *regex, struct rewrite *r) {
    s->regex = strdup(regex);
    s->where = strdup(r->where);
    if (s->regex == NULL || s->where == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "%s: split regex: out of memory", r->where);
    if (strlen(regex) > MAX_REGEX_BYTES)
        return qep_fail(QEP_ERR_DATA, "%s: split regex: expected at most %d bytes, found %zu",
                        r->where, MAX_REGEX_BYTES, strlen(regex));
    QEP_TRY(rewrite(r, regex));
    QEP_TRY(compile(r, 0, &s->plain));
    QEP_TRY(compile(r, PCRE2_AUTO_CALLOUT, &s->counted));
    price(s, r);
    return QEP_OK;
}

enum qep_status qep_splitter_create(const char *regex, const char *where,
                                    struct qep_splitter **out) {
    struct qep_bytes pattern = {0};
    struct rewrite r = {.where = where, .out = &pattern};
    void *p = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof **out, "split regex", &p));
    enum qep_status st = build(p, regex, &r);
    qep_bytes_free(&pattern);
    if (st == QEP_OK)
        *out = p;
    else
        qep_splitter_destroy(p);
    return st;
}

void qep_splitter_destroy(struct qep_splitter *splitter) {
    if (splitter == NULL)
        return;
    pcre2_code_free(splitter->plain);
    pcre2_code_free(splitter->counted);
    free(splitter->regex);
    free(splitter->where);
    free(splitter);
}

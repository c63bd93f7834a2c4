#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pretokenize.h"

#include "base/mem.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

/* Far above what any real text needs, far below for ever. */
enum { MATCH_LIMIT = 100000000, JIT_STACK_START = 64 << 10, JIT_STACK_MAX = 64 << 20 };

static const char white_space[] = "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}"
                                  "\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";

struct qep_splitter {
    pcre2_code *code;
};

static enum qep_status append_space_class(struct qep_bytes *out, bool in_class, bool negated) {
    if (!in_class)
        QEP_TRY(qep_bytes_append_str(out, negated ? "[^" : "["));
    QEP_TRY(qep_bytes_append_str(out, white_space));
    return in_class ? QEP_OK : qep_bytes_append_str(out, "]");
}

/* Copies the regex with \s and \S spelled out. A negated list cannot stand inside a class. */
static enum qep_status rewrite_spaces(const char *regex, const char *where, struct qep_bytes *out) {
    bool in_class = false;
    for (const char *p = regex; *p != '\0'; p++) {
        if (*p == '\\' && p[1] != '\0') {
            p++;
            if (*p == 'S' && in_class)
                return qep_fail(QEP_ERR_DATA, "%s: split regex: \\S inside [...] is not supported",
                                where);
            if (*p == 's' || *p == 'S')
                QEP_TRY(append_space_class(out, in_class, *p == 'S'));
            else
                QEP_TRY(qep_bytes_append(out, p - 1, 2));
            continue;
        }
        if (!in_class && *p == '[') {
            in_class = true;
            size_t lead = p[1] == '^' ? 2 : 1; /* a ] right after is literal */
            if (p[lead] == ']')
                lead++;
            QEP_TRY(qep_bytes_append(out, p, lead));
            p += lead - 1;
            continue;
        }
        if (in_class && *p == ']')
            in_class = false;
        QEP_TRY(qep_bytes_append(out, p, 1));
    }
    return QEP_OK;
}

enum qep_status qep_splitter_create(const char *regex, const char *where,
                                    struct qep_splitter **out) {
    struct qep_bytes pattern = {0};
    int code = 0;
    PCRE2_SIZE at = 0;
    enum qep_status st = QEP_OK;
    void *p = NULL;
    *out = NULL;
    QEP_TRY_GOTO(st, done, rewrite_spaces(regex, where, &pattern));
    QEP_TRY_GOTO(st, done, qep_calloc(1, sizeof **out, "split regex", &p));
    *out = p;
    (*out)->code =
        pcre2_compile(pattern.len > 0 ? (PCRE2_SPTR)pattern.data : (PCRE2_SPTR) "", pattern.len,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    if ((*out)->code == NULL) {
        PCRE2_UCHAR message[128] = {0};
        pcre2_get_error_message(code, message, sizeof message);
        st = qep_fail(QEP_ERR_DATA, "%s: split regex: %s", where, (const char *)message);
        goto done;
    }
    /* Without JIT (not built in, or no executable memory) matching is slower, not different. */
    (void)pcre2_jit_compile((*out)->code, PCRE2_JIT_COMPLETE);
done:
    if (st != QEP_OK) {
        qep_splitter_destroy(*out);
        *out = NULL;
    }
    qep_bytes_free(&pattern);
    return st;
}

void qep_splitter_destroy(struct qep_splitter *splitter) {
    if (splitter == NULL)
        return;
    pcre2_code_free(splitter->code);
    free(splitter);
}

enum qep_status qep_split_begin(struct qep_split *split, const struct qep_splitter *splitter) {
    *split = (struct qep_split){.splitter = splitter};
    split->match_data = pcre2_match_data_create(1, NULL);
    split->match_context = pcre2_match_context_create(NULL);
    if (split->match_data == NULL || split->match_context == NULL) {
        qep_split_end(split);
        return qep_fail(QEP_ERR_SYSTEM, "split regex: out of memory");
    }
    pcre2_set_match_limit(split->match_context, MATCH_LIMIT);
    split->jit_stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, NULL);
    if (split->jit_stack != NULL)
        pcre2_jit_stack_assign(split->match_context, NULL, split->jit_stack);
    return QEP_OK;
}

void qep_split_end(struct qep_split *split) {
    pcre2_match_data_free(split->match_data);
    pcre2_match_context_free(split->match_context);
    pcre2_jit_stack_free(split->jit_stack);
    *split = (struct qep_split){0};
}

void qep_split_reset(struct qep_split *split, const char *text, size_t len) {
    split->text = text;
    split->len = len;
    split->at = 0;
    split->pending = 0;
}

/* Finds the next non-empty match at or after `at`; none: one past the end. */
static enum qep_status find_match(struct qep_split *split) {
    for (size_t from = split->at; from < split->len;) {
        int rc = pcre2_match(split->splitter->code, (PCRE2_SPTR)split->text, split->len, from,
                             PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, split->match_data,
                             split->match_context);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0) {
            PCRE2_UCHAR message[128] = {0};
            pcre2_get_error_message(rc, message, sizeof message);
            return qep_fail(QEP_ERR_DATA, "split regex: %s at byte %zu of the text",
                            (const char *)message, from);
        }
        const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(split->match_data);
        if (ends[0] >= split->at && ends[1] > ends[0]) {
            split->match_begin = ends[0];
            split->match_end = ends[1];
            return QEP_OK;
        }
        /* \K may turn a match around; step over one character. */
        uint32_t cp;
        from += qep_utf8_next(split->text + from, split->len - from, &cp);
    }
    split->match_begin = split->match_end = split->len;
    return QEP_OK;
}

enum qep_status qep_split_next(struct qep_split *split, struct qep_text_span *piece) {
    *piece = (struct qep_text_span){split->len, split->len};
    if (split->at >= split->len)
        return QEP_OK;
    if (!split->pending)
        QEP_TRY(find_match(split));
    piece->begin = split->at;
    split->pending = split->match_begin > split->at;
    piece->end = split->pending ? split->match_begin : split->match_end;
    split->at = piece->end;
    return QEP_OK;
}

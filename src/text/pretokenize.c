/* A match is first tried within the next few bytes and a few steps, which is all that most pieces
 * need. Where that does not decide it, the match is done again with a call back before each item of
 * the regex, and what it does is charged to the budget of the text. */
#include "text/pretokenize.h"

#include "base/printable.h"
#include "base/temporary.h"
#include "text/split_regex.h"

#include <stdbool.h>
#include <string.h>

enum { FIRST_BYTES = 64, FIRST_STEPS = 32 };
enum { SHOWN_REGEX = 120 }; /* bytes, in a message */
enum { JIT_STACK_START = 64 << 10, JIT_STACK_MAX = 64 << 20, HEAP_KB = 64 << 10 };

/* A unit is about the time of looking at one character. Real regexes charge at most 100 units
 * for a byte. */
enum { UNITS = 10000000, UNITS_PER_BYTE = 2000, UNITS_PER_CALL = 16 };

enum { STOP_SPENT = -1000, STOP_ASKED = -1001 }; /* ends of a match; PCRE2's own are above -100 */

static size_t distance(size_t a, size_t b) {
    return a > b ? a - b : b - a;
}

static int charge(pcre2_callout_block *block, void *arg) {
    struct qep_split *split = arg;
    const struct qep_splitter *s = split->splitter;
    size_t at = block->current_position, units = UNITS_PER_CALL + distance(at, split->seen);
    size_t left = split->len - at;
    split->seen = at;
    if (at > split->reach)
        split->reach = at;
    units += s->blind < left ? s->blind : left;
    if (s->refers_back)
        units += split->reach - block->start_match;
    units *= s->units_per_unit;
    if (qep_temporaries_were_removed())
        return STOP_ASKED;
    if (units > split->units)
        return STOP_SPENT;
    split->units -= units;
    return 0;
}

enum qep_status qep_split_begin(struct qep_split *split, const struct qep_splitter *splitter) {
    *split = (struct qep_split){.splitter = splitter, .units = UNITS};
    split->match_data = pcre2_match_data_create(1, NULL);
    split->match_context = pcre2_match_context_create(NULL);
    if (split->match_data == NULL || split->match_context == NULL) {
        qep_split_end(split);
        return qep_fail(QEP_ERR_SYSTEM, "split regex: out of memory");
    }
    pcre2_set_callout(split->match_context, charge, split);
    pcre2_set_heap_limit(split->match_context, HEAP_KB);
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
    split->units += (uint64_t)len * UNITS_PER_BYTE;
}

static int match(struct qep_split *split, const pcre2_code *code, size_t from, size_t end,
                 uint32_t options, uint32_t limit) {
    pcre2_set_match_limit(split->match_context, limit);
    return pcre2_match(code, (PCRE2_SPTR)split->text, end, from,
                       PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | options, split->match_data,
                       split->match_context);
}

/* Within the next bytes; PCRE2 says so when it would have looked beyond them. */
static int match_near(struct qep_split *split, size_t from) {
    size_t end = split->len - from > FIRST_BYTES ? from + FIRST_BYTES : split->len;
    while (end < split->len && ((unsigned char)split->text[end] & 0xC0) == 0x80)
        end++;
    return match(split, split->splitter->plain, from, end,
                 end < split->len ? PCRE2_PARTIAL_HARD : 0, FIRST_STEPS);
}

static int match_counted(struct qep_split *split, size_t from) {
    split->seen = split->reach = from;
    return match(split, split->splitter->counted, from, split->len, 0, UINT32_MAX);
}

static enum qep_status match_failed(const struct qep_split *split, int rc, size_t from) {
    const struct qep_splitter *s = split->splitter;
    PCRE2_UCHAR message[128] = {0};
    size_t len = strlen(s->regex);
    int shown = qep_text_cut(s->regex, len, SHOWN_REGEX);
    const char *more = (size_t)shown < len ? "..." : "";
    if (rc == STOP_ASKED)
        return qep_fail(QEP_ERR_INTERRUPTED, "interrupted while splitting the text");
    if (rc == STOP_SPENT)
        return qep_fail(QEP_ERR_DATA,
                        "%s: split regex \"%.*s\"%s: takes too many steps, at byte %zu of the "
                        "text's %zu: expected time in proportion to the text",
                        s->where, shown, s->regex, more, from, split->len);
    pcre2_get_error_message(rc, message, sizeof message);
    return qep_fail(rc == PCRE2_ERROR_NOMEMORY ? QEP_ERR_SYSTEM : QEP_ERR_DATA,
                    "%s: split regex \"%.*s\"%s: %s, at byte %zu of the text's %zu", s->where,
                    shown, s->regex, more, (const char *)message, from, split->len);
}

static enum qep_status match_at(struct qep_split *split, size_t from, bool *found) {
    int rc = split->splitter->small ? match_near(split, from) : PCRE2_ERROR_PARTIAL;
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
        rc = match_counted(split, from);
    *found = rc >= 0;
    return rc >= 0 || rc == PCRE2_ERROR_NOMATCH ? QEP_OK : match_failed(split, rc, from);
}

/* Finds the next non-empty match at or after `at`; none: one past the end. */
static enum qep_status find_match(struct qep_split *split) {
    for (size_t from = split->at; from < split->len;) {
        bool found = false;
        QEP_TRY(match_at(split, from, &found));
        const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(split->match_data);
        if (found && ends[0] >= split->at && ends[1] > ends[0]) { /* \K may turn a match around */
            split->match_begin = ends[0];
            split->match_end = ends[1];
            return QEP_OK;
        }
        uint32_t cp;
        from += qep_utf8_next(split->text + from, split->len - from, &cp);
        if (qep_temporaries_were_removed())
            return match_failed(split, STOP_ASKED, from);
    }
    split->match_begin = split->match_end = split->len;
    return QEP_OK;
}

enum qep_status qep_split_next(struct qep_split *split, struct qep_text_span *piece) {
    *piece = (struct qep_text_span){split->len, split->len};
    if (split->at >= split->len)
        return QEP_OK;
    if (qep_temporaries_were_removed())
        return match_failed(split, STOP_ASKED, split->at);
    if (!split->pending)
        QEP_TRY(find_match(split));
    piece->begin = split->at;
    split->pending = split->match_begin > split->at;
    piece->end = split->pending ? split->match_begin : split->match_end;
    split->at = piece->end;
    return QEP_OK;
}

/* Two things keep this from being one call of utf8proc_map (2.8): it orders a run of combining
 * marks by exchanging neighbours, which takes minutes for a megabyte of them, so long runs are
 * ordered here first; and it swallows U+11A7 after a Hangul syllable, so text is cut there. */
#include "text/nfc.h"

#include "base/mem.h"

#include <stdlib.h>
#include <utf8proc.h>

enum { LONG_RUN = 32, NEVER_COMPOSES = 0x11A7 };

struct nfc {
    struct qep_bytes *out;
    struct qep_bytes segment; /* text for utf8proc, long runs ordered */
    uint32_t *run, *ordered;  /* decomposed marks that wait for the end of their run */
    size_t run_len, run_cap, ordered_cap;
};

/* Below U+0300 every text is NFC already: lead bytes below 0xCC. */
static bool surely_nfc(const char *text, size_t len) {
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)text[i] >= 0xCC)
            return false;
    return true;
}

static unsigned class_of(uint32_t cp) {
    return (unsigned)utf8proc_get_property((utf8proc_int32_t)cp)->combining_class;
}

/* A character that decomposes into marks only; three Tibetan vowels do so with class 0. */
static bool is_mark(uint32_t cp) {
    return cp >= 0x300 && (class_of(cp) != 0 || cp == 0xF73 || cp == 0xF75 || cp == 0xF81);
}

static enum qep_status push_mark(struct nfc *n, uint32_t cp) {
    utf8proc_int32_t parts[8];
    int boundclass = 0;
    utf8proc_ssize_t count = utf8proc_decompose_char(
        (utf8proc_int32_t)cp, parts, 8, (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE),
        &boundclass);
    if (count < 0 || count > 8)
        return qep_fail(QEP_ERR_BUG, "NFC: U+%04X does not decompose", (unsigned)cp);
    void *grown = n->run;
    QEP_TRY(qep_grow(&grown, &n->run_cap, n->run_len + 8, sizeof *n->run, "marks"));
    n->run = grown;
    for (utf8proc_ssize_t i = 0; i < count; i++)
        n->run[n->run_len++] = (uint32_t)parts[i];
    return QEP_OK;
}

/* Counting sort by combining class, which keeps the order within a class. */
static enum qep_status order_run(struct nfc *n) {
    size_t begin[257] = {0};
    void *grown = n->ordered;
    QEP_TRY(qep_grow(&grown, &n->ordered_cap, n->run_len, sizeof *n->ordered, "marks"));
    n->ordered = grown;
    for (size_t i = 0; i < n->run_len; i++)
        begin[class_of(n->run[i]) + 1]++;
    for (size_t c = 0; c < 256; c++)
        begin[c + 1] += begin[c];
    for (size_t i = 0; i < n->run_len; i++)
        n->ordered[begin[class_of(n->run[i])]++] = n->run[i];
    return QEP_OK;
}

static enum qep_status end_run(struct nfc *n) {
    const uint32_t *marks = n->run;
    if (n->run_len > LONG_RUN) {
        QEP_TRY(order_run(n));
        marks = n->ordered;
    }
    for (size_t i = 0; i < n->run_len; i++)
        QEP_TRY(qep_bytes_append_char(&n->segment, marks[i]));
    n->run_len = 0;
    return QEP_OK;
}

static enum qep_status end_segment(struct nfc *n) {
    utf8proc_uint8_t *mapped = NULL;
    QEP_TRY(end_run(n));
    if (n->segment.len == 0)
        return QEP_OK;
    utf8proc_ssize_t len =
        utf8proc_map((const utf8proc_uint8_t *)n->segment.data, (utf8proc_ssize_t)n->segment.len,
                     &mapped, (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    if (len < 0)
        return qep_fail(QEP_ERR_SYSTEM, "NFC: %s", utf8proc_errmsg(len));
    enum qep_status st = qep_bytes_append(n->out, (const char *)mapped, (size_t)len);
    free(mapped);
    n->segment.len = 0;
    return st;
}

static enum qep_status push_text(struct nfc *n, const char *text, size_t len) {
    for (size_t at = 0; at < len;) {
        uint32_t cp;
        size_t size = qep_utf8_next(text + at, len - at, &cp);
        if (is_mark(cp)) {
            QEP_TRY(push_mark(n, cp));
        } else if (cp == NEVER_COMPOSES) {
            QEP_TRY(end_segment(n));
            QEP_TRY(qep_bytes_append(n->out, text + at, size));
        } else {
            QEP_TRY(end_run(n));
            QEP_TRY(qep_bytes_append(&n->segment, text + at, size));
        }
        at += size;
    }
    return end_segment(n);
}

enum qep_status qep_nfc_append(struct qep_bytes *out, const char *text, size_t len) {
    struct nfc n = {.out = out};
    if (surely_nfc(text, len))
        return qep_bytes_append(out, text, len);
    enum qep_status st = push_text(&n, text, len);
    qep_bytes_free(&n.segment);
    free(n.run);
    free(n.ordered);
    return st;
}

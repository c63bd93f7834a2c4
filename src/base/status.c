#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_error[QEP_ERROR_MAX];

enum qep_status qep_fail(enum qep_status st, const char *fmt, ...) {
    /* Formatted aside first: an argument may be the previous message itself. */
    char text[QEP_ERROR_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    size_t i = 0;
    for (; text[i] != '\0'; i++) {
        unsigned char c = (unsigned char)text[i];
        last_error[i] = (c < 0x20 || c == 0x7f) ? ' ' : text[i];
    }
    last_error[i] = '\0';
    return st;
}

const char *qep_last_error(void) {
    return last_error;
}

const char *qep_status_text(enum qep_status st) {
#define QEP_STATUS_CASE(name, code, text)                                                          \
    case name:                                                                                     \
        return text;
    switch (st) { QEP_STATUS_LIST(QEP_STATUS_CASE) }
#undef QEP_STATUS_CASE
    return "unknown status";
}

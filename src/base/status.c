#include "base/status.h"

#include "base/printable.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last_error[QEP_ERROR_MAX];

enum qep_status qep_fail(enum qep_status st, const char *fmt, ...) {
    /* Formatted aside first: an argument may be the previous message itself. */
    char text[QEP_ERROR_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    for (char *p = text; (p = strpbrk(p, "\n\r\t")) != NULL;)
        *p = ' ';
    qep_text_printable(text);
    memcpy(last_error, text, strlen(text) + 1);
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

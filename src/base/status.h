/* Status codes, the one error message a thread carries, and the macros that pass a status on.
 * A failing function calls qep_fail at the place where what, where, expected and found are known;
 * its callers only hand the code up. main prints the message once. Codes are sysexits.h values. */
#ifndef QEP_BASE_STATUS_H
#define QEP_BASE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#define QEP_STATUS_LIST(X)                                                                         \
    X(QEP_OK, 0, "ok")                                                                             \
    X(QEP_ERR_USAGE, 64, "usage error")                                                            \
    X(QEP_ERR_DATA, 65, "bad data")                                                                \
    X(QEP_ERR_NOINPUT, 66, "no such input")                                                        \
    X(QEP_ERR_UNAVAILABLE, 69, "device or peer unavailable")                                       \
    X(QEP_ERR_BUG, 70, "internal error")                                                           \
    X(QEP_ERR_SYSTEM, 71, "system error")                                                          \
    X(QEP_ERR_CANTCREATE, 73, "cannot create output")                                              \
    X(QEP_ERR_IO, 74, "input/output error")                                                        \
    X(QEP_ERR_INTERRUPTED, 75, "no progress or interrupted")

#define QEP_STATUS_ENUM(name, code, text) name = code,
enum qep_status { QEP_STATUS_LIST(QEP_STATUS_ENUM) };
#undef QEP_STATUS_ENUM

#define QEP_ERROR_MAX 1024 /* bytes of a message, the final NUL included */

/* Stores a one-line message for this thread (printf form; line ends become spaces, what a
 * terminal would obey becomes '?', see base/printable.h) and returns st. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
enum qep_status
qep_fail(enum qep_status st, const char *fmt, ...);

/* The last message of this thread; "" when none. Valid until the thread's next qep_fail. */
const char *qep_last_error(void);

const char *qep_status_text(enum qep_status st);

#define QEP_TRY(expr)                                                                              \
    do {                                                                                           \
        enum qep_status qep_try_st_ = (expr);                                                      \
        if (qep_try_st_ != QEP_OK)                                                                 \
            return qep_try_st_;                                                                    \
    } while (0)

/* For what may fail in ways that are an answer: passes on only that the system failed. */
#define QEP_TRY_SYSTEM(st, expr)                                                                   \
    do {                                                                                           \
        (st) = (expr);                                                                             \
        if ((st) == QEP_ERR_SYSTEM)                                                                \
            return (st);                                                                           \
    } while (0)

#define QEP_TRY_GOTO(st, label, expr)                                                              \
    do {                                                                                           \
        (st) = (expr);                                                                             \
        if ((st) != QEP_OK)                                                                        \
            goto label;                                                                            \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif

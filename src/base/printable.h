/* Text of files on its way to a terminal, which would obey what it holds. */
#ifndef QEP_BASE_PRINTABLE_H
#define QEP_BASE_PRINTABLE_H

#include <stdbool.h>
#include <stddef.h>

/* Puts '?' for every control character (U+0000..U+001F, DEL, U+0080..U+009F), every byte that is
 * no UTF-8, the line and paragraph separators U+2028 and U+2029, and the characters that turn the
 * direction of writing (U+061C, U+200E, U+200F, U+202A..U+202E, U+2066..U+2069). In place; the text
 * never grows. */
void qep_text_printable(char *text);

/* `text` as one word of a command line that is printed for people to run; cut where out ends. */
void qep_text_shell_word(const char *text, char *out, size_t out_bytes);

/* Whether qep_text_printable would change nothing. */
bool qep_text_is_printable(const char *text);

/* Bytes of the longest beginning of text [len] that has at most `max` and cuts no character of
 * UTF-8. */
int qep_text_cut(const char *text, size_t len, size_t max);

#endif

/* Numbers that people and programs write, decimal and strict: no space, no '+', no other base, no
 * "inf", "nan" or "-0". All give false, and leave *out alone, for what is no number in
 * [min, max]; the caller knows what to say. */
#ifndef QEP_BASE_NUMBER_H
#define QEP_BASE_NUMBER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* text[0..len) is digits, perhaps after a '-'. */
bool qep_parse_int(const char *text, size_t len, int64_t min, int64_t max, int64_t *out);

/* text[0..len), one JSON number, is whole however it is written: 120, 120.0, 1.2e2. Exact. */
bool qep_parse_whole(const char *text, size_t len, int64_t min, int64_t max, int64_t *out);

/* text[0..len) is digits with at most one '.' among or around them, perhaps an exponent. text must
 * end in a NUL, at len or behind. */
bool qep_parse_double(const char *text, size_t len, double min, double max, double *out);

/* The next number of a list "1,2,3" that has no empty elements. *at moves behind the comma; it is
 * NULL after the last number. */
bool qep_parse_next(const char **at, int64_t min, int64_t max, int64_t *out);

#endif

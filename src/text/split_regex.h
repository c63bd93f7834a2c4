/* The split regex of a tokenizer.json, compiled; inside of the pre-tokenizer. */
#ifndef QEP_TEXT_SPLIT_REGEX_H
#define QEP_TEXT_SPLIT_REGEX_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdint.h>

/* Both are anchored: they match where they are asked to, or not at all. `counted` calls back before
 * each of its items, so that its work can be counted; it takes about three times as long. */
struct qep_splitter {
    pcre2_code *plain, *counted;
    char *regex, *where;     /* as in the file; the file's name */
    uint64_t units_per_unit; /* what a step costs, by the size of the regex */
    uint64_t blind;          /* characters that an item may look at without a call back */
    int small;               /* `plain` may be tried first */
    int refers_back;         /* an item may compare all that was matched so far */
};

#endif

/* Memory that runs out at the n-th request. A program that links failing_memory.c with the options
 * of qep_failing_memory (tests/unit/model.cmake) has its own requests counted, and those calls of
 * libraries that fail when memory is short: each fails as its library would. */
#ifndef QEP_TESTS_FAILING_MEMORY_H
#define QEP_TESTS_FAILING_MEMORY_H

#include <stdbool.h>

/* From now on the n-th request fails (0: none), or that and all later ones. Counts from 1. */
void memory_fail_at(long n, bool and_after);

/* As memory_fail_at(0, false), but it is noted from where each request comes. */
void memory_record(void);

/* Is the n-th request of the recorded run the first of its size, to a power of two, from its place
 * in the program? */
bool memory_is_new_place(long n);

long memory_requests(void); /* since memory_fail_at */
bool memory_has_failed(void);

/* Blocks that are not freed, of those counted. */
long memory_blocks(void);

#endif

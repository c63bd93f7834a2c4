/* Conversions in a scratch directory, and a C library that fails to order: definitions in
 * workdir_support.c come before its own. */
#ifndef QEP_TESTS_WORKDIR_SUPPORT_H
#define QEP_TESTS_WORKDIR_SUPPORT_H

#include "build_fixture.h"

extern const char golden[];

/* --- faults */

extern int calls_left;          /* > 0: renameat and unlinkat end the process when it reaches 0 */
extern bool locks_refused;      /* open-file locks give ENOSYS */
extern const char *close_fails; /* closing a file whose name ends in this gives EIO */
extern uint64_t free_bytes;     /* != 0: what statvfs tells */

/* --- scenes */

struct scene {
    char base[64], dir[96], fresh[96], old[96];
};

void open_scene(struct scene *s);
void shell(const struct scene *s, const char *command); /* in base; must succeed */

enum qep_status convert(const char *from, const char *dir, const char *recipe, int shards,
                        bool force);
enum qep_status again(const struct scene *s, bool force); /* golden to dir: q4, 2 shards */
bool opens(const char *dir);

/* Ends again() at its n-th change of a directory; true when it got through. */
bool killed_at(const struct scene *s, int n, bool force);

/* Runs one suite of one case. */
int run_workdir_suite(const char *name, void (*add)(TCase *tc));

#endif

/* What a command reads is not what it writes: an output that is put into its place at the end would
 * replace its own input. */
#ifndef QEP_CLI_SPARE_H
#define QEP_CLI_SPARE_H

#include "base/status.h"

/* QEP_ERR_USAGE when `output`, the value of `option` (NULL: none given), is the file `input` (NULL:
 * none), under whatever name. */
enum qep_status qep_spare_file(const char *option, const char *output, const char *input);

/* The same for the files that a shard directory consists of. */
enum qep_status qep_spare_model(const char *option, const char *output, const char *dir);

#endif

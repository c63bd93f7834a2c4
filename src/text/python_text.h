/* Values of requests as Python prints them: what Jinja templates show. */
#ifndef QEP_TEXT_PYTHON_TEXT_H
#define QEP_TEXT_PYTHON_TEXT_H

#include "text/request_json.h"

/* json.dumps(value, ensure_ascii=False): separators ", " and ": ", 1e20 as 1e+20. */
enum qep_status qep_python_dumps(struct qep_bytes *out, const struct qep_value *value);

/* str(value): strings as they are, True, None, 1e+20; lists and objects by repr. */
enum qep_status qep_python_str(struct qep_bytes *out, const struct qep_value *value);

#endif

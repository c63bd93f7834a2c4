/* Where canonical tensors come from, row by row: a checkpoint on disk or the random generator. What
 * consumes rows (quantisation, writing) does not know which. */
#ifndef QEP_CHECKPOINT_SOURCE_H
#define QEP_CHECKPOINT_SOURCE_H

#include "base/status.h"
#include "checkpoint/inventory.h"

#include <stddef.h>
#include <stdint.h>

enum qep_row_type { QEP_ROWS_BF16, QEP_ROWS_F32 };

struct qep_row_source {
    const void *impl; /* borrowed */
    /* The type in which rows of specs[spec_idx] are handed out: no rounding is hidden in it. */
    enum qep_row_type (*type)(const void *impl, size_t spec_idx);
    /* Writes rows [row_begin, row_begin + num_rows) as uint16_t bf16 patterns or float to out.
     * Thread-safe. */
    enum qep_status (*read)(const void *impl, size_t spec_idx, int64_t row_begin, int64_t num_rows,
                            void *out);
    /* QEP_ERR_DATA: what was read may be no longer what the source was when it was opened. NULL:
     * cannot happen. */
    enum qep_status (*check)(const void *impl);
    /* What messages call the tensor: file and name, to text[0..text_bytes). */
    void (*describe)(const void *impl, size_t spec_idx, char *text, size_t text_bytes);
};

#endif

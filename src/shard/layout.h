/* Where canonical tensors lie: which file of the directory, and as which safetensors entries of
 * that file. A pure function of config, weight types, group size and the number of shard files;
 * writer and reader share it. */
#ifndef QEP_SHARD_LAYOUT_H
#define QEP_SHARD_LAYOUT_H

#include "base/status.h"
#include "checkpoint/inventory.h"
#include "kernels/weight.h"

#include <stddef.h>
#include <stdint.h>

enum {
    QEP_MAX_SHARDS = 256,
    QEP_FILE_NAME_MAX = 48,
    QEP_PART_NAME_MAX = QEP_TENSOR_NAME_MAX + 8,
    QEP_PLANE_MIN_BYTES = 64 << 10 /* bf16 tensors from here on are two planes */
};

struct qep_layout_file {
    char name[QEP_FILE_NAME_MAX]; /* embed.qep, layer-000.qep, shard-00-of-08.qep */
    uint32_t *specs;              /* indices into the inventory, in file order; owned */
    size_t num_specs;
};

struct qep_layout {
    struct qep_layout_file *files; /* owned */
    size_t num_files;
};

enum qep_status qep_layout_create(const struct qep_model_config *config,
                                  const struct qep_inventory *inventory, int32_t num_shards,
                                  struct qep_layout *out);
void qep_layout_free(struct qep_layout *layout); /* zeroes it */

enum qep_part_kind {
    QEP_PART_DATA,   /* the tensor itself, or its integer codes */
    QEP_PART_SCALES, /* NAME.scales */
    QEP_PART_HIGH,   /* NAME.hi: the exponent bytes of bf16 */
    QEP_PART_LOW     /* NAME.lo: mantissa and sign */
};

/* One safetensors entry. Frames hold whole rows: frame_rows of them, the last frame the rest. */
struct qep_part {
    enum qep_part_kind kind;
    char name[QEP_PART_NAME_MAX];
    const char *dtype; /* of safetensors */
    int ndim;
    int64_t shape[3];
    int64_t rows;
    size_t row_bytes;
    int64_t frame_rows;
};

/* The one or two parts of a tensor stored as `type`. Returns how many. */
int qep_layout_parts(const struct qep_tensor_spec *spec, enum qep_weight_type type,
                     int32_t group_size, struct qep_part parts[2]);

/* The safetensors header of a file: 8-byte length and JSON, padded to 8 bytes. types: per inventory
 * entry. *text is owned by the caller. */
enum qep_status qep_layout_header(const struct qep_inventory *inventory,
                                  const enum qep_weight_type *types, int32_t group_size,
                                  const struct qep_layout_file *file, char **text, size_t *len);

#endif

/* A Hugging Face checkpoint directory: config.json, one model.safetensors or an index with shards,
 * and the map from its tensor names to canonical ones. Opening reads headers only and settles every
 * question: each canonical tensor is found with the right shape and a usable dtype, no tensor is
 * left unexplained (mtp.* and model.visual.* are skipped knowingly).
 *
 * Accepted forms: prefix model.language_model. or model.; experts fused [E, 2I, H] / [E, H, I] or
 * one tensor per expert and projection; Qwen3-Next's in_proj_qkvz / in_proj_ba, whose rows are
 * interleaved per key head. */
#ifndef QEP_CHECKPOINT_CHECKPOINT_H
#define QEP_CHECKPOINT_CHECKPOINT_H

#include "base/status.h"
#include "checkpoint/inventory.h"
#include "checkpoint/source.h"
#include "model/config.h"

#include <stdint.h>

struct qep_checkpoint; /* opaque; immutable after open */

/* QEP_ERR_NOINPUT: no directory, config or weights; QEP_ERR_DATA: anything malformed, naming file,
 * tensor, expected and found. */
enum qep_status qep_checkpoint_open(const char *dir, struct qep_checkpoint **out);
void qep_checkpoint_close(struct qep_checkpoint *ckpt); /* NULL is fine */

const char *qep_checkpoint_dir(const struct qep_checkpoint *ckpt);
const struct qep_model_config *qep_checkpoint_config(const struct qep_checkpoint *ckpt);
const struct qep_inventory *qep_checkpoint_inventory(const struct qep_checkpoint *ckpt);

/* Rows of the canonical tensors; valid while the checkpoint is open. Its check fails once a file's
 * size or modification time is another than at opening. */
struct qep_row_source qep_checkpoint_source(const struct qep_checkpoint *ckpt);

/* Changes when a file of the checkpoint does (names, sizes, times, headers). */
uint64_t qep_checkpoint_identity(const struct qep_checkpoint *ckpt);

/* The path of an open file where another one lies by now, or NULL. */
const char *qep_checkpoint_moved_file(const struct qep_checkpoint *ckpt);

/* Bytes of the tensors that conversion reads. */
uint64_t qep_checkpoint_bytes(const struct qep_checkpoint *ckpt);

#endif

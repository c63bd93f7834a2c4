/* One zstd frame at a time: content in, an independent frame with a content checksum out. What does
 * not shrink is stored in raw blocks, still a frame that any zstd reads. */
#ifndef QEP_SHARD_FRAME_H
#define QEP_SHARD_FRAME_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

enum { QEP_FRAME_TARGET = 2 << 20, QEP_FRAME_MAX = 8 << 20 /* content bytes */ };

enum qep_compress {
    QEP_COMPRESS_AUTO, /* compressed when that saves 10 %, else raw blocks */
    QEP_COMPRESS_MAX   /* compressed whenever that saves anything */
};

struct qep_encoder; /* one thread's compression state */
struct qep_decoder;

enum qep_status qep_encoder_create(enum qep_compress mode, struct qep_encoder **out);
void qep_encoder_destroy(struct qep_encoder *encoder); /* NULL is fine */

/* Room that any frame of n content bytes fits in. */
size_t qep_frame_bound(size_t n);

/* Encodes n bytes (1 .. QEP_FRAME_MAX) to out[0..qep_frame_bound(n)). Deterministic. */
enum qep_status qep_frame_encode(struct qep_encoder *encoder, const void *data, size_t n, void *out,
                                 size_t *out_bytes);

enum qep_status qep_decoder_create(struct qep_decoder **out);
void qep_decoder_destroy(struct qep_decoder *decoder); /* NULL is fine */

/* Decodes one frame that must give exactly n bytes; *wrong is NULL when it does, else what is
 * wrong. QEP_ERR_SYSTEM when memory is short. The caller has checked the frame's hash, so the
 * checksum inside is not computed again. */
enum qep_status qep_frame_decode(struct qep_decoder *decoder, const void *frame, size_t frame_bytes,
                                 void *out, size_t n, const char **wrong);

#endif

/* Weights have skewed bytes but no repetitions: entropy coding of literals is all there is to gain,
 * so matching is turned down as far as it goes and literals are always Huffman coded. */
#define ZSTD_STATIC_LINKING_ONLY
#include "shard/frame.h"

#include "base/mem.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>
#include <zstd_errors.h>

enum {
    RAW_HEADER = 9, /* magic 4, descriptor 1, content size 4 */
    BLOCK_MAX = 128 << 10,
    PROBE_BYTES = 64 << 10
};

struct qep_encoder {
    ZSTD_CCtx *cctx;
    enum qep_compress mode;
};

struct qep_decoder {
    ZSTD_DCtx *dctx;
};

static enum qep_status set(ZSTD_CCtx *cctx, ZSTD_cParameter parameter, int value) {
    size_t rc = ZSTD_CCtx_setParameter(cctx, parameter, value);
    if (ZSTD_isError(rc))
        return qep_fail(QEP_ERR_BUG, "zstd: parameter %d: %s", (int)parameter,
                        ZSTD_getErrorName(rc));
    return QEP_OK;
}

static enum qep_status configure(ZSTD_CCtx *cctx) {
    QEP_TRY(set(cctx, ZSTD_c_compressionLevel, 1));
    QEP_TRY(set(cctx, ZSTD_c_strategy, ZSTD_fast));
    QEP_TRY(set(cctx, ZSTD_c_minMatch, 7));
    QEP_TRY(set(cctx, ZSTD_c_targetLength, 131072));
    QEP_TRY(set(cctx, ZSTD_c_literalCompressionMode, ZSTD_ps_enable));
    return set(cctx, ZSTD_c_checksumFlag, 1);
}

enum qep_status qep_encoder_create(enum qep_compress mode, struct qep_encoder **out) {
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof **out, "encoder", &mem));
    struct qep_encoder *encoder = mem;
    encoder->mode = mode;
    encoder->cctx = ZSTD_createCCtx();
    enum qep_status st = encoder->cctx != NULL
                             ? configure(encoder->cctx)
                             : qep_fail(QEP_ERR_SYSTEM, "zstd encoder: out of memory");
    if (st == QEP_OK)
        *out = encoder;
    else
        qep_encoder_destroy(encoder);
    return st;
}

void qep_encoder_destroy(struct qep_encoder *encoder) {
    if (encoder != NULL)
        ZSTD_freeCCtx(encoder->cctx);
    free(encoder);
}

size_t qep_frame_bound(size_t n) {
    return ZSTD_compressBound(n) + RAW_HEADER + 4 + 3 * (n / BLOCK_MAX + 1);
}

static void put_u32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

/* RFC 8878: single segment, 4-byte content size, checksum; raw blocks. */
static size_t encode_raw(const uint8_t *data, size_t n, uint8_t *out) {
    uint8_t *p = out;
    put_u32(p, 0xFD2FB528u);
    p[4] = 2u << 6 | 1u << 5 | 1u << 2;
    put_u32(p + 5, (uint32_t)n);
    p += RAW_HEADER;
    for (size_t at = 0; at < n;) {
        size_t len = n - at < BLOCK_MAX ? n - at : BLOCK_MAX;
        uint32_t header = (uint32_t)len << 3 | (at + len == n);
        for (int i = 0; i < 3; i++)
            *p++ = (uint8_t)(header >> (8 * i));
        memcpy(p, data + at, len);
        p += len;
        at += len;
    }
    put_u32(p, (uint32_t)XXH64(data, n, 0));
    return (size_t)(p + 4 - out);
}

static enum qep_status compress(struct qep_encoder *encoder, const uint8_t *data, size_t n,
                                void *out, size_t out_bytes, size_t *packed) {
    *packed = ZSTD_compress2(encoder->cctx, out, out_bytes, data, n);
    if (!ZSTD_isError(*packed))
        return QEP_OK;
    bool memory = ZSTD_getErrorCode(*packed) == ZSTD_error_memory_allocation;
    return qep_fail(memory ? QEP_ERR_SYSTEM : QEP_ERR_BUG, "zstd: %s", ZSTD_getErrorName(*packed));
}

/* A look at a piece from the middle saves most of the work on data that cannot shrink. */
static enum qep_status probe(struct qep_encoder *encoder, const uint8_t *data, size_t n, void *out,
                             bool *shrinks) {
    size_t packed = 0;
    *shrinks = true;
    if (encoder->mode == QEP_COMPRESS_MAX || n < 4 * (size_t)PROBE_BYTES)
        return QEP_OK;
    QEP_TRY(compress(encoder, data + n / 2, PROBE_BYTES, out, qep_frame_bound(n), &packed));
    *shrinks = packed * 100 <= (size_t)PROBE_BYTES * 93;
    return QEP_OK;
}

enum qep_status qep_frame_encode(struct qep_encoder *encoder, const void *data, size_t n, void *out,
                                 size_t *out_bytes) {
    if (n == 0 || n > QEP_FRAME_MAX)
        return qep_fail(QEP_ERR_BUG, "frame of %zu bytes", n);
    bool shrinks = false;
    QEP_TRY(probe(encoder, data, n, out, &shrinks));
    if (shrinks) {
        QEP_TRY(compress(encoder, data, n, out, qep_frame_bound(n), out_bytes));
        if (*out_bytes <= (encoder->mode == QEP_COMPRESS_MAX ? n - 1 : n / 10 * 9))
            return QEP_OK;
    }
    *out_bytes = encode_raw(data, n, out);
    return QEP_OK;
}

enum qep_status qep_decoder_create(struct qep_decoder **out) {
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof **out, "decoder", &mem));
    struct qep_decoder *decoder = mem;
    decoder->dctx = ZSTD_createDCtx();
    if (decoder->dctx == NULL ||
        ZSTD_isError(ZSTD_DCtx_setParameter(decoder->dctx, ZSTD_d_forceIgnoreChecksum, 1))) {
        qep_decoder_destroy(decoder);
        return qep_fail(QEP_ERR_SYSTEM, "zstd decoder: out of memory");
    }
    *out = decoder;
    return QEP_OK;
}

void qep_decoder_destroy(struct qep_decoder *decoder) {
    if (decoder != NULL)
        ZSTD_freeDCtx(decoder->dctx);
    free(decoder);
}

enum qep_status qep_frame_decode(struct qep_decoder *decoder, const void *frame, size_t frame_bytes,
                                 void *out, size_t n, const char **wrong) {
    size_t rc = ZSTD_decompressDCtx(decoder->dctx, out, n, frame, frame_bytes);
    *wrong = ZSTD_isError(rc) ? ZSTD_getErrorName(rc)
             : rc == n        ? NULL
                              : "shorter than the seek table says";
    return ZSTD_isError(rc) && ZSTD_getErrorCode(rc) == ZSTD_error_memory_allocation
               ? qep_fail(QEP_ERR_SYSTEM, "zstd: %s", *wrong)
               : QEP_OK;
}

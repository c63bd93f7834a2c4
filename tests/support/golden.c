#include "tests/support/golden.h"

#include "base/file.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

void golden_open(const char *path, struct golden *out) {
    char *packed = NULL;
    size_t packed_len = 0;
    ck_assert_msg(qep_file_read(path, 1u << 30, &packed, &packed_len) == QEP_OK, "%s",
                  qep_last_error());
    unsigned long long len = ZSTD_getFrameContentSize(packed, packed_len);
    ck_assert_msg(len > 8 && len < (1ull << 32), "%s: no zstd content size", path);
    out->raw = malloc(len);
    ck_assert_ptr_nonnull(out->raw);
    ck_assert_uint_eq(ZSTD_decompress(out->raw, len, packed, packed_len), len);
    free(packed);
    uint64_t header_len = 0;
    memcpy(&header_len, out->raw, 8);
    ck_assert_uint_le(header_len, len - 8);
    out->header = cJSON_ParseWithLength(out->raw + 8, header_len);
    ck_assert_ptr_nonnull(out->header);
    out->data = out->raw + 8 + header_len;
}

void golden_close(struct golden *golden) {
    cJSON_Delete(golden->header);
    free(golden->raw);
}

const void *golden_find(const struct golden *golden, const char *name, size_t *count) {
    const cJSON *entry = cJSON_GetObjectItemCaseSensitive(golden->header, name);
    ck_assert_msg(entry != NULL, "golden tensor %s is missing", name);
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    double begin = cJSON_GetArrayItem(offsets, 0)->valuedouble;
    double end = cJSON_GetArrayItem(offsets, 1)->valuedouble;
    *count = (size_t)(end - begin) / 4;
    return golden->data + (size_t)begin;
}

static double log_sum_exp(const float *x, size_t n, double max) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    return max + log(sum);
}

struct row_difference compare_rows(const float *p, const float *q, size_t n) {
    struct row_difference d = {0};
    size_t top_p = 0, top_q = 0;
    for (size_t i = 0; i < n; i++) {
        top_p = p[i] > p[top_p] ? i : top_p;
        top_q = q[i] > q[top_q] ? i : top_q;
        d.max_difference = fmax(d.max_difference, fabs((double)p[i] - (double)q[i]));
        d.max_logit = fmax(d.max_logit, fabs((double)p[i]));
    }
    double zp = log_sum_exp(p, n, p[top_p]), zq = log_sum_exp(q, n, q[top_q]);
    for (size_t i = 0; i < n; i++)
        d.kld += exp((double)p[i] - zp) * (((double)p[i] - zp) - ((double)q[i] - zq));
    d.same_top = top_p == top_q;
    return d;
}

/* Reads a zstd-compressed safetensors file of the goldens into memory. */
#ifndef QEP_TESTS_GOLDEN_H
#define QEP_TESTS_GOLDEN_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

struct golden {
    char *data; /* payload, after the header */
    char *raw;
    cJSON *header;
};

/* Fails the running test when the file is not readable. */
void golden_open(const char *path, struct golden *out);
void golden_close(struct golden *golden);

/* The tensor's values and number of elements; fails the test when it is missing (NULL when
 * optional). */
const void *golden_find(const struct golden *golden, const char *name, size_t *count);

/* Divergence of two rows of logits: KL(p || q) in nats, largest |difference|, whether the largest
 * agree. */
struct row_difference {
    double kld, max_difference, max_logit;
    int same_top;
};
struct row_difference compare_rows(const float *p, const float *q, size_t vocab_size);

#endif

/* A manifest. Its hash would stop every mutation at once, so it is made right first; the input is
 * the text before it. */
#include "shard/manifest.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct qep_manifest manifest;
    char hash[QEP_HASH_TEXT];
    size_t cap = size + 64;
    char *text = malloc(cap);
    if (text == NULL)
        return 0;
    if (size > 0)
        memcpy(text, data, size);
    qep_hash_text(text, size, hash);
    size_t n = size + (size_t)snprintf(text + size, cap - size, ",\n\"xxh3_128\":\"%s\"}\n", hash);
    if (qep_manifest_parse(text, n, "fuzz", &manifest) == QEP_OK)
        qep_manifest_free(&manifest);
    if (qep_manifest_parse((const char *)data, size, "fuzz", &manifest) == QEP_OK)
        qep_manifest_free(&manifest);
    free(text);
    return 0;
}

/* A safetensors header: the first 4 bytes say how large the data section claims to be. */
#include "checkpoint/safetensors.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct qep_st_header header;
    uint32_t data_bytes = 0;
    if (size < sizeof data_bytes)
        return 0;
    memcpy(&data_bytes, data, sizeof data_bytes);
    if (qep_st_header_parse((const char *)data + sizeof data_bytes, size - sizeof data_bytes,
                            data_bytes, "fuzz", &header) == QEP_OK) {
        uint64_t at = 0;
        for (size_t i = 0; i < header.num_tensors; i++) {
            if (header.tensors[i].offset != at)
                __builtin_trap();
            at += header.tensors[i].bytes;
        }
        if (at != data_bytes)
            __builtin_trap();
        qep_st_header_free(&header);
    }
    return 0;
}

/* A .qep file of unknown origin: its index, then every frame. */
#include "shard/seekable.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct qep_seekable file;
    struct qep_frame_reader reader;
    char path[64];
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || (size > 0 && write(fd, data, size) != (ssize_t)size))
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (qep_seekable_open(path, &file) == QEP_OK) {
        void *out = malloc(QEP_FRAME_MAX);
        if (out != NULL && qep_frame_reader_open(&file, &reader) == QEP_OK) {
            for (size_t i = 0; i < file.num_frames; i++) {
                enum qep_status st = qep_frame_read(&reader, i, "a frame", out);
                if (st != QEP_OK && st != QEP_ERR_DATA)
                    abort();
            }
            qep_frame_reader_close(&reader);
        }
        free(out);
        qep_seekable_close(&file);
    }
    close(fd);
    return 0;
}

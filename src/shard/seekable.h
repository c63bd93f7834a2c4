/* A .qep file as a sequence of zstd frames:
 *
 *   frame 0 .. n-1    content
 *   hash frame        skippable (0x184D2A5D): XXH3-64 of each frame's stored bytes, n x u64
 *   seek table        skippable (0x184D2A5E), the standard one: per frame {stored u32, content
 * u32}, the hash frame included (content 0), and the 9-byte footer
 *
 * The last two together are the index; its XXH3-64 stands in the manifest. So every byte of a file
 * is covered by a hash that leads back to the manifest, and reading one tensor checks just its
 * frames. */
#ifndef QEP_SHARD_SEEKABLE_H
#define QEP_SHARD_SEEKABLE_H

#include "base/status.h"
#include "shard/frame.h"

#include <stddef.h>
#include <stdint.h>

enum { QEP_HASH_TEXT = 33 }; /* 128 bits in hex and a NUL */

struct qep_frame_info {
    uint64_t offset;         /* in the file */
    uint64_t content_offset; /* in the content */
    uint64_t hash;           /* XXH3-64 of the stored bytes */
    uint32_t stored_bytes;
    uint32_t content_bytes;
};

/* What the manifest knows of a file. */
struct qep_file_identity {
    uint64_t bytes;
    char hash[QEP_HASH_TEXT]; /* XXH3-128 of the whole file, hex */
    uint64_t index_hash;
};

struct qep_seekable {
    char *path; /* owned */
    uint64_t bytes;
    uint64_t content_bytes;
    uint64_t index_hash;           /* found, not yet compared */
    struct qep_frame_info *frames; /* owned */
    size_t num_frames;
};

/* Reads and validates the index of PATH. QEP_ERR_DATA: truncated, or no such file format. */
enum qep_status qep_seekable_open(const char *path, struct qep_seekable *out);
/* The same of an open file of `bytes` bytes; fd stays the caller's. */
enum qep_status qep_seekable_open_fd(int fd, uint64_t bytes, const char *path,
                                     struct qep_seekable *out);
void qep_seekable_close(struct qep_seekable *file); /* a zeroed one is fine */

/* One thread's reader of one file: a descriptor, a decoder and a buffer. */
struct qep_frame_reader {
    const struct qep_seekable *file; /* borrowed */
    struct qep_decoder *decoder;
    void *stored;
    size_t stored_cap;
    int fd;
};
enum qep_status qep_frame_reader_open(const struct qep_seekable *file,
                                      struct qep_frame_reader *out);
void qep_frame_reader_close(struct qep_frame_reader *reader); /* a zeroed one is fine */

/* Reads frame_idx, checks its hash and decodes it to out[0..content_bytes). `what` (a tensor) is
 * named in messages. */
enum qep_status qep_frame_read(struct qep_frame_reader *reader, size_t frame_idx, const char *what,
                               void *out);

/* The frame at which content byte `offset` begins; num_frames when no frame begins there. */
size_t qep_seekable_find(const struct qep_seekable *file, uint64_t offset);

struct qep_seekable_writer; /* opaque */

/* Writes to fd, a new file, which is the writer's from here on; `path` is for messages. */
enum qep_status qep_seekable_create(int fd, const char *path, struct qep_seekable_writer **out);

/* Appends one encoded frame. */
enum qep_status qep_seekable_append(struct qep_seekable_writer *writer, const void *frame,
                                    size_t stored_bytes, size_t content_bytes);

/* Writes the index, syncs and closes; the writer is gone afterwards, whatever the status. */
enum qep_status qep_seekable_finish(struct qep_seekable_writer *writer,
                                    struct qep_file_identity *out);

/* Closes without finishing. NULL is fine. */
void qep_seekable_abandon(struct qep_seekable_writer *writer);

#endif

/* .qep files and the manifest's hashes, by docs/weight-format.md and not by the program's code. */
#define ZSTD_STATIC_LINKING_ONLY
#include "hostile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

struct frame {
    struct bytes content, stored;               /* stored.p NULL: to be encoded */
    uint64_t stored_lie, content_lie, hash_lie; /* added to what the index says */
};
struct qep {
    struct frame *frames;
    size_t num, cap;
    struct bytes index; /* as written */
};

static uint8_t *put(uint8_t *p, int n, uint64_t v) {
    put_le(p, n, v);
    return p + n;
}

static void insert_frame(struct qep *q, size_t at, struct frame f) {
    if (q->num == q->cap) {
        struct frame *more = keep(sizeof *more * (q->cap = 2 * q->cap + 64));
        if (q->num > 0)
            memcpy(more, q->frames, sizeof *more * q->num);
        q->frames = more;
    }
    memmove(q->frames + at + 1, q->frames + at, sizeof f * (q->num - at));
    q->frames[at] = f;
    q->num++;
}

static void remove_frame(struct qep *q, size_t at) {
    memmove(q->frames + at, q->frames + at + 1, sizeof *q->frames * (--q->num - at));
}

static struct qep parse(struct bytes file) {
    struct qep q = {0};
    size_t n = (size_t)get_le(file.p + file.n - 9, 4), at = 0;
    const uint8_t *table = file.p + file.n - 9 - 8 * n;
    for (size_t i = 0; i + 1 < n; i++, table += 8) {
        struct frame f = {.stored = {.p = file.p + at, .n = (size_t)get_le(table, 4)},
                          .content = {.n = (size_t)get_le(table + 4, 4)}};
        f.content.p = keep(f.content.n);
        if (ZSTD_decompress(f.content.p, f.content.n, f.stored.p, f.stored.n) != f.content.n)
            die("a frame does not unpack");
        at += f.stored.n;
        insert_frame(&q, q.num, f);
    }
    return q;
}

static struct bytes encode(struct bytes content) {
    ZSTD_CCtx *c = ZSTD_createCCtx();
    struct bytes out = {.n = ZSTD_compressBound(content.n)};
    out.p = keep(out.n);
    ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1);
    out.n = ZSTD_compress2(c, out.p, out.n, content.p, content.n);
    ZSTD_freeCCtx(c);
    return out;
}

static struct bytes print(struct qep *q) {
    size_t n = q->num, total = 0;
    for (size_t i = 0; i < n; i++) {
        if (q->frames[i].stored.p == NULL)
            q->frames[i].stored = encode(q->frames[i].content);
        total += q->frames[i].stored.n;
    }
    q->index.n = 8 + 8 * n + 8 + 8 * (n + 1) + 9;
    struct bytes file = {.p = keep(total + q->index.n), .n = total + q->index.n};
    uint8_t *p = file.p;
    for (size_t i = 0; i < n; p += q->frames[i++].stored.n)
        memcpy(p, q->frames[i].stored.p, q->frames[i].stored.n);
    q->index.p = p;
    p = put(put(p, 4, 0x184D2A5D), 4, 8 * n);
    for (size_t i = 0; i < n; i++)
        p = put(p, 8,
                XXH3_64bits(q->frames[i].stored.p, q->frames[i].stored.n) + q->frames[i].hash_lie);
    p = put(put(p, 4, 0x184D2A5E), 4, 8 * (n + 1) + 9);
    for (size_t i = 0; i < n; i++)
        p = put(put(p, 4, q->frames[i].stored.n + q->frames[i].stored_lie), 4,
                q->frames[i].content.n + q->frames[i].content_lie);
    p = put(put(p, 4, 8 + 8 * n), 4, 0);
    put(put(put(p, 4, n + 1), 1, 0), 4, 0x8F92EAB1);
    return file;
}

/* --- hashes */
static char *hash_text(struct bytes b) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(b.p, b.n));
    char *text = keep(33);
    for (int i = 0; i < 16; i++)
        snprintf(text + 2 * i, 3, "%02x", canonical.digest[i]);
    return text;
}

static const char seal[] = ",\n\"xxh3_128\":\"";

struct bytes manifest_base(struct bytes text) {
    size_t n = sizeof seal - 1, tail = n + 32 + 3;
    if (text.n < tail || memcmp(text.p + text.n - tail, seal, n) != 0)
        die("the manifest does not end in its hash");
    return (struct bytes){.p = text.p, .n = text.n - tail};
}

struct bytes reseal_manifest(struct bytes base) {
    return bytes_splice(base, base.n, base.n, bytes_of(format("%s%s\"}\n", seal, hash_text(base))));
}

static struct bytes set_member(struct bytes text, const char *list, const char *name,
                               const char *key, const char *value) {
    struct json d = json_scan(text);
    int files = json_member(&d, 0, list);
    for (int i = 0, file; (file = json_at(&d, files, i)) >= 0; i++)
        if (json_is(&d, json_member(&d, file, "name"), format("\"%s\"", name)))
            return json_replace(&d, json_member(&d, file, key), value);
    return text;
}

static void seal_file(const char *dir, const char *name, struct bytes file, struct bytes index) {
    const char *path = format("%s/manifest.json", dir);
    const char *list = index.p != NULL ? "files" : "side_files";
    struct bytes text = file_read(path);
    text = set_member(text, list, name, "bytes", format("%zu", file.n));
    text = set_member(text, list, name, "xxh3_128", format("\"%s\"", hash_text(file)));
    if (index.p != NULL)
        text = set_member(text, list, name, "index_xxh3",
                          format("\"%016llx\"", (unsigned long long)XXH3_64bits(index.p, index.n)));
    file_write(path, reseal_manifest(manifest_base(text)));
}

void reseal_file(const char *dir, const char *name) {
    seal_file(dir, name, file_read(format("%s/%s", dir, name)), (struct bytes){0});
}

/* --- damage to frames */
static struct bytes encode_odd(struct rng *r, struct bytes content, struct note *note) {
    static const char *const ways[] = {"no checksum",
                                       "no content size",
                                       "a window of 128 MB",
                                       "two frames",
                                       "a skippable frame before it",
                                       "half of it",
                                       "not zstd",
                                       "a byte too many",
                                       "a bit flipped"};
    size_t way = rng_below(r, sizeof ways / sizeof *ways);
    ZSTD_CCtx *c = ZSTD_createCCtx();
    struct bytes out = {.n = 2 * ZSTD_compressBound(content.n) + 64};
    out.p = keep(out.n);
    ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, way != 0);
    ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, way != 1 && way != 2);
    if (way == 2)
        ZSTD_CCtx_setParameter(c, ZSTD_c_windowLog, 27);
    size_t half = way == 3 ? content.n / 2 : content.n;
    uint8_t *p = way == 4 ? put(put(put(out.p, 4, 0x184D2A50), 4, 4), 4, 7) : out.p;
    p += ZSTD_compress2(c, p, out.n - 16, content.p, half);
    if (way == 3)
        p += ZSTD_compress2(c, p, out.n - (size_t)(p - out.p), content.p + half, content.n - half);
    ZSTD_freeCCtx(c);
    out.n = (size_t)(p - out.p);
    if (way == 5)
        out.n = out.n / 2 + 1;
    if (way == 6)
        memset(out.p, 'x', out.n);
    out.n += way == 7;
    if (way == 8)
        out.p[rng_below(r, out.n)] ^= (uint8_t)(1u << rng_below(r, 8));
    say(note, "%s", ways[way]);
    return out;
}

static void damage_frames(struct rng *r, struct qep *q, struct note *note) {
    size_t i = rng_below(r, q->num), j = rng_below(r, q->num);
    struct frame f = q->frames[i], rest = {0};
    size_t cut = f.content.n / 2;
    switch (rng_below(r, 8)) {
    case 0:
        rest.content = (struct bytes){.p = f.content.p + cut, .n = f.content.n - cut};
        q->frames[i] = (struct frame){.content = {.p = f.content.p, .n = cut}};
        insert_frame(q, i + 1, rest);
        say(note, "frame %zu cut in two", i);
        break;
    case 1:
        say(note, "frame %zu dropped", i);
        remove_frame(q, i);
        break;
    case 2:
        say(note, "frame %zu again at %zu", i, j);
        insert_frame(q, j, f);
        break;
    case 3:
        say(note, "frames %zu and %zu swapped", i, j);
        note->free = true; /* of equal size: other values */
        q->frames[i] = q->frames[j];
        q->frames[j] = f;
        break;
    case 4:
        if (i + 1 < q->num) {
            struct bytes next = q->frames[i + 1].content;
            q->frames[i] =
                (struct frame){.content = bytes_splice(f.content, f.content.n, f.content.n, next)};
            remove_frame(q, i + 1);
        }
        say(note, "frame %zu and its next are one", i);
        break;
    case 5:
        q->frames[i] = (struct frame){.content = mutate_bytes(r, f.content, note)};
        say(note, "in frame %zu", i);
        note->free = true;
        break;
    default:
        say(note, "frame %zu of %zu stored as:", i, q->num);
        q->frames[i].stored = encode_odd(r, f.content, note);
    }
}

static void damage_index(struct rng *r, struct qep *q, struct note *note) {
    static const uint64_t lies[] = {1, UINT64_MAX, 8, 0x80000000, 0x7fffffff, 4096, 1 << 20};
    size_t i = rng_below(r, q->num);
    uint64_t lie = PICK(r, lies);
    static const char *const of[] = {"stored bytes", "content bytes", "hash"};
    size_t which = rng_below(r, 3);
    uint64_t *const lied[] = {&q->frames[i].stored_lie, &q->frames[i].content_lie,
                              &q->frames[i].hash_lie};
    *lied[which] = lie;
    if (which < 2 && rng_one_in(r, 2)) { /* and the next says so much less */
        uint64_t *next = which == 0 ? &q->frames[(i + 1) % q->num].stored_lie
                                    : &q->frames[(i + 1) % q->num].content_lie;
        *next -= lie;
    }
    say(note, "%s of frame %zu: %lld more", of[which], i, (long long)lie);
}

/* The header's frames hold the length and the JSON; all behind them stays as it is cut. */
static void replace_header(struct qep *q, struct bytes file, size_t data_bytes) {
    size_t kept = 0, first = q->num;
    while (first > 0 && kept < data_bytes)
        kept += q->frames[--first].content.n;
    while (first-- > 0)
        remove_frame(q, 0);
    insert_frame(q, 0, (struct frame){.content = {.p = file.p, .n = file.n - data_bytes}});
}

static struct bytes content_of(const struct qep *q) {
    struct bytes all = {0};
    for (size_t i = 0; i < q->num; i++)
        all.n += q->frames[i].content.n;
    uint8_t *p = all.p = keep(all.n);
    for (size_t i = 0; i < q->num; p += q->frames[i++].content.n)
        memcpy(p, q->frames[i].content.p, q->frames[i].content.n);
    return all;
}

static void replace_values(struct qep *q, struct bytes content) {
    const uint8_t *p = content.p;
    for (size_t i = 0; i < q->num; i++) {
        struct frame *f = &q->frames[i];
        if (memcmp(f->content.p, p, f->content.n) != 0)
            *f = (struct frame){.content = {.p = (uint8_t *)p, .n = f->content.n}};
        p += f->content.n;
    }
}

void mutate_qep(struct rng *r, const char *dir, const char *name, enum qep_damage damage,
                struct note *note) {
    const char *path = format("%s/%s", dir, name);
    struct qep q = parse(file_read(path));
    struct bytes content = content_of(&q);
    size_t data_bytes = content.n - 8 - (size_t)get_le(content.p, 8);
    say(note, "%s", name);
    if (damage == QEP_HEADER)
        replace_header(&q, mutate_header(r, content, note), data_bytes);
    else if (damage == QEP_VALUES)
        replace_values(&q, mutate_values(r, content, note));
    else if (damage == QEP_FRAMES)
        damage_frames(r, &q, note);
    else
        damage_index(r, &q, note);
    struct bytes file = print(&q);
    if (damage == QEP_INDEX && rng_one_in(r, 3)) {
        struct bytes index = mutate_bytes(r, q.index, note);
        file = bytes_splice(file, file.n - q.index.n, file.n, index);
        q.index = index;
    }
    file_write(path, file);
    seal_file(dir, name, file, q.index);
    say(note, "resealed");
}

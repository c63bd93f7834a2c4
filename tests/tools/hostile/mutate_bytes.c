#include "hostile.h"

#include <string.h>

struct span {
    size_t from, to;
};

/* Mostly short, sometimes up to all. */
static struct span pick_span(struct rng *r, size_t n) {
    static const size_t lengths[] = {1, 2, 4, 8, 16, 64, 512, 4096, 65536};
    size_t len = PICK(r, lengths), from = rng_below(r, n);
    return (struct span){from, from + (len < n - from ? len : n - from)};
}

static struct bytes flip_bits(struct rng *r, struct bytes b, struct note *note) {
    size_t times = 1 + rng_below(r, 4), at = 0;
    for (size_t i = 0; i < times; i++)
        b.p[at = rng_below(r, b.n)] ^= (uint8_t)(1u << rng_below(r, 8));
    say(note, "%zu bits flipped, the last at %zu", times, at);
    return b;
}

static struct bytes fill(struct rng *r, struct bytes b, struct note *note) {
    static const uint8_t values[] = {0, 0, 0xff, 0x80, ' ', '"', 0x7f};
    struct span s = pick_span(r, b.n);
    uint8_t value = PICK(r, values);
    memset(b.p + s.from, value, s.to - s.from);
    say(note, "bytes %zu to %zu are %d", s.from, s.to, value);
    return b;
}

static struct bytes cut_end(struct rng *r, struct bytes b, struct note *note) {
    size_t off = rng_one_in(r, 3) ? rng_below(r, b.n < 64 ? b.n : 64) + 1 : rng_below(r, b.n) + 1;
    say(note, "cut to %zu of %zu bytes", b.n - off, b.n);
    b.n -= off;
    return b;
}

static struct bytes extend(struct rng *r, struct bytes b, struct note *note) {
    static const size_t lengths[] = {1, 2, 8, 100, 5000};
    size_t len = PICK(r, lengths);
    bool copy = rng_one_in(r, 2) && len <= b.n;
    struct bytes tail = {.p = keep(len), .n = len};
    if (copy)
        memcpy(tail.p, b.p, len);
    say(note, "%zu %s bytes more", len, copy ? "of its" : "zero");
    return bytes_splice(b, b.n, b.n, tail);
}

static struct bytes take_out(struct rng *r, struct bytes b, struct note *note) {
    struct span s = pick_span(r, b.n);
    say(note, "bytes %zu to %zu taken out", s.from, s.to);
    return bytes_splice(b, s.from, s.to, (struct bytes){0});
}

static struct bytes repeat(struct rng *r, struct bytes b, struct note *note) {
    struct span s = pick_span(r, b.n);
    say(note, "bytes %zu to %zu twice", s.from, s.to);
    return bytes_splice(b, s.to, s.to, (struct bytes){.p = b.p + s.from, .n = s.to - s.from});
}

static struct bytes swap_blocks(struct rng *r, struct bytes b, struct note *note) {
    struct span s = pick_span(r, b.n);
    size_t len = s.to - s.from, other = rng_below(r, b.n - len + 1);
    for (size_t i = 0; i < len; i++) {
        uint8_t byte = b.p[s.from + i];
        b.p[s.from + i] = b.p[other + i];
        b.p[other + i] = byte;
    }
    say(note, "%zu bytes at %zu and %zu swapped", len, s.from, other);
    return b;
}

static struct bytes set_word(struct rng *r, struct bytes b, struct note *note) {
    static const uint64_t values[] = {
        0,          1,           0x7fffffff,         0x80000000,
        0xffffffff, 0x100000000, 0x7fffffffffffffff, 0x8000000000000000,
        UINT64_MAX};
    int n = rng_one_in(r, 2) ? 4 : 8;
    if (b.n < (size_t)n)
        return flip_bits(r, b, note);
    size_t at = rng_below(r, b.n - (size_t)n + 1) & ~(size_t)3;
    uint64_t v = PICK(r, values);
    put_le(b.p + at, n, v);
    say(note, "%d bytes at %zu are %#llx", n, at, (unsigned long long)v);
    return b;
}

struct bytes mutate_bytes(struct rng *r, struct bytes b, struct note *note) {
    static struct bytes (*const ways[])(struct rng *, struct bytes, struct note *) = {
        flip_bits, flip_bits, fill, cut_end, extend, take_out, repeat, swap_blocks, set_word};
    b = bytes_copy(b);
    return b.n == 0 ? extend(r, b, note) : PICK(r, ways)(r, b, note);
}

#include "hostile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A safetensors file in its two parts. */
struct parts {
    struct json header;
    struct bytes data;
};

static struct parts split(struct bytes file) {
    uint64_t n = file.n >= 8 ? get_le(file.p, 8) : 0;
    if (n == 0 || n > file.n - 8)
        die("no safetensors file");
    struct bytes text = {.p = file.p + 8, .n = (size_t)n};
    return (struct parts){.header = json_scan(text),
                          .data = {.p = file.p + 8 + n, .n = file.n - 8 - (size_t)n}};
}

static struct bytes join(struct bytes header, struct bytes data) {
    static const char spaces[] = "        ";
    struct bytes pad = {.p = (uint8_t *)spaces, .n = (8 - header.n % 8) % 8};
    header = bytes_splice(header, header.n, header.n, pad);
    struct bytes file = bytes_splice(header, header.n, header.n, data);
    struct bytes length = {.p = keep(8), .n = 8};
    put_le(length.p, 8, header.n);
    return bytes_splice(file, 0, 0, length);
}

static int pick_tensor(struct rng *r, const struct json *d) {
    for (int tries = 0; tries < 1000; tries++) {
        int i = (int)rng_below(r, (size_t)d->num);
        if (d->nodes[i].parent == 0 && json_member(d, i, "data_offsets") >= 0)
            return i;
    }
    die("no tensors");
}

static long long number_at(const struct json *d, int node) {
    return node >= 0 ? atoll(json_source(d, node)) : 0;
}

static struct bytes change_offsets(struct rng *r, const struct parts *f, int tensor,
                                   struct note *note) {
    static const long long steps[] = {1, -1, 2, -2, 8, -8, 64, 4096, -4096, 1LL << 31, 1LL << 62};
    const struct json *d = &f->header;
    int offsets = json_member(d, tensor, "data_offsets");
    int other = json_member(d, pick_tensor(r, d), "data_offsets");
    long long from = number_at(d, json_at(d, offsets, 0)),
              to = number_at(d, json_at(d, offsets, 1));
    size_t way = rng_below(r, 6);
    char *text = format("[%lld,%lld]", from + PICK(r, steps), to);
    if (way == 1)
        text = format("[%lld,%lld]", from, to + PICK(r, steps));
    if (way == 2)
        text = format("[%lld,%lld]", to, from);
    if (way == 3)
        text = json_source(d, other);
    if (way == 4)
        text = format("[%lld,%lld]", from + (long long)f->data.n, to + (long long)f->data.n);
    if (way == 5)
        text = format("[%llu,%llu]", ~0ull - (unsigned long long)(to - from), ~0ull);
    say(note, "offsets of %s are %s", json_key(d, tensor), text);
    return json_replace(d, offsets, text);
}

static struct bytes change_shape(struct rng *r, const struct parts *f, int tensor,
                                 struct note *note) {
    const struct json *d = &f->header;
    int shape = json_member(d, tensor, "shape");
    long long a = number_at(d, json_at(d, shape, 0)), b = number_at(d, json_at(d, shape, 1));
    long long c = b > 0 ? b : 1;
    char *const texts[] = {format("[%lld,%lld]", c, a),
                           format("[%lld]", a * c),
                           format("[%lld,%lld,1]", a, c),
                           format("[%lld,%lld]", a * 2, c),
                           format("[%lld,%lld]", a + 1, c),
                           format("[%lld,%lld]", a, c - 1),
                           format("[0,%lld]", c),
                           format("[-%lld,-%lld]", a, c),
                           format("[4294967296,4294967296]"),
                           format("[]"),
                           format("[9223372036854775807,2]"),
                           format("[%lld.5,%lld]", a, c),
                           format("[1,1,1,1,1,1,1,1,%lld]", a * c)};
    char *text = PICK(r, texts);
    say(note, "shape of %s is %s, not %s", json_key(d, tensor), text, json_source(d, shape));
    return json_replace(d, shape, text);
}

static struct bytes change_dtype(struct rng *r, const struct parts *f, int tensor,
                                 struct note *note) {
    static const char *const types[] = {"\"F32\"", "\"F16\"", "\"BF16\"", "\"I8\"",      "\"U8\"",
                                        "\"I64\"", "\"F64\"", "\"BOOL\"", "\"F8_E4M3\"", "\"bf16\"",
                                        "\"\"",    "\"F4\"",  "7"};
    const char *type = PICK(r, types);
    note->free = true; /* of equal size: other values */
    say(note, "dtype of %s is %s", json_key(&f->header, tensor), type);
    return json_replace(&f->header, json_member(&f->header, tensor, "dtype"), type);
}

static struct bytes double_name(struct rng *r, const struct parts *f, int tensor,
                                struct note *note) {
    const struct json *d = &f->header;
    const struct jnode *n = &d->nodes[tensor], *other = &d->nodes[pick_tensor(r, d)];
    struct bytes name = {.p = d->text.p + n->key_from, .n = n->key_to - n->key_from};
    say(note, "%.*s is called %.*s", (int)(other->key_to - other->key_from),
        (char *)d->text.p + other->key_from, (int)name.n, (char *)name.p);
    return bytes_splice(d->text, other->key_from, other->key_to, name);
}

static struct bytes change_length(struct rng *r, struct bytes file, struct note *note) {
    static const uint64_t lengths[] = {0, 1, 7, UINT64_MAX, 1ull << 63, 1ull << 32, 100000001};
    uint64_t n = get_le(file.p, 8), v = PICK(r, lengths);
    if (rng_one_in(r, 2))
        v = n + rng_below(r, 64) - 32;
    file = bytes_copy(file);
    put_le(file.p, 8, v);
    say(note, "header length %llu, not %llu", (unsigned long long)v, (unsigned long long)n);
    return file;
}

struct bytes mutate_header(struct rng *r, struct bytes file, struct note *note) {
    static struct bytes (*const ways[])(struct rng *, const struct parts *, int, struct note *) = {
        change_offsets, change_offsets, change_shape, change_shape, change_dtype, double_name};
    struct parts f = split(file);
    size_t way = rng_below(r, 10);
    if (way == 0)
        return change_length(r, file, note);
    if (way < 4) {
        note->free = true;
        return join(mutate_json(r, f.header.text, note), f.data);
    }
    return join(PICK(r, ways)(r, &f, pick_tensor(r, &f.header), note), f.data);
}

struct bytes respell_header(struct rng *r, struct bytes file, struct note *note) {
    struct parts f = split(file);
    struct bytes text = respell_json(r, f.header.text, note);
    for (; text.p[0] != '{'; text.n--) /* a header begins with it */
        text.p++;
    return join(text, f.data);
}

/* --- values */
static const uint64_t f32_values[] = {0x7fc00000, 0xffc00000, 0x7f800001, 0x7f800000, 0xff800000,
                                      0x7f7fffff, 0xff7fffff, 1,          0x80000001, 0x80000000,
                                      0x007fffff, 0x7f000000, 0x00800000};

static void set_value(struct rng *r, uint8_t *p, const char *dtype, struct note *note) {
    uint64_t v = PICK(r, f32_values);
    if (strcmp(dtype, "\"F32\"") == 0)
        put_le(p, 4, v);
    else if (strcmp(dtype, "\"BF16\"") == 0)
        put_le(p, 2, v >> 16 | (v == 1));
    else
        p[0] = (uint8_t)(v = rng_one_in(r, 2) ? 0x80 : rng_next(r) & 0xff);
    say(note, "%#llx", (unsigned long long)v);
}

struct bytes mutate_values(struct rng *r, struct bytes file, struct note *note) {
    struct parts f = split(file);
    const struct json *d = &f.header;
    int tensor = pick_tensor(r, d), offsets = json_member(d, tensor, "data_offsets");
    size_t from = (size_t)number_at(d, json_at(d, offsets, 0));
    size_t to = (size_t)number_at(d, json_at(d, offsets, 1));
    char *dtype = json_source(d, json_member(d, tensor, "dtype"));
    size_t width = strcmp(dtype, "\"F32\"") == 0 ? 4 : strcmp(dtype, "\"BF16\"") == 0 ? 2 : 1;
    struct bytes out = bytes_copy(file);
    uint8_t *data = out.p + (out.n - f.data.n);
    say(note, "values of %s", json_key(d, tensor));
    if (rng_one_in(r, 4)) { /* all of them */
        set_value(r, data + from, dtype, note);
        for (size_t i = from + width; i < to; i += width)
            memcpy(data + i, data + from, width);
        say(note, "everywhere");
        return out;
    }
    for (size_t times = rng_one_in(r, 2) ? 1 : 1 + rng_below(r, 20); times > 0; times--)
        set_value(r, data + from + rng_below(r, (to - from) / width) * width, dtype, note);
    return out;
}

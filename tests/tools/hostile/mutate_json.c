#include "hostile.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* --- a scanner that keeps places; it takes just what is well-formed enough to be cut up */
struct scan {
    struct json *doc;
    size_t at;
    int cap, depth;
};

static int add_node(struct scan *s, int parent, char kind) {
    struct json *d = s->doc;
    if (d->num == s->cap) {
        struct jnode *more = keep(sizeof *more * (size_t)(s->cap = 2 * s->cap + 64));
        if (d->num > 0)
            memcpy(more, d->nodes, sizeof *more * (size_t)d->num);
        d->nodes = more;
    }
    d->nodes[d->num] = (struct jnode){.parent = parent, .kind = kind, .from = s->at};
    return d->num++;
}

static int peek(struct scan *s) {
    const struct bytes *t = &s->doc->text;
    while (s->at < t->n && strchr(" \t\r\n", t->p[s->at]) != NULL && t->p[s->at] != 0)
        s->at++;
    return s->at < t->n ? t->p[s->at] : -1;
}

static bool skip_string(struct scan *s) {
    const struct bytes *t = &s->doc->text;
    for (s->at++; s->at < t->n && t->p[s->at] != '"'; s->at++)
        s->at += t->p[s->at] == '\\';
    return s->at++ < t->n;
}

static bool scan_value(struct scan *s, int parent, int *node);

static bool scan_members(struct scan *s, int node, char close) {
    s->at++;
    if (peek(s) == close)
        return s->at++, true;
    for (;;) {
        size_t key_from = 0, key_to = 0;
        int child = 0;
        if (close == '}') {
            if (peek(s) != '"')
                return false;
            key_from = s->at;
            if (!skip_string(s))
                return false;
            key_to = s->at;
            if (peek(s) != ':')
                return false;
            s->at++;
        }
        if (!scan_value(s, node, &child))
            return false;
        s->doc->nodes[child].key_from = key_from;
        s->doc->nodes[child].key_to = key_to;
        int c = peek(s);
        s->at++;
        if (c == close)
            return true;
        if (c != ',')
            return false;
    }
}

static bool scan_value(struct scan *s, int parent, int *node) {
    int c = peek(s);
    bool ok = true;
    if (c < 0 || s->depth > 200)
        return false;
    *node = add_node(s, parent, (char)(isdigit(c) || c == '-' ? '0' : c));
    s->depth++;
    if (c == '{' || c == '[')
        ok = scan_members(s, *node, c == '{' ? '}' : ']');
    else if (c == '"')
        ok = skip_string(s);
    else {
        size_t from = s->at;
        while (s->at < s->doc->text.n &&
               (isalnum(s->doc->text.p[s->at]) ||
                (s->doc->text.p[s->at] != 0 && strchr("+-.", s->doc->text.p[s->at]) != NULL)))
            s->at++;
        ok = s->at > from;
        if (s->doc->nodes[*node].kind != '0')
            s->doc->nodes[*node].kind = 't';
    }
    s->depth--;
    s->doc->nodes[*node].to = s->at;
    return ok;
}

struct json json_scan(struct bytes text) {
    struct json doc = {.text = text};
    struct scan s = {.doc = &doc};
    int root = 0;
    doc.valid = scan_value(&s, -1, &root) && peek(&s) < 0;
    if (!doc.valid)
        doc.num = 0;
    return doc;
}

char *json_source(const struct json *doc, int node) {
    const struct jnode *n = &doc->nodes[node];
    return format("%.*s", (int)(n->to - n->from), (char *)doc->text.p + n->from);
}

char *json_key(const struct json *doc, int node) {
    const struct jnode *n = &doc->nodes[node];
    if (n->key_to == 0)
        return format("%s", "");
    return format("%.*s", (int)(n->key_to - n->key_from - 2),
                  (char *)doc->text.p + n->key_from + 1);
}

int json_member(const struct json *doc, int object, const char *key) {
    for (int i = 0; object >= 0 && i < doc->num; i++)
        if (doc->nodes[i].parent == object && strcmp(json_key(doc, i), key) == 0)
            return i;
    return -1;
}

int json_at(const struct json *doc, int list, int idx) {
    for (int i = 0; list >= 0 && i < doc->num; i++)
        if (doc->nodes[i].parent == list && idx-- == 0)
            return i;
    return -1;
}

bool json_is(const struct json *doc, int node, const char *text) {
    return node >= 0 && strcmp(json_source(doc, node), text) == 0;
}

struct bytes json_replace(const struct json *doc, int node, const char *text) {
    return bytes_splice(doc->text, doc->nodes[node].from, doc->nodes[node].to, bytes_of(text));
}

/* --- values to put in */
static struct bytes repeated(const char *piece, size_t times, const char *end) {
    size_t n = strlen(piece), m = strlen(end);
    struct bytes b = {.p = keep(n * times + m), .n = n * times + m};
    for (size_t i = 0; i < times; i++)
        memcpy(b.p + i * n, piece, n);
    memcpy(b.p + n * times, end, m);
    return b;
}

static struct bytes some_number(struct rng *r, const char *old) {
    static const char *const numbers[] = {"0",
                                          "-1",
                                          "1",
                                          "2",
                                          "3",
                                          "1e999",
                                          "-1e999",
                                          "1e308",
                                          "0.5",
                                          "-0",
                                          "1e-320",
                                          "2147483647",
                                          "2147483648",
                                          "4294967296",
                                          "4294967297",
                                          "9007199254740993",
                                          "9223372036854775807",
                                          "9223372036854775808",
                                          "18446744073709551615",
                                          "18446744073709551616",
                                          "1e2",
                                          "3.0",
                                          "1E+2",
                                          "NaN",
                                          "Infinity",
                                          "-Infinity",
                                          "nan",
                                          "0x10",
                                          "01",
                                          "+1",
                                          ".5",
                                          "1.",
                                          "1e",
                                          "--1",
                                          "1e-5",
                                          "-2147483648",
                                          "65536",
                                          "1048576",
                                          "123456789012345678901234567890",
                                          "0.1e1"};
    double value = 0;
    if (rng_one_in(r, 4) && sscanf(old, "%lf", &value) == 1) {
        static const double steps[] = {1, -1, 2, -2};
        bool scaled = rng_one_in(r, 3);
        return bytes_of(
            format("%.17g", scaled ? value * (PICK(r, steps) + 0.5) : value + PICK(r, steps)));
    }
    return bytes_of(PICK(r, numbers));
}

static struct bytes some_string(struct rng *r) {
    static const char *const strings[] = {"\"\"",
                                          "\"x\"",
                                          "\"\\u0000\"",
                                          "\"a\\u0000b\"",
                                          "\"\\ud800\"",
                                          "\"\\udc00x\"",
                                          "\"\xff\xfe\"",
                                          "\"\xc0\x80\"",
                                          "\"\xed\xa0\x80\"",
                                          "\"\xf5\x80\x80\x80\"",
                                          "\"a\x01z\"",
                                          "\"\x1b[31mred\"",
                                          "\"\xc2\x9b"
                                          "31m\"",
                                          "\"\xe2\x80\xae"
                                          "rtl\"",
                                          "\"../../../x\"",
                                          "\"/nowhere/x\"",
                                          "\"\\x\"",
                                          "\"\\u12\"",
                                          "\"a",
                                          "\"NaN\"",
                                          "\"1\"",
                                          "\"\xef\xbf\xbd\"",
                                          "\"\\n\\r\\t\"",
                                          "\".\"",
                                          "\"con\\tainer\"",
                                          "\"%s%n%d\"",
                                          "\"\xf0\x9f\x98\x80\"",
                                          "\"e\xcc\x81\"",
                                          "\"*\""};
    if (rng_one_in(r, 12)) {
        static const size_t lengths[] = {100, 1000, 1024, 5000, 70000, 1000000};
        struct bytes b = repeated(rng_one_in(r, 2) ? "a" : "\xc3\xa9", PICK(r, lengths), "\"");
        return bytes_splice(b, 0, 0, bytes_of("\""));
    }
    return bytes_of(PICK(r, strings));
}

static struct bytes some_nest(struct rng *r) {
    static const size_t depths[] = {2, 10, 100, 499, 501, 1001, 20000, 200000};
    size_t depth = PICK(r, depths);
    bool object = rng_one_in(r, 2);
    struct bytes open = repeated(object ? "{\"a\":" : "[", depth, object ? "1" : "");
    if (rng_one_in(r, 4))
        return open;
    return bytes_splice(open, open.n, open.n, repeated(object ? "}" : "]", depth, ""));
}

static struct bytes some_value(struct rng *r, char kind, const char *old) {
    static const char *const others[] = {
        "null", "true", "false", "[]",    "{}",   "[null]",   "{\"a\":1}", "[1,2]",  "True",
        "None", "nul",  "",      "[[1]]", "[1,]", "{\"\":0}", "'x'",       "//x\n1", "{\"a\" 1}"};
    size_t way = rng_below(r, 10);
    if (way < 4)
        return kind == '0'   ? some_number(r, old)
               : kind == '"' ? some_string(r)
                             : bytes_of(PICK(r, others));
    if (way < 6)
        return some_number(r, old);
    if (way < 7)
        return some_string(r);
    if (way < 8 && rng_one_in(r, 2))
        return some_nest(r);
    return bytes_of(PICK(r, others));
}

/* --- ways to change a tree */
static char *path_of(const struct json *d, int node) {
    const struct jnode *n = &d->nodes[node];
    if (n->parent < 0)
        return format("%s", "$");
    return format("%.200s.%.40s", path_of(d, n->parent), n->key_to > 0 ? json_key(d, node) : "[]");
}

/* The node with its key, and one of the commas beside it. */
static void span_of(const struct json *d, int node, bool comma, size_t *from, size_t *to) {
    const struct jnode *n = &d->nodes[node];
    *from = n->key_to > 0 ? n->key_from : n->from;
    *to = n->to;
    if (!comma)
        return;
    size_t at = *to;
    while (at < d->text.n && isspace(d->text.p[at]))
        at++;
    if (at < d->text.n && d->text.p[at] == ',') {
        *to = at + 1;
        return;
    }
    for (at = *from; at > 0 && isspace(d->text.p[at - 1]);)
        at--;
    if (at > 0 && d->text.p[at - 1] == ',')
        *from = at - 1;
}

static struct bytes replace_value(struct rng *r, const struct json *d, int i, struct note *note) {
    const struct jnode *n = &d->nodes[i];
    struct bytes with = some_value(r, n->kind, json_source(d, i));
    say(note, "%s is %.60s%s", path_of(d, i), (char *)with.p, with.n > 60 ? "..." : "");
    return bytes_splice(d->text, n->from, n->to, with);
}

static struct bytes delete_node(struct rng *r, const struct json *d, int i, struct note *note) {
    size_t from = 0, to = 0;
    (void)r;
    span_of(d, i, true, &from, &to);
    say(note, "%s deleted", path_of(d, i));
    return bytes_splice(d->text, from, to, (struct bytes){0});
}

static struct bytes duplicate_node(struct rng *r, const struct json *d, int i, struct note *note) {
    size_t from = 0, to = 0;
    span_of(d, i, false, &from, &to);
    struct bytes once = {.p = d->text.p + from, .n = to - from};
    size_t value_from = d->nodes[i].from - from;
    say(note, "%s twice", path_of(d, i));
    if (d->nodes[i].key_to > 0 && rng_one_in(r, 2)) { /* with another value */
        once = bytes_splice(once, value_from, once.n, some_value(r, d->nodes[i].kind, ""));
        say(note, "the second as %.60s", (char *)once.p + value_from);
    }
    struct bytes more = bytes_splice(once, 0, 0, bytes_of(","));
    return bytes_splice(d->text, to, to, more);
}

static struct bytes rename_key(struct rng *r, const struct json *d, int i, struct note *note) {
    static const char *const ends[] = {"_", " ", "\\u0000", "\xff", "x", "\\u0061"};
    const struct jnode *n = &d->nodes[i];
    if (n->key_to == 0)
        return delete_node(r, d, i, note);
    char *key = json_key(d, i);
    int other = (int)rng_below(r, (size_t)d->num);
    char *name = rng_one_in(r, 3) && d->nodes[other].key_to > 0 ? json_key(d, other)
                 : rng_one_in(r, 4)                             ? format("%s", "")
                                    : format("%s%s", key, PICK(r, ends));
    if (rng_one_in(r, 6) && key[0] != '\0') {
        name = format("%s", key);
        name[0] = (char)(isupper((unsigned char)name[0]) ? tolower(name[0]) : toupper(name[0]));
    }
    say(note, "%s renamed %.60s", path_of(d, i), name);
    return bytes_splice(d->text, n->key_from + 1, n->key_to - 1, bytes_of(name));
}

static struct bytes swap_values(struct rng *r, const struct json *d, int i, struct note *note) {
    int j = (int)rng_below(r, (size_t)d->num);
    if (d->nodes[j].from < d->nodes[i].from) {
        int k = i;
        i = j;
        j = k;
    }
    const struct jnode *a = &d->nodes[i], *b = &d->nodes[j];
    if (a->to > b->from)
        return delete_node(r, d, j, note);
    say(note, "%s and %s swapped", path_of(d, i), path_of(d, j));
    struct bytes first = bytes_copy((struct bytes){.p = d->text.p + a->from, .n = a->to - a->from});
    struct bytes t = bytes_splice(d->text, b->from, b->to, first);
    return bytes_splice(t, a->from, a->to,
                        (struct bytes){.p = d->text.p + b->from, .n = b->to - b->from});
}

static struct bytes add_member(struct rng *r, const struct json *d, int i, struct note *note) {
    const struct jnode *n = &d->nodes[i];
    if (n->kind != '{' && n->kind != '[')
        return duplicate_node(r, d, i, note);
    struct bytes value = some_value(r, '0', "1");
    const char *key = n->kind == '{' ? format("\"%s\":", rng_one_in(r, 2) ? "unheard_of" : "") : "";
    say(note, "%s has one more: %s%.60s", path_of(d, i), key, (char *)value.p);
    bool empty = json_at(d, i, 0) < 0;
    struct bytes more = bytes_splice(value, 0, 0, bytes_of(key));
    if (!empty)
        more = bytes_splice(more, more.n, more.n, bytes_of(","));
    return bytes_splice(d->text, n->from + 1, n->from + 1, more);
}

static struct bytes truncate_string(struct rng *r, const struct json *d, int i, struct note *note) {
    const struct jnode *n = &d->nodes[i];
    if (n->kind != '"' || n->to - n->from < 3)
        return replace_value(r, d, i, note);
    size_t at = n->from + 1 + rng_below(r, n->to - n->from - 2);
    static const char *const pieces[] = {"\\u0000",    "\x01",         "\xff",    "\\ud83d",
                                         "\x7f",       "\\",           "\"",      "\n",
                                         "<|im_end|>", "<|im_start|>", "\\u202e", "  "};
    struct bytes piece = bytes_of(PICK(r, pieces));
    say(note, "in %s byte %zu: %.20s", path_of(d, i), at - n->from, (char *)piece.p);
    return bytes_splice(d->text, at, at + rng_below(r, 2), piece);
}

static struct bytes mutate_text(struct rng *r, struct bytes t, struct note *note) {
    size_t way = rng_below(r, 8);
    if (way == 0) {
        say(note, "a byte order mark in front");
        return bytes_splice(t, 0, 0, bytes_of("\xef\xbb\xbf"));
    }
    if (way == 1) {
        say(note, "twice in a row");
        return bytes_splice(t, t.n, t.n, t);
    }
    if (way == 2) {
        say(note, "a NUL behind it");
        return bytes_splice(t, t.n, t.n, (struct bytes){.p = keep(1), .n = 1});
    }
    if (way == 3) {
        say(note, "text behind it");
        return bytes_splice(t, t.n, t.n, bytes_of("x"));
    }
    return mutate_bytes(r, t, note);
}

static struct bytes mutate_once(struct rng *r, struct bytes text, struct note *note) {
    static struct bytes (*const ways[])(struct rng *, const struct json *, int, struct note *) = {
        replace_value,  replace_value, replace_value, replace_value, delete_node,
        duplicate_node, rename_key,    swap_values,   add_member,    truncate_string};
    struct json d = json_scan(text);
    if (!d.valid || rng_one_in(r, 6))
        return mutate_text(r, text, note);
    return PICK(r, ways)(r, &d, (int)rng_below(r, (size_t)d.num), note);
}

struct bytes mutate_json(struct rng *r, struct bytes text, struct note *note) {
    size_t times = rng_one_in(r, 4) ? 2 + rng_below(r, 3) : 1;
    for (size_t i = 0; i < times; i++)
        text = mutate_once(r, text, note);
    return text;
}

/* --- the same value in other words */
static struct bytes escape_char(struct rng *r, const struct json *d, int i) {
    const struct jnode *n = &d->nodes[i];
    size_t from = n->from, to = n->to;
    if (n->key_to > 0 && rng_one_in(r, 2)) {
        from = n->key_from;
        to = n->key_to;
    } else if (n->kind != '"')
        return d->text;
    if (to - from < 3)
        return d->text;
    size_t at = from + 1 + rng_below(r, to - from - 2);
    for (size_t k = from; k < to; k++)
        if (d->text.p[k] == '\\' || d->text.p[k] >= 0x80)
            return d->text;
    return bytes_splice(d->text, at, at + 1, bytes_of(format("\\u%04x", d->text.p[at])));
}

static struct bytes add_space(struct rng *r, const struct json *d, int i) {
    static const char *const spaces[] = {" ", "\n", "\r\n", "\t", "   \n\t "};
    size_t at = rng_one_in(r, 2) ? d->nodes[i].from : d->nodes[i].to;
    return bytes_splice(d->text, at, at, bytes_of(PICK(r, spaces)));
}

struct bytes respell_json(struct rng *r, struct bytes text, struct note *note) {
    for (size_t times = 1 + rng_below(r, 8); times > 0; times--) {
        struct json d = json_scan(text);
        if (!d.valid)
            die("respelled, the text is no JSON: %.200s", (char *)text.p);
        int i = (int)rng_below(r, (size_t)d.num);
        text = rng_one_in(r, 2) ? add_space(r, &d, i) : escape_char(r, &d, i);
    }
    say(note, "the same JSON in other words");
    return text;
}

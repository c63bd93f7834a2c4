#include "hostile.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- memory */
struct chunk {
    struct chunk *next;
    _Alignas(16) uint8_t data[];
};
static struct chunk *chunks;

void die(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fputs("hostile: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(2);
}

void *keep(size_t n) {
    struct chunk *chunk = calloc(1, sizeof *chunk + n + 1);
    if (chunk == NULL)
        die("out of memory: %zu bytes", n);
    chunk->next = chunks;
    chunks = chunk;
    return chunk->data;
}

void keep_end(void) {
    while (chunks != NULL) {
        struct chunk *next = chunks->next;
        free(chunks);
        chunks = next;
    }
}

static char *vformat(const char *fmt, va_list ap) {
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, again);
    va_end(again);
    char *text = keep((size_t)n + 1);
    vsnprintf(text, (size_t)n + 1, fmt, ap);
    return text;
}

char *format(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *text = vformat(fmt, ap);
    va_end(ap);
    return text;
}

void say(struct note *note, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *more = vformat(fmt, ap);
    va_end(ap);
    note->text = note->text != NULL ? format("%s; %s", note->text, more) : more;
}

/* --- chance: splitmix64 */
uint64_t rng_next(struct rng *r) {
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

size_t rng_below(struct rng *r, size_t n) {
    return (size_t)(rng_next(r) % n);
}

bool rng_one_in(struct rng *r, size_t n) {
    return rng_below(r, n) == 0;
}

/* --- bytes */
struct bytes bytes_of(const char *text) {
    return (struct bytes){.p = (uint8_t *)format("%s", text), .n = strlen(text)};
}

struct bytes bytes_copy(struct bytes b) {
    return bytes_splice(b, b.n, b.n, (struct bytes){0});
}

struct bytes bytes_splice(struct bytes b, size_t from, size_t to, struct bytes with) {
    struct bytes out = {.n = from + with.n + (b.n - to)};
    out.p = keep(out.n);
    if (from > 0)
        memcpy(out.p, b.p, from);
    if (with.n > 0)
        memcpy(out.p + from, with.p, with.n);
    if (b.n > to)
        memcpy(out.p + from + with.n, b.p + to, b.n - to);
    return out;
}

bool bytes_equal(struct bytes a, struct bytes b) {
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

uint64_t get_le(const uint8_t *p, int n) {
    uint64_t v = 0;
    for (int i = n - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

void put_le(uint8_t *p, int n, uint64_t v) {
    for (int i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

/* --- files */
bool file_exists(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0;
}

struct bytes file_read(const char *path) {
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (f == NULL || fstat(fileno(f), &st) != 0)
        die("%s: %s", path, strerror(errno));
    struct bytes b = {.p = keep((size_t)st.st_size), .n = (size_t)st.st_size};
    if (fread(b.p, 1, b.n, f) != b.n)
        die("%s: short", path);
    fclose(f);
    return b;
}

void file_write(const char *path, struct bytes b) {
    unlink(path); /* it may be a link to the base's */
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(b.p, 1, b.n, f) != b.n || fclose(f) != 0)
        die("%s: %s", path, strerror(errno));
}

typedef void visit_fn(void *arg, const char *dir, const char *name);

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void each_entry(const char *dir, visit_fn *visit, void *arg) {
    struct dirent **list = NULL;
    int n = scandir(dir, &list, NULL, by_name);
    for (int i = 0; i < n; i++) {
        if (strcmp(list[i]->d_name, ".") != 0 && strcmp(list[i]->d_name, "..") != 0)
            visit(arg, dir, list[i]->d_name);
        free(list[i]);
    }
    free(list);
}

static bool is_directory(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static void link_entry(void *to, const char *dir, const char *name) {
    const char *from = format("%s/%s", dir, name), *target = format("%s/%s", (char *)to, name);
    if (is_directory(from))
        link_tree(from, target);
    else if (link(from, target) != 0)
        die("%s: %s", target, strerror(errno));
}

void link_tree(const char *from, const char *to) {
    if (mkdir(to, 0700) != 0)
        die("%s: %s", to, strerror(errno));
    each_entry(from, link_entry, (void *)to);
}

static void remove_entry(void *arg, const char *dir, const char *name) {
    (void)arg;
    remove_tree(format("%s/%s", dir, name));
}

void remove_tree(const char *path) {
    if (is_directory(path)) {
        each_entry(path, remove_entry, NULL);
        rmdir(path);
    } else
        unlink(path);
}

struct listing {
    char *text;
    size_t len, cap;
    const char *without;
};

static void list_entry(void *arg, const char *dir, const char *name) {
    struct listing *l = arg;
    struct stat st;
    char line[4600];
    const char *path = format("%s/%s", dir, name);
    if ((l->without != NULL && strcmp(name, l->without) == 0) || lstat(path, &st) != 0)
        return;
    bool is_dir =
        S_ISDIR(st.st_mode); /* the time of a directory changes with lock files that come and go */
    int n = snprintf(line, sizeof line, "%s %o %lld %llu %lld.%09ld\n", path, st.st_mode,
                     is_dir ? 0 : (long long)st.st_size, (unsigned long long)st.st_ino,
                     is_dir ? 0 : (long long)st.st_mtim.tv_sec, is_dir ? 0 : st.st_mtim.tv_nsec);
    while (l->len + (size_t)n + 1 > l->cap) {
        char *more = keep(l->cap = 2 * l->cap + 8192);
        if (l->len > 0)
            memcpy(more, l->text, l->len);
        l->text = more;
    }
    memcpy(l->text + l->len, line, (size_t)n + 1);
    l->len += (size_t)n;
    if (is_dir)
        each_entry(path, list_entry, l);
}

char *list_tree(const char *path, const char *without) {
    struct listing l = {.without = without};
    each_entry(path, list_entry, &l);
    return l.text != NULL ? l.text : format("%s", "");
}

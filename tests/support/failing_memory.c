#include "tests/support/failing_memory.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <dirent.h>
#include <errno.h>
#include <execinfo.h>
#include <pcre2.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include <xxhash.h>
#include <zstd.h>
#include <zstd_errors.h>

static atomic_long requests, fail_at, blocks;
static atomic_bool fail_after, failed, recording;

void memory_fail_at(long n, bool and_after) {
    requests = 0;
    failed = false;
    fail_after = and_after;
    fail_at = n;
    recording = false;
}

/* Calls that lead to a request, hashed; the innermost two are ours. */
enum { MAX_PLACES = 1 << 16, DEPTH = 10, OWN = 2 };
static size_t places[MAX_PLACES];

static void note_place(long n, size_t bytes) {
    void *calls[DEPTH];
    size_t h = (size_t)__builtin_clzll(bytes | 1); /* a buffer that grows fails otherwise */
    if (!recording || n > MAX_PLACES)
        return;
    for (int i = OWN, count = backtrace(calls, DEPTH); i < count; i++)
        h = (h ^ (size_t)calls[i]) * 0x9e3779b97f4a7c15u;
    places[n - 1] = h;
}

void memory_record(void) {
    void *calls[DEPTH];
    backtrace(calls, DEPTH); /* its first time takes memory */
    memory_fail_at(0, false);
    recording = true;
}

bool memory_is_new_place(long n) {
    for (long i = 0; n <= MAX_PLACES && i < n - 1; i++)
        if (places[i] == places[n - 1])
            return false;
    return true;
}

long memory_requests(void) {
    return requests;
}

bool memory_has_failed(void) {
    return failed;
}

long memory_blocks(void) {
    return blocks;
}

static bool is_short(size_t bytes) {
    long n = atomic_fetch_add(&requests, 1) + 1, at = fail_at;
    note_place(n, bytes);
    bool yes = at > 0 && (n == at || (fail_after && n > at));
    if (yes) {
        failed = true;
        errno = ENOMEM;
    }
    return yes;
}

static void *counted(void *block) {
    if (block != NULL)
        atomic_fetch_add(&blocks, 1);
    return block;
}

#define REAL(type, name, params)                                                                   \
    type __real_##name params;                                                                     \
    type __wrap_##name params

REAL(void *, malloc, (size_t bytes)) {
    return is_short(bytes) ? NULL : counted(__real_malloc(bytes));
}

REAL(void *, calloc, (size_t count, size_t size)) {
    return is_short(count * size) ? NULL : counted(__real_calloc(count, size));
}

REAL(void *, aligned_alloc, (size_t alignment, size_t bytes)) {
    return is_short(bytes) ? NULL : counted(__real_aligned_alloc(alignment, bytes));
}

REAL(void *, realloc, (void *block, size_t bytes)) {
    if (is_short(bytes))
        return NULL;
    return block == NULL ? counted(__real_realloc(NULL, bytes)) : __real_realloc(block, bytes);
}

REAL(void, free, (void *block)) {
    if (block != NULL)
        atomic_fetch_sub(&blocks, 1);
    __real_free(block);
}

REAL(char *, strdup, (const char *text)) {
    return is_short(0) ? NULL : counted(__real_strdup(text));
}

int __wrap_asprintf(char **out, const char *format, ...);
int __wrap_asprintf(char **out, const char *format, ...) {
    va_list ap;
    *out = NULL;
    if (is_short(0))
        return -1;
    va_start(ap, format);
    int len = vasprintf(out, format, ap);
    va_end(ap);
    counted(*out);
    return len;
}

REAL(FILE *, fopen, (const char *path, const char *mode)) {
    return is_short(0) ? NULL : __real_fopen(path, mode);
}

REAL(DIR *, opendir, (const char *path)) {
    return is_short(0) ? NULL : __real_opendir(path);
}

REAL(DIR *, fdopendir, (int fd)) {
    return is_short(0) ? NULL : __real_fdopendir(fd);
}

REAL(int, pthread_create,
     (pthread_t * thread, const pthread_attr_t *attr, void *(*main)(void *), void *arg)) {
    return is_short(0) ? EAGAIN : __real_pthread_create(thread, attr, main, arg);
}

REAL(int, fsync, (int fd)) {
    (void)fd;
    return 0; /* thousands of conversions are not kept */
}

REAL(ZSTD_CCtx *, ZSTD_createCCtx, (void)) {
    return is_short(0) ? NULL : __real_ZSTD_createCCtx();
}

REAL(ZSTD_DCtx *, ZSTD_createDCtx, (void)) {
    return is_short(0) ? NULL : __real_ZSTD_createDCtx();
}

REAL(size_t, ZSTD_compress2,
     (ZSTD_CCtx * context, void *out, size_t out_bytes, const void *in, size_t bytes)) {
    return is_short(0) ? (size_t)-ZSTD_error_memory_allocation
                       : __real_ZSTD_compress2(context, out, out_bytes, in, bytes);
}

REAL(size_t, ZSTD_decompressDCtx,
     (ZSTD_DCtx * context, void *out, size_t out_bytes, const void *in, size_t bytes)) {
    return is_short(0) ? (size_t)-ZSTD_error_memory_allocation
                       : __real_ZSTD_decompressDCtx(context, out, out_bytes, in, bytes);
}

REAL(XXH3_state_t *, XXH3_createState, (void)) {
    return is_short(0) ? NULL : __real_XXH3_createState();
}

REAL(utf8proc_ssize_t, utf8proc_map,
     (const utf8proc_uint8_t *text, utf8proc_ssize_t len, utf8proc_uint8_t **out,
      utf8proc_option_t options)) {
    *out = NULL;
    if (is_short(0))
        return UTF8PROC_ERROR_NOMEM;
    utf8proc_ssize_t n = __real_utf8proc_map(text, len, out, options);
    counted(*out);
    return n;
}

REAL(pcre2_code *, pcre2_compile_8,
     (PCRE2_SPTR pattern, PCRE2_SIZE len, uint32_t options, int *error, PCRE2_SIZE *at,
      pcre2_compile_context *context)) {
    if (!is_short(0))
        return __real_pcre2_compile_8(pattern, len, options, error, at, context);
    *error = PCRE2_ERROR_HEAP_FAILED;
    return NULL;
}

REAL(int, pcre2_jit_compile_8, (pcre2_code * code, uint32_t options)) {
    return is_short(0) ? PCRE2_ERROR_NOMEMORY : __real_pcre2_jit_compile_8(code, options);
}

REAL(pcre2_match_data *, pcre2_match_data_create_8, (uint32_t pairs, pcre2_general_context *c)) {
    return is_short(0) ? NULL : __real_pcre2_match_data_create_8(pairs, c);
}

REAL(pcre2_match_context *, pcre2_match_context_create_8, (pcre2_general_context * c)) {
    return is_short(0) ? NULL : __real_pcre2_match_context_create_8(c);
}

REAL(pcre2_jit_stack *, pcre2_jit_stack_create_8,
     (PCRE2_SIZE start, PCRE2_SIZE most, pcre2_general_context *c)) {
    return is_short(0) ? NULL : __real_pcre2_jit_stack_create_8(start, most, c);
}

REAL(int, pcre2_match_8,
     (const pcre2_code *code, PCRE2_SPTR text, PCRE2_SIZE len, PCRE2_SIZE from, uint32_t options,
      pcre2_match_data *data, pcre2_match_context *context)) {
    return is_short(0) ? PCRE2_ERROR_NOMEMORY
                       : __real_pcre2_match_8(code, text, len, from, options, data, context);
}

#include "checkpoint/safetensors.h"

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *name;
    int bits;
    enum qep_dtype dtype;
} dtypes[] = {
    {"BF16", 16, QEP_DTYPE_BF16},    {"F16", 16, QEP_DTYPE_F16},
    {"F32", 32, QEP_DTYPE_F32},      {"I8", 8, QEP_DTYPE_I8},
    {"U8", 8, QEP_DTYPE_U8},         {"BOOL", 8, QEP_DTYPE_OTHER},
    {"F8_E4M3", 8, QEP_DTYPE_OTHER}, {"F8_E5M2", 8, QEP_DTYPE_OTHER},
    {"F8_E8M0", 8, QEP_DTYPE_OTHER}, {"I16", 16, QEP_DTYPE_OTHER},
    {"U16", 16, QEP_DTYPE_OTHER},    {"I32", 32, QEP_DTYPE_OTHER},
    {"U32", 32, QEP_DTYPE_OTHER},    {"I64", 64, QEP_DTYPE_OTHER},
    {"U64", 64, QEP_DTYPE_OTHER},    {"F64", 64, QEP_DTYPE_OTHER},
    {"C64", 64, QEP_DTYPE_OTHER},    {"F4", 4, QEP_DTYPE_OTHER},
    {"F6_E2M3", 6, QEP_DTYPE_OTHER}, {"F6_E3M2", 6, QEP_DTYPE_OTHER},
};

void qep_st_shape_text(int ndim, const int64_t *shape, char *out, size_t out_bytes) {
    size_t n = (size_t)snprintf(out, out_bytes, "[");
    for (int i = 0; i < ndim && n < out_bytes; i++)
        n += (size_t)snprintf(out + n, out_bytes - n, "%s%lld", i > 0 ? ", " : "",
                              (long long)shape[i]);
    if (n < out_bytes)
        snprintf(out + n, out_bytes - n, "]");
}

/* A whole number that a double holds exactly. */
static bool get_u64(const cJSON *item, uint64_t *out) {
    if (!cJSON_IsNumber(item))
        return false;
    double v = item->valuedouble;
    if (!(v >= 0 && v <= 9007199254740992.0) || v != (double)(uint64_t)v)
        return false;
    *out = (uint64_t)v;
    return true;
}

static enum qep_status parse_dtype(const cJSON *item, const char *where, struct qep_st_tensor *t,
                                   int *bits) {
    const char *name = cJSON_IsString(item) ? item->valuestring : "(none)";
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (strcmp(dtypes[i].name, name) == 0) {
            t->dtype = dtypes[i].dtype;
            *bits = dtypes[i].bits;
            snprintf(t->dtype_name, sizeof t->dtype_name, "%s", name);
            return QEP_OK;
        }
    return qep_fail(QEP_ERR_DATA, "%s: tensor %.160s: unknown dtype \"%.20s\"", where, t->name,
                    name);
}

/* Sets shape and returns dtype x shape in *bytes. */
static enum qep_status parse_shape(const cJSON *list, const char *where, int bits,
                                   struct qep_st_tensor *t, uint64_t *bytes) {
    const cJSON *item = NULL;
    uint64_t total = (uint64_t)bits;
    bool empty = false;
    if (!cJSON_IsArray(list))
        return qep_fail(QEP_ERR_DATA, "%s: tensor %.160s: \"shape\" is not a list", where, t->name);
    cJSON_ArrayForEach (item, list) {
        uint64_t dim = 0;
        if (t->ndim == QEP_SAFETENSORS_MAX_NDIM)
            return qep_fail(QEP_ERR_DATA, "%s: tensor %.160s: more than %d dimensions", where,
                            t->name, QEP_SAFETENSORS_MAX_NDIM);
        if (!get_u64(item, &dim))
            return qep_fail(QEP_ERR_DATA,
                            "%s: tensor %.160s: shape[%d]: expected a whole number, 0 or more",
                            where, t->name, t->ndim);
        t->shape[t->ndim++] = (int64_t)dim;
        empty = empty || dim == 0;
        if (dim != 0 && __builtin_mul_overflow(total, dim, &total))
            return qep_fail(QEP_ERR_DATA, "%s: tensor %.160s: shape overflows", where, t->name);
    }
    if (empty)
        total = 0;
    if (total % 8 != 0)
        return qep_fail(QEP_ERR_DATA, "%s: tensor %.160s: data is not a whole number of bytes",
                        where, t->name);
    *bytes = total / 8;
    return QEP_OK;
}

static enum qep_status parse_tensor(const cJSON *item, const char *where, uint64_t data_bytes,
                                    struct qep_st_tensor *t) {
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(item, "data_offsets");
    uint64_t begin = 0, end = 0, expected = 0;
    int bits = 0;
    if (!cJSON_IsObject(item))
        return qep_fail(QEP_ERR_DATA, "%s: tensor %.160s: expected an object", where, t->name);
    QEP_TRY(parse_dtype(cJSON_GetObjectItemCaseSensitive(item, "dtype"), where, t, &bits));
    QEP_TRY(
        parse_shape(cJSON_GetObjectItemCaseSensitive(item, "shape"), where, bits, t, &expected));
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !get_u64(offsets->child, &begin) || !get_u64(offsets->child->next, &end) || begin > end)
        return qep_fail(QEP_ERR_DATA,
                        "%s: tensor %.160s: \"data_offsets\": expected [begin, end] with begin <= "
                        "end",
                        where, t->name);
    if (end > data_bytes)
        return qep_fail(QEP_ERR_DATA,
                        "%s: tensor %.160s: data_offsets end at %llu, the data has %llu bytes",
                        where, t->name, (unsigned long long)end, (unsigned long long)data_bytes);
    if (end - begin != expected) {
        char shape[128];
        qep_st_shape_text(t->ndim, t->shape, shape, sizeof shape);
        return qep_fail(QEP_ERR_DATA,
                        "%s: tensor %.160s: expected %llu bytes for %s %s, data_offsets span %llu",
                        where, t->name, (unsigned long long)expected, t->dtype_name, shape,
                        (unsigned long long)(end - begin));
    }
    t->offset = begin;
    t->bytes = end - begin;
    return QEP_OK;
}

static int by_name(const void *a, const void *b) {
    const struct qep_st_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int by_offset(const void *a, const void *b) {
    const struct qep_st_tensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    /* Empty tensors share an offset with their successor: they come first. */
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static enum qep_status check_names(struct qep_st_header *h, const char *where) {
    if (h->num_tensors > 0) /* qsort takes no NULL */
        qsort(h->tensors, h->num_tensors, sizeof *h->tensors, by_name);
    for (size_t i = 1; i < h->num_tensors; i++)
        if (strcmp(h->tensors[i - 1].name, h->tensors[i].name) == 0)
            return qep_fail(QEP_ERR_DATA, "%s: tensor %.160s appears twice", where,
                            h->tensors[i].name);
    return QEP_OK;
}

static enum qep_status check_layout(struct qep_st_header *h, uint64_t data_bytes,
                                    const char *where) {
    uint64_t at = 0;
    if (h->num_tensors > 0)
        qsort(h->tensors, h->num_tensors, sizeof *h->tensors, by_offset);
    for (size_t i = 0; i < h->num_tensors; i++) {
        const struct qep_st_tensor *t = &h->tensors[i];
        if (t->offset != at)
            return qep_fail(QEP_ERR_DATA,
                            "%s: tensor %.160s: data begins at %llu, expected %llu (%s)", where,
                            t->name, (unsigned long long)t->offset, (unsigned long long)at,
                            t->offset < at ? "overlaps the tensor before" : "a hole");
        at += t->bytes;
    }
    if (at != data_bytes)
        return qep_fail(QEP_ERR_DATA, "%s: tensors cover %llu bytes, the data has %llu", where,
                        (unsigned long long)at, (unsigned long long)data_bytes);
    return QEP_OK;
}

static enum qep_status fill(const cJSON *root, uint64_t data_bytes, const char *where,
                            struct qep_st_header *out) {
    const cJSON *item = NULL;
    size_t cap = 0;
    cJSON_ArrayForEach (item, root) {
        void *items = out->tensors;
        if (strcmp(item->string, "__metadata__") == 0) {
            if (!cJSON_IsObject(item))
                return qep_fail(QEP_ERR_DATA, "%s: \"__metadata__\": expected an object", where);
            continue;
        }
        QEP_TRY(qep_grow(&items, &cap, out->num_tensors + 1, sizeof *out->tensors, where));
        out->tensors = items;
        struct qep_st_tensor *t = &out->tensors[out->num_tensors];
        *t = (struct qep_st_tensor){.name = strdup(item->string)};
        if (t->name == NULL)
            return qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", where);
        out->num_tensors++;
        QEP_TRY(parse_tensor(item, where, data_bytes, t));
    }
    QEP_TRY(check_names(out, where));
    return check_layout(out, data_bytes, where);
}

enum qep_status qep_st_header_parse(const char *json, size_t len, uint64_t data_bytes,
                                    const char *where, struct qep_st_header *out) {
    cJSON *root = NULL;
    *out = (struct qep_st_header){0};
    if (len == 0 || json[0] != '{')
        return qep_fail(QEP_ERR_DATA, "%s: not a safetensors header: expected '{' at byte 8",
                        where);
    QEP_TRY(qep_json_parse(json, len, where, &root));
    enum qep_status st = fill(root, data_bytes, where, out);
    cJSON_Delete(root);
    if (st != QEP_OK)
        qep_st_header_free(out);
    return st;
}

void qep_st_header_free(struct qep_st_header *header) {
    for (size_t i = 0; i < header->num_tensors; i++)
        free(header->tensors[i].name);
    free(header->tensors);
    *header = (struct qep_st_header){0};
}

/* FNV-1a: an identity for noticing that a source changed, no protection against design. */
static uint64_t hash_bytes(const char *data, size_t len) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < len; i++)
        h = (h ^ (unsigned char)data[i]) * 0x100000001b3u;
    return h;
}

static enum qep_status read_header(struct qep_st_file *f) {
    unsigned char prefix[8];
    uint64_t len = 0;
    void *json = NULL;
    if (f->file_bytes < 8)
        return qep_fail(QEP_ERR_DATA, "%s: truncated: %llu bytes, a safetensors file has 8 or more",
                        f->path, (unsigned long long)f->file_bytes);
    QEP_TRY(qep_file_pread(f->fd, f->path, prefix, 8, 0));
    for (int i = 7; i >= 0; i--)
        len = len << 8 | prefix[i];
    if (len > QEP_SAFETENSORS_MAX_HEADER)
        return qep_fail(QEP_ERR_DATA, "%s: header length %llu, at most %d are allowed", f->path,
                        (unsigned long long)len, QEP_SAFETENSORS_MAX_HEADER);
    if (len > f->file_bytes - 8)
        return qep_fail(QEP_ERR_DATA,
                        "%s: truncated: the header has %llu bytes, the file only %llu after its "
                        "length",
                        f->path, (unsigned long long)len, (unsigned long long)(f->file_bytes - 8));
    f->data_start = 8 + len;
    QEP_TRY(qep_alloc(len + 1, 1, f->path, &json));
    enum qep_status st = qep_file_pread(f->fd, f->path, json, len, 8);
    if (st == QEP_OK) {
        f->header_hash = hash_bytes(json, len);
        st = qep_st_header_parse(json, len, f->file_bytes - f->data_start, f->path, &f->header);
    }
    free(json);
    return st;
}

enum qep_status qep_st_file_open(const char *path, struct qep_st_file *out) {
    *out = (struct qep_st_file){.fd = -1};
    out->path = strdup(path);
    if (out->path == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "%s: out of memory", path);
    enum qep_status st = qep_file_open(path, &out->fd, &out->file_bytes);
    if (st == QEP_OK && fstat(out->fd, &out->opened) != 0)
        st = qep_fail(QEP_ERR_IO, "%s: cannot stat: %s", path, strerror(errno));
    if (st == QEP_OK)
        st = read_header(out);
    if (st != QEP_OK)
        qep_st_file_close(out);
    return st;
}

enum qep_status qep_st_file_check(const struct qep_st_file *file) {
    const struct stat *then = &file->opened;
    struct stat now;
    if (fstat(file->fd, &now) != 0)
        return qep_fail(QEP_ERR_IO, "%s: cannot stat: %s", file->path, strerror(errno));
    if (now.st_size != then->st_size || now.st_mtim.tv_sec != then->st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != then->st_mtim.tv_nsec)
        return qep_fail(QEP_ERR_DATA,
                        "%s: was written to while it was being read (size or modification time "
                        "changed)",
                        file->path);
    return QEP_OK;
}

bool qep_st_file_moved(const struct qep_st_file *file) {
    struct stat there;
    return stat(file->path, &there) != 0 || there.st_ino != file->opened.st_ino ||
           there.st_dev != file->opened.st_dev;
}

void qep_st_file_close(struct qep_st_file *file) {
    if (file->path != NULL && file->fd >= 0)
        close(file->fd);
    free(file->path);
    qep_st_header_free(&file->header);
    *file = (struct qep_st_file){.fd = -1};
}

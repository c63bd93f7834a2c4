#include "checkpoint/hf_plan.h"

#include "base/json.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum qep_status add(struct qep_hf_writer *w, const char *prefix, const char *name,
                           size_t first, size_t stride, size_t count) {
    const struct qep_tensor_spec *spec = &w->options.inventory->specs[first];
    void *items = w->tensors;
    QEP_TRY(qep_grow(&items, &w->cap_tensors, w->num_tensors + 1, sizeof *w->tensors, "plan"));
    w->tensors = items;
    struct qep_hf_tensor *t = &w->tensors[w->num_tensors++];
    *t = (struct qep_hf_tensor){.first = first, .stride = stride, .count = count, .ndim = 2};
    snprintf(t->name, sizeof t->name, "%s%s", prefix, name);
    t->type = w->options.source.type(w->options.source.impl, first);
    uint64_t elements = 0;
    for (size_t i = 0; i < count; i++)
        elements += (uint64_t)(spec[i * stride].rows * spec[i * stride].cols);
    t->bytes = elements * (t->type == QEP_ROWS_BF16 ? 2 : 4);
    t->shape[0] = (int64_t)elements / spec->cols;
    t->shape[1] = spec->cols;
    if (spec->expert >= 0) {
        t->ndim = 3;
        t->shape[0] = (int64_t)count;
        t->shape[1] = spec->rows;
        t->shape[2] = spec->cols;
    } else if (spec->kind == QEP_TENSOR_VECTOR) {
        t->ndim = 1;
        t->shape[0] = spec->cols;
    } else if (spec->kind == QEP_TENSOR_CONV) {
        t->ndim = 3;
        t->shape[1] = 1;
        t->shape[2] = spec->cols;
    }
    return QEP_OK;
}

/* Text-only configs go with text-only names. */
static enum qep_status choose_prefix(const struct qep_hf_writer *w, const char **prefix) {
    cJSON *root = NULL;
    QEP_TRY(qep_json_parse(w->options.config_text, w->options.config_len, "config.json", &root));
    *prefix = qep_json_get(root, "text_config") != NULL ? "model.language_model." : "model.";
    cJSON_Delete(root);
    return QEP_OK;
}

static enum qep_status add_all(struct qep_hf_writer *w, const char *prefix) {
    const struct qep_inventory *inv = w->options.inventory;
    bool tied = w->options.config->tie_word_embeddings;
    for (size_t i = 0; i < inv->num_specs; i++) {
        const struct qep_tensor_spec *spec = &inv->specs[i];
        size_t left = inv->num_specs - i;
        if (spec->vocab_block == 0) { /* all blocks are the end of the list */
            QEP_TRY(tied ? add(w, prefix, "embed_tokens.weight", i, 1, left)
                         : add(w, "", "lm_head.weight", i, 1, left));
            return QEP_OK;
        }
        if (spec->expert > 0)
            continue;
        if (spec->expert < 0) {
            QEP_TRY(add(w, prefix, spec->name, i, 1, 1));
            continue;
        }
        char name[QEP_TENSOR_NAME_MAX];
        snprintf(name, sizeof name, "layers.%d.mlp.experts.%s", (int)spec->layer,
                 strrchr(spec->name, '.') + 1);
        QEP_TRY(add(w, prefix, name, i, 2, (size_t)w->options.config->num_experts));
    }
    return QEP_OK;
}

static enum qep_status split_files(struct qep_hf_writer *w) {
    uint64_t limit = w->options.shard_bytes != 0 ? w->options.shard_bytes : 5000000000u;
    struct qep_hf_file *file = NULL;
    for (size_t i = 0; i < w->num_tensors; i++) {
        struct qep_hf_tensor *t = &w->tensors[i];
        if (file == NULL || file->bytes + t->bytes > limit) {
            void *items = w->files;
            QEP_TRY(qep_grow(&items, &w->cap_files, w->num_files + 1, sizeof *w->files, "plan"));
            w->files = items;
            file = &w->files[w->num_files++];
            *file = (struct qep_hf_file){.first = i};
        }
        t->offset = file->bytes;
        file->bytes += t->bytes;
        file->count++;
        w->total_bytes += t->bytes;
    }
    for (size_t f = 0; f < w->num_files; f++)
        snprintf(w->files[f].name, sizeof w->files[f].name,
                 "model.safetensors-%05zu-of-%05zu.safetensors", f + 1, w->num_files);
    return QEP_OK;
}

enum qep_status qep_hf_plan(struct qep_hf_writer *writer) {
    const char *prefix = NULL;
    QEP_TRY(choose_prefix(writer, &prefix));
    QEP_TRY(add_all(writer, prefix));
    return split_files(writer);
}

enum qep_status qep_hf_header(const struct qep_hf_writer *writer, const struct qep_hf_file *file,
                              char **text, size_t *len) {
    void *mem = NULL;
    size_t cap = file->count * 320 + 64, n = 8;
    QEP_TRY(qep_alloc(cap, 1, "safetensors header", &mem));
    char *out = mem;
    n += (size_t)snprintf(out + n, cap - n, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < file->count; i++) {
        const struct qep_hf_tensor *t = &writer->tensors[file->first + i];
        n += (size_t)snprintf(out + n, cap - n, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name,
                              t->type == QEP_ROWS_BF16 ? "BF16" : "F32");
        for (int d = 0; d < t->ndim; d++)
            n += (size_t)snprintf(out + n, cap - n, "%s%lld", d > 0 ? "," : "",
                                  (long long)t->shape[d]);
        n += (size_t)snprintf(out + n, cap - n, "],\"data_offsets\":[%llu,%llu]}",
                              (unsigned long long)t->offset,
                              (unsigned long long)(t->offset + t->bytes));
    }
    out[n++] = '}';
    while (n % 8 != 0)
        out[n++] = ' ';
    for (int i = 0; i < 8; i++)
        out[i] = (char)((n - 8) >> (8 * i) & 0xff);
    *text = out;
    *len = n;
    return QEP_OK;
}

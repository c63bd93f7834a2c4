/* Canonical name -> rows of the checkpoint's tensors. The search runs from the canonical side, so a
 * tensor that nothing asked for is one that this model does not have. */
#include "checkpoint/checkpoint_internal.h"

#include "base/mem.h"
#include "shard/shard.h" /* vocabulary blocks */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool starts_with(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* The name without prefix; NULL for the parts that are skipped knowingly. */
static enum qep_status strip(const struct qep_st_file *file, const char *name, const char **out) {
    *out = NULL;
    if (starts_with(name, "mtp.") || starts_with(name, "model.visual.") ||
        starts_with(name, "visual."))
        return QEP_OK;
    if (starts_with(name, "language_model.") || strstr(name, ".switch_mlp.") != NULL)
        return qep_fail(QEP_ERR_DATA,
                        "%s: tensor %.160s: this is an MLX-converted checkpoint (its norms are "
                        "changed); expected the original Hugging Face one",
                        file->path, name);
    if (starts_with(name, "model.language_model."))
        *out = name + strlen("model.language_model.");
    else if (starts_with(name, "model."))
        *out = name + strlen("model.");
    else if (strcmp(name, "lm_head.weight") == 0)
        *out = name;
    else
        return qep_fail(QEP_ERR_DATA, "%s: tensor %.160s: not a tensor of this model", file->path,
                        name);
    return QEP_OK;
}

static int by_name(const void *a, const void *b) {
    const struct qep_entry *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static enum qep_status collect(struct qep_checkpoint *ckpt) {
    size_t total = 0;
    void *mem = NULL;
    for (size_t f = 0; f < ckpt->num_files; f++)
        total += ckpt->files[f].header.num_tensors;
    QEP_TRY(qep_alloc(total, sizeof *ckpt->entries, "tensor map", &mem));
    ckpt->entries = mem;
    for (size_t f = 0; f < ckpt->num_files; f++)
        for (size_t i = 0; i < ckpt->files[f].header.num_tensors; i++) {
            const struct qep_st_tensor *t = &ckpt->files[f].header.tensors[i];
            const char *name = NULL;
            QEP_TRY(strip(&ckpt->files[f], t->name, &name));
            if (name != NULL)
                ckpt->entries[ckpt->num_entries++] =
                    (struct qep_entry){.name = name, .tensor = t, .file = &ckpt->files[f]};
        }
    if (ckpt->num_entries > 0)
        qsort(ckpt->entries, ckpt->num_entries, sizeof *ckpt->entries, by_name);
    for (size_t i = 1; i < ckpt->num_entries; i++)
        if (strcmp(ckpt->entries[i - 1].name, ckpt->entries[i].name) == 0)
            return qep_fail(QEP_ERR_DATA, "%s: tensor %.160s is also in %s",
                            ckpt->entries[i].file->path, ckpt->entries[i].tensor->name,
                            ckpt->entries[i - 1].file->path);
    return QEP_OK;
}

__attribute__((format(printf, 2, 3))) static struct qep_entry *
find(const struct qep_checkpoint *ckpt, const char *fmt, ...) {
    char name[2 * QEP_TENSOR_NAME_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    struct qep_entry key = {.name = name};
    if (ckpt->num_entries == 0)
        return NULL;
    return bsearch(&key, ckpt->entries, ckpt->num_entries, sizeof key, by_name);
}

static enum qep_status missing(const struct qep_checkpoint *ckpt, const char *name, int64_t rows,
                               int64_t cols) {
    return qep_fail(QEP_ERR_DATA, "%s: tensor %.160s is missing, expected [%lld, %lld]", ckpt->dir,
                    name, (long long)rows, (long long)cols);
}

static enum qep_status check_entry(const struct qep_entry *e, int ndim, const int64_t *shape) {
    const struct qep_st_tensor *t = e->tensor;
    if (t->ndim != ndim || memcmp(t->shape, shape, (size_t)ndim * sizeof *shape) != 0) {
        char expected[128], found[128];
        qep_st_shape_text(ndim, shape, expected, sizeof expected);
        qep_st_shape_text(t->ndim, t->shape, found, sizeof found);
        return qep_fail(QEP_ERR_DATA, "%s: tensor %.160s: expected shape %s, found %s",
                        e->file->path, t->name, expected, found);
    }
    if (t->dtype != QEP_DTYPE_BF16 && t->dtype != QEP_DTYPE_F16 && t->dtype != QEP_DTYPE_F32)
        return qep_fail(QEP_ERR_DATA,
                        "%s: tensor %.160s: expected dtype BF16, F16 or F32, found %s (an already "
                        "quantised checkpoint cannot be converted)",
                        e->file->path, t->name, t->dtype_name);
    return QEP_OK;
}

/* Appends a section of `entry` to the view after checking the entry's shape. */
static enum qep_status add_section(struct qep_view *view, struct qep_entry *entry, int ndim,
                                   const int64_t *shape, struct qep_section section) {
    QEP_TRY(check_entry(entry, ndim, shape));
    entry->used = true;
    section.entry = entry;
    view->sections[view->num_sections++] = section;
    return QEP_OK;
}

/* All rows of the canonical tensor, one after the other, from row `base` of the entry. */
static struct qep_section whole(int64_t rows, int64_t base) {
    return (struct qep_section){.rows = rows, .run = rows, .base = base};
}

static enum qep_status map_direct(struct qep_view *view, const struct qep_tensor_spec *spec,
                                  struct qep_entry *entry) {
    int64_t shape[3] = {spec->rows, spec->cols};
    int ndim = 2;
    if (spec->kind == QEP_TENSOR_VECTOR) {
        shape[0] = spec->cols;
        ndim = 1;
    } else if (spec->kind == QEP_TENSOR_CONV) {
        shape[1] = 1;
        shape[2] = spec->cols;
        ndim = 3;
    }
    return add_section(view, entry, ndim, shape, whole(spec->rows, 0));
}

static enum qep_status map_head(const struct qep_checkpoint *ckpt,
                                const struct qep_tensor_spec *spec, struct qep_view *view) {
    const struct qep_model_config *c = &ckpt->config;
    const char *name = c->tie_word_embeddings ? "embed_tokens.weight" : "lm_head.weight";
    const int64_t shape[2] = {c->vocab_size, c->hidden_size};
    struct qep_entry *e = find(ckpt, "%s", name);
    if (e == NULL)
        return missing(ckpt, name, shape[0], shape[1]);
    int64_t base = (int64_t)spec->vocab_block * qep_vocab_block_rows(c->vocab_size);
    return add_section(view, e, 2, shape, whole(spec->rows, base));
}

static enum qep_status map_expert(const struct qep_checkpoint *ckpt,
                                  const struct qep_tensor_spec *spec, struct qep_view *view) {
    const char *leaf = strrchr(spec->name, '.') + 1; /* gate_up_proj or down_proj */
    bool gate_up = strcmp(leaf, "gate_up_proj") == 0;
    int layer = (int)spec->layer, expert = (int)spec->expert;
    struct qep_entry *e = find(ckpt, "layers.%d.mlp.experts.%s", layer, leaf);
    if (e != NULL) {
        const int64_t shape[3] = {ckpt->config.num_experts, spec->rows, spec->cols};
        return add_section(view, e, 3, shape, whole(spec->rows, expert * spec->rows));
    }
    static const char *const gate_up_parts[] = {"gate_proj", "up_proj"};
    static const char *const down_parts[] = {"down_proj"};
    const char *const *parts = gate_up ? gate_up_parts : down_parts;
    int num_parts = gate_up ? 2 : 1;
    const int64_t shape[2] = {spec->rows / num_parts, spec->cols};
    for (int i = 0; i < num_parts; i++) {
        char name[QEP_TENSOR_NAME_MAX];
        snprintf(name, sizeof name, "layers.%d.mlp.experts.%d.%s.weight", layer, expert, parts[i]);
        e = find(ckpt, "%s", name);
        if (e == NULL)
            return missing(ckpt, name, shape[0], shape[1]);
        QEP_TRY(add_section(view, e, 2, shape, whole(shape[0], 0)));
    }
    return QEP_OK;
}

/* Qwen3-Next: per key head i one block of rows q_i | k_i | v (its value heads) | z (the same), and
 * b | a likewise. */
static enum qep_status map_packed(const struct qep_checkpoint *ckpt,
                                  const struct qep_tensor_spec *spec, struct qep_view *view) {
    const struct qep_model_config *c = &ckpt->config;
    const char *leaf = strchr(spec->name, '_') + strlen("_attn.");
    bool is_qkv = strcmp(leaf, "in_proj_qkv.weight") == 0;
    bool is_z = strcmp(leaf, "in_proj_z.weight") == 0, is_b = strcmp(leaf, "in_proj_b.weight") == 0;
    int64_t nk = c->linear_num_key_heads, dk = c->linear_key_head_dim;
    int64_t ratio = c->linear_num_value_heads / nk, v = ratio * c->linear_value_head_dim;
    int64_t block = is_qkv || is_z ? 2 * dk + 2 * v : 2 * ratio;
    const int64_t shape[2] = {nk * block, c->hidden_size};
    const char *packed = is_qkv || is_z ? "in_proj_qkvz" : "in_proj_ba";
    struct qep_entry *e = find(ckpt, "layers.%d.linear_attn.%s.weight", (int)spec->layer, packed);
    if (e == NULL)
        return missing(ckpt, spec->name, spec->rows, spec->cols);
    const struct qep_section q = {.rows = nk * dk, .run = dk, .stride = block, .base = 0};
    const struct qep_section k = {.rows = nk * dk, .run = dk, .stride = block, .base = dk};
    const struct qep_section vs = {.rows = nk * v, .run = v, .stride = block, .base = 2 * dk};
    const struct qep_section z = {.rows = nk * v, .run = v, .stride = block, .base = 2 * dk + v};
    const struct qep_section ba = {
        .rows = nk * ratio, .run = ratio, .stride = block, .base = is_b ? 0 : ratio};
    if (!is_qkv)
        return add_section(view, e, 2, shape, is_z ? z : ba);
    QEP_TRY(add_section(view, e, 2, shape, q));
    QEP_TRY(add_section(view, e, 2, shape, k));
    return add_section(view, e, 2, shape, vs);
}

static enum qep_status map_spec(const struct qep_checkpoint *ckpt,
                                const struct qep_tensor_spec *spec, struct qep_view *view) {
    if (spec->vocab_block >= 0)
        return map_head(ckpt, spec, view);
    if (spec->expert >= 0)
        return map_expert(ckpt, spec, view);
    struct qep_entry *e = find(ckpt, "%s", spec->name);
    if (e != NULL)
        return map_direct(view, spec, e);
    if (strstr(spec->name, ".linear_attn.in_proj_") != NULL)
        return map_packed(ckpt, spec, view);
    return missing(ckpt, spec->name, spec->rows, spec->cols);
}

static enum qep_status check_all_used(struct qep_checkpoint *ckpt) {
    /* Some exports of tied models repeat the shared table as lm_head. */
    struct qep_entry *head = ckpt->config.tie_word_embeddings ? find(ckpt, "lm_head.weight") : NULL;
    if (head != NULL)
        head->used = true;
    for (size_t i = 0; i < ckpt->num_entries; i++) {
        const struct qep_entry *e = &ckpt->entries[i];
        if (!e->used)
            return qep_fail(QEP_ERR_DATA, "%s: tensor %.160s: not a tensor of this model",
                            e->file->path, e->tensor->name);
        ckpt->bytes += e->tensor->bytes;
    }
    return QEP_OK;
}

enum qep_status qep_checkpoint_map(struct qep_checkpoint *ckpt) {
    void *mem = NULL;
    QEP_TRY(collect(ckpt));
    QEP_TRY(qep_calloc(ckpt->inventory.num_specs, sizeof *ckpt->views, "tensor map", &mem));
    ckpt->views = mem;
    for (size_t i = 0; i < ckpt->inventory.num_specs; i++)
        QEP_TRY(map_spec(ckpt, &ckpt->inventory.specs[i], &ckpt->views[i]));
    return check_all_used(ckpt);
}

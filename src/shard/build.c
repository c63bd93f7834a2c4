#include "shard/build.h"

#include "base/file.h"
#include "base/mem.h"
#include "shard/build_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool qep_build_stopped(const struct qep_build *build) {
    return build->options.stop != NULL && *build->options.stop != 0;
}

static enum qep_status choose_types(struct qep_build *b) {
    const struct qep_build_options *o = &b->options;
    void *mem = NULL;
    QEP_TRY(qep_calloc(o->inventory->num_specs, sizeof *b->types, "tensor types", &mem));
    b->types = mem;
    for (size_t i = 0; i < o->inventory->num_specs; i++) {
        const struct qep_tensor_spec *spec = &o->inventory->specs[i];
        bool bf16 = o->source.type(o->source.impl, i) == QEP_ROWS_BF16;
        struct qep_part parts[2];
        QEP_TRY(qep_recipe_apply(o->recipe, spec->name, spec->kind == QEP_TENSOR_MATRIX, bf16,
                                 &b->types[i]));
        int n = qep_layout_parts(spec, b->types[i], o->recipe->group_size, parts);
        for (int p = 0; p < n; p++)
            b->sizes.tensor_bytes += (uint64_t)parts[p].rows * parts[p].row_bytes;
        b->sizes.source_bytes += (uint64_t)(spec->rows * spec->cols) * (bf16 ? 2 : 4);
    }
    return QEP_OK;
}

/* Everything that decides the bytes of the result, and the source as it is now. */
static enum qep_status identify(struct qep_build *b) {
    const struct qep_build_options *o = &b->options;
    size_t cap = 512 + o->recipe->num_rules * sizeof(struct qep_recipe_rule) * 2;
    void *mem = NULL;
    QEP_TRY(qep_alloc(cap, 1, "identity", &mem));
    char *text = mem, config[QEP_HASH_TEXT];
    qep_hash_text(o->config, sizeof *o->config, config);
    int n = snprintf(text, cap, "%s %d %016llx %s %d %d %d %d", config, QEP_MANIFEST_VERSION,
                     (unsigned long long)o->source_identity, o->recipe->name,
                     (int)o->recipe->group_size, (int)o->num_shards, (int)o->compress,
                     (int)o->allow_nan);
    for (size_t i = 0; i < o->recipe->num_rules; i++)
        n += snprintf(text + n, cap - (size_t)n, "\n%s %d", o->recipe->rules[i].match,
                      (int)o->recipe->rules[i].type);
    qep_hash_text(text, (size_t)n, b->identity);
    free(text);
    return QEP_OK;
}

enum qep_status qep_build_create(const struct qep_build_options *options, struct qep_build **out) {
    void *mem = NULL;
    enum qep_status st = QEP_OK;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof **out, "build", &mem));
    struct qep_build *b = mem;
    b->options = *options;
    QEP_TRY_GOTO(st, fail, qep_path_join(options->dir, ".convert", &b->state_dir));
    QEP_TRY_GOTO(
        st, fail,
        qep_layout_create(options->config, options->inventory, options->num_shards, &b->layout));
    QEP_TRY_GOTO(st, fail, choose_types(b));
    QEP_TRY_GOTO(st, fail, identify(b));
    *out = b;
    return QEP_OK;
fail:
    qep_build_destroy(b);
    return st;
}

void qep_build_destroy(struct qep_build *build) {
    if (build == NULL)
        return;
    qep_layout_free(&build->layout);
    free(build->types);
    free(build->state_dir);
    free(build);
}

struct qep_build_sizes qep_build_sizes(const struct qep_build *build) {
    return build->sizes;
}

static uint64_t weight_of(const struct qep_build *b, const struct qep_layout_file *file) {
    uint64_t total = 0;
    for (size_t i = 0; i < file->num_specs; i++) {
        const struct qep_tensor_spec *spec = &b->options.inventory->specs[file->specs[i]];
        total += (uint64_t)(spec->rows * spec->cols) * 2;
    }
    return total;
}

/* Largest file first to the rank with the least: every rank computes the same table. */
static enum qep_status share_out(const struct qep_build *b, int num_ranks, int *owner) {
    size_t n = b->layout.num_files;
    uint64_t *load = NULL, *weight = NULL;
    void *mem = NULL;
    QEP_TRY(qep_calloc((size_t)num_ranks, sizeof *load, "file shares", &mem));
    load = mem;
    enum qep_status st = qep_calloc(n, sizeof *weight, "file shares", &mem);
    weight = mem;
    for (size_t f = 0; st == QEP_OK && f < n; f++) {
        weight[f] = weight_of(b, &b->layout.files[f]);
        owner[f] = -1;
    }
    for (size_t round = 0; st == QEP_OK && round < n; round++) {
        size_t best = n;
        int rank = 0;
        for (size_t f = 0; f < n; f++)
            if (owner[f] < 0 && (best == n || weight[f] > weight[best]))
                best = f;
        for (int r = 1; r < num_ranks; r++)
            if (load[r] < load[rank])
                rank = r;
        owner[best] = rank;
        load[rank] += weight[best] + 1;
    }
    free(load);
    free(weight);
    return st;
}

static enum qep_status save_entry(struct qep_build *b, const struct qep_layout_file *file,
                                  const struct qep_file_identity *identity) {
    char *entry = NULL, *path = NULL, *text = NULL;
    enum qep_status st = QEP_OK;
    void *mem = NULL;
    QEP_TRY_GOTO(st, done,
                 qep_manifest_file_entry(b->options.inventory, b->types, file, identity, &entry));
    QEP_TRY_GOTO(st, done, qep_build_state_path(b, file->name, ".json", &path));
    size_t len = strlen(entry) + QEP_HASH_TEXT;
    QEP_TRY_GOTO(st, done, qep_alloc(len + 1, 1, "state file", &mem));
    text = mem;
    snprintf(text, len + 1, "%s\n%s", b->identity, entry);
    st = qep_file_write_atomic(path, text, len);
done:
    free(text);
    free(path);
    free(entry);
    return st;
}

static enum qep_status build_file(struct qep_build *b, const struct qep_layout_file *file) {
    struct qep_file_identity identity = {0};
    char *part = NULL, *path = NULL, *entry = NULL;
    enum qep_status st = QEP_OK;
    QEP_TRY(qep_build_load_entry(b, file, &entry, &identity));
    if (entry != NULL) {
        free(entry);
        b->sizes.num_resumed++;
        b->progress.done_bytes += weight_of(b, file);
        return QEP_OK;
    }
    b->progress.file = file->name;
    QEP_TRY_GOTO(st, done, qep_build_state_path(b, file->name, ".part", &part));
    QEP_TRY_GOTO(st, done, qep_path_join(b->options.dir, file->name, &path));
    st = qep_pipeline_run(b, file, part, &identity);
    if (st == QEP_OK && rename(part, path) != 0)
        st =
            qep_fail(QEP_ERR_CANTCREATE, "%s: cannot rename into place: %s", path, strerror(errno));
    if (st != QEP_OK) {
        remove(part); /* a full disk gets its space back */
        goto done;
    }
    st = save_entry(b, file, &identity);
done:
    free(part);
    free(path);
    return st;
}

enum qep_status qep_build_files(struct qep_build *build, int rank, int num_ranks) {
    size_t n = build->layout.num_files;
    void *mem = NULL;
    QEP_TRY(qep_alloc(n, sizeof(int), "file shares", &mem));
    int *owner = mem;
    enum qep_status st = share_out(build, num_ranks, owner);
    for (size_t f = 0; st == QEP_OK && f < n; f++)
        if (owner[f] == rank) {
            build->sizes.num_files++;
            build->progress.total_bytes += weight_of(build, &build->layout.files[f]);
        }
    for (size_t f = 0; st == QEP_OK && f < n; f++)
        if (owner[f] == rank)
            st = build_file(build, &build->layout.files[f]);
    free(owner);
    return st;
}

#include "shard/build.h"

#include "base/file.h"
#include "base/mem.h"
#include "shard/build_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Of what DIR/.convert holds: an unfinished conversion of another version is begun afresh. */
enum { STATE_VERSION = 3 };

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
    int n = snprintf(text, cap, "%s %d %d %016llx %s %d %d %d %d", config, QEP_MANIFEST_VERSION,
                     STATE_VERSION, (unsigned long long)o->source_identity, o->recipe->name,
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
    b->work = QEP_WORK_CLOSED;
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
    qep_work_close(&build->work);
    build_side_free(build);
    build_names_free(&build->old);
    qep_layout_free(&build->layout);
    free(build->types);
    free(build);
}

const char *qep_build_identity(const struct qep_build *build) {
    return build->identity;
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

/* The source must still be what it was when this build was named after it. */
static enum qep_status check_source(const struct qep_build *b) {
    const struct qep_row_source *source = &b->options.source;
    return source->check != NULL ? source->check(source->impl) : QEP_OK;
}

static enum qep_status make_file(struct qep_build *b, const struct qep_layout_file *file) {
    const struct qep_dir *state = &b->work.state;
    struct qep_file_identity identity = {0};
    char part[BUILD_STATE_NAME_MAX], *path = NULL;
    int fd = -1;
    build_state_name(file->name, ".part", part);
    QEP_TRY(qep_path_join(state->path, part, &path));
    enum qep_status st = qep_dir_create(state, part, &fd);
    if (st == QEP_OK)
        st = qep_pipeline_run(b, file, fd, path, &identity);
    if (st == QEP_OK)
        st = check_source(b);
    if (st == QEP_OK)
        st = qep_dir_rename(state, part, state, file->name);
    else if (fd >= 0)
        unlinkat(state->fd, part, 0); /* a full disk gets its space back */
    free(path);
    return st == QEP_OK ? build_save_entry(b, file, &identity) : st;
}

static enum qep_status build_file(struct qep_build *b, const struct qep_layout_file *file) {
    struct qep_file_identity identity = {0};
    char *entry = NULL;
    QEP_TRY(build_load_entry(b, file, &entry, &identity));
    if (entry != NULL) {
        free(entry);
        b->sizes.num_resumed++;
        b->progress.done_bytes += weight_of(b, file);
        return QEP_OK;
    }
    b->progress.file = file->name;
    return make_file(b, file);
}

/* Rank 0 has opened them to prepare the build. Another rank may find another DIR by that name. */
static enum qep_status open_dirs(struct qep_build *b) {
    enum build_owner owner = BUILD_NOBODYS;
    if (b->work.state.fd >= 0)
        return QEP_OK;
    if (b->work.dir.fd < 0)
        QEP_TRY(qep_dir_open(b->options.dir, &b->work.dir));
    QEP_TRY(qep_dir_open_in(&b->work.dir, ".convert", &b->work.state));
    QEP_TRY(build_state_read(b, &owner));
    if (owner == BUILD_SAME)
        return QEP_OK;
    return qep_fail(QEP_ERR_CANTCREATE,
                    "%s: not of this conversion (is %s on a file system that all ranks share?)",
                    b->work.state.path, b->options.dir);
}

enum qep_status qep_build_files(struct qep_build *build, int rank, int num_ranks) {
    size_t n = build->layout.num_files;
    void *mem = NULL;
    QEP_TRY(open_dirs(build));
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
    return st == QEP_OK ? check_source(build) : st;
}

/* One file through all threads. The file's tensors are cut into tasks in file order; a thread takes
 * the next task, reads, quantises and compresses it in buffers of its own, waits until all earlier
 * tasks are written and appends its frames. So memory is bounded by threads x task, and the bytes
 * do not depend on the number of threads.
 *
 * A tensor of up to TASK_BYTES is one task. Of a larger one, each part is cut by rows: safetensors
 * wants a part in one piece, and holding the other part back would cost its size in memory. */
#include "shard/build_internal.h"

#include "base/mem.h"
#include "base/team.h"
#include "quant/quantize.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TASK_BYTES = 16 << 20, BATCH_BYTES = 512 << 10 };

struct task {
    uint32_t spec_idx;
    int part; /* -1: all */
    int64_t row_begin, num_rows;
    bool counts; /* its rows count as progress (not the second reading of a large tensor) */
};

struct frame_size {
    uint32_t stored, content;
};

struct worker {
    struct qep_encoder *encoder;
    void *rows;     /* a batch as read */
    float *floats;  /* the same as f32 */
    void *out[2];   /* parts of the task */
    uint8_t *coded; /* its frames */
    struct frame_size *frames;
    size_t rows_cap, floats_cap, out_cap[2], coded_cap, frames_cap;
    size_t coded_bytes, num_frames;
};

struct pipeline {
    struct qep_build *build;
    struct qep_seekable_writer *writer;
    struct task *tasks;
    size_t num_tasks, cap_tasks;
    pthread_mutex_t mutex;
    pthread_cond_t turn;
    size_t next_task, next_write;
    enum qep_status st; /* the first failure */
    char error[QEP_ERROR_MAX];
};

static enum qep_status add_task(struct pipeline *p, struct task task) {
    void *items = p->tasks;
    QEP_TRY(qep_grow(&items, &p->cap_tasks, p->num_tasks + 1, sizeof *p->tasks, "task list"));
    p->tasks = items;
    p->tasks[p->num_tasks++] = task;
    return QEP_OK;
}

static enum qep_status plan_tensor(struct pipeline *p, uint32_t spec_idx) {
    const struct qep_build *b = p->build;
    const struct qep_tensor_spec *spec = &b->options.inventory->specs[spec_idx];
    struct qep_part parts[2];
    int n = qep_layout_parts(spec, b->types[spec_idx], b->options.recipe->group_size, parts);
    size_t row_bytes = parts[0].row_bytes + (n == 2 ? parts[1].row_bytes : 0);
    if ((uint64_t)spec->rows * row_bytes <= TASK_BYTES)
        return add_task(p, (struct task){spec_idx, -1, 0, spec->rows, true});
    for (int part = 0; part < n; part++) {
        int64_t frames =
            (int64_t)(TASK_BYTES / ((size_t)parts[part].frame_rows * parts[part].row_bytes));
        int64_t step = parts[part].frame_rows * (frames < 1 ? 1 : frames);
        for (int64_t row = 0; row < spec->rows; row += step) {
            int64_t left = spec->rows - row;
            QEP_TRY(add_task(
                p, (struct task){spec_idx, part, row, left < step ? left : step, part == 0}));
        }
    }
    return QEP_OK;
}

/* A buffer of at least `bytes`; contents are lost when it grows. */
static enum qep_status reserve(void **buffer, size_t *cap, size_t bytes) {
    if (bytes <= *cap)
        return QEP_OK;
    free(*buffer);
    *buffer = NULL;
    *cap = 0;
    QEP_TRY(qep_alloc(bytes, 1, "conversion buffer", buffer));
    *cap = bytes;
    return QEP_OK;
}

/* Refuses what the tensor's type cannot stand for; --allow-nan stores it all the same, as NaN or
 * infinity. */
static enum qep_status check_values(const struct qep_build *b, const struct task *task, int64_t row,
                                    size_t n, const void *rows, enum qep_row_type type) {
    const struct qep_tensor_spec *spec = &b->options.inventory->specs[task->spec_idx];
    enum qep_weight_type stored = b->types[task->spec_idx];
    uint32_t limit = qep_storable_limit(stored);
    bool bf16 = type == QEP_ROWS_BF16;
    size_t bad = bf16 ? qep_find_beyond_bf16(rows, n, limit) : qep_find_beyond_f32(rows, n, limit);
    if (bad == n || b->options.allow_nan)
        return QEP_OK;
    float value =
        bf16 ? qep_bf16_to_f32(((const uint16_t *)rows)[bad]) : ((const float *)rows)[bad];
    char where[512], what[64] = "NaN or infinity";
    if (isfinite(value))
        snprintf(what, sizeof what, "%g, too large for %s,", (double)value,
                 qep_weight_type_name(stored));
    b->options.source.describe(b->options.source.impl, task->spec_idx, where, sizeof where);
    return qep_fail(QEP_ERR_DATA, "%s: %s at [%lld, %lld] of %s (--allow-nan converts anyway)",
                    where, what, (long long)(row + (int64_t)(bad / (size_t)spec->cols)),
                    (long long)(bad % (size_t)spec->cols), spec->name);
}

static void to_bf16(const float *in, size_t n, uint16_t *out) {
    for (size_t i = 0; i < n; i++)
        out[i] = qep_f32_to_bf16(in[i]);
}

static void to_f32(const uint16_t *in, size_t n, float *out) {
    for (size_t i = 0; i < n; i++)
        out[i] = qep_bf16_to_f32(in[i]);
}

/* Rotated left by one: exponent | mantissa, sign. Either plane may be NULL. */
static void split_planes(const uint16_t *in, size_t n, uint8_t *high, uint8_t *low) {
    if (high != NULL)
        for (size_t i = 0; i < n; i++)
            high[i] = (uint8_t)(in[i] >> 7);
    if (low != NULL)
        for (size_t i = 0; i < n; i++)
            low[i] = (uint8_t)((unsigned)in[i] << 1 | in[i] >> 15);
}

struct batch {
    int64_t rows, cols;
    int32_t group_size;
    enum qep_row_type type;
    void *out[2]; /* where the batch's part of each part goes; NULL: not wanted */
};

static enum qep_status store_bf16(struct worker *w, const struct batch *t, bool planes) {
    size_t n = (size_t)t->rows * (size_t)t->cols;
    const uint16_t *bits = w->rows;
    if (t->type == QEP_ROWS_F32) {
        void *mem = w->floats;
        QEP_TRY(reserve(&mem, &w->floats_cap, n * 2));
        w->floats = mem;
        to_bf16(w->rows, n, mem);
        bits = mem;
    }
    if (planes)
        split_planes(bits, n, t->out[0], t->out[1]);
    else
        memcpy(t->out[0], bits, n * 2);
    return QEP_OK;
}

static enum qep_status store_f32(struct worker *w, const struct batch *t) {
    size_t n = (size_t)t->rows * (size_t)t->cols;
    if (t->type == QEP_ROWS_F32)
        memcpy(t->out[0], w->rows, n * 4);
    else
        to_f32(w->rows, n, t->out[0]);
    return QEP_OK;
}

/* Codes and scales are made together; the one that is not wanted goes to scratch behind the floats.
 */
static enum qep_status store_integers(struct worker *w, const struct batch *t,
                                      enum qep_weight_type type) {
    size_t n = (size_t)t->rows * (size_t)t->cols;
    size_t scales = qep_weight_num_scales(t->rows, t->cols, t->group_size);
    void *mem = w->floats;
    QEP_TRY(reserve(&mem, &w->floats_cap, n * 4 + 64 + (n > 2 * scales ? n : 2 * scales)));
    w->floats = mem;
    uint8_t *scratch = (uint8_t *)mem + (n * 4 + 63) / 64 * 64;
    if (t->type == QEP_ROWS_F32)
        memcpy(w->floats, w->rows, n * 4);
    else
        to_f32(w->rows, n, w->floats);
    void *codes = t->out[0] != NULL ? t->out[0] : scratch;
    void *scale_out = t->out[1] != NULL ? t->out[1] : scratch;
    if (type == QEP_WEIGHT_INT8)
        qep_quantize_int8(w->floats, t->rows, t->cols, t->group_size, codes, scale_out);
    else
        qep_quantize_int4(w->floats, t->rows, t->cols, t->group_size, codes, scale_out);
    return QEP_OK;
}

/* Reads and converts the task's rows, a batch at a time, into w->out. */
static enum qep_status convert_rows(struct pipeline *p, struct worker *w, const struct task *task,
                                    const struct qep_part *parts, int num_parts) {
    const struct qep_build *b = p->build;
    const struct qep_row_source *source = &b->options.source;
    const struct qep_tensor_spec *spec = &b->options.inventory->specs[task->spec_idx];
    enum qep_weight_type type = b->types[task->spec_idx];
    struct batch t = {.cols = spec->cols,
                      .group_size = b->options.recipe->group_size,
                      .type = source->type(source->impl, task->spec_idx)};
    size_t row_bytes = (size_t)spec->cols * (t.type == QEP_ROWS_BF16 ? 2 : 4);
    int64_t step = row_bytes > BATCH_BYTES ? 1 : (int64_t)(BATCH_BYTES / row_bytes);
    QEP_TRY(reserve(&w->rows, &w->rows_cap, (size_t)step * row_bytes));
    for (int64_t row = 0; row < task->num_rows; row += step) {
        t.rows = task->num_rows - row < step ? task->num_rows - row : step;
        size_t n = (size_t)t.rows * (size_t)t.cols;
        QEP_TRY(source->read(source->impl, task->spec_idx, task->row_begin + row, t.rows, w->rows));
        QEP_TRY(check_values(b, task, task->row_begin + row, n, w->rows, t.type));
        for (int i = 0; i < 2; i++) {
            bool wanted = i < num_parts && (task->part < 0 || task->part == i);
            t.out[i] = wanted ? (char *)w->out[i] + (size_t)row * parts[i].row_bytes : NULL;
        }
        if (type == QEP_WEIGHT_F32)
            QEP_TRY(store_f32(w, &t));
        else if (type == QEP_WEIGHT_BF16)
            QEP_TRY(store_bf16(w, &t, num_parts == 2));
        else
            QEP_TRY(store_integers(w, &t, type));
    }
    return QEP_OK;
}

/* Cuts `bytes` at `data` into frames of frame_bytes and appends them to w->coded. */
static enum qep_status encode(struct worker *w, const void *data, size_t bytes,
                              size_t frame_bytes) {
    for (size_t at = 0; at < bytes; at += frame_bytes) {
        size_t n = bytes - at < frame_bytes ? bytes - at : frame_bytes, stored = 0;
        void *mem = w->coded;
        QEP_TRY(
            qep_grow(&mem, &w->coded_cap, w->coded_bytes + qep_frame_bound(n), 1, "frame buffer"));
        w->coded = mem;
        mem = w->frames;
        QEP_TRY(
            qep_grow(&mem, &w->frames_cap, w->num_frames + 1, sizeof *w->frames, "frame buffer"));
        w->frames = mem;
        QEP_TRY(qep_frame_encode(w->encoder, (const char *)data + at, n, w->coded + w->coded_bytes,
                                 &stored));
        w->frames[w->num_frames++] = (struct frame_size){(uint32_t)stored, (uint32_t)n};
        w->coded_bytes += stored;
    }
    return QEP_OK;
}

static enum qep_status prepare_task(struct pipeline *p, struct worker *w, const struct task *task) {
    const struct qep_build *b = p->build;
    const struct qep_tensor_spec *spec = &b->options.inventory->specs[task->spec_idx];
    struct qep_part parts[2];
    int n = qep_layout_parts(spec, b->types[task->spec_idx], b->options.recipe->group_size, parts);
    for (int i = 0; i < n; i++)
        if (task->part < 0 || task->part == i)
            QEP_TRY(
                reserve(&w->out[i], &w->out_cap[i], (size_t)task->num_rows * parts[i].row_bytes));
    QEP_TRY(convert_rows(p, w, task, parts, n));
    w->coded_bytes = 0;
    w->num_frames = 0;
    for (int i = 0; i < n; i++)
        if (task->part < 0 || task->part == i)
            QEP_TRY(encode(w, w->out[i], (size_t)task->num_rows * parts[i].row_bytes,
                           (size_t)parts[i].frame_rows * parts[i].row_bytes));
    return QEP_OK;
}

/* Called with the mutex held. */
static void fail_pipeline(struct pipeline *p, enum qep_status st) {
    if (p->st == QEP_OK) {
        p->st = st;
        snprintf(p->error, sizeof p->error, "%s", qep_last_error());
    }
    pthread_cond_broadcast(&p->turn);
}

static enum qep_status write_frames(struct pipeline *p, const struct worker *w) {
    const uint8_t *at = w->coded;
    for (size_t i = 0; i < w->num_frames; i++) {
        QEP_TRY(qep_seekable_append(p->writer, at, w->frames[i].stored, w->frames[i].content));
        at += w->frames[i].stored;
    }
    return QEP_OK;
}

static void report_progress(struct pipeline *p, const struct task *task) {
    struct qep_build *b = p->build;
    if (!task->counts)
        return;
    b->progress.done_bytes +=
        (uint64_t)task->num_rows * (uint64_t)b->options.inventory->specs[task->spec_idx].cols * 2;
    if (b->options.on_progress != NULL)
        b->options.on_progress(b->options.progress_arg, &b->progress);
}

/* Waits for the task's turn and writes it. */
static void commit(struct pipeline *p, const struct worker *w, size_t task_idx,
                   enum qep_status st) {
    pthread_mutex_lock(&p->mutex);
    while (st == QEP_OK && p->st == QEP_OK && p->next_write != task_idx)
        pthread_cond_wait(&p->turn, &p->mutex);
    if (st == QEP_OK && p->st == QEP_OK)
        st = write_frames(p, w);
    if (st != QEP_OK)
        fail_pipeline(p, st);
    p->next_write++;
    if (p->st == QEP_OK)
        report_progress(p, &p->tasks[task_idx]);
    pthread_cond_broadcast(&p->turn);
    pthread_mutex_unlock(&p->mutex);
}

/* The next task, or false when there is none or the pipeline has failed. */
static bool take(struct pipeline *p, size_t *task_idx) {
    pthread_mutex_lock(&p->mutex);
    if (p->st == QEP_OK && qep_build_stopped(p->build))
        fail_pipeline(p, qep_fail(QEP_ERR_INTERRUPTED,
                                  "%s: interrupted; the same command continues the conversion",
                                  p->build->options.dir));
    bool found = p->st == QEP_OK && p->next_task < p->num_tasks;
    *task_idx = p->next_task;
    if (found)
        p->next_task++;
    pthread_mutex_unlock(&p->mutex);
    return found;
}

static void free_worker(struct worker *w) {
    qep_encoder_destroy(w->encoder);
    free(w->rows);
    free(w->floats);
    free(w->out[0]);
    free(w->out[1]);
    free(w->coded);
    free(w->frames);
}

static void work(void *arg, int thread_idx, int num_threads) {
    struct pipeline *p = arg;
    struct worker w = {0};
    size_t task_idx = 0;
    (void)thread_idx;
    (void)num_threads;
    enum qep_status st = qep_encoder_create(p->build->options.compress, &w.encoder);
    if (st != QEP_OK) {
        pthread_mutex_lock(&p->mutex);
        fail_pipeline(p, st);
        pthread_mutex_unlock(&p->mutex);
    }
    while (st == QEP_OK && take(p, &task_idx)) {
        st = prepare_task(p, &w, &p->tasks[task_idx]);
        commit(p, &w, task_idx, st);
    }
    free_worker(&w);
}

static enum qep_status write_header(struct pipeline *p, const struct qep_layout_file *file) {
    const struct qep_build *b = p->build;
    struct worker w = {0};
    char *header = NULL;
    size_t len = 0;
    enum qep_status st = QEP_OK;
    QEP_TRY_GOTO(st, done,
                 qep_layout_header(b->options.inventory, b->types, b->options.recipe->group_size,
                                   file, &header, &len));
    QEP_TRY_GOTO(st, done, qep_encoder_create(b->options.compress, &w.encoder));
    QEP_TRY_GOTO(st, done, encode(&w, header, len, QEP_FRAME_TARGET));
    st = write_frames(p, &w);
done:
    free(header);
    free_worker(&w);
    return st;
}

static enum qep_status run_team(struct pipeline *p) {
    struct qep_team *team = NULL;
    QEP_TRY(qep_team_create(p->build->options.num_threads, &team));
    qep_team_run(team, work, p);
    qep_team_destroy(team);
    if (p->st != QEP_OK)
        return qep_fail(p->st, "%s", p->error);
    return QEP_OK;
}

enum qep_status qep_pipeline_run(struct qep_build *build, const struct qep_layout_file *file,
                                 int fd, const char *path, struct qep_file_identity *out) {
    struct pipeline p = {
        .build = build, .mutex = PTHREAD_MUTEX_INITIALIZER, .turn = PTHREAD_COND_INITIALIZER};
    enum qep_status st = qep_seekable_create(fd, path, &p.writer);
    for (size_t i = 0; i < file->num_specs && st == QEP_OK; i++)
        st = plan_tensor(&p, file->specs[i]);
    if (st == QEP_OK)
        st = write_header(&p, file);
    if (st == QEP_OK)
        st = run_team(&p);
    if (st == QEP_OK)
        st = qep_seekable_finish(p.writer, out);
    else
        qep_seekable_abandon(p.writer);
    free(p.tasks);
    pthread_mutex_destroy(&p.mutex);
    pthread_cond_destroy(&p.turn);
    return st;
}

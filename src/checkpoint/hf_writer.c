#include "checkpoint/hf_writer.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/team.h"
#include "checkpoint/hf_plan.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BATCH_BYTES = 4 << 20 };

/* A batch of rows of one canonical tensor and where it goes. */
struct batch {
    size_t spec_idx;
    int64_t row, num_rows;
    uint64_t offset;
    size_t bytes;
};

struct file_job {
    struct qep_hf_writer *writer;
    const struct qep_hf_file *file;
    const char *path;
    int fd;
    uint64_t data_start;
    pthread_mutex_t mutex;
    size_t tensor, part; /* the next batch: tensor of the file, spec of the tensor, row */
    int64_t row;
    uint64_t offset;
    enum qep_status st;
    char error[QEP_ERROR_MAX];
};

enum qep_status qep_hf_writer_create(const struct qep_hf_options *options,
                                     struct qep_hf_writer **out) {
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof **out, "checkpoint writer", &mem));
    struct qep_hf_writer *w = mem;
    w->options = *options;
    enum qep_status st = qep_hf_plan(w);
    if (st == QEP_OK)
        *out = w;
    else
        qep_hf_writer_destroy(w);
    return st;
}

void qep_hf_writer_destroy(struct qep_hf_writer *writer) {
    if (writer == NULL)
        return;
    free(writer->tensors);
    free(writer->files);
    free(writer);
}

size_t qep_hf_num_files(const struct qep_hf_writer *writer) {
    return writer->num_files;
}

uint64_t qep_hf_total_bytes(const struct qep_hf_writer *writer) {
    return writer->total_bytes;
}

enum qep_status qep_hf_prepare(struct qep_hf_writer *writer) {
    const char *dir = writer->options.dir;
    QEP_TRY(qep_mkdirs(dir));
    DIR *d = opendir(dir);
    bool empty = true;
    if (d == NULL)
        return qep_fail(QEP_ERR_CANTCREATE, "%s: cannot open: %s", dir, strerror(errno));
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        empty = empty && (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0);
    closedir(d);
    if (!empty)
        return qep_fail(QEP_ERR_CANTCREATE, "%s: is not empty", dir);
    return qep_path_check_space(dir, writer->total_bytes);
}

/* Called with the mutex held. */
static bool next_batch(struct file_job *job, struct batch *out) {
    const struct qep_hf_writer *w = job->writer;
    if (job->st != QEP_OK || job->tensor == job->file->count)
        return false;
    const struct qep_hf_tensor *t = &w->tensors[job->file->first + job->tensor];
    size_t spec_idx = t->first + job->part * t->stride;
    const struct qep_tensor_spec *spec = &w->options.inventory->specs[spec_idx];
    size_t row_bytes = (size_t)spec->cols * (t->type == QEP_ROWS_BF16 ? 2 : 4);
    int64_t step = row_bytes > BATCH_BYTES ? 1 : (int64_t)(BATCH_BYTES / row_bytes);
    int64_t left = spec->rows - job->row, rows = left < step ? left : step;
    *out = (struct batch){spec_idx, job->row, rows, job->offset, (size_t)rows * row_bytes};
    job->offset += out->bytes;
    job->row += rows;
    if (job->row == spec->rows) {
        job->row = 0;
        if (++job->part == t->count) {
            job->part = 0;
            job->tensor++;
        }
    }
    return true;
}

static enum qep_status pwrite_all(const struct file_job *job, const char *data, size_t bytes,
                                  uint64_t offset) {
    while (bytes > 0) {
        ssize_t put = pwrite(job->fd, data, bytes, (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return qep_fail(QEP_ERR_IO, "%s: write failed: %s", job->path, strerror(errno));
        data += put;
        bytes -= (size_t)put;
        offset += (uint64_t)put;
    }
    return QEP_OK;
}

/* Called with the mutex held. */
static void settle_batch(struct file_job *job, size_t bytes, enum qep_status st) {
    struct qep_hf_writer *w = job->writer;
    const struct qep_hf_options *o = &w->options;
    if (st == QEP_OK && o->stop != NULL && *o->stop != 0)
        st = qep_fail(QEP_ERR_INTERRUPTED, "%s: interrupted; nothing usable was written", o->dir);
    if (st != QEP_OK && job->st == QEP_OK) {
        job->st = st;
        snprintf(job->error, sizeof job->error, "%s", qep_last_error());
    }
    w->done_bytes += bytes;
    if (o->on_progress != NULL && job->st == QEP_OK)
        o->on_progress(o->progress_arg, w->done_bytes, w->total_bytes);
}

static void work(void *arg, int thread_idx, int num_threads) {
    struct file_job *job = arg;
    const struct qep_row_source *source = &job->writer->options.source;
    struct batch b;
    void *buffer = NULL;
    size_t cap = 0;
    (void)thread_idx;
    (void)num_threads;
    pthread_mutex_lock(&job->mutex);
    while (next_batch(job, &b)) {
        pthread_mutex_unlock(&job->mutex);
        enum qep_status st = qep_grow(&buffer, &cap, b.bytes, 1, "row buffer");
        if (st == QEP_OK)
            st = source->read(source->impl, b.spec_idx, b.row, b.num_rows, buffer);
        if (st == QEP_OK)
            st = pwrite_all(job, buffer, b.bytes, job->data_start + b.offset);
        pthread_mutex_lock(&job->mutex);
        settle_batch(job, b.bytes, st);
    }
    pthread_mutex_unlock(&job->mutex);
    free(buffer);
}

static enum qep_status fill_file(struct file_job *job) {
    struct qep_team *team = NULL;
    char *header = NULL;
    size_t len = 0;
    QEP_TRY(qep_hf_header(job->writer, job->file, &header, &len));
    enum qep_status st = qep_file_write_all(job->fd, job->path, header, len);
    free(header);
    QEP_TRY(st);
    job->data_start = len;
    QEP_TRY(qep_team_create(job->writer->options.num_threads, &team));
    qep_team_run(team, work, job);
    qep_team_destroy(team);
    return job->st == QEP_OK ? QEP_OK : qep_fail(job->st, "%s", job->error);
}

/* The directory was empty: a file that has the name by now is somebody else's, and stays. */
static enum qep_status write_part(struct qep_hf_writer *w, const struct qep_hf_file *file,
                                  const char *path) {
    struct file_job job = {
        .writer = w, .file = file, .path = path, .mutex = PTHREAD_MUTEX_INITIALIZER};
    job.fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (job.fd < 0)
        return qep_fail(QEP_ERR_CANTCREATE, "%s: cannot create: %s", path, strerror(errno));
    enum qep_status st = fill_file(&job);
    if (close(job.fd) != 0 && st == QEP_OK)
        st = qep_fail(QEP_ERR_IO, "%s: close failed: %s", path, strerror(errno));
    if (st != QEP_OK)
        unlink(path);
    pthread_mutex_destroy(&job.mutex);
    return st;
}

enum qep_status qep_hf_write_file(struct qep_hf_writer *writer, size_t file_idx) {
    const struct qep_hf_file *file = &writer->files[file_idx];
    char *path = NULL, *part = NULL;
    char name[96];
    enum qep_status st = QEP_OK;
    snprintf(name, sizeof name, "%s.part", file->name);
    QEP_TRY_GOTO(st, done, qep_path_join(writer->options.dir, file->name, &path));
    QEP_TRY_GOTO(st, done, qep_path_join(writer->options.dir, name, &part));
    QEP_TRY_GOTO(st, done, write_part(writer, file, part));
    if (rename(part, path) == 0)
        goto done;
    st = qep_fail(QEP_ERR_CANTCREATE, "%s: cannot rename into place: %s", path, strerror(errno));
    unlink(part);
done:
    free(path);
    free(part);
    return st;
}

static enum qep_status write_index(const struct qep_hf_writer *w) {
    size_t cap = w->num_tensors * 256 + 128, n = 0;
    void *mem = NULL;
    char *path = NULL;
    QEP_TRY(qep_alloc(cap, 1, "index", &mem));
    char *out = mem;
    n += (size_t)snprintf(out, cap,
                          "{\n  \"metadata\": {\"total_size\": %llu},\n  \"weight_map\": {",
                          (unsigned long long)w->total_bytes);
    for (size_t f = 0; f < w->num_files; f++)
        for (size_t i = 0; i < w->files[f].count; i++)
            n += (size_t)snprintf(out + n, cap - n, "%s\n    \"%s\": \"%s\"", f + i > 0 ? "," : "",
                                  w->tensors[w->files[f].first + i].name, w->files[f].name);
    n += (size_t)snprintf(out + n, cap - n, "\n  }\n}\n");
    enum qep_status st = qep_path_join(w->options.dir, "model.safetensors.index.json", &path);
    if (st == QEP_OK)
        st = qep_file_write_atomic(path, out, n);
    free(path);
    free(out);
    return st;
}

/* Other ranks may have written elsewhere. */
static enum qep_status check_files(const struct qep_hf_writer *w) {
    const char *dir = w->options.dir;
    for (size_t f = 0; f < w->num_files; f++) {
        char *path = NULL;
        QEP_TRY(qep_path_join(dir, w->files[f].name, &path));
        bool there = qep_path_exists(path);
        free(path);
        if (!there)
            return qep_fail(QEP_ERR_IO,
                            "%s/%s: not there (is %s on a file system that all ranks share?)", dir,
                            w->files[f].name, dir);
    }
    return QEP_OK;
}

enum qep_status qep_hf_finish(struct qep_hf_writer *writer) {
    char *path = NULL;
    QEP_TRY(check_files(writer));
    QEP_TRY(qep_path_join(writer->options.dir, "config.json", &path));
    enum qep_status st =
        qep_file_write_atomic(path, writer->options.config_text, writer->options.config_len);
    free(path);
    return st == QEP_OK ? write_index(writer) : st;
}

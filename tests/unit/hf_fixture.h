/* A tiny random checkpoint on disk, and edits of its header. */
#ifndef QEP_TESTS_HF_FIXTURE_H
#define QEP_TESTS_HF_FIXTURE_H

#include "base/json.h"
#include "checkpoint/config.h"
#include "checkpoint/hf_writer.h"
#include "checkpoint/random_source.h"

#include "dir_fixture.h"

struct random_model {
    char *text; /* the config's */
    size_t len;
    struct qep_model_config config;
    struct qep_inventory inventory;
    struct qep_random_source *random;
};

static inline void random_model_open(struct random_model *m, const char *config, uint64_t seed) {
    ck_assert_int_eq(qep_file_read(config, QEP_CONFIG_MAX_BYTES, &m->text, &m->len), QEP_OK);
    ck_assert_msg(qep_config_parse(m->text, m->len, config, &m->config) == QEP_OK, "%s",
                  qep_last_error());
    ck_assert_int_eq(qep_inventory_create(&m->config, &m->inventory), QEP_OK);
    ck_assert_int_eq(qep_random_source_create(&m->config, &m->inventory, seed, &m->random), QEP_OK);
}

static inline void random_model_close(struct random_model *m) {
    qep_random_source_destroy(m->random);
    qep_inventory_free(&m->inventory);
    free(m->text);
}

/* Writes the model as a checkpoint into an existing empty directory. */
static inline void write_hf(const char *config, const char *dir, uint64_t shard_bytes) {
    struct random_model m;
    struct qep_hf_writer *writer = NULL;
    random_model_open(&m, config, 7);
    struct qep_hf_options options = {.dir = dir,
                                     .config_text = m.text,
                                     .config_len = m.len,
                                     .config = &m.config,
                                     .inventory = &m.inventory,
                                     .source = qep_random_rows(m.random),
                                     .shard_bytes = shard_bytes,
                                     .num_threads = 2};
    ck_assert_int_eq(qep_hf_writer_create(&options, &writer), QEP_OK);
    ck_assert_msg(qep_hf_prepare(writer) == QEP_OK, "%s", qep_last_error());
    for (size_t f = 0; f < qep_hf_num_files(writer); f++)
        ck_assert_int_eq(qep_hf_write_file(writer, f), QEP_OK);
    ck_assert_int_eq(qep_hf_finish(writer), QEP_OK);
    qep_hf_writer_destroy(writer);
    random_model_close(&m);
}

/* The header of a safetensors file as a tree. */
static inline cJSON *read_header(const char *dir, const char *name, size_t *header_len) {
    size_t len = 0;
    char *data = slurp(dir, name, &len);
    *header_len = 0;
    for (int i = 7; i >= 0; i--)
        *header_len = *header_len << 8 | (unsigned char)data[i];
    ck_assert_uint_le(*header_len + 8, len);
    cJSON *root = cJSON_ParseWithLength(data + 8, *header_len);
    ck_assert_ptr_nonnull(root);
    free(data);
    return root;
}

/* Writes the file again with another header; extra bytes are appended to the data. */
static inline void write_header(const char *dir, const char *name, size_t old_len,
                                const cJSON *root, size_t extra) {
    size_t len = 0;
    char *data = slurp(dir, name, &len), *text = cJSON_PrintUnformatted(root);
    size_t n = strlen(text), data_len = len - 8 - old_len;
    char *out = calloc(1, 8 + n + data_len + extra);
    ck_assert_ptr_nonnull(out);
    for (int i = 0; i < 8; i++)
        out[i] = (char)(n >> (8 * i) & 0xff);
    memcpy(out + 8, text, n);
    memcpy(out + 8 + n, data + 8 + old_len, data_len);
    spill(dir, name, out, 8 + n + data_len + extra);
    free(out);
    free(text);
    free(data);
}

#endif

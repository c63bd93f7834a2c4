#include "text_support.h"

#include "base/file.h"
#include "text/vocab.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#define SPLIT_HEAD                                                                                 \
    "\"normalizer\": {\"type\": \"NFC\"}, \"pre_tokenizer\": {\"type\": \"Sequence\", "            \
    "\"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": "
#define SPLIT_TAIL                                                                                 \
    "}, \"behavior\": \"Isolated\", \"invert\": false}, {\"type\": \"ByteLevel\", "                \
    "\"add_prefix_space\": false, \"trim_offsets\": false, \"use_regex\": false}]}, "              \
    "\"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\"}, "

static const char qwen2_regex[] =
    "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| "
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"";
static const char qwen35_regex[] =
    "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{L}\\\\p{M}]+|\\\\p{N}| "
    "?[^\\\\s\\\\p{L}\\\\p{M}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"";

char *text_data(const char *name, size_t *len) {
    char path[256], *data = NULL;
    snprintf(path, sizeof path, "tests/data/%s", name);
    ck_assert_msg(qep_file_read(path, 1 << 24, &data, len) == QEP_OK, "%s", qep_last_error());
    return data;
}

char *text_data_zst(const char *name, size_t *len) {
    size_t packed_len;
    char *packed = text_data(name, &packed_len);
    unsigned long long bytes = ZSTD_getFrameContentSize(packed, packed_len);
    ck_assert_msg(bytes > 0 && bytes < 1 << 28, "%s: not a zstd file", name);
    char *data = malloc((size_t)bytes + 1);
    ck_assert_ptr_nonnull(data);
    *len = ZSTD_decompress(data, (size_t)bytes, packed, packed_len);
    ck_assert_msg(*len == bytes, "%s: does not decompress", name);
    data[*len] = '\0';
    free(packed);
    return data;
}

const struct qep_value *text_json(const char *name, struct qep_value_doc **doc) {
    const struct qep_value *root = NULL;
    size_t len;
    char *data = text_data(name, &len);
    ck_assert_msg(qep_value_parse(data, len, name, doc, &root) == QEP_OK, "%s", qep_last_error());
    free(data);
    return root;
}

static void add(struct qep_bytes *json, const char *text) {
    ck_assert_int_eq(qep_bytes_append_str(json, text), QEP_OK);
}

static void add_string(struct qep_bytes *json, const char *text, size_t len) {
    ck_assert_int_eq(qep_json_append_string(json, text, len), QEP_OK);
}

static void add_entry(struct qep_bytes *json, const char *spelling, size_t len, int id) {
    char tail[32];
    add_string(json, spelling, len);
    snprintf(tail, sizeof tail, ": %d", id);
    add(json, tail);
}

/* The bytes, in the order of their values or of the alphabet's characters (Qwen2). */
static void add_bytes(struct qep_bytes *json, bool alphabet_order) {
    int id = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int b = 0; b < 256; b++) {
            struct qep_bytes spelling = {0};
            char byte = (char)b;
            ck_assert_int_eq(qep_byte_alphabet_append(&spelling, &byte, 1), QEP_OK);
            bool itself = spelling.len == 1 || (unsigned char)spelling.data[0] < 0xC4;
            if (!alphabet_order ? pass == 0 : itself == (pass == 0)) {
                add(json, id > 0 ? ", " : "");
                add_entry(json, spelling.data, spelling.len, id++);
            }
            qep_bytes_free(&spelling);
        }
    }
}

void text_qwen2_json(bool pairs, struct qep_bytes *json) {
    size_t len;
    char *merges = text_data_zst("tokenizer/qwen2/merges.txt.zst", &len), *first, *save = NULL;
    struct qep_bytes list = {0};
    int id = 256;
    add(json, "{\"added_tokens\": [{\"id\": 151643, \"content\": \"<|endoftext|>\", \"special\": "
              "true}], " SPLIT_HEAD);
    add(json, qwen2_regex);
    add(json, SPLIT_TAIL "\"model\": {\"type\": \"BPE\", \"vocab\": {");
    add_bytes(json, true);
    first = strchr(merges, '\n') + 1; /* behind "#version" */
    for (char *m = strtok_r(first, "\n", &save); m != NULL; m = strtok_r(NULL, "\n", &save)) {
        char *space = strchr(m, ' ');
        add(&list, id > 256 ? "," : "");
        add(&list, pairs ? "[" : "");
        if (pairs) {
            add_string(&list, m, (size_t)(space - m));
            add(&list, ",");
        }
        add_string(&list, pairs ? space + 1 : m, strlen(pairs ? space + 1 : m));
        add(&list, pairs ? "]" : "");
        memmove(space, space + 1, strlen(space + 1) + 1);
        add(json, ",");
        add_entry(json, m, strlen(m), id++);
    }
    add(json, "}, \"merges\": [");
    ck_assert_int_eq(qep_bytes_append(json, list.data, list.len), QEP_OK);
    add(json, "]}}");
    qep_bytes_free(&list);
    free(merges);
}

void text_small_json(const char *vocab, const char *merges, const char *added,
                     struct qep_bytes *json) {
    add(json, "{\"added_tokens\": [");
    add(json, added);
    add(json, "], " SPLIT_HEAD);
    add(json, qwen35_regex);
    add(json, SPLIT_TAIL "\"model\": {\"type\": \"BPE\", \"dropout\": null, \"ignore_merges\": "
                         "false, \"vocab\": {");
    add_bytes(json, false);
    add(json, vocab);
    add(json, "}, \"merges\": [");
    add(json, merges);
    add(json, "]}}");
}

bool text_same_ids(const struct qep_value *expected, const struct qep_ids *ids) {
    size_t i = 0;
    for (const struct qep_value *v = expected->child; v != NULL; v = v->next, i++) {
        if (i < ids->count && atoi(v->text) == ids->items[i])
            continue;
        fprintf(stderr, "id %zu: expected %s, found %d\n", i, v->text,
                i < ids->count ? ids->items[i] : -1);
        return false;
    }
    return i == ids->count;
}

const char *text_ids(const struct qep_tokenizer *tok, const char *text, size_t len, bool plain) {
    static char out[4096];
    struct qep_ids ids = {0};
    struct qep_text_span all = {0, len};
    size_t used = 0;
    ck_assert_msg(qep_tokenizer_encode(tok, text, len, &all, plain ? 1 : 0, &ids) == QEP_OK, "%s",
                  qep_last_error());
    out[0] = '\0';
    for (size_t i = 0; i < ids.count && used < sizeof out - 16; i++)
        used += (size_t)snprintf(out + used, sizeof out - used, i > 0 ? " %d" : "%d", ids.items[i]);
    qep_ids_free(&ids);
    return out;
}

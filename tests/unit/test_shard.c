#include "quant/quantize.h"
#include "shard/shard.h"
#include "checkpoint/safetensors.h"
#include "shard/verify.h"

#include "build_fixture.h"

static const char *const goldens[] = {"dense-tied", "dense-untied",  "moe-35b-shape",
                                      "moe-all",    "moe-irregular", "moe-one",
                                      "moe-ratio3", "next-packed"};
static const char *const recipes[] = {"bf16", "q8", "q4", "q4-all"};
enum { NUM_GOLDENS = 8, NUM_RECIPES = 4 };

/* What a tensor must be, from the source's rows, in memory. */
static struct qep_host_weight expected_weight(const struct build_fixture *f, size_t idx,
                                              enum qep_weight_type type) {
    const struct qep_tensor_spec *spec = &f->options.inventory->specs[idx];
    const struct qep_row_source *source = &f->options.source;
    size_t n = (size_t)(spec->rows * spec->cols);
    int32_t group = type >= QEP_WEIGHT_INT8 ? f->recipe.group_size : 0;
    struct qep_host_weight w = {
        .type = type, .rows = spec->rows, .cols = spec->cols, .group_size = group};
    float *floats = malloc(n * 4);
    void *raw = malloc(n * 4);
    w.data = malloc(qep_weight_data_bytes(type, w.rows, w.cols));
    ck_assert(floats != NULL && raw != NULL && w.data != NULL);
    ck_assert_int_eq(source->read(source->impl, idx, 0, spec->rows, raw), QEP_OK);
    bool bf16 = source->type(source->impl, idx) == QEP_ROWS_BF16;
    for (size_t i = 0; i < n; i++)
        floats[i] = bf16 ? qep_bf16_to_f32(((uint16_t *)raw)[i]) : ((float *)raw)[i];
    if (group != 0)
        w.scales = malloc(qep_weight_num_scales(w.rows, w.cols, group) * 2);
    if (type == QEP_WEIGHT_INT8)
        qep_quantize_int8(floats, w.rows, w.cols, group, w.data, w.scales);
    else if (type == QEP_WEIGHT_INT4)
        qep_quantize_int4(floats, w.rows, w.cols, group, w.data, w.scales);
    else
        for (size_t i = 0; i < n; i++) {
            if (type == QEP_WEIGHT_F32)
                ((float *)w.data)[i] = floats[i];
            else
                ((uint16_t *)w.data)[i] = qep_f32_to_bf16(floats[i]);
        }
    free(raw);
    free(floats);
    return w;
}

static void check_all_tensors(const struct build_fixture *f, const struct qep_shard_dir *dir) {
    for (size_t i = 0; i < f->options.inventory->num_specs; i++) {
        const struct qep_tensor_spec *spec = &f->options.inventory->specs[i];
        struct qep_host_weight w;
        enum qep_weight_type type;
        int64_t rows, cols;
        uint64_t stored = 0;
        ASSERT_OK(qep_shard_stat(dir, spec->name, &type, &rows, &cols));
        ck_assert(rows == spec->rows && cols == spec->cols);
        ASSERT_OK(qep_shard_load(dir, spec->name, &w, &stored));
        ck_assert_uint_gt(stored, 0);
        struct qep_host_weight e = expected_weight(f, i, type);
        ck_assert(w.type == e.type && w.rows == e.rows && w.cols == e.cols &&
                  w.group_size == e.group_size);
        ck_assert_msg(memcmp(w.data, e.data, qep_weight_data_bytes(type, rows, cols)) == 0, "%s",
                      spec->name);
        if (e.scales != NULL)
            ck_assert_mem_eq(w.scales, e.scales,
                             qep_weight_num_scales(rows, cols, w.group_size) * 2);
        qep_host_weight_free(&e);
        qep_host_weight_free(&w);
    }
}

START_TEST(golden_round_trip) {
    char dir[64], from[128];
    struct build_fixture f;
    struct qep_shard_dir *shards = NULL;
    scratch_dir(dir);
    join(from, sizeof from, "tests/data/golden", goldens[_i / NUM_RECIPES]);
    fixture_checkpoint(&f, from, recipes[_i % NUM_RECIPES], dir);
    ASSERT_OK(build_all(&f.options, 1));
    ASSERT_OK(qep_shard_dir_open(dir, &shards));
    ck_assert_mem_eq(qep_shard_dir_config(shards), f.options.config, sizeof *f.options.config);
    ck_assert_str_eq(qep_shard_dir_info(shards)->recipe, recipes[_i % NUM_RECIPES]);
    ck_assert_int_eq(qep_shard_dir_info(shards)->num_shards, 2);
    check_all_tensors(&f, shards);
    for (size_t i = 0; i < qep_shard_dir_manifest(shards)->layout.num_files; i++)
        ASSERT_OK(qep_shard_verify_file(shards, i));
    ASSERT_OK(qep_shard_verify_side_files(shards));
    struct qep_host_weight w;
    ck_assert_int_eq(qep_shard_load(shards, "no.such.tensor", &w, NULL), QEP_ERR_DATA);
    qep_shard_dir_close(shards);
    fixture_free(&f);
    remove_tree(dir);
}
END_TEST

/* Group sizes, numbers of shard files and --compress max keep the same weights. */
START_TEST(options_round_trip) {
    static const struct {
        int32_t group_size, num_shards;
        enum qep_compress compress;
    } cases[] = {{64, 1, QEP_COMPRESS_AUTO},
                 {128, 3, QEP_COMPRESS_MAX},
                 {32, 11, QEP_COMPRESS_MAX},
                 {64, 256, QEP_COMPRESS_AUTO}};
    char dir[64];
    struct build_fixture f;
    struct qep_shard_dir *shards = NULL;
    scratch_dir(dir);
    fixture_checkpoint(&f, "tests/data/golden/moe-one", _i % 2 == 0 ? "q4" : "q8", dir);
    f.recipe.group_size = cases[_i].group_size;
    f.options.num_shards = cases[_i].num_shards;
    f.options.compress = cases[_i].compress;
    ASSERT_OK(build_all(&f.options, 1));
    ASSERT_OK(qep_shard_dir_open(dir, &shards));
    ck_assert_int_eq(qep_shard_dir_info(shards)->group_size, cases[_i].group_size);
    check_all_tensors(&f, shards);
    qep_shard_dir_close(shards);
    fixture_free(&f);
    remove_tree(dir);
}
END_TEST

/* A model whose tensors need planes, several frames and several tasks. */
static void write_wide_config(const char *dir, char path[128], int vocab) {
    size_t len = 0;
    char *text = slurp("configs", "tiny-random.json", &len);
    cJSON *root = cJSON_Parse(text);
    cJSON_ReplaceItemInObject(root, "vocab_size", cJSON_CreateNumber(vocab));
    cJSON_ReplaceItemInObject(root, "hidden_size", cJSON_CreateNumber(1000));
    cJSON_ReplaceItemInObject(root, "num_hidden_layers", cJSON_CreateNumber(1));
    char *out = cJSON_PrintUnformatted(root);
    spill(dir, "wide.json", out, strlen(out));
    join(path, 128, dir, "wide.json");
    free(out);
    free(text);
    cJSON_Delete(root);
}

START_TEST(large_tensors_round_trip) {
    char base[64], path[128], dir[128];
    struct build_fixture f;
    struct qep_shard_dir *shards = NULL;
    scratch_dir(base);
    /* Beyond one task (16 MiB) as bf16 and int8; int4 is slow to make without optimisation. */
    write_wide_config(base, path, _i == 0 ? 9001 : _i == 1 ? 17001 : 2003);
    join(dir, sizeof dir, base, "out/deep/dir"); /* missing parents are created */
    fixture_random(&f, path, 5, recipes[_i], dir);
    f.options.num_threads = 3;
    ASSERT_OK(build_all(&f.options, 1));
    ASSERT_OK(qep_shard_dir_open(dir, &shards));
    check_all_tensors(&f, shards);
    uint64_t stored = qep_shard_dir_info(shards)->stored_bytes;
    if (_i == 0) /* bf16: planes shrink by a third */
        ck_assert_uint_lt(stored, qep_shard_dir_info(shards)->tensor_bytes * 7 / 10);
    qep_shard_dir_close(shards);
    fixture_free(&f);
    remove_tree(base);
}
END_TEST

START_TEST(zstd_opens_as_safetensors) {
    char dir[64], command[512], path[160];
    struct build_fixture f;
    scratch_dir(dir);
    fixture_checkpoint(&f, "tests/data/golden/moe-irregular", "q4", dir);
    ASSERT_OK(build_all(&f.options, 1));
    if (system("command -v zstd >/dev/null") == 0) {
        static const char *const names[] = {"embed", "layer-000", "layer-005", "shard-00-of-02",
                                            "shard-01-of-02"};
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            struct qep_st_file file;
            snprintf(command, sizeof command,
                     "zstd -q -d < %s/%s.qep > %s/x.safetensors && zstd -q -t < %s/%s.qep", dir,
                     names[i], dir, dir, names[i]);
            ck_assert_int_eq(system(command), 0);
            join(path, sizeof path, dir, "x.safetensors");
            ASSERT_OK(qep_st_file_open(path, &file));
            ck_assert_uint_gt(file.header.num_tensors, 0);
            qep_st_file_close(&file);
        }
    }
    fixture_free(&f);
    remove_tree(dir);
}
END_TEST

/* The smallest model there is: every bit of its files can be flipped. */
static const char micro_config[] =
    "{\"model_type\": \"qwen3_5_moe_text\", \"vocab_size\": 3, \"hidden_size\": 8,"
    "\"num_hidden_layers\": 1, \"full_attention_interval\": 4, \"num_attention_heads\": 1,"
    "\"num_key_value_heads\": 1, \"head_dim\": 4, \"linear_num_key_heads\": 1,"
    "\"linear_num_value_heads\": 1, \"linear_key_head_dim\": 2, \"linear_value_head_dim\": 2,"
    "\"linear_conv_kernel_dim\": 2, \"num_experts\": 2, \"num_experts_per_tok\": 1,"
    "\"moe_intermediate_size\": 2, \"shared_expert_intermediate_size\": 2,"
    "\"rope_parameters\": {\"rope_theta\": 10000, \"partial_rotary_factor\": 0.5}}";

static void build_micro(const char *base, char dir[128], const char *recipe, uint64_t seed) {
    struct build_fixture f;
    char path[128];
    spill(base, "micro.json", micro_config, sizeof micro_config - 1);
    join(path, sizeof path, base, "micro.json");
    snprintf(dir, 128, "%s/%s-%d", base, recipe, (int)seed);
    fixture_random(&f, path, seed, recipe, dir);
    f.options.num_shards = 1;
    ASSERT_OK(build_all(&f.options, 1));
    fixture_free(&f);
}

/* Opens and loads everything. */
static enum qep_status read_everything(const char *dir) {
    struct qep_shard_dir *shards = NULL;
    enum qep_status st = qep_shard_dir_open(dir, &shards);
    if (st != QEP_OK)
        return st;
    const struct qep_inventory *inv = &qep_shard_dir_manifest(shards)->inventory;
    for (size_t i = 0; st == QEP_OK && i < inv->num_specs; i++) {
        struct qep_host_weight w;
        st = qep_shard_load(shards, inv->specs[i].name, &w, NULL);
        qep_host_weight_free(&w);
    }
    qep_shard_dir_close(shards);
    return st;
}

static void poke(const char *path, size_t at, char value) {
    FILE *f = fopen(path, "r+b");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fseek(f, (long)at, SEEK_SET), 0);
    ck_assert_int_eq(fputc(value, f), (unsigned char)value);
    ck_assert_int_eq(fclose(f), 0);
}

/* Every byte; under sanitizers, which take minutes for that, every seventh. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { FLIP_STEP = 7 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
enum { FLIP_STEP = 7 };
#else
enum { FLIP_STEP = 1 };
#endif
#else
enum { FLIP_STEP = 1 };
#endif

START_TEST(every_flipped_bit_is_found) {
    static const char *const names[] = {"embed.qep", "layer-000.qep", "shard-00-of-01.qep",
                                        "manifest.json"};
    char base[64], dir[128], path[256];
    size_t len = 0, flips = 0;
    scratch_dir(base);
    build_micro(base, dir, _i / 4 == 0 ? "q4" : "bf16", 1);
    ASSERT_OK(read_everything(dir));
    char *data = slurp(dir, names[_i % 4], &len);
    join(path, sizeof path, dir, names[_i % 4]);
    for (size_t at = 0; at < len; at += FLIP_STEP)
        /* all bits of the small file, one in turn of the larger ones */
        for (int bit = _i % 4 == 0 ? 0 : (int)(at % 8); bit < 8; bit += _i % 4 == 0 ? 1 : 8) {
            poke(path, at, (char)(data[at] ^ 1 << bit));
            ck_assert_msg(read_everything(dir) == QEP_ERR_DATA, "%s: bit %d of byte %zu of %zu",
                          names[_i % 4], bit, at, len);
            ck_assert_msg(strstr(qep_last_error(), names[_i % 4]) != NULL, "%s", qep_last_error());
            poke(path, at, data[at]);
            flips++;
        }
    ck_assert_uint_ge(flips, len / FLIP_STEP);
    ASSERT_OK(read_everything(dir));
    free(data);
    remove_tree(base);
}
END_TEST

START_TEST(damaged_frame_names_its_tensor) {
    char base[64], dir[128], path[256];
    struct qep_shard_dir *shards = NULL;
    struct qep_shard_location where;
    struct qep_host_weight w;
    size_t len = 0;
    scratch_dir(base);
    build_micro(base, dir, "q4", 1);
    ASSERT_OK(qep_shard_dir_open(dir, &shards));
    ASSERT_OK(qep_shard_locate(shards, "layers.0.mlp.experts.1.down_proj", &where));
    size_t frame = qep_seekable_find(where.file, where.part_offsets[0]);
    char *data = slurp(dir, "shard-00-of-01.qep", &len);
    size_t at = where.file->frames[frame].offset + 10;
    join(path, sizeof path, dir, "shard-00-of-01.qep");
    poke(path, at, (char)(data[at] ^ 4));
    ck_assert_int_eq(qep_shard_load(shards, "layers.0.mlp.experts.1.down_proj", &w, NULL),
                     QEP_ERR_DATA);
    assert_error_has("shard-00-of-01.qep: layers.0.mlp.experts.1.down_proj: frame");
    ck_assert_ptr_null(w.data);
    ASSERT_OK(qep_shard_load(shards, "layers.0.mlp.experts.0.down_proj", &w, NULL));
    qep_host_weight_free(&w);
    ck_assert_int_eq(qep_shard_verify_file(shards, 2), QEP_ERR_DATA);
    assert_error_has("layers.0.mlp.experts.1.down_proj: frame");
    spill(dir, "config.json", "{}", 2);
    ck_assert_int_eq(qep_shard_verify_side_files(shards), QEP_ERR_DATA);
    assert_error_has("config.json: changed since the directory was made");
    free(data);
    qep_shard_dir_close(shards);
    remove_tree(base);
}
END_TEST

START_TEST(wrong_files_are_refused) {
    char base[64], dir[128], other[128], path[256];
    size_t len = 0, other_len = 0;
    scratch_dir(base);
    build_micro(base, dir, "q4", 1);
    build_micro(base, other, "q4", 2);
    static const char *const names[] = {"embed.qep", "layer-000.qep", "shard-00-of-01.qep"};
    for (int i = 0; i < 3; i++) {
        char *data = slurp(dir, names[i], &len), *foreign = slurp(other, names[i], &other_len);
        ck_assert(len != other_len || memcmp(data, foreign, len) != 0);
        spill(dir, names[i], foreign, other_len);
        ck_assert_int_eq(read_everything(dir), QEP_ERR_DATA);
        assert_error_has("another conversion");
        for (size_t cut = 1; cut <= len; cut = cut == len      ? len + 1
                                               : cut * 2 > len ? len
                                                               : cut * 2) {
            spill(dir, names[i], data, len - cut);
            ck_assert_int_eq(read_everything(dir), QEP_ERR_DATA);
            assert_error_has(names[i]);
        }
        join(path, sizeof path, dir, names[i]);
        ck_assert_int_eq(unlink(path), 0);
        ck_assert_int_eq(read_everything(dir), QEP_ERR_DATA);
        assert_error_has("missing, the manifest lists it");
        spill(dir, names[i], data, len);
        ASSERT_OK(read_everything(dir));
        free(data);
        free(foreign);
    }
    ck_assert_int_eq(read_everything("/no/such/dir"), QEP_ERR_NOINPUT);
    join(path, sizeof path, dir, "manifest.json");
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(read_everything(dir), QEP_ERR_NOINPUT);
    assert_error_has("no manifest.json");
    remove_tree(base);
}
END_TEST

/* Edits of the manifest with the hash made right again. */
struct manifest_case {
    const char *from, *to, *message;
};

static const struct manifest_case manifest_cases[] = {
    {"shard directory", "something else", "no manifest of a shard directory"},
    {"\"version\":1", "\"version\":2", "\"version\": expected 1, found 2"},
    {"\"version\":1", "\"version\":\"1\"", "\"version\""},
    {"\"num_shards\":1", "\"num_shards\":0", "\"num_shards\""},
    {"\"num_shards\":1", "\"num_shards\":2", "\"files\": expected a list of 4 files"},
    {"\"group_size\":32", "\"group_size\":33", "\"group_size\""},
    {"\"hidden_size\":8", "\"hidden_size\":16", "expected shape"},
    {"\"hidden_size\":8", "\"hidden_size\":2147483648", "\"hidden_size\""},
    {"\"num_experts\":2", "\"num_experts\":3", "expected shape [3, 8], found [2, 8]"},
    {"\"name\":\"embed.qep\"", "\"name\":\"../../x\"", "\"files\"[0]: expected embed.qep"},
    {"\"embed_tokens.weight\":", "\"other\":", "expected tensor embed_tokens.weight"},
    {"\"embed_tokens.weight\":[\"int8\",3,8],", "", "expected tensor embed_tokens.weight"},
    {"[\"int8\",3,8]", "[\"int8\",3,9]", "expected shape [3, 8], found [3, 9]"},
    {"[\"int8\",3,8]", "[\"int3\",3,8]", "unexpected type"},
    {"[\"int8\",3,8]", "[\"bf16\",3,8]", "header"},
    {"\"norm.weight\":[\"bf16\",1,8]", "\"norm.weight\":[\"int4\",1,8]", "unexpected type"},
    {"\"norm.weight\":[\"bf16\",1,8]", "\"norm.weight\":3", "expected [type, rows, cols]"},
    {"\"index_xxh3\":\"", "\"index_xxh3\":\"zz", "\"index_xxh3\""},
    {"{\"name\":\"config.json\"", "{\"name\":\"/etc/passwd\"", "unexpected file"},
    {"\"side_files\":[", "\"side_files\":3,\"x\":[", "\"side_files\": expected a list"},
    {"\"bytes\":", "\"bytes\":1", "bytes"},
    {"{\"name\":\"q4\"", "{\"name\":\"\\u001b[2Jq4\"", "recipe \"name\": expected 1 to 31"},
    {"{\"name\":\"q4\"", "{\"name\":\"\\u009b2Jq4\"", "recipe \"name\""},
    {"{\"name\":\"q4\"",
     "{\"name\":\"\x9b"
     "2Jq4\"",
     "recipe \"name\""},
    {"{\"name\":\"q4\"", "{\"name\":\"\\u202eq4\"", "recipe \"name\""},
    {"{\"name\":\"q4\"", "{\"name\":\"q4\\n\"", "recipe \"name\""},
    {"{\"name\":\"q4\"", "{\"name\":\"\"", "recipe \"name\""},
    {"{\"name\":\"q4\"", "{\"name\":\"12345678901234567890123456789012\"", "recipe \"name\""},
};

START_TEST(manifest_table) {
    const struct manifest_case *c = &manifest_cases[_i];
    char base[64], dir[128];
    size_t len = 0;
    scratch_dir(base);
    build_micro(base, dir, "q4", 1);
    char *text = slurp(dir, "manifest.json", &len);
    char *files = strstr(text, "\"files\":[\n"); /* "bytes" is tried on a file's line */
    ck_assert_ptr_nonnull(files);
    char *at = strstr(strcmp(c->from, "\"bytes\":") == 0 ? files : text, c->from);
    ck_assert_msg(at != NULL, "%s", c->from);
    size_t cap = len + 256, tail = strlen(",\n\"xxh3_128\":\"") + 35;
    char *out = calloc(1, cap), hash[QEP_HASH_TEXT];
    ck_assert_ptr_nonnull(out);
    size_t n = (size_t)snprintf(out, cap, "%.*s%s%.*s", (int)(at - text), text, c->to,
                                (int)(len - tail - (size_t)(at - text) - strlen(c->from)),
                                at + strlen(c->from));
    qep_hash_text(out, n, hash);
    n += (size_t)snprintf(out + n, cap - n, ",\n\"xxh3_128\":\"%s\"}\n", hash);
    spill(dir, "manifest.json", out, n);
    ck_assert_int_eq(read_everything(dir), QEP_ERR_DATA);
    assert_error_has(c->message);
    free(out);
    free(text);
    remove_tree(base);
}
END_TEST

START_TEST(truncated_manifest_is_refused) {
    char base[64], dir[128];
    size_t len = 0;
    scratch_dir(base);
    build_micro(base, dir, "q4", 1);
    char *text = slurp(dir, "manifest.json", &len);
    for (size_t n = 0; n < len; n += n < len - 50 ? 37 : 1) {
        spill(dir, "manifest.json", text, n);
        ck_assert_int_eq(read_everything(dir), QEP_ERR_DATA);
        assert_error_has("manifest.json");
    }
    free(text);
    remove_tree(base);
}
END_TEST

#define COUNT(a) (int)(sizeof(a) / sizeof *(a))

int main(void) {
    Suite *suite = suite_create("shard");
    TCase *tc = tcase_create("shard");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, golden_round_trip, 0, NUM_GOLDENS * NUM_RECIPES);
    tcase_add_loop_test(tc, options_round_trip, 0, 4);
    tcase_add_loop_test(tc, large_tensors_round_trip, 0, NUM_RECIPES);
    tcase_add_test(tc, zstd_opens_as_safetensors);
    tcase_add_loop_test(tc, every_flipped_bit_is_found, 0, 8);
    tcase_add_test(tc, damaged_frame_names_its_tensor);
    tcase_add_test(tc, wrong_files_are_refused);
    tcase_add_loop_test(tc, manifest_table, 0, COUNT(manifest_cases));
    tcase_add_test(tc, truncated_manifest_is_refused);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

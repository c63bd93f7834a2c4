#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"

#include "hf_fixture.h"

static const char tiny_config[] = "configs/tiny-random.json";
static const char single[] = "model.safetensors";

struct header_case {
    const char *json;
    uint64_t data_bytes;
    const char *message; /* NULL: fine */
};

#define T(name, dtype, shape, begin, end)                                                          \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end   \
    "]}"

static const struct header_case header_cases[] = {
    {"{}", 0, NULL},
    {"{" T("a", "BF16", "[2,3]", "0", "12") "}", 12, NULL},
    {"{" T("b", "F32", "[1]", "12", "16") "," T("a", "BF16", "[2,3]", "0", "12") "}", 16, NULL},
    {"{" T("a", "F32", "[]", "0", "4") "}", 4, NULL},
    {"{" T("a", "F32", "[0,5]", "0", "0") "," T("b", "I8", "[4]", "0", "4") "}", 4, NULL},
    {"{\"__metadata__\":{\"format\":\"pt\"}," T("a", "U8", "[1]", "0", "1") "}   ", 1, NULL},
    {"{" T("a", "F4", "[4]", "0", "2") "}", 2, NULL},
    {"", 0, "expected '{'"},
    {"[]", 0, "expected '{'"},
    {" {}", 0, "expected '{'"},
    {"{", 0, "invalid JSON"},
    {"{} x", 0, "unexpected text"},
    {"{}", 5, "cover 0 bytes, the data has 5"},
    {"{\"a\":3}", 0, "expected an object"},
    {"{\"__metadata__\":[]}", 0, "__metadata__"},
    {"{" T("a", "BF17", "[1]", "0", "2") "}", 2, "unknown dtype \"BF17\""},
    {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,2]}}", 2, "unknown dtype"},
    {"{\"a\":{\"dtype\":\"BF16\",\"data_offsets\":[0,2]}}", 2, "\"shape\" is not a list"},
    {"{\"a\":{\"dtype\":\"BF16\",\"shape\":[1]}}", 2, "\"data_offsets\""},
    {"{\"a\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0]}}", 2, "\"data_offsets\""},
    {"{\"a\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2,4]}}", 2, "data_offsets"},
    {"{" T("a", "BF16", "[-1]", "0", "2") "}", 2, "shape[0]"},
    {"{" T("a", "BF16", "[1.5]", "0", "2") "}", 2, "shape[0]"},
    {"{" T("a", "BF16", "[\"1\"]", "0", "2") "}", 2, "shape[0]"},
    {"{" T("a", "BF16", "[1e300]", "0", "2") "}", 2, "shape[0]"},
    {"{" T("a", "BF16", "[4294967296,4294967296]", "0", "2") "}", 2, "shape overflows"},
    {"{" T("a", "BF16", "[1,1,1,1,1,1,1,1,1]", "0", "2") "}", 2, "more than 8 dimensions"},
    {"{" T("a", "F4", "[3]", "0", "2") "}", 2, "whole number of bytes"},
    {"{" T("a", "BF16", "[1]", "2", "0") "}", 2, "begin <= end"},
    {"{" T("a", "BF16", "[1]", "-2", "0") "}", 2, "data_offsets"},
    {"{" T("a", "BF16", "[1]", "0", "4") "}", 2, "end at 4, the data has 2"},
    {"{" T("a", "BF16", "[1]", "0", "9007199254740993") "}", 2, "data_offsets"},
    {"{" T("a", "BF16", "[3]", "0", "4") "}", 4, "expected 6 bytes for BF16 [3]"},
    {"{" T("a", "BF16", "[1]", "0", "2") "}", 4, "cover 2 bytes, the data has 4"},
    {"{" T("a", "BF16", "[1]", "2", "4") "}", 4, "a hole"},
    {"{" T("a", "BF16", "[2]", "0", "4") "," T("b", "BF16", "[2]", "2", "6") "}", 6, "overlaps"},
    {"{" T("a", "BF16", "[1]", "0", "2") "," T("b", "BF16", "[1]", "4", "6") "}", 6, "a hole"},
    {"{" T("a", "BF16", "[1]", "0", "2") "," T("a", "BF16", "[1]", "2", "4") "}", 4, "twice"},
};

START_TEST(header_table) {
    const struct header_case *c = &header_cases[_i];
    struct qep_st_header header;
    enum qep_status st =
        qep_st_header_parse(c->json, strlen(c->json), c->data_bytes, "f.safetensors", &header);
    if (c->message == NULL) {
        ck_assert_msg(st == QEP_OK, "%s", qep_last_error());
        qep_st_header_free(&header);
        return;
    }
    ck_assert_int_eq(st, QEP_ERR_DATA);
    assert_error_has("f.safetensors");
    assert_error_has(c->message);
}
END_TEST

START_TEST(file_sizes_are_checked) {
    static const struct {
        const char *bytes;
        size_t len;
        const char *message;
    } cases[] = {
        {"", 0, "truncated: 0 bytes"},
        {"\2\0\0\0", 4, "truncated: 4 bytes"},
        {"\3\0\0\0\0\0\0\0{}", 10, "the header has 3 bytes, the file only 2"},
        {"\377\377\377\377\377\377\377\377{}", 10, "at most 100000000 are allowed"},
        {"\1\341\365\5\0\0\0\0{}", 10, "header length 100000001"},
        {"\2\0\0\0\0\0\0\0{}x", 11, "cover 0 bytes, the data has 1"},
    };
    char dir[64], path[128];
    scratch_dir(dir);
    join(path, sizeof path, dir, single);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct qep_st_file file;
        spill(dir, single, cases[i].bytes, cases[i].len);
        ck_assert_int_eq(qep_st_file_open(path, &file), QEP_ERR_DATA);
        assert_error_has(path);
        assert_error_has(cases[i].message);
    }
    remove_tree(dir);
}
END_TEST

/* The checkpoint in one file instead of an index with shards. */
static void write_single(const char *dir) {
    char from[256], to[256];
    write_hf(tiny_config, dir, 0);
    join(from, sizeof from, dir, "model.safetensors-00001-of-00001.safetensors");
    join(to, sizeof to, dir, single);
    ck_assert_int_eq(rename(from, to), 0);
    join(to, sizeof to, dir, "model.safetensors.index.json");
    ck_assert_int_eq(unlink(to), 0);
}

static enum qep_status open_dir(const char *dir) {
    struct qep_checkpoint *ckpt = NULL;
    enum qep_status st = qep_checkpoint_open(dir, &ckpt);
    qep_checkpoint_close(ckpt);
    return st;
}

/* Renames TENSOR to TO; with a dtype or shape, replaces that. */
struct tensor_case {
    const char *tensor, *to, *dtype, *shape;
    const char *message; /* NULL: opens */
};

#define ROUTER "model.layers.0.mlp.gate.weight"
static const struct tensor_case tensor_cases[] = {
    {ROUTER, ROUTER, NULL, NULL, NULL},
    {ROUTER, "model.language_model.layers.0.mlp.gate.weight", NULL, NULL, NULL},
    {ROUTER, ROUTER, "F16", NULL, NULL},
    {ROUTER, "mtp.fc.weight", NULL, NULL, "layers.0.mlp.gate.weight is missing, expected [8, 64]"},
    {ROUTER, "model.visual.x", NULL, NULL, "layers.0.mlp.gate.weight is missing"},
    {ROUTER, "gate", NULL, NULL, "tensor gate: not a tensor of this model"},
    {ROUTER, "language_model.model.layers.0.mlp.gate.weight", NULL, NULL, "MLX-converted"},
    {ROUTER, "model.layers.0.mlp.switch_mlp.gate_proj.weight", NULL, NULL, "MLX-converted"},
    {ROUTER, "model.layers.1.mlp.gate.weight", NULL, NULL, "appears twice"},
    {ROUTER, "model.language_model.layers.1.mlp.gate.weight", NULL, NULL, "is also in"},
    {ROUTER, ROUTER, NULL, "[64,8]", "expected shape [8, 64], found [64, 8]"},
    {ROUTER, ROUTER, NULL, "[512]", "expected shape [8, 64], found [512]"},
    {ROUTER, ROUTER, "I16", NULL, "expected dtype BF16, F16 or F32, found I16"},
    {ROUTER, ROUTER, "F8_E4M3", "[16,64]", "expected shape"},
    {"model.layers.0.linear_attn.conv1d.weight", "model.layers.0.linear_attn.conv1d.weight", NULL,
     "[128,4,1]", "expected shape [128, 1, 4], found [128, 4, 1]"},
    {"model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.experts.down_proj.weight", NULL,
     NULL, "layers.0.mlp.experts.0.down_proj.weight is missing"},
    {"lm_head.weight", "mtp.x", NULL, NULL, "lm_head.weight is missing, expected [512, 64]"},
    {"model.embed_tokens.weight", "model.embed.weight", NULL, NULL, "embed_tokens.weight is miss"},
    {"model.layers.3.self_attn.q_norm.weight", "model.layers.4.self_attn.q_norm.weight", NULL, NULL,
     "layers.3.self_attn.q_norm.weight is missing"},
    {"model.layers.0.linear_attn.in_proj_qkv.weight", "mtp.x", NULL, NULL,
     "layers.0.linear_attn.in_proj_qkv.weight is missing"},
};

START_TEST(tensor_table) {
    const struct tensor_case *c = &tensor_cases[_i];
    char dir[64];
    size_t header_len = 0;
    scratch_dir(dir);
    write_single(dir);
    cJSON *root = read_header(dir, single, &header_len);
    cJSON *tensor = cJSON_DetachItemFromObjectCaseSensitive(root, c->tensor);
    ck_assert_ptr_nonnull(tensor);
    if (c->dtype != NULL)
        cJSON_ReplaceItemInObject(tensor, "dtype", cJSON_CreateString(c->dtype));
    if (c->shape != NULL)
        cJSON_ReplaceItemInObject(tensor, "shape", cJSON_Parse(c->shape));
    cJSON_AddItemToObject(root, c->to, tensor);
    write_header(dir, single, header_len, root, 0);
    cJSON_Delete(root);
    if (c->message == NULL) {
        ck_assert_msg(open_dir(dir) == QEP_OK, "%s", qep_last_error());
    } else {
        ck_assert_int_eq(open_dir(dir), QEP_ERR_DATA);
        assert_error_has(dir);
        assert_error_has(c->message);
    }
    remove_tree(dir);
}
END_TEST

START_TEST(extra_tensor_is_refused) {
    char dir[64];
    size_t header_len = 0, file_len = 0;
    scratch_dir(dir);
    write_single(dir);
    free(slurp(dir, single, &file_len));
    cJSON *root = read_header(dir, single, &header_len);
    cJSON *extra = cJSON_Parse("{\"dtype\":\"BF16\",\"shape\":[4]}"), *offsets = NULL;
    double end = (double)(file_len - 8 - header_len);
    offsets = cJSON_AddArrayToObject(extra, "data_offsets");
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber(end));
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber(end + 8));
    cJSON_AddItemToObject(root, "model.layers.0.mlp.extra.weight", extra);
    write_header(dir, single, header_len, root, 8);
    cJSON_Delete(root);
    ck_assert_int_eq(open_dir(dir), QEP_ERR_DATA);
    assert_error_has("tensor model.layers.0.mlp.extra.weight: not a tensor of this model");
    remove_tree(dir);
}
END_TEST

START_TEST(truncated_file_is_refused) {
    char dir[64];
    size_t len = 0;
    scratch_dir(dir);
    write_single(dir);
    char *data = slurp(dir, single, &len);
    for (size_t cut = 1; cut < len; cut = cut * 3 + 1) {
        spill(dir, single, data, len - cut);
        ck_assert_int_eq(open_dir(dir), QEP_ERR_DATA);
        assert_error_has(single);
    }
    free(data);
    remove_tree(dir);
}
END_TEST

struct index_case {
    const char *what;
    const char *message; /* NULL: opens */
};

static const struct index_case index_cases[] = {
    {"nothing", NULL},
    {"float total", NULL},
    {"no map", "\"weight_map\": expected an object"},
    {"empty map", "\"weight_map\": expected an object that is not empty"},
    {"number", "expected a plain file name"},
    {"outside", "expected a plain file name, found \"../x.safetensors\""},
    {"absolute", "expected a plain file name, found \"/etc/passwd\""},
    {"dots", "expected a plain file name, found \"..\""},
    {"missing shard", "gone.safetensors: cannot open"},
    {"not in shard", "model.ghost is missing, the index"},
    {"not in index", "is not in the index"},
    {"other shard", "is not in the index"},
};

static void edit_index(cJSON *root, const char *what) {
    cJSON *map = cJSON_GetObjectItem(root, "weight_map");
    cJSON *first = map->child;
    const char *last_file = cJSON_GetArrayItem(map, cJSON_GetArraySize(map) - 1)->valuestring;
    if (strcmp(what, "float total") == 0)
        cJSON_ReplaceItemInObject(cJSON_GetObjectItem(root, "metadata"), "total_size",
                                  cJSON_CreateRaw("71903645408.0"));
    else if (strcmp(what, "no map") == 0)
        cJSON_DeleteItemFromObject(root, "weight_map");
    else if (strcmp(what, "empty map") == 0)
        cJSON_ReplaceItemInObject(root, "weight_map", cJSON_CreateObject());
    else if (strcmp(what, "number") == 0)
        cJSON_ReplaceItemInObjectCaseSensitive(map, first->string, cJSON_CreateNumber(3));
    else if (strcmp(what, "outside") == 0)
        cJSON_SetValuestring(first, "../x.safetensors");
    else if (strcmp(what, "absolute") == 0)
        cJSON_SetValuestring(first, "/etc/passwd");
    else if (strcmp(what, "dots") == 0)
        cJSON_SetValuestring(first, "..");
    else if (strcmp(what, "missing shard") == 0)
        cJSON_AddStringToObject(map, "model.x", "gone.safetensors");
    else if (strcmp(what, "not in shard") == 0)
        cJSON_AddStringToObject(map, "model.ghost", last_file);
    else if (strcmp(what, "not in index") == 0)
        cJSON_DeleteItemFromObjectCaseSensitive(map, first->string);
    else if (strcmp(what, "other shard") == 0)
        cJSON_SetValuestring(first, last_file);
}

START_TEST(index_table) {
    char dir[64], path[128];
    cJSON *root = NULL;
    scratch_dir(dir);
    write_hf(tiny_config, dir, 200000);
    join(path, sizeof path, dir, "model.safetensors.index.json");
    ck_assert_int_eq(qep_json_read(path, 1 << 20, &root), QEP_OK);
    edit_index(root, index_cases[_i].what);
    char *text = cJSON_PrintUnformatted(root);
    spill(dir, "model.safetensors.index.json", text, strlen(text));
    if (index_cases[_i].message == NULL) {
        ck_assert_msg(open_dir(dir) == QEP_OK, "%s", qep_last_error());
    } else {
        ck_assert_int_ne(open_dir(dir), QEP_OK);
        assert_error_has(index_cases[_i].message);
    }
    free(text);
    cJSON_Delete(root);
    remove_tree(dir);
}
END_TEST

START_TEST(directories_without_checkpoint_are_refused) {
    char dir[64];
    scratch_dir(dir);
    ck_assert_int_eq(open_dir("/no/such/dir"), QEP_ERR_NOINPUT);
    ck_assert_int_eq(open_dir(dir), QEP_ERR_NOINPUT);
    assert_error_has("config.json");
    size_t len = 0;
    char *config = slurp("configs", "tiny-random.json", &len);
    spill(dir, "config.json", config, len);
    ck_assert_int_eq(open_dir(dir), QEP_ERR_NOINPUT);
    assert_error_has("neither model.safetensors nor");
    spill(dir, "model.safetensors.index.json", "{\"weight_map\"", 13);
    ck_assert_int_eq(open_dir(dir), QEP_ERR_DATA);
    free(config);
    remove_tree(dir);
}
END_TEST

/* The rows a checkpoint hands out are those of the source it was written from. */
START_TEST(rows_come_back_as_written) {
    char dir[64];
    struct random_model m;
    struct qep_checkpoint *ckpt = NULL;
    static uint16_t a[1 << 16], b[1 << 16];
    scratch_dir(dir);
    write_hf(tiny_config, dir, 100000);
    random_model_open(&m, tiny_config, 7);
    ck_assert_msg(qep_checkpoint_open(dir, &ckpt) == QEP_OK, "%s", qep_last_error());
    struct qep_row_source disk = qep_checkpoint_source(ckpt), random = qep_random_rows(m.random);
    for (size_t i = 0; i < m.inventory.num_specs; i++) {
        const struct qep_tensor_spec *s = &m.inventory.specs[i];
        ck_assert_str_eq(s->name, qep_checkpoint_inventory(ckpt)->specs[i].name);
        ck_assert_int_eq(disk.type(disk.impl, i), random.type(random.impl, i));
        size_t bytes =
            (size_t)(s->rows * s->cols) * (disk.type(disk.impl, i) == QEP_ROWS_BF16 ? 2 : 4);
        ck_assert_uint_le(bytes, sizeof a);
        ck_assert_int_eq(random.read(random.impl, i, 0, s->rows, a), QEP_OK);
        for (int64_t r = 0; r < s->rows; r += 3) { /* in pieces */
            int64_t n = s->rows - r < 3 ? s->rows - r : 3;
            size_t row = bytes / (size_t)s->rows;
            ck_assert_int_eq(disk.read(disk.impl, i, r, n, (char *)b + (size_t)r * row), QEP_OK);
        }
        ck_assert_mem_eq(a, b, bytes);
    }
    qep_checkpoint_close(ckpt);
    random_model_close(&m);
    remove_tree(dir);
}
END_TEST

/* Every row of the packed projections against the formula of its place. */
START_TEST(packed_rows_are_unpacked) {
    const char *golden = "tests/data/golden/next-packed";
    struct qep_checkpoint *ckpt = NULL;
    struct qep_st_file file;
    static const char *const names[] = {"in_proj_qkv.weight", "in_proj_z.weight",
                                        "in_proj_a.weight", "in_proj_b.weight"};
    ck_assert_msg(qep_checkpoint_open(golden, &ckpt) == QEP_OK, "%s", qep_last_error());
    ck_assert_int_eq(qep_st_file_open("tests/data/golden/next-packed/model.safetensors", &file),
                     QEP_OK);
    const struct qep_model_config *c = qep_checkpoint_config(ckpt);
    const struct qep_inventory *inv = qep_checkpoint_inventory(ckpt);
    struct qep_row_source source = qep_checkpoint_source(ckpt);
    int64_t dk = c->linear_key_head_dim, dv = c->linear_value_head_dim,
            nk = c->linear_num_key_heads, ratio = c->linear_num_value_heads / nk,
            block = 2 * dk + 2 * ratio * dv, k_rows = nk * dk;
    int checked = 0;
    for (size_t i = 0; i < inv->num_specs; i++) {
        const struct qep_tensor_spec *spec = &inv->specs[i];
        int which = -1;
        for (int n = 0; n < 4; n++)
            if (spec->layer >= 0 && strstr(spec->name, names[n]) != NULL)
                which = n;
        if (which < 0)
            continue;
        char packed[128];
        snprintf(packed, sizeof packed, "model.layers.%d.linear_attn.%s.weight", (int)spec->layer,
                 which < 2 ? "in_proj_qkvz" : "in_proj_ba");
        const struct qep_st_tensor *t = NULL;
        for (size_t j = 0; j < file.header.num_tensors; j++)
            if (strcmp(file.header.tensors[j].name, packed) == 0)
                t = &file.header.tensors[j];
        ck_assert_ptr_nonnull(t);
        for (int64_t r = 0; r < spec->rows; r++) {
            int64_t v = which == 0 ? r - 2 * k_rows : r, from = 0;
            if (which == 0 && r < k_rows)
                from = r / dk * block + r % dk;
            else if (which == 0 && r < 2 * k_rows)
                from = (r - k_rows) / dk * block + dk + r % dk;
            else if (which < 2) /* value head v / dv, of key head v / dv / ratio */
                from = v / dv / ratio * block + 2 * dk + (which == 1 ? ratio * dv : 0) +
                       v / dv % ratio * dv + v % dv;
            else
                from = r / ratio * 2 * ratio + (which == 2 ? ratio : 0) + r % ratio;
            uint16_t expected[256], found[256];
            size_t bytes = (size_t)spec->cols * 2;
            ck_assert_int_eq(qep_file_pread(file.fd, file.path, expected, bytes,
                                            file.data_start + t->offset + (uint64_t)from * bytes),
                             QEP_OK);
            ck_assert_int_eq(source.read(source.impl, i, r, 1, found), QEP_OK);
            ck_assert_mem_eq(expected, found, bytes);
            checked++;
        }
    }
    ck_assert_int_gt(checked, 500);
    qep_st_file_close(&file);
    qep_checkpoint_close(ckpt);
}
END_TEST

/* F16 and F32 sources become f32 without loss. */
START_TEST(half_and_single_precision_are_widened) {
    static const struct {
        uint16_t half;
        float value;
    } halves[] = {{0x0000, 0.0f},
                  {0x3c00, 1.0f},
                  {0xc000, -2.0f},
                  {0x7bff, 65504.0f},
                  {0x0400, 6.103515625e-05f},
                  {0x0001, 5.9604644775390625e-08f},
                  {0x83ff, -6.09755516e-05f},
                  {0x3555, 0.333251953125f}};
    char dir[64];
    size_t header_len = 0, len = 0;
    float row[64];
    struct qep_checkpoint *ckpt = NULL;
    scratch_dir(dir);
    write_single(dir);
    cJSON *root = read_header(dir, single, &header_len);
    cJSON *tensor = cJSON_GetObjectItemCaseSensitive(root, "model.norm.weight");
    size_t begin = (size_t)cJSON_GetObjectItem(tensor, "data_offsets")->child->valuedouble;
    cJSON_ReplaceItemInObject(tensor, "dtype", cJSON_CreateString("F16"));
    write_header(dir, single, header_len, root, 0);
    cJSON_Delete(root);
    cJSON_Delete(read_header(dir, single, &header_len));
    char *data = slurp(dir, single, &len);
    for (size_t i = 0; i < sizeof halves / sizeof *halves; i++)
        memcpy(data + 8 + header_len + begin + 2 * i, &halves[i].half, 2);
    spill(dir, single, data, len);
    free(data);
    ck_assert_msg(qep_checkpoint_open(dir, &ckpt) == QEP_OK, "%s", qep_last_error());
    struct qep_row_source source = qep_checkpoint_source(ckpt);
    const struct qep_inventory *inv = qep_checkpoint_inventory(ckpt);
    for (size_t i = 0; i < inv->num_specs; i++)
        if (strcmp(inv->specs[i].name, "norm.weight") == 0) {
            ck_assert_int_eq(source.type(source.impl, i), QEP_ROWS_F32);
            ck_assert_int_eq(source.read(source.impl, i, 0, 1, row), QEP_OK);
        }
    for (size_t i = 0; i < sizeof halves / sizeof *halves; i++)
        ck_assert_msg(row[i] == halves[i].value, "%04x: %.9g", halves[i].half, (double)row[i]);
    qep_checkpoint_close(ckpt);
    remove_tree(dir);
}
END_TEST

#define COUNT(a) (int)(sizeof(a) / sizeof *(a))

int main(void) {
    Suite *suite = suite_create("safetensors");
    TCase *tc = tcase_create("safetensors");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, header_table, 0, COUNT(header_cases));
    tcase_add_test(tc, file_sizes_are_checked);
    tcase_add_loop_test(tc, tensor_table, 0, COUNT(tensor_cases));
    tcase_add_test(tc, extra_tensor_is_refused);
    tcase_add_test(tc, truncated_file_is_refused);
    tcase_add_loop_test(tc, index_table, 0, COUNT(index_cases));
    tcase_add_test(tc, directories_without_checkpoint_are_refused);
    tcase_add_test(tc, rows_come_back_as_written);
    tcase_add_test(tc, packed_rows_are_unpacked);
    tcase_add_test(tc, half_and_single_precision_are_widened);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

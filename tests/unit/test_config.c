#include "checkpoint/config.h"
#include "checkpoint/inventory.h"

#include "dir_fixture.h"

static const char base_text[] =
    "{\"model_type\": \"qwen3_5_moe\", \"tie_word_embeddings\": false, \"text_config\": {"
    "\"model_type\": \"qwen3_5_moe_text\", \"attention_bias\": false, \"hidden_act\": \"silu\","
    "\"vocab_size\": 100, \"hidden_size\": 64, \"num_hidden_layers\": 4,"
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 16,"
    "\"linear_num_key_heads\": 2, \"linear_num_value_heads\": 4, \"linear_key_head_dim\": 8,"
    "\"linear_value_head_dim\": 8, \"linear_conv_kernel_dim\": 4, \"num_experts\": 8,"
    "\"num_experts_per_tok\": 2, \"moe_intermediate_size\": 32,"
    "\"shared_expert_intermediate_size\": 32, \"rms_norm_eps\": 1e-6, \"eos_token_id\": 99,"
    "\"max_position_embeddings\": 4096, \"mlp_only_layers\": [],"
    "\"layer_types\": [\"linear_attention\", \"linear_attention\", \"linear_attention\","
    " \"full_attention\"],"
    "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 10000000,"
    " \"partial_rotary_factor\": 0.25}}}";

/* Sets text_config.KEY (or a top-level key after '/') to a JSON value; NULL removes it. */
struct bad_case {
    const char *key, *value, *message;
};

static const struct bad_case bad_cases[] = {
    {"hidden_size", "\"64\"", "\"hidden_size\": expected a whole number, found a string"},
    {"hidden_size", "0", "\"hidden_size\": expected a whole number in 1..65536, found 0"},
    {"hidden_size", "-64", "\"hidden_size\""},
    {"hidden_size", "64.5", "found 64.5"},
    {"hidden_size", "2147483648", "found 2.14748e+09"},
    {"hidden_size", NULL, "\"hidden_size\" is missing"},
    {"hidden_size", "[64]", "found a list"},
    {"vocab_size", "2147483648", "\"vocab_size\""},
    {"vocab_size", "1e300", "\"vocab_size\""},
    {"num_hidden_layers", "0", "\"num_hidden_layers\""},
    {"num_hidden_layers", "5", "\"layer_types\": expected a list of 5, found 4"},
    {"num_hidden_layers", "100000", "\"num_hidden_layers\""},
    {"num_experts", "2147483648", "\"num_experts\""},
    {"num_experts", "0", "\"num_experts\""},
    {"num_experts_per_tok", "9", "expected at most num_experts 8, found 9"},
    {"num_experts_per_tok", "0", "\"num_experts_per_tok\""},
    {"moe_intermediate_size", "-1", "\"moe_intermediate_size\""},
    {"num_key_value_heads", "3", "expected a divisor of num_attention_heads 4, found 3"},
    {"linear_num_value_heads", "3", "expected a multiple of linear_num_key_heads 2, found 3"},
    {"linear_key_head_dim", "true", "found a boolean"},
    {"head_dim", "0", "\"head_dim\""},
    {"hidden_act", "\"gelu\"", "\"hidden_act\": expected silu, found \"gelu\""},
    {"attention_bias", "true", "\"attention_bias\": expected false, found true"},
    {"attn_output_gate", "false", "\"attn_output_gate\": expected true, found false"},
    {"norm_topk_prob", "false", "\"norm_topk_prob\""},
    {"use_sliding_window", "true", "\"use_sliding_window\""},
    {"mlp_only_layers", "[1]", "\"mlp_only_layers\": expected an empty list"},
    {"decoder_sparse_step", "2", "\"decoder_sparse_step\": expected 1, found 2"},
    {"layer_types", "[\"linear_attention\"]", "\"layer_types\": expected a list of 4, found 1"},
    {"layer_types", "[\"a\", \"b\", \"c\", \"d\"]",
     "\"layer_types\"[0]: expected linear_attention"},
    {"layer_types", "[1, 2, 3, 4]", "\"layer_types\"[0]"},
    {"layer_types", "\"full_attention\"", "\"layer_types\": expected a list of 4"},
    {"rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4}", "rope scaling is not supported"},
    {"rope_scaling", "{\"type\": \"linear\"}", "found \"linear\""},
    {"rope_scaling", "{\"factor\": 4}", "rope scaling is not supported"},
    {"rope_scaling", "4", "\"rope_scaling\": expected an object"},
    {"rope_parameters", "{\"rope_type\": \"yarn\"}", "\"rope_parameters\": expected rope_type"},
    {"rope_parameters", "{\"partial_rotary_factor\": 0.2}", "expected an even number of rotary"},
    {"rope_parameters", "{\"partial_rotary_factor\": 0.01}", "found 0"},
    {"rope_parameters", "{\"partial_rotary_factor\": 2}", "\"partial_rotary_factor\""},
    {"rope_parameters", "{\"rope_theta\": \"big\"}", "\"rope_theta\""},
    {"eos_token_id", "100", "\"eos_token_id\": expected token ids in 0..99"},
    {"eos_token_id", "[1, -1]", "\"eos_token_id\""},
    {"eos_token_id", "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]", "at most 16"},
    {"model_type", "\"qwen3_5_text\"", "\"text_config.model_type\": expected qwen3_5_moe"},
    {"model_type", "\"llama\"", "found \"llama\""},
    {"rms_norm_eps", "\"x\"", "\"rms_norm_eps\""},
    {"max_position_embeddings", "0", "\"max_position_embeddings\""},
    {"/model_type", "\"qwen2_moe\"", "\"model_type\": expected qwen3_5_moe, qwen3_5 or"},
    {"/model_type", "7", "\"model_type\": expected a string"},
    {"/model_type", NULL, "\"model_type\" is missing"},
    {"/tie_word_embeddings", "1", "\"tie_word_embeddings\": expected true or false"},
    {"/text_config", "[]", "expected a JSON object"},
    {"/quantization_config", "{\"quant_method\": \"fp8\"}", "quant_method fp8"},
    {"/quantization_config", "{\"quant_method\": \"gptq\"}", "already quantised"},
    {"/quantization", "{\"bits\": 4}", "MLX-converted"},
};

static void set_key(cJSON *root, const struct bad_case *c) {
    cJSON *obj = *c->key == '/' ? root : cJSON_GetObjectItem(root, "text_config");
    const char *key = c->key + (*c->key == '/');
    cJSON_DeleteItemFromObjectCaseSensitive(obj, key);
    if (c->value != NULL)
        cJSON_AddItemToObject(obj, key, cJSON_Parse(c->value));
}

static enum qep_status parse_tree(const cJSON *root, struct qep_model_config *config) {
    char *text = cJSON_PrintUnformatted(root);
    enum qep_status st = qep_config_parse(text, strlen(text), "dir/config.json", config);
    free(text);
    return st;
}

START_TEST(bad_value_is_refused) {
    struct qep_model_config config;
    cJSON *root = cJSON_Parse(base_text);
    set_key(root, &bad_cases[_i]);
    ck_assert_int_eq(parse_tree(root, &config), QEP_ERR_DATA);
    assert_error_has("dir/config.json");
    assert_error_has(bad_cases[_i].message);
    cJSON_Delete(root);
}
END_TEST

START_TEST(bad_text_is_refused) {
    static const char *const texts[] = {"", " ", "{", "[]", "null", "{} {}", "{\"a\": }", "\"x\""};
    struct qep_model_config config;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        ck_assert_int_eq(qep_config_parse(texts[i], strlen(texts[i]), "c", &config), QEP_ERR_DATA);
    enum { DEPTH = 200000 };
    char *deep = malloc(DEPTH + 1);
    ck_assert_ptr_nonnull(deep);
    memset(deep, '[', DEPTH);
    deep[DEPTH] = '\0';
    ck_assert_int_eq(qep_config_parse(deep, DEPTH, "c", &config), QEP_ERR_DATA);
    free(deep);
    char *big = calloc(1, QEP_CONFIG_MAX_BYTES + 1);
    ck_assert_ptr_nonnull(big);
    ck_assert_int_eq(qep_config_parse(big, QEP_CONFIG_MAX_BYTES + 1, "c", &config), QEP_ERR_DATA);
    free(big);
}
END_TEST

START_TEST(nested_form_is_read) {
    struct qep_model_config c;
    ck_assert_int_eq(qep_config_parse(base_text, sizeof base_text - 1, "c", &c), QEP_OK);
    ck_assert_str_eq(c.model_type, "qwen3_5_moe");
    ck_assert_int_eq(c.rotary_dim, 4);
    ck_assert_int_eq(c.num_eos, 1);
    ck_assert_int_eq(c.layer_types[3], QEP_LAYER_FULL_ATTENTION);
    ck_assert_int_eq(c.layer_types[2], QEP_LAYER_LINEAR_ATTENTION);
    ck_assert(!c.tie_word_embeddings);
    ck_assert(c.rope_theta == 1e7);
}
END_TEST

START_TEST(flat_form_and_defaults_are_read) {
    struct qep_model_config nested, flat;
    cJSON *root = cJSON_Parse(base_text);
    cJSON *text = cJSON_DetachItemFromObject(root, "text_config");
    ck_assert_int_eq(qep_config_parse(base_text, sizeof base_text - 1, "c", &nested), QEP_OK);
    cJSON_DeleteItemFromObject(text, "rope_parameters");
    cJSON_DeleteItemFromObject(text, "layer_types"); /* the interval's default gives the same */
    cJSON_AddNumberToObject(text, "rope_theta", 1e7);
    cJSON_AddNumberToObject(text, "partial_rotary_factor", 0.25);
    cJSON_AddNullToObject(text, "rope_scaling");
    ck_assert_msg(parse_tree(text, &flat) == QEP_OK, "%s", qep_last_error());
    ck_assert_mem_eq(&nested, &flat, sizeof flat);
    cJSON_AddNumberToObject(text, "full_attention_interval", 2);
    ck_assert_int_eq(parse_tree(text, &flat), QEP_OK);
    ck_assert_int_eq(flat.layer_types[1], QEP_LAYER_FULL_ATTENTION);
    cJSON_AddTrueToObject(text, "tie_word_embeddings");
    ck_assert_int_eq(parse_tree(text, &flat), QEP_OK);
    ck_assert(flat.tie_word_embeddings);
    cJSON_Delete(text);
    cJSON_Delete(root);
}
END_TEST

static const char *const real_files[] = {
    "configs/qwen3.5-35b-a3b.json",
    "configs/synth-35b-4layers.json",
    "configs/tiny-random.json",
    "tests/data/golden/dense-tied/config.json",
    "tests/data/golden/dense-untied/config.json",
    "tests/data/golden/moe-all/config.json",
    "tests/data/golden/moe-irregular/config.json",
    "tests/data/golden/moe-one/config.json",
    "tests/data/golden/next-packed/config.json",
};

START_TEST(written_config_reads_back_equal) {
    struct qep_model_config before, after;
    cJSON *tree = NULL;
    ck_assert_msg(qep_config_read(real_files[_i], &before) == QEP_OK, "%s", qep_last_error());
    ck_assert_int_eq(qep_config_to_json(&before, &tree), QEP_OK);
    ck_assert_msg(parse_tree(tree, &after) == QEP_OK, "%s", qep_last_error());
    ck_assert_mem_eq(&before, &after, sizeof after);
    cJSON_Delete(tree);
}
END_TEST

/* The language part of the official model: 34,660,610,688 parameters. */
START_TEST(inventory_of_35b_has_its_parameters) {
    struct qep_model_config config;
    struct qep_inventory inventory;
    int64_t parameters = 0;
    ck_assert_int_eq(qep_config_read("configs/qwen3.5-35b-a3b.json", &config), QEP_OK);
    ck_assert_int_eq(qep_inventory_create(&config, &inventory), QEP_OK);
    for (size_t i = 0; i < inventory.num_specs; i++)
        parameters += inventory.specs[i].rows * inventory.specs[i].cols;
    ck_assert_int_eq(parameters, 34660610688);
    qep_inventory_free(&inventory);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("config");
    TCase *tc = tcase_create("config");
    tcase_add_loop_test(tc, bad_value_is_refused, 0, sizeof bad_cases / sizeof *bad_cases);
    tcase_add_test(tc, bad_text_is_refused);
    tcase_add_test(tc, nested_form_is_read);
    tcase_add_test(tc, flat_form_and_defaults_are_read);
    tcase_add_loop_test(tc, written_config_reads_back_equal, 0,
                        sizeof real_files / sizeof *real_files);
    tcase_add_test(tc, inventory_of_35b_has_its_parameters);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

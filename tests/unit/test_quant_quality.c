/* What quantisation costs, by the only measure that counts: mean KL divergence of the logits from
 * the bf16 directory's, per recipe, beside plain round-to-nearest (symmetric, absmax / 7 and absmax
 * / 127) of the same tensors in the same groups. Weights only: everything runs on the reference
 * backend. */
#include "base/file.h"
#include "shard/shard.h"
#include "tests/support/golden.h"
#include "tests/support/run_model.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const models[] = {
    "tiny-chat",           "golden/moe-ratio3",  "golden/moe-irregular",
    "golden/moe-one",      "golden/moe-all",     "golden/dense-tied",
    "golden/dense-untied", "golden/next-packed", "golden/moe-35b-shape"};
enum { NUM_MODELS = 9, NUM_PROMPTS = 5, GROUP = 32 };

/* --- a checkpoint in Hugging Face's layout, f32, written tensor by tensor */
struct writer {
    FILE *data;
    char *header;
    size_t header_len, offset;
};

static void write_tensor(struct writer *w, const char *name, const char *shape, const float *values,
                         size_t n) {
    char *grown = realloc(w->header, w->header_len + 512);
    ck_assert_ptr_nonnull(grown);
    w->header = grown;
    w->header_len +=
        (size_t)snprintf(w->header + w->header_len, 512,
                         "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                         w->offset == 0 ? "{" : ",", name, shape, w->offset, w->offset + 4 * n);
    ck_assert_uint_eq(fwrite(values, 4, n, w->data), n);
    w->offset += 4 * n;
}

/* Round-to-nearest of one row in groups, in place. */
static void round_to_nearest(float *row, int64_t cols, float levels) {
    for (int64_t g = 0; g < cols; g += GROUP) {
        int64_t end = g + GROUP < cols ? g + GROUP : cols;
        float max = 0;
        for (int64_t i = g; i < end; i++)
            max = fmaxf(max, fabsf(row[i]));
        float scale = max / levels;
        for (int64_t i = g; i < end && scale > 0; i++)
            row[i] = scale * rintf(row[i] / scale);
    }
}

/* The tensor of the bf16 directory as floats, rounded the plain way if `quantised` holds it as
 * integers. */
static float *plain_values(const struct qep_shard_dir *bf16, const struct qep_shard_dir *quantised,
                           const char *name, int64_t *rows, int64_t *cols) {
    struct qep_host_weight host = {0};
    enum qep_weight_type type;
    ck_assert_msg(qep_shard_load(bf16, name, &host, NULL) == QEP_OK, "%s", qep_last_error());
    ck_assert_int_eq(qep_shard_stat(quantised, name, &type, rows, cols), QEP_OK);
    size_t n = (size_t)(host.rows * host.cols);
    float *values = malloc(n * sizeof *values + 1);
    for (size_t i = 0; i < n; i++)
        values[i] = host.type == QEP_WEIGHT_F32 ? ((const float *)host.data)[i]
                                                : qep_bf16_to_f32(((const uint16_t *)host.data)[i]);
    for (int64_t r = 0; r < *rows && type != QEP_WEIGHT_F32 && type != QEP_WEIGHT_BF16; r++)
        round_to_nearest(values + r * *cols, *cols, type == QEP_WEIGHT_INT4 ? 7.0f : 127.0f);
    qep_host_weight_free(&host);
    return values;
}

struct copier {
    const struct qep_shard_dir *bf16, *quantised;
    struct writer out;
};

static void copy_tensor(struct copier *c, const char *canonical) {
    int64_t rows, cols;
    char name[160], shape[64];
    float *values = plain_values(c->bf16, c->quantised, canonical, &rows, &cols);
    snprintf(name, sizeof name, "model.%s", canonical);
    if (strstr(canonical, "conv1d") != NULL)
        snprintf(shape, sizeof shape, "%lld,1,%lld", (long long)rows, (long long)cols);
    else if (strstr(canonical, "norm") != NULL || strstr(canonical, "A_log") != NULL ||
             strstr(canonical, "dt_bias") != NULL)
        snprintf(shape, sizeof shape, "%lld", (long long)(rows * cols));
    else
        snprintf(shape, sizeof shape, "%lld,%lld", (long long)rows, (long long)cols);
    write_tensor(&c->out, name, shape, values, (size_t)(rows * cols));
    free(values);
}

static void copy_expert(struct copier *c, int32_t layer, int32_t expert) {
    static const char *const halves[] = {"gate_proj", "up_proj"};
    int64_t rows, cols;
    char canonical[128], name[160], shape[64];
    snprintf(canonical, sizeof canonical, "layers.%d.mlp.experts.%d.gate_up_proj", layer, expert);
    float *values = plain_values(c->bf16, c->quantised, canonical, &rows, &cols);
    snprintf(shape, sizeof shape, "%lld,%lld", (long long)rows / 2, (long long)cols);
    for (int h = 0; h < 2; h++) {
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.%s.weight", layer, expert,
                 halves[h]);
        write_tensor(&c->out, name, shape, values + h * rows / 2 * cols, (size_t)(rows / 2 * cols));
    }
    free(values);
    snprintf(canonical, sizeof canonical, "layers.%d.mlp.experts.%d.down_proj", layer, expert);
    values = plain_values(c->bf16, c->quantised, canonical, &rows, &cols);
    snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.down_proj.weight", layer, expert);
    snprintf(shape, sizeof shape, "%lld,%lld", (long long)rows, (long long)cols);
    write_tensor(&c->out, name, shape, values, (size_t)(rows * cols));
    free(values);
}

static void copy_head(struct copier *c) {
    const struct qep_model_config *config = qep_shard_dir_config(c->bf16);
    size_t n = 0, total = (size_t)config->vocab_size * (size_t)config->hidden_size;
    float *all = malloc(total * sizeof *all);
    char shape[64], canonical[64];
    for (int32_t b = 0; b < qep_num_vocab_blocks(config->vocab_size); b++) {
        int64_t rows, cols;
        snprintf(canonical, sizeof canonical, "lm_head.weight.block.%d", b);
        float *values = plain_values(c->bf16, c->quantised, canonical, &rows, &cols);
        memcpy(all + n, values, (size_t)(rows * cols) * sizeof *all);
        n += (size_t)(rows * cols);
        free(values);
    }
    ck_assert_uint_eq(n, total);
    snprintf(shape, sizeof shape, "%d,%d", config->vocab_size, config->hidden_size);
    write_tensor(&c->out,
                 config->tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight",
                 shape, all, n);
    free(all);
}

static void copy_layer(struct copier *c, int32_t layer) {
    static const char *const full[] = {"self_attn.q_proj.weight",
                                       "self_attn.k_proj.weight",
                                       "self_attn.v_proj.weight",
                                       "self_attn.o_proj.weight",
                                       "self_attn.q_norm.weight",
                                       "self_attn.k_norm.weight",
                                       NULL};
    static const char *const linear[] = {"linear_attn.in_proj_qkv.weight",
                                         "linear_attn.in_proj_z.weight",
                                         "linear_attn.in_proj_a.weight",
                                         "linear_attn.in_proj_b.weight",
                                         "linear_attn.conv1d.weight",
                                         "linear_attn.norm.weight",
                                         "linear_attn.out_proj.weight",
                                         "linear_attn.A_log",
                                         "linear_attn.dt_bias",
                                         NULL};
    static const char *const moe[] = {"mlp.gate.weight",
                                      "mlp.shared_expert_gate.weight",
                                      "mlp.shared_expert.gate_proj.weight",
                                      "mlp.shared_expert.up_proj.weight",
                                      "mlp.shared_expert.down_proj.weight",
                                      NULL};
    static const char *const dense[] = {"mlp.gate_proj.weight", "mlp.up_proj.weight",
                                        "mlp.down_proj.weight", NULL};
    static const char *const norms[] = {"input_layernorm.weight", "post_attention_layernorm.weight",
                                        NULL};
    const struct qep_model_config *config = qep_shard_dir_config(c->bf16);
    const char *const *lists[] = {config->layer_types[layer] == QEP_LAYER_FULL_ATTENTION ? full
                                                                                         : linear,
                                  config->num_experts > 0 ? moe : dense, norms};
    char canonical[128];
    for (int l = 0; l < 3; l++)
        for (const char *const *suffix = lists[l]; *suffix != NULL; suffix++) {
            snprintf(canonical, sizeof canonical, "layers.%d.%s", layer, *suffix);
            copy_tensor(c, canonical);
        }
    for (int32_t e = 0; e < config->num_experts; e++)
        copy_expert(c, layer, e);
}

/* Writes DIR: hf's config.json and all weights rounded the plain way wherever `quantised` has
 * integers. */
static void make_plain(const char *hf, const char *bf16_dir, const char *quantised_dir,
                       const char *dir) {
    struct copier c = {0};
    struct qep_shard_dir *bf16, *quantised;
    char path[512], *config;
    size_t len;
    ck_assert_int_eq(qep_mkdirs(dir), QEP_OK);
    snprintf(path, sizeof path, "%s/config.json", hf);
    ck_assert_int_eq(qep_file_read(path, 1 << 20, &config, &len), QEP_OK);
    snprintf(path, sizeof path, "%s/config.json", dir);
    ck_assert_int_eq(qep_file_write_atomic(path, config, len), QEP_OK);
    free(config);
    ck_assert_int_eq(qep_shard_dir_open(bf16_dir, &bf16), QEP_OK);
    ck_assert_int_eq(qep_shard_dir_open(quantised_dir, &quantised), QEP_OK);
    c.bf16 = bf16;
    c.quantised = quantised;
    c.out.data = tmpfile();
    ck_assert_ptr_nonnull(c.out.data);
    copy_head(&c);
    copy_tensor(&c, "norm.weight");
    if (!qep_shard_dir_config(bf16)->tie_word_embeddings)
        copy_tensor(&c, "embed_tokens.weight");
    for (int32_t l = 0; l < qep_shard_dir_config(bf16)->num_hidden_layers; l++)
        copy_layer(&c, l);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *f = fopen(path, "wb");
    uint64_t header_len = c.out.header_len + 1;
    fwrite(&header_len, 8, 1, f);
    fwrite(c.out.header, 1, c.out.header_len, f);
    fputc('}', f);
    rewind(c.out.data);
    char block[65536];
    for (size_t n; (n = fread(block, 1, sizeof block, c.out.data)) > 0;)
        ck_assert_uint_eq(fwrite(block, 1, n, f), n);
    fclose(f);
    fclose(c.out.data);
    free(c.out.header);
    qep_shard_dir_close(bf16);
    qep_shard_dir_close(quantised);
}

/* --- divergences */
struct figures {
    double kld, same_top, rows;
};

static struct figures against_bf16(const char *base_dir, const char *dir, const struct golden *g,
                                   bool tiny) {
    static const int lengths[] = {5, 63, 65, 130, 257};
    struct figures f = {0};
    for (int p = 0; p < NUM_PROMPTS; p++) {
        struct model_output a, b;
        char name[64];
        size_t n;
        snprintf(name, sizeof name, tiny ? "q%d.token_ids" : "p%d.token_ids",
                 tiny ? p : lengths[p]);
        const int32_t *ids = golden_find(g, name, &n);
        struct model_run run = {.dir = base_dir, .prompt = ids, .num_prompt = (int32_t)n};
        model_run(&run, &a);
        run.dir = dir;
        model_run(&run, &b);
        for (size_t r = 0; r < n; r++) {
            struct row_difference d = compare_rows(a.logits + r * a.vocab_size,
                                                   b.logits + r * b.vocab_size, a.vocab_size);
            f.kld += d.kld;
            f.same_top += d.same_top;
            f.rows++;
        }
        model_output_free(&a);
        model_output_free(&b);
    }
    f.kld /= f.rows;
    f.same_top /= f.rows;
    return f;
}

/* Own and plain quantisation of one model by one recipe; prints a row and returns the ratio of the
 * divergences. */
static double quality(const char *model, const char *recipe) {
    char hf[128], path[256], plain_hf[256];
    struct golden g;
    bool tiny = strcmp(model, "tiny-chat") == 0;
    char *tmp = temp_dir();
    snprintf(hf, sizeof hf, "tests/data/%s", model);
    snprintf(path, sizeof path,
             tiny ? "%s/reference.safetensors.zst" : "%s/goldens.safetensors.zst", hf);
    golden_open(path, &g);
    char *bf16 = model_convert(hf, tmp, "bf16", 1), *own = model_convert(hf, tmp, recipe, 1);
    snprintf(plain_hf, sizeof plain_hf, "%s/plain", tmp);
    make_plain(hf, bf16, own, plain_hf);
    static const char keep_all[] =
        "{\"name\": \"keep\", \"rules\": [{\"match\": \"*\", \"type\": \"keep\"}]}";
    snprintf(path, sizeof path, "%s/keep.json", tmp);
    ck_assert_int_eq(qep_file_write_atomic(path, keep_all, sizeof keep_all - 1), QEP_OK);
    char *plain = model_convert_as(plain_hf, tmp, path, "plain-converted");
    struct figures ours = against_bf16(bf16, own, &g, tiny),
                   theirs = against_bf16(bf16, plain, &g, tiny);
    printf("quality | %-20s | %-6s | %.3g | %.1f %% | %.3g | %.1f %% | %.2f |\n", model, recipe,
           ours.kld, 100 * ours.same_top, theirs.kld, 100 * theirs.same_top, ours.kld / theirs.kld);
    golden_close(&g);
    remove_tree(tmp);
    free(bf16);
    free(own);
    free(plain);
    free(tmp);
    return ours.kld / theirs.kld;
}

/* Geometric mean over the models: single ratios scatter, because expert flips dominate random
 * models. */
static double mean_ratio(const char *recipe) {
    double sum = 0;
    printf("quality | model | recipe | KLD | top-1 | round-to-nearest KLD | top-1 | ratio |\n");
    for (int m = 0; m < NUM_MODELS; m++)
        sum += log(quality(models[m], recipe));
    double ratio = exp(sum / NUM_MODELS);
    printf("quality %s: geometric mean of the ratios %.2f\n", recipe, ratio);
    return ratio;
}

START_TEST(q4_beats_round_to_nearest) {
    double ratio = mean_ratio("q4");
    fflush(stdout);
    ck_assert_double_le(ratio, 0.8);
}
END_TEST

/* With every matrix at int4 these random models are far from their bf16 selves (KLD around 1),
 * where the divergence saturates: the bound only says that ours is the better one. */
START_TEST(q4_all_beats_round_to_nearest) {
    ck_assert_double_le(mean_ratio("q4-all"), 0.9);
}
END_TEST

/* At int8 there is nothing to win, and the plain form here has f32 scales where ours are bf16;
 * single ratios scatter by a third with the experts that flip (tests of the squared error itself:
 * test_quant). */
START_TEST(q8_is_as_good_as_round_to_nearest) {
    ck_assert_double_le(mean_ratio("q8"), 1.1);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("quant_quality");
    TCase *tc = tcase_create("quant_quality");
    tcase_set_timeout(tc, 900);
    tcase_add_test(tc, q4_beats_round_to_nearest);
    tcase_add_test(tc, q4_all_beats_round_to_nearest);
    tcase_add_test(tc, q8_is_as_good_as_round_to_nearest);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

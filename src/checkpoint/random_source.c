/* Normal numbers come from a table of 65536 quantiles, four for each 64 random bits: a memory
 * look-up and a multiplication a weight. Quantiles are rounded to 1/4096, so that the last bit of a
 * mathematical library does not matter. */
#include "checkpoint/random_source.h"

#include "base/mem.h"
#include "base/progress.h"
#include "kernels/weight.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TABLE_SIZE = 65536 };

enum shape { NORMAL, A_LOG, DT_BIAS };

struct tensor_law {
    uint64_t key;
    enum shape shape;
    float mean, deviation;
};

struct qep_random_source {
    const struct qep_inventory *inventory;
    uint64_t seed;
    struct tensor_law *laws;  /* [num_specs] */
    float normal[TABLE_SIZE]; /* quantiles of N(0, 1) */
};

static uint64_t mix(uint64_t x) { /* splitmix64's finaliser */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static const uint64_t golden = 0x9e3779b97f4a7c15u;

static void fill_table(float *table) {
    double x = -4.3;
    for (int i = 0; i < TABLE_SIZE / 2; i++) {
        double p = (i + 0.5) / TABLE_SIZE;
        for (int step = 0; step < 8; step++) { /* Newton from the quantile before */
            double density = exp(-0.5 * x * x) * 0.3989422804014327;
            x += (p - 0.5 * erfc(-x * 0.7071067811865476)) / density;
        }
        table[i] = (float)(rint(x * 4096) / 4096);
        table[TABLE_SIZE - 1 - i] = -table[i];
    }
}

static bool ends_with(const char *text, const char *suffix) {
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

static struct tensor_law law_of(const struct qep_model_config *c,
                                const struct qep_tensor_spec *spec, uint64_t seed) {
    float gain = 1.0f;
    struct tensor_law law = {.key = mix(seed + golden)};
    for (const char *p = spec->name; *p != '\0'; p++)
        law.key = mix(law.key ^ (unsigned char)*p) + golden;
    if (ends_with(spec->name, ".A_log")) {
        law.shape = A_LOG;
    } else if (ends_with(spec->name, ".dt_bias")) {
        law.shape = DT_BIAS;
    } else if (ends_with(spec->name, "linear_attn.norm.weight")) {
        law.mean = 1.0f; /* the one norm without the unit offset */
        law.deviation = 0.05f;
    } else if (spec->kind == QEP_TENSOR_VECTOR) {
        law.deviation = 0.05f;
    } else {
        /* Branches that write to the residual stream share its variance between the layers. */
        if (ends_with(spec->name, "o_proj.weight") || ends_with(spec->name, "out_proj.weight") ||
            strstr(spec->name, "down_proj") != NULL)
            gain = 2.0f / sqrtf(2.0f * (float)c->num_hidden_layers);
        else if (spec->vocab_block >= 0)
            gain = 3.0f; /* standard deviation of logits */
        else if (ends_with(spec->name, ".mlp.gate.weight"))
            gain = 2.0f; /* routing that prefers */
        law.deviation = gain / sqrtf((float)spec->cols);
        if (strcmp(spec->name, "embed_tokens.weight") == 0)
            law.deviation = 0.5f;
    }
    return law;
}

enum qep_status qep_random_source_create(const struct qep_model_config *config,
                                         const struct qep_inventory *inventory, uint64_t seed,
                                         struct qep_random_source **out) {
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof **out, "random source", &mem));
    struct qep_random_source *s = mem;
    enum qep_status st = qep_alloc(inventory->num_specs, sizeof *s->laws, "random source", &mem);
    if (st != QEP_OK) {
        qep_random_source_destroy(s);
        return st;
    }
    s->laws = mem;
    s->inventory = inventory;
    s->seed = seed;
    fill_table(s->normal);
    for (size_t i = 0; i < inventory->num_specs; i++) {
        s->laws[i] = law_of(config, &inventory->specs[i], seed);
        qep_progress(1);
    }
    *out = s;
    return QEP_OK;
}

void qep_random_source_destroy(struct qep_random_source *source) {
    if (source != NULL)
        free(source->laws);
    free(source);
}

/* The two F32 tensors are those of the official checkpoints. */
static enum qep_row_type row_type(const void *impl, size_t spec_idx) {
    const struct qep_random_source *s = impl;
    const char *name = s->inventory->specs[spec_idx].name;
    return ends_with(name, ".A_log") || ends_with(name, "linear_attn.norm.weight") ? QEP_ROWS_F32
                                                                                   : QEP_ROWS_BF16;
}

/* A uniform number in (0, 1) to a value as models are initialised, rounded like the table. */
static float special(enum shape shape, unsigned bits) {
    double u = (bits + 0.5) / TABLE_SIZE, value = 0;
    if (shape == A_LOG) { /* decay rates 1..16 */
        value = log(1 + 15 * u);
    } else { /* softplus(dt_bias) in 0.001..0.1 */
        double dt = exp(log(0.001) + u * (log(0.1) - log(0.001)));
        value = dt + log(-expm1(-dt));
    }
    return (float)(rint(value * 1024) / 1024);
}

static float value_of(const struct qep_random_source *s, const struct tensor_law *law,
                      unsigned bits) {
    if (law->shape != NORMAL)
        return special(law->shape, bits);
    return law->mean + law->deviation * s->normal[bits];
}

static void fill_row(const struct qep_random_source *s, const struct tensor_law *law, int64_t row,
                     int64_t cols, float *out) {
    uint64_t state = mix(law->key + (uint64_t)row * golden);
    for (int64_t c = 0; c < cols; c += 4) {
        uint64_t bits = mix(state += golden);
        int64_t n = cols - c < 4 ? cols - c : 4;
        for (int64_t i = 0; i < n; i++)
            out[c + i] = value_of(s, law, (unsigned)(bits >> (16 * i)) & 0xffffu);
    }
}

/* The common case without a branch a weight. */
static void fill_normal_row(const struct qep_random_source *s, const struct tensor_law *law,
                            int64_t row, int64_t cols, uint16_t *out) {
    uint64_t state = mix(law->key + (uint64_t)row * golden);
    int64_t c = 0;
    for (; c + 4 <= cols; c += 4) {
        uint64_t bits = mix(state += golden);
        for (int i = 0; i < 4; i++)
            out[c + i] = qep_f32_to_bf16(law->mean +
                                         law->deviation * s->normal[(bits >> (16 * i)) & 0xffffu]);
    }
    uint64_t bits = mix(state + golden);
    for (int i = 0; c + i < cols; i++)
        out[c + i] = qep_f32_to_bf16(value_of(s, law, (unsigned)(bits >> (16 * i)) & 0xffffu));
}

static enum qep_status read_rows(const void *impl, size_t spec_idx, int64_t row_begin,
                                 int64_t num_rows, void *out) {
    const struct qep_random_source *s = impl;
    const struct tensor_law *law = &s->laws[spec_idx];
    int64_t cols = s->inventory->specs[spec_idx].cols;
    bool f32 = row_type(impl, spec_idx) == QEP_ROWS_F32;
    for (int64_t r = 0; r < num_rows; r++) {
        int64_t row = row_begin + r;
        if (f32)
            fill_row(s, law, row, cols, (float *)out + r * cols);
        else if (law->shape == NORMAL)
            fill_normal_row(s, law, row, cols, (uint16_t *)out + r * cols);
        else
            for (int64_t c = 0; c < cols; c++) { /* dt_bias: one value at a time */
                uint64_t bits =
                    mix(mix(law->key + (uint64_t)row * golden) + (uint64_t)(c + 1) * golden);
                ((uint16_t *)out)[r * cols + c] =
                    qep_f32_to_bf16(value_of(s, law, (unsigned)bits & 0xffffu));
            }
    }
    qep_progress((size_t)num_rows);
    return QEP_OK;
}

static void describe(const void *impl, size_t spec_idx, char *text, size_t text_bytes) {
    const struct qep_random_source *s = impl;
    snprintf(text, text_bytes, "random weights (seed %llu): %s", (unsigned long long)s->seed,
             s->inventory->specs[spec_idx].name);
}

struct qep_row_source qep_random_rows(const struct qep_random_source *source) {
    return (struct qep_row_source){
        .impl = source, .type = row_type, .read = read_rows, .describe = describe};
}

float qep_random_deviation(const struct qep_random_source *source, size_t spec_idx) {
    return source->laws[spec_idx].deviation;
}

void qep_random_normals(const struct qep_random_source *source, uint64_t key, int64_t n,
                        float *out) {
    const struct tensor_law standard = {.key = mix(key + golden), .deviation = 1.0f};
    fill_row(source, &standard, 0, n, out);
}

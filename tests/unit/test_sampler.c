/* The sampler against distributions computed twice elsewhere: by a plain sorting implementation
 * below, and by Hugging Face (tests/data/golden/sampler_cases.json). Seeds are fixed, so a test
 * passes always or never. */
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/sampler.h"
#include "kernels/philox.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_IDS 4096
#define NUM_DRAWS 20000
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static const struct qep_sampling plain = QEP_SAMPLING_DEFAULT;

static uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static double uniform(uint64_t *state) {
    return (double)(next_random(state) >> 11) * 0x1p-53;
}

/* Roughly normal logits; `grid` > 0 rounds them to its multiples, which makes ties. */
static void fill_logits(uint64_t *state, float *logits, int count, double scale, double grid) {
    for (int i = 0; i < count; i++) {
        double value = 0;
        for (int j = 0; j < 6; j++)
            value += uniform(state) - 0.5;
        value *= scale;
        logits[i] = (float)(grid > 0 ? rint(value / grid) * grid : value);
    }
}

/* ---- the plain implementation: penalties, softmax, sorted lists; probabilities out ---- */

struct entry {
    double value;
    int id;
};

static int by_value_down(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->value < y->value || x->value > y->value)
        return x->value > y->value ? -1 : 1;
    return x->id - y->id;
}

static bool contains(const int32_t *ids, size_t count, int id) {
    for (size_t i = 0; i < count; i++)
        if (ids[i] == id)
            return true;
    return false;
}

static double plain_value(const struct qep_sampling *p, const struct qep_draw *d, int id) {
    double value = (double)d->logits[id];
    bool in_generated = contains(d->generated_ids, d->num_generated, id);
    if (d->allowed && !d->allowed[id])
        return -INFINITY;
    if (in_generated || contains(d->prompt_ids, d->num_prompt, id))
        value = value < 0 ? value * p->repetition_penalty : value / p->repetition_penalty;
    return (in_generated ? value - p->presence_penalty : value) / p->temperature;
}

static void plain_probs(const struct qep_sampling *p, const struct qep_draw *d, double *probs,
                        double *values) {
    static struct entry list[MAX_IDS];
    int n = d->num_ids, kept = 0;
    double total = 0, above = 0;
    for (int id = 0; id < n; id++) {
        values[id] = plain_value(p, d, id);
        list[id] = (struct entry){values[id], id};
        probs[id] = 0;
    }
    qsort(list, (size_t)n, sizeof *list, by_value_down);
    while (kept < n && isfinite(list[kept].value) &&
           (p->top_k == 0 || kept < p->top_k || list[kept].value >= list[kept - 1].value))
        kept++;
    for (int i = 0; i < kept; i++)
        total += exp(list[i].value - list[0].value);
    for (int i = 0; i < kept && p->top_p < 1; i++) {
        if (i > 0 && above >= p->top_p - 1e-9)
            kept = i;
        above += exp(list[i].value - list[0].value) / total;
    }
    while (kept > 1 && exp(list[kept - 1].value - list[0].value) < p->min_p)
        kept--;
    total = 0;
    for (int i = 0; i < kept; i++)
        total += exp(list[i].value - list[0].value);
    for (int i = 0; i < kept; i++)
        probs[list[i].id] = exp(list[i].value - list[0].value) / total;
}

static int32_t draw_one(struct qep_sampler *s, const struct qep_sampling *p,
                        const struct qep_draw *d) {
    int32_t id = -1;
    ck_assert_msg(qep_sampler_draw(s, p, d, &id) == QEP_OK, "%s", qep_last_error());
    return id;
}

/* NUM_DRAWS draws against probs: nothing outside the kept set, and Pearson's chi-square below the
 * value that one honest sampler in a million exceeds (Wilson and Hilferty's approximation). Ids
 * expected fewer than five times count together. */
static void check_draws(const char *what, const struct qep_sampling *p, const struct qep_draw *d,
                        const double *probs) {
    static int counts[MAX_IDS];
    struct qep_sampler *s = NULL;
    struct qep_draw draw = *d;
    double chi2 = 0, rest_expected = 0, rest = 0, bins = 0;
    memset(counts, 0, sizeof counts);
    ck_assert_int_eq(qep_sampler_create(d->num_ids, &s), QEP_OK);
    for (uint32_t i = 0; i < NUM_DRAWS; i++) {
        draw.choice = i % 100;
        draw.position = d->position + i / 100;
        counts[draw_one(s, p, &draw)]++;
    }
    qep_sampler_destroy(s);
    for (int id = 0; id < d->num_ids; id++) {
        double expected = probs[id] * NUM_DRAWS, found = counts[id];
        if (probs[id] <= 0)
            ck_assert_msg(counts[id] == 0, "%s: id %d is outside the set", what, id);
        if (expected < 5) {
            rest_expected += expected;
            rest += found;
        } else {
            chi2 += (found - expected) * (found - expected) / expected;
            bins++;
        }
    }
    if (rest_expected >= 1) {
        chi2 += (rest - rest_expected) * (rest - rest_expected) / rest_expected;
        bins++;
    } else {
        ck_assert_msg(rest <= 12, "%s: %g draws of rare ids, expected %g", what, rest,
                      rest_expected);
    }
    double df = bins - 1, spread = 2 / (9 * fmax(df, 1));
    double limit = df < 1 ? 1e-6 : df * pow(1 - spread + 4.75 * sqrt(spread), 3);
    ck_assert_msg(chi2 <= limit, "%s: chi-square %g over %g, df %g", what, chi2, limit, df);
}

/* ---- tests ---- */

START_TEST(philox_known_answers) {
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    uint32_t out[4];
    qep_philox4x32(cases[_i].key, cases[_i].counter, out);
    ck_assert_mem_eq(out, cases[_i].out, sizeof out);
}
END_TEST

START_TEST(uniform_is_open) {
    ck_assert(qep_philox_uniform(0) > 0 && qep_philox_uniform(UINT32_MAX) < 1);
}
END_TEST

/* The noise is laid out as the header says: key, counter, lane. */
START_TEST(noise_layout) {
    uint32_t key[2] = {0x89abcdef, 0x01234567}, counter[4] = {25, 0x77665544, 0x33221100, 9};
    uint32_t words[4];
    qep_philox4x32(key, counter, words);
    for (int lane = 0; lane < 4; lane++) {
        double u = ((double)words[lane] + 0.5) / 4294967296.0;
        double noise = qep_sampler_noise(0x0123456789abcdefu, 9, 0x3322110077665544u, 100 + lane);
        ck_assert_double_eq_tol(noise, -log(-log(u)), 1e-12);
    }
}
END_TEST

static const struct setting {
    const char *name;
    int num_ids;
    double scale, grid; /* of the logits */
    struct qep_sampling params;
    bool with_ids, with_mask;
} settings[] = {
    {"plain", 50, 3, 0, {1, 1, 0, 0, 1, 0, false, 1}, false, false},
    {"cold", 50, 3, 0, {0.3, 1, 0, 0, 1, 0, false, 2}, false, false},
    {"hot", 97, 5, 0, {4, 1, 0, 0, 1, 0, false, 3}, false, false},
    {"one id", 1, 5, 0, {1, 1, 0, 0, 1, 0, false, 4}, false, false},
    {"flat", 64, 0, 0, {1, 1, 0, 0, 1, 0, false, 5}, false, false},
    {"masked", 200, 4, 0, {1, 1, 0, 0, 1, 0, false, 6}, false, true},
    {"top_k 1", 50, 3, 0, {1, 1, 0, 0, 1, 1, false, 7}, false, false},
    {"top_k 20", 300, 3, 0, {1, 1, 0, 0, 1, 20, false, 8}, false, false},
    {"top_k ties", 130, 3, 0.5, {1, 1, 0, 0, 1, 10, false, 9}, false, false},
    {"top_k all", 30, 3, 0, {1, 1, 0, 0, 1, 1000, false, 10}, false, false},
    {"top_p 0.95", 300, 6, 0, {1, 0.95, 0, 0, 1, 0, false, 11}, false, false},
    {"top_p 0.5", 300, 3, 0, {1, 0.5, 0, 0, 1, 0, false, 12}, false, false},
    {"top_p tiny", 300, 3, 0, {1, 1e-12, 0, 0, 1, 0, false, 13}, false, false},
    {"top_p 0", 300, 3, 0, {1, 0, 0, 0, 1, 0, false, 24}, false, false},
    {"top_p 0, hot", 300, 3, 0.5, {4, 0, 0.5, 0, 1, 20, false, 25}, false, true},
    {"top_p 0, ids", 90, 4, 0, {1.3, 0, 0, 1.5, 1.3, 0, false, 26}, true, false},
    {"top_p ties", 130, 3, 0.5, {1, 0.7, 0, 0, 1, 0, false, 14}, false, false},
    {"top_p flat", 10, 0, 0, {1, 0.9, 0, 0, 1, 0, false, 15}, false, false},
    {"min_p", 300, 6, 0, {1, 1, 0.1, 0, 1, 0, false, 16}, false, false},
    {"min_p 1", 130, 3, 0.5, {1, 1, 1, 0, 1, 0, false, 17}, false, false},
    {"repetition", 90, 4, 0, {1, 1, 0, 0, 1.3, 0, false, 18}, true, false},
    {"repetition < 1", 90, 4, 0, {1, 1, 0, 0, 0.8, 0, false, 19}, true, false},
    {"presence", 90, 4, 0, {1, 1, 0, 1.5, 1, 0, false, 20}, true, false},
    {"presence < 0", 90, 4, 0, {1, 1, 0, -1, 1, 0, false, 21}, true, false},
    {"thinking", 400, 6, 0, {1, 0.95, 0, 1.5, 1, 20, false, 22}, true, true},
    {"coding", 400, 6, 0, {0.6, 0.95, 0, 0, 1, 20, false, 23}, true, false},
    {"all", 400, 6, 0, {1.3, 0.9, 0.05, 0.5, 1.1, 40, false, ~0ull}, true, true},
};

START_TEST(draws_follow_the_distribution) {
    const struct setting *setting = &settings[_i];
    static float logits[MAX_IDS];
    static double probs[MAX_IDS], values[MAX_IDS];
    uint8_t allowed[MAX_IDS];
    int32_t prompt[20], generated[15];
    uint64_t state = (uint64_t)_i;
    struct qep_draw draw = {.logits = logits, .num_ids = setting->num_ids, .position = 35};
    fill_logits(&state, logits, setting->num_ids, setting->scale, setting->grid);
    for (int i = 0; i < setting->num_ids; i++)
        allowed[i] = next_random(&state) % 4 > 0;
    for (int i = 0; i < 20; i++)
        prompt[i] = (int32_t)(next_random(&state) % (uint64_t)setting->num_ids);
    for (int i = 0; i < 15; i++)
        generated[i] = i < 5 ? prompt[i] : i % 7;
    if (setting->with_ids) {
        draw.prompt_ids = prompt;
        draw.num_prompt = COUNT_OF(prompt);
        draw.generated_ids = generated;
        draw.num_generated = COUNT_OF(generated);
    }
    if (setting->with_mask)
        draw.allowed = allowed;
    ck_assert_int_eq(qep_sampling_check(&setting->params), QEP_OK);
    plain_probs(&setting->params, &draw, probs, values);
    check_draws(setting->name, &setting->params, &draw, probs);
}
END_TEST

/* Of 1000 equal ids (or one that weighs as much as 999 others), top-p keeps the lowest, as many as
 * reach it and no more. */
START_TEST(top_p_keeps_just_enough) {
    static const struct {
        double top_p, first_weight;
        int32_t kept;
    } cases[] = {{0.5, 1, 500},  {0.5004, 1, 501},  {0.9, 1, 900},   {0.001, 1, 1},
                 {0.0011, 1, 2}, {0.9991, 1, 1000}, {0.7, 999, 401}, {0.4, 999, 1}};
    float logits[1000] = {(float)log(cases[_i].first_weight)};
    bool drawn[1000] = {false};
    struct qep_sampling p = plain;
    struct qep_draw d = {.logits = logits, .num_ids = 1000};
    struct qep_sampler *s = NULL;
    p.top_p = cases[_i].top_p;
    ck_assert_int_eq(qep_sampler_create(1000, &s), QEP_OK);
    for (; d.choice < NUM_DRAWS; d.choice++)
        drawn[draw_one(s, &p, &d)] = true;
    for (int32_t id = 0; id < 1000; id++)
        ck_assert_msg(drawn[id] == (id < cases[_i].kept), "top_p %g: id %d", p.top_p, id);
    qep_sampler_destroy(s);
}
END_TEST

static size_t golden_ids(const cJSON *item, const char *key, int32_t *ids) {
    const cJSON *list = qep_json_get(item, key), *id;
    size_t count = 0;
    cJSON_ArrayForEach (id, list) {
        ck_assert_uint_lt(count, MAX_IDS);
        ids[count++] = id->valueint;
    }
    return count;
}

static void golden_params(const cJSON *item, struct qep_sampling *p) {
    const char *where = "sampler_cases.json";
    *p = plain;
    p->seed = 77;
    ck_assert_int_eq(qep_json_double_opt(item, "temperature", where, 0, 1e6, &p->temperature), 0);
    ck_assert_int_eq(qep_json_double_opt(item, "top_p", where, 0, 1, &p->top_p), 0);
    ck_assert_int_eq(qep_json_double_opt(item, "min_p", where, 0, 1, &p->min_p), 0);
    ck_assert_int_eq(
        qep_json_double_opt(item, "presence_penalty", where, -100, 100, &p->presence_penalty), 0);
    ck_assert_int_eq(
        qep_json_double_opt(item, "repetition_penalty", where, 0, 100, &p->repetition_penalty), 0);
    ck_assert_int_eq(qep_json_int_opt(item, "top_k", where, 0, MAX_IDS, &p->top_k), 0);
}

/* Hugging Face's probabilities: the plain implementation has them too, and so do the draws. */
static void check_golden(const cJSON *item, int case_idx) {
    static float logits[MAX_IDS];
    static double golden[MAX_IDS], probs[MAX_IDS], values[MAX_IDS];
    static int32_t prompt[MAX_IDS], generated[MAX_IDS];
    const cJSON *number;
    char name[40];
    struct qep_sampling params;
    struct qep_draw draw = {.logits = logits, .prompt_ids = prompt, .generated_ids = generated};
    int n = 0;
    snprintf(name, sizeof name, "golden case %d", case_idx);
    golden_params(item, &params);
    draw.num_prompt = golden_ids(item, "prompt_ids", prompt);
    draw.num_generated = golden_ids(item, "generated_ids", generated);
    draw.position = draw.num_prompt + draw.num_generated;
    cJSON_ArrayForEach (number, qep_json_get(item, "logits"))
        logits[draw.num_ids++] = cJSON_IsNull(number) ? -INFINITY : (float)number->valuedouble;
    cJSON_ArrayForEach (number, qep_json_get(item, "probs"))
        golden[n++] = number->valuedouble;
    ck_assert_int_eq(n, draw.num_ids);
    plain_probs(&params, &draw, probs, values);
    for (int id = 0; id < n; id++)
        ck_assert_msg(fabs(probs[id] - golden[id]) <= 1e-9 + 2e-5 * golden[id],
                      "%s: id %d: %.9g, Hugging Face %.9g", name, id, probs[id], golden[id]);
    check_draws(name, &params, &draw, golden);
}

START_TEST(draws_follow_hugging_face) {
    char *text = NULL;
    size_t len = 0;
    const cJSON *item;
    int case_idx = 0;
    ck_assert_msg(qep_file_read("tests/data/golden/sampler_cases.json", 1 << 24, &text, &len) ==
                      QEP_OK,
                  "%s", qep_last_error());
    cJSON *cases = cJSON_ParseWithLength(text, len);
    free(text);
    cJSON_ArrayForEach (item, cases)
        check_golden(item, case_idx++);
    ck_assert_int_ge(case_idx, 12);
    cJSON_Delete(cases);
}
END_TEST

static struct qep_sampling random_params(uint64_t *state) {
    struct qep_sampling p = plain;
    p.seed = next_random(state);
    p.temperature = 0.2 + 2 * uniform(state);
    if (next_random(state) % 2)
        p.top_k = (int64_t)(next_random(state) % (next_random(state) % 2 ? 30 : MAX_IDS));
    if (next_random(state) % 2)
        p.top_p = 1 - uniform(state) * (next_random(state) % 2 ? 1 : 0.01);
    if (next_random(state) % 4 == 0)
        p.min_p = uniform(state) * 0.01;
    return p;
}

/* Every draw is the argmax of value + noise over the kept set: the shortcuts skip no id. */
START_TEST(draw_is_the_argmax_over_the_kept_set) {
    static float logits[MAX_IDS];
    static double probs[MAX_IDS], values[MAX_IDS];
    uint64_t state = 4;
    struct qep_sampler *s = NULL;
    ck_assert_int_eq(qep_sampler_create(MAX_IDS, &s), QEP_OK);
    for (int round = 0; round < 600; round++) {
        struct qep_sampling p = random_params(&state);
        struct qep_draw d = {.logits = logits, .choice = (uint32_t)next_random(&state)};
        double best = -INFINITY;
        int32_t best_id = -1;
        d.position = next_random(&state);
        d.num_ids = 1 + (int32_t)(next_random(&state) % (round % 3 ? 300 : MAX_IDS));
        fill_logits(&state, logits, MAX_IDS, round % 5 * 4, round % 2 * 0.25);
        plain_probs(&p, &d, probs, values);
        for (int32_t id = 0; id < d.num_ids; id++) {
            double score = values[id] + qep_sampler_noise(p.seed, d.choice, d.position, id);
            if (probs[id] > 0 && score > best) {
                best = score;
                best_id = id;
            }
        }
        ck_assert_int_eq(draw_one(s, &p, &d), best_id);
    }
    qep_sampler_destroy(s);
}
END_TEST

/* More ids behind, or a mask over others, leave the noise of an id alone. */
START_TEST(noise_belongs_to_the_id) {
    static float logits[MAX_IDS];
    uint8_t allowed[MAX_IDS] = {0};
    uint64_t state = 5;
    struct qep_sampling p = plain;
    struct qep_sampler *s = NULL;
    fill_logits(&state, logits, MAX_IDS, 2, 0);
    ck_assert_int_eq(qep_sampler_create(MAX_IDS, &s), QEP_OK);
    for (uint32_t choice = 0; choice < 200; choice++) {
        struct qep_draw d = {.logits = logits, .num_ids = MAX_IDS, .choice = choice};
        double best = -INFINITY;
        int32_t best_id = -1, whole = draw_one(s, &p, &d);
        for (int shard = 0; shard < 7; shard++) { /* each shard draws alone, the best wins */
            for (int id = 0; id < MAX_IDS; id++)
                allowed[id] = id * 7 / MAX_IDS == shard;
            d.allowed = allowed;
            int32_t id = draw_one(s, &p, &d);
            double score = (double)logits[id] + qep_sampler_noise(p.seed, choice, 0, id);
            if (score > best) {
                best = score;
                best_id = id;
            }
        }
        ck_assert_int_eq(whole, best_id);
    }
    qep_sampler_destroy(s);
}
END_TEST

START_TEST(seed_choice_and_position_decide) {
    static const float logits[64] = {0};
    struct qep_sampling p = plain;
    struct qep_sampler *a = NULL, *b = NULL;
    int moved_seed = 0, moved_choice = 0, moved_position = 0, moved_high = 0;
    ck_assert_int_eq(qep_sampler_create(64, &a), QEP_OK);
    ck_assert_int_eq(qep_sampler_create(1000, &b), QEP_OK);
    for (uint32_t i = 0; i < 200; i++) {
        struct qep_draw d = {.logits = logits, .num_ids = 64, .position = i};
        p.seed = 1;
        int32_t id = draw_one(a, &p, &d);
        ck_assert_int_eq(draw_one(a, &p, &d), id);
        ck_assert_int_eq(draw_one(b, &p, &d), id);
        d.choice = 1;
        moved_choice += draw_one(a, &p, &d) != id;
        d.choice = 0;
        d.position += 1000;
        moved_position += draw_one(a, &p, &d) != id;
        d.position = i + (1ull << 32);
        moved_high += draw_one(a, &p, &d) != id;
        d.position = i;
        p.seed = 1 + (1ull << 40);
        moved_seed += draw_one(a, &p, &d) != id;
    }
    ck_assert_int_gt(moved_seed, 180);
    ck_assert_int_gt(moved_choice, 180);
    ck_assert_int_gt(moved_position, 180);
    ck_assert_int_gt(moved_high, 180);
    qep_sampler_destroy(a);
    qep_sampler_destroy(b);
}
END_TEST

START_TEST(greedy_takes_the_lowest_of_the_largest) {
    float logits[200];
    uint8_t allowed[200];
    static const int32_t generated[] = {70, 70, 199};
    struct qep_sampling p = plain;
    struct qep_draw d = {.logits = logits, .num_ids = 200, .allowed = allowed};
    struct qep_sampler *s = NULL;
    for (int i = 0; i < 200; i++) {
        logits[i] = i % 64 == 6 && i > 6 ? 2.5f : -1.0f; /* 70, 134, 198 */
        allowed[i] = 1;
    }
    if (_i == 0)
        p.greedy = true;
    else
        p.temperature = 0;
    p.top_k = 5;
    ck_assert_int_eq(qep_sampler_create(200, &s), QEP_OK);
    for (d.choice = 0; d.choice < 20; d.choice++)
        ck_assert_int_eq(draw_one(s, &p, &d), 70);
    allowed[70] = 0;
    ck_assert_int_eq(draw_one(s, &p, &d), 134);
    allowed[70] = 1;
    d.generated_ids = generated;
    d.num_generated = 3;
    p.presence_penalty = 0.5;
    ck_assert_int_eq(draw_one(s, &p, &d), 134);
    p.presence_penalty = 0;
    p.repetition_penalty = 2;
    ck_assert_int_eq(draw_one(s, &p, &d), 134);
    d.num_ids = 100;
    ck_assert_int_eq(draw_one(s, &p, &d), 70);
    qep_sampler_destroy(s);
}
END_TEST

/* As greedy, so that no temperature can level what the penalties left. */
START_TEST(top_p_0_takes_the_largest_after_penalties) {
    static const float logits[] = {3, 3.25f, 3.125f, 3.125f};
    static const int32_t generated[] = {1};
    struct qep_sampling p = plain;
    struct qep_draw d = {.logits = logits, .num_ids = 4};
    struct qep_sampler *s = NULL;
    p.top_p = 0;
    p.temperature = _i == 0 ? 1 : 1e300;
    ck_assert_int_eq(qep_sampling_check(&p), QEP_OK);
    ck_assert(qep_sampling_is_greedy(&p) && !qep_sampling_is_greedy(&plain));
    ck_assert_int_eq(qep_sampler_create(4, &s), QEP_OK);
    for (d.choice = 0; d.choice < 20; d.choice++)
        ck_assert_int_eq(draw_one(s, &p, &d), 1);
    d.generated_ids = generated;
    d.num_generated = 1;
    p.presence_penalty = 0.5;
    ck_assert_int_eq(draw_one(s, &p, &d), 2);
    qep_sampler_destroy(s);
}
END_TEST

START_TEST(ids_past_num_ids_and_masked_ids_never_come) {
    float logits[100];
    uint8_t allowed[100] = {0};
    struct qep_sampling p = plain;
    struct qep_draw d = {.logits = logits, .num_ids = 90, .allowed = allowed};
    struct qep_sampler *s = NULL;
    p.temperature = 3;
    p.top_k = _i == 1 ? 50 : 0;
    p.top_p = _i == 2 ? 0.9 : 1;
    for (int i = 0; i < 100; i++)
        logits[i] = i < 90 ? 0.0f : 50.0f;
    logits[3] = NAN; /* masked, so nobody looks at it */
    allowed[17] = allowed[40] = allowed[89] = 1;
    ck_assert_int_eq(qep_sampler_create(100, &s), QEP_OK);
    for (d.choice = 0; d.choice < 2000; d.choice++) {
        int32_t id = draw_one(s, &p, &d);
        ck_assert(id == 17 || id == 40 || id == 89);
    }
    qep_sampler_destroy(s);
}
END_TEST

START_TEST(bad_params_name_the_option) {
    static const struct {
        struct qep_sampling params;
        const char *option;
    } cases[] = {
        {{-0.1, 1, 0, 0, 1, 0, false, 0}, "--temperature"},
        {{NAN, 1, 0, 0, 1, 0, false, 0}, "--temperature"},
        {{INFINITY, 1, 0, 0, 1, 0, false, 0}, "--temperature"},
        {{1, -0.1, 0, 0, 1, 0, false, 0}, "--top-p"},
        {{1, 1.01, 0, 0, 1, 0, false, 0}, "--top-p"},
        {{1, NAN, 0, 0, 1, 0, false, 0}, "--top-p"},
        {{1, 1, -0.1, 0, 1, 0, false, 0}, "--min-p"},
        {{1, 1, 1.1, 0, 1, 0, false, 0}, "--min-p"},
        {{1, 1, NAN, 0, 1, 0, false, 0}, "--min-p"},
        {{1, 1, 0, NAN, 1, 0, false, 0}, "--presence-penalty"},
        {{1, 1, 0, -INFINITY, 1, 0, false, 0}, "--presence-penalty"},
        {{1, 1, 0, 0, 0, 0, false, 0}, "--repetition-penalty"},
        {{1, 1, 0, 0, -1, 0, false, 0}, "--repetition-penalty"},
        {{1, 1, 0, 0, NAN, 0, false, 0}, "--repetition-penalty"},
        {{1, 1, 0, 0, 1, -1, false, 0}, "--top-k"},
    };
    ck_assert_int_eq(qep_sampling_check(&plain), QEP_OK);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        ck_assert_int_eq(qep_sampling_check(&cases[i].params), QEP_ERR_USAGE);
        ck_assert_ptr_nonnull(strstr(qep_last_error(), cases[i].option));
    }
}
END_TEST

START_TEST(logits_that_are_no_numbers) {
    float logits[150] = {0};
    uint8_t allowed[150] = {0};
    static const int32_t bad_ids[] = {0, 150};
    struct qep_sampling p = plain;
    struct qep_draw d = {.logits = logits, .num_ids = 150};
    struct qep_sampler *s = NULL;
    int32_t id;
    ck_assert_int_eq(qep_sampler_create(150, &s), QEP_OK);
    p.top_p = _i == 1 ? 0.9 : 1;
    p.greedy = _i == 2;
    logits[77] = NAN;
    ck_assert_int_eq(qep_sampler_draw(s, &p, &d, &id), QEP_ERR_DATA);
    ck_assert_str_eq(qep_last_error(), "logits: NaN at id 77");
    logits[77] = logits[80] = INFINITY;
    for (d.choice = 0; d.choice < 50; d.choice++)
        ck_assert_int_eq(draw_one(s, &p, &d), 77);
    for (int i = 0; i < 150; i++)
        logits[i] = i == 149 ? -1e30f : -INFINITY;
    ck_assert_int_eq(draw_one(s, &p, &d), 149);
    d.num_ids = 149;
    ck_assert_int_eq(qep_sampler_draw(s, &p, &d, &id), QEP_ERR_DATA);
    logits[5] = 1;
    d.allowed = allowed;
    ck_assert_int_eq(qep_sampler_draw(s, &p, &d, &id), QEP_ERR_DATA);
    d.allowed = NULL;
    d.prompt_ids = bad_ids;
    d.num_prompt = 2;
    ck_assert_int_eq(qep_sampler_draw(s, &p, &d, &id), QEP_ERR_DATA);
    ck_assert_ptr_nonnull(strstr(qep_last_error(), "prompt_ids"));
    d.num_prompt = 1;
    ck_assert_int_eq(draw_one(s, &p, &d), 5);
    qep_sampler_destroy(s);
}
END_TEST

START_TEST(extreme_values_stay_in_order) {
    static const double temperatures[] = {1e-320, 1e-30, 1e-3, 1e300};
    float logits[3] = {-3e38f, 3e38f, 2.9e38f};
    struct qep_sampling p = plain;
    struct qep_draw d = {.logits = logits, .num_ids = 3};
    struct qep_sampler *s = NULL;
    ck_assert_int_eq(qep_sampler_create(3, &s), QEP_OK);
    for (size_t i = 0; i < COUNT_OF(temperatures); i++) {
        p.temperature = temperatures[i];
        p.top_p = _i == 1 ? 0.5 : 1;
        int32_t id = draw_one(s, &p, &d);
        ck_assert(p.temperature > 1 ? id >= 0 && id < 3 : id == 1);
    }
    qep_sampler_destroy(s);
}
END_TEST

/* A token of the real vocabulary, flat and peaked logits. Far above what a release build needs, so
 * that sanitizers and busy machines pass; a full sort or a quadratic selection does not. */
START_TEST(a_large_vocabulary_is_quick) {
    enum { VOCAB = 248320 };
    static const struct qep_sampling params[] = {
        {1, 1, 0, 0, 1, 0, false, 0},     {1, 1, 0, 0, 1, 20, false, 0},
        {1, 0.95, 0, 1, 1, 20, false, 0}, {1, 0.95, 0, 0, 1, 0, false, 0},
        {1, 1, 0.05, 0, 1, 0, false, 0},  {1, 0.5, 0, 0, 1, 100000, false, 0},
    };
    static float logits[VOCAB];
    uint64_t state = 6;
    struct qep_draw d = {.logits = logits, .num_ids = VOCAB};
    struct qep_sampler *s = NULL;
    ck_assert_int_eq(qep_sampler_create(VOCAB, &s), QEP_OK);
    for (int shape = 0; shape < 4; shape++) { /* peaked, flat, rising, falling */
        if (shape < 2)
            fill_logits(&state, logits, VOCAB, shape == 0 ? 6 : 0, 0);
        for (int i = 0; i < VOCAB && shape >= 2; i++)
            logits[i] = (float)(shape == 2 ? i : -i) * 1e-4f;
        for (size_t i = 0; i < COUNT_OF(params); i++) {
            double best = INFINITY;
            for (d.choice = 0; d.choice < 5; d.choice++) {
                double start = qep_now_s();
                draw_one(s, &params[i], &d);
                best = fmin(best, qep_now_s() - start);
            }
            if (getenv("QEP_TEST_TIMES"))
                printf("shape %d, params %zu: %.3f ms\n", shape, i, best * 1e3);
            ck_assert_msg(best < 0.1, "shape %d, params %zu: %g ms", shape, i, best * 1e3);
        }
    }
    qep_sampler_destroy(s);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("sampler");
    TCase *tc = tcase_create("sampler");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, philox_known_answers, 0, 3);
    tcase_add_test(tc, uniform_is_open);
    tcase_add_test(tc, noise_layout);
    tcase_add_loop_test(tc, draws_follow_the_distribution, 0, (int)COUNT_OF(settings));
    tcase_add_loop_test(tc, top_p_keeps_just_enough, 0, 8);
    tcase_add_test(tc, draws_follow_hugging_face);
    tcase_add_test(tc, draw_is_the_argmax_over_the_kept_set);
    tcase_add_test(tc, noise_belongs_to_the_id);
    tcase_add_test(tc, seed_choice_and_position_decide);
    tcase_add_loop_test(tc, greedy_takes_the_lowest_of_the_largest, 0, 2);
    tcase_add_loop_test(tc, top_p_0_takes_the_largest_after_penalties, 0, 2);
    tcase_add_loop_test(tc, ids_past_num_ids_and_masked_ids_never_come, 0, 3);
    tcase_add_test(tc, bad_params_name_the_option);
    tcase_add_loop_test(tc, logits_that_are_no_numbers, 0, 3);
    tcase_add_loop_test(tc, extreme_values_stay_in_order, 0, 2);
    tcase_add_test(tc, a_large_vocabulary_is_quick);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* The set first, the draw second. Nothing sorts the vocabulary: top-k and top-p are selections that
 * cut a list in two around random pivots and go on in the one half that holds the boundary, after a
 * cheap bound has thrown out nearly every id. The draw asks Philox only for ids that can still win.
 * Filter semantics: transformers, generation/logits_process.py; presence penalty as in vLLM. */
#include "engine/sampler.h"

#include "base/mem.h"
#include "kernels/philox.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_IDS 64

/* Slack of top-p's boundary: a boundary that is exact in decimals (0.9 of ten equal ids) falls as
 * in exact arithmetic, not by the rounding of the sums. */
#define TOP_P_SLACK 1e-9

/* An upper bound of ln 2 whose excess covers the rounding of a score. */
#define LN2_UP 0.693148

struct candidate {
    double weight; /* exp of the logit's distance to the largest, over the temperature */
    int32_t id;
};

struct qep_sampler {
    int32_t vocab_size;
    double *values;               /* [vocab_size] logits after mask and penalties */
    double *selection;            /* [vocab_size] what kth_largest shuffles */
    double *block_max;            /* [vocab_size / BLOCK_IDS, rounded up] */
    struct candidate *candidates; /* [vocab_size] */
    uint8_t *seen;                /* [vocab_size] all 0 between calls */
};

enum qep_status qep_sampling_check(const struct qep_sampling *params) {
    /* Written so that NaN fails every one. */
    if (!(params->temperature >= 0) || isinf(params->temperature))
        return qep_fail(QEP_ERR_USAGE, "--temperature: expected a number >= 0, found %g",
                        params->temperature);
    if (params->top_k < 0)
        return qep_fail(QEP_ERR_USAGE, "--top-k: expected a whole number >= 0, found %lld",
                        (long long)params->top_k);
    if (!(params->top_p >= 0 && params->top_p <= 1))
        return qep_fail(QEP_ERR_USAGE, "--top-p: expected a number in [0, 1], found %g",
                        params->top_p);
    if (!(params->min_p >= 0 && params->min_p <= 1))
        return qep_fail(QEP_ERR_USAGE, "--min-p: expected a number in [0, 1], found %g",
                        params->min_p);
    if (!isfinite(params->presence_penalty))
        return qep_fail(QEP_ERR_USAGE, "--presence-penalty: expected a number, found %g",
                        params->presence_penalty);
    if (!(params->repetition_penalty > 0) || isinf(params->repetition_penalty))
        return qep_fail(QEP_ERR_USAGE, "--repetition-penalty: expected a number > 0, found %g",
                        params->repetition_penalty);
    return QEP_OK;
}

bool qep_sampling_is_greedy(const struct qep_sampling *params) {
    return params->greedy || params->temperature <= 0 || params->top_p <= 0;
}

enum qep_status qep_sampler_create(int32_t vocab_size, struct qep_sampler **out) {
    struct qep_sampler *s = NULL;
    enum qep_status st = QEP_OK;
    *out = NULL;
    if (vocab_size < 1)
        return qep_fail(QEP_ERR_BUG, "sampler: vocab_size %d", vocab_size);
    size_t n = (size_t)vocab_size, num_blocks = (n + BLOCK_IDS - 1) / BLOCK_IDS;
    QEP_TRY_GOTO(st, done, qep_calloc(1, sizeof *s, "sampler", (void **)&s));
    s->vocab_size = vocab_size;
    QEP_TRY_GOTO(st, done, qep_alloc(n, sizeof *s->values, "sampler", (void **)&s->values));
    QEP_TRY_GOTO(st, done, qep_alloc(n, sizeof *s->selection, "sampler", (void **)&s->selection));
    QEP_TRY_GOTO(st, done,
                 qep_alloc(num_blocks, sizeof *s->block_max, "sampler", (void **)&s->block_max));
    QEP_TRY_GOTO(st, done, qep_alloc(n, sizeof *s->candidates, "sampler", (void **)&s->candidates));
    QEP_TRY_GOTO(st, done, qep_calloc(n, sizeof *s->seen, "sampler", (void **)&s->seen));
    *out = s;
    s = NULL;
done:
    qep_sampler_destroy(s);
    return st;
}

void qep_sampler_destroy(struct qep_sampler *sampler) {
    if (!sampler)
        return;
    free(sampler->values);
    free(sampler->selection);
    free(sampler->block_max);
    free(sampler->candidates);
    free(sampler->seen);
    free(sampler);
}

/* ---- mask and penalties ---- */

static enum qep_status load_values(struct qep_sampler *s, const struct qep_draw *draw) {
    for (int32_t id = 0; id < draw->num_ids; id++) {
        if (draw->allowed && !draw->allowed[id]) {
            s->values[id] = -INFINITY;
            continue;
        }
        if (isnan(draw->logits[id]))
            return qep_fail(QEP_ERR_DATA, "logits: NaN at id %d", id);
        s->values[id] = (double)draw->logits[id];
    }
    return QEP_OK;
}

static enum qep_status check_ids(const struct qep_sampler *s, const char *what, const int32_t *ids,
                                 size_t count) {
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= s->vocab_size)
            return qep_fail(QEP_ERR_DATA, "%s: id %d at %zu, expected 0 to %d", what, ids[i], i,
                            s->vocab_size - 1);
    return QEP_OK;
}

/* True the first time an id that can come out is met. */
static bool meet(struct qep_sampler *s, const struct qep_draw *draw, int32_t id) {
    if (id >= draw->num_ids || s->seen[id])
        return false;
    s->seen[id] = 1;
    return true;
}

static void forget(struct qep_sampler *s, const int32_t *ids, size_t count) {
    for (size_t i = 0; i < count; i++)
        s->seen[ids[i]] = 0;
}

static void penalise_repetition(struct qep_sampler *s, const struct qep_draw *draw,
                                const int32_t *ids, size_t count, double penalty) {
    for (size_t i = 0; i < count; i++) {
        if (!meet(s, draw, ids[i]))
            continue;
        double *value = &s->values[ids[i]];
        *value = *value < 0 ? *value * penalty : *value / penalty;
    }
}

static enum qep_status penalise(struct qep_sampler *s, const struct qep_sampling *params,
                                const struct qep_draw *draw) {
    QEP_TRY(check_ids(s, "prompt_ids", draw->prompt_ids, draw->num_prompt));
    QEP_TRY(check_ids(s, "generated_ids", draw->generated_ids, draw->num_generated));
    if (params->repetition_penalty < 1 || params->repetition_penalty > 1) {
        double penalty = params->repetition_penalty;
        penalise_repetition(s, draw, draw->prompt_ids, draw->num_prompt, penalty);
        penalise_repetition(s, draw, draw->generated_ids, draw->num_generated, penalty);
        forget(s, draw->prompt_ids, draw->num_prompt);
        forget(s, draw->generated_ids, draw->num_generated);
    }
    if (params->presence_penalty < 0 || params->presence_penalty > 0) {
        for (size_t i = 0; i < draw->num_generated; i++)
            if (meet(s, draw, draw->generated_ids[i]))
                s->values[draw->generated_ids[i]] -= params->presence_penalty;
        forget(s, draw->generated_ids, draw->num_generated);
    }
    return QEP_OK;
}

/* The lowest id of the largest value; leaves the maxima of the blocks behind. */
static int32_t find_max(struct qep_sampler *s, int32_t num_ids) {
    size_t n = (size_t)num_ids, best_block = 0;
    for (size_t block = 0; block * BLOCK_IDS < n; block++) {
        size_t end = n - block * BLOCK_IDS < BLOCK_IDS ? n : (block + 1) * BLOCK_IDS;
        double max = -INFINITY;
        for (size_t id = block * BLOCK_IDS; id < end; id++)
            max = s->values[id] > max ? s->values[id] : max;
        s->block_max[block] = max;
        if (max > s->block_max[best_block])
            best_block = block;
    }
    size_t id = best_block * BLOCK_IDS;
    while (s->values[id] < s->block_max[best_block])
        id++;
    return (int32_t)id;
}

/* ---- the filters ---- */

/* Random pivots keep every input linear. Results do not depend on them. */
static size_t pivot_idx(uint32_t *state, size_t begin, size_t end) {
    *state = *state * 1664525u + 1013904223u;
    return begin + (size_t)(((uint64_t)*state * (end - begin)) >> 32);
}

/* The k-th largest (from 1) of n values; shuffles them. */
static double kth_largest(double *values, size_t n, size_t k) {
    size_t begin = 0, end = n;
    uint32_t state = 1;
    for (;;) {
        double pivot = values[pivot_idx(&state, begin, end)];
        size_t greater = begin, i = begin, less = end; /* [begin, greater) >, [less, end) < */
        while (i < less) {
            double value = values[i];
            if (value > pivot) {
                values[i++] = values[greater];
                values[greater++] = value;
            } else if (value < pivot) {
                values[i] = values[--less];
                values[less] = value;
            } else {
                i++;
            }
        }
        if (k <= greater)
            end = greater;
        else if (k <= less)
            return pivot;
        else
            begin = less;
    }
}

/* The value below which top-k removes. The k-th largest of the blocks' maxima is a lower bound, and
 * few ids lie above it. */
static double top_k_threshold(struct qep_sampler *s, int32_t num_ids, int64_t top_k) {
    if (top_k == 0 || top_k >= num_ids)
        return -INFINITY;
    size_t n = (size_t)num_ids, k = (size_t)top_k, count = 0;
    size_t num_blocks = (n + BLOCK_IDS - 1) / BLOCK_IDS;
    double bound = -INFINITY;
    if (k <= num_blocks) {
        memcpy(s->selection, s->block_max, num_blocks * sizeof *s->selection);
        bound = kth_largest(s->selection, num_blocks, k);
    }
    for (size_t id = 0; id < n; id++)
        if (s->values[id] >= bound)
            s->selection[count++] = s->values[id];
    return kth_largest(s->selection, count, k);
}

static size_t gather(struct qep_sampler *s, int32_t num_ids, double threshold, double max,
                     double temperature) {
    size_t count = 0;
    for (int32_t id = 0; id < num_ids; id++) {
        double value = s->values[id];
        if (value < threshold || value < -DBL_MAX)
            continue;
        s->candidates[count].weight = exp((value - max) / temperature);
        s->candidates[count++].id = id;
    }
    return count;
}

static void swap(struct candidate *a, struct candidate *b) {
    struct candidate old = *a;
    *a = *b;
    *b = old;
}

/* Keeps the heaviest candidates until their weights reach `target`, of equal ones the lower ids;
 * at least one. The kept ones come to lie at the front. */
static size_t keep_weight(struct candidate *c, size_t count, double target) {
    size_t begin = 0, end = count; /* [0, begin) is kept, from end on removed */
    double above = 0;              /* weight of [0, begin) */
    uint32_t state = 1;
    while (begin < end && above < target) {
        swap(&c[pivot_idx(&state, begin, end)], &c[end - 1]);
        struct candidate pivot = c[end - 1];
        size_t mid = begin;
        double weight = 0;
        for (size_t i = begin; i < end - 1; i++) {
            if (c[i].weight > pivot.weight || (c[i].weight >= pivot.weight && c[i].id < pivot.id)) {
                weight += c[i].weight;
                swap(&c[mid++], &c[i]);
            }
        }
        swap(&c[mid], &c[end - 1]);
        if (above + weight >= target) {
            end = mid;
        } else {
            above += weight + pivot.weight;
            begin = mid + 1;
        }
    }
    return begin > 0 ? begin : 1;
}

/* Removes, from the lightest up, what together weighs at most 1 - top_p of all. */
static size_t filter_top_p(struct candidate *c, size_t count, double top_p) {
    double total = 0, bound;
    size_t kept = 0;
    if (top_p >= 1)
        return count;
    for (size_t i = 0; i < count; i++)
        total += c[i].weight;
    /* An id this light goes whatever the order: all ids not heavier fit into 1 - top_p. */
    bound = (1 - top_p) * total / (double)count;
    for (size_t i = 0; i < count; i++)
        if (c[i].weight > bound || c[i].weight >= 1)
            c[kept++] = c[i];
    return keep_weight(c, kept, fmax(top_p - TOP_P_SLACK, DBL_MIN) * total);
}

/* The heaviest candidate weighs 1, so weights compare as probabilities over the largest one. */
static size_t filter_min_p(struct candidate *c, size_t count, double min_p) {
    size_t kept = 0;
    if (min_p <= 0)
        return count;
    for (size_t i = 0; i < count; i++)
        if (c[i].weight >= min_p)
            c[kept++] = c[i];
    return kept;
}

/* ---- the draw ---- */

struct race {
    uint32_t key[2], counter[4], words[4];
    double score; /* the best so far, and its id */
    int32_t id;
};

static void race_block(struct race *race, int32_t id) {
    race->counter[0] = (uint32_t)id / 4;
    qep_philox4x32(race->key, race->counter, race->words);
}

static void race_init(struct race *race, uint64_t seed, uint32_t choice, uint64_t position) {
    memset(race, 0, sizeof *race);
    race->key[0] = (uint32_t)seed;
    race->key[1] = (uint32_t)(seed >> 32);
    race->counter[1] = (uint32_t)position;
    race->counter[2] = (uint32_t)(position >> 32);
    race->counter[3] = choice;
    race->score = -INFINITY;
    race->id = -1;
    race_block(race, 0);
}

static double gumbel(uint32_t word) {
    return -log(-log(qep_philox_uniform(word)));
}

/* At least gumbel(word), by -ln u >= 1 - u and the leading one bits of the word. */
static double gumbel_bound(uint32_t word) {
    return LN2_UP * (word == UINT32_MAX ? 33 : 1 + __builtin_clz(~word));
}

static void race_offer(struct race *race, int32_t id, double value) {
    if (value + LN2_UP * 33 < race->score)
        return;
    if (race->counter[0] != (uint32_t)id / 4)
        race_block(race, id);
    uint32_t word = race->words[id % 4];
    if (value + gumbel_bound(word) < race->score)
        return;
    double score = value + gumbel(word);
    if (score > race->score || (score >= race->score && id < race->id) || race->id < 0) {
        race->score = score;
        race->id = id;
    }
}

double qep_sampler_noise(uint64_t seed, uint32_t choice, uint64_t position, int32_t id) {
    struct race race;
    race_init(&race, seed, choice, position);
    race_block(&race, id);
    return gumbel(race.words[id % 4]);
}

enum qep_status qep_sampler_draw(struct qep_sampler *sampler, const struct qep_sampling *params,
                                 const struct qep_draw *draw, int32_t *out_id) {
    int32_t num_ids = draw->num_ids;
    double temperature = params->temperature;
    *out_id = -1;
    if (num_ids < 1 || num_ids > sampler->vocab_size)
        return qep_fail(QEP_ERR_BUG, "sampler: num_ids %d, vocab_size %d", num_ids,
                        sampler->vocab_size);
    QEP_TRY(load_values(sampler, draw));
    QEP_TRY(penalise(sampler, params, draw));
    int32_t max_id = find_max(sampler, num_ids);
    double max = sampler->values[max_id];
    if (max < -DBL_MAX)
        return qep_fail(QEP_ERR_DATA, "logits: no id can be drawn, all are masked or -inf");
    if (qep_sampling_is_greedy(params) || max > DBL_MAX) {
        *out_id = max_id;
        return QEP_OK;
    }
    /* Distances to the largest logit: no temperature makes them overflow upwards. */
    struct race race;
    race_init(&race, params->seed, draw->choice, draw->position);
    race_offer(&race, max_id, 0);
    if (params->top_k == 0 && params->top_p >= 1 && params->min_p <= 0) {
        for (int32_t id = 0; id < num_ids; id++)
            race_offer(&race, id, (sampler->values[id] - max) / temperature);
    } else {
        struct candidate *c = sampler->candidates;
        double threshold = top_k_threshold(sampler, num_ids, params->top_k);
        size_t count = gather(sampler, num_ids, threshold, max, temperature);
        count = filter_top_p(c, count, params->top_p);
        count = filter_min_p(c, count, params->min_p);
        for (size_t i = 0; i < count; i++)
            race_offer(&race, c[i].id, (sampler->values[c[i].id] - max) / temperature);
    }
    *out_id = race.id;
    return QEP_OK;
}

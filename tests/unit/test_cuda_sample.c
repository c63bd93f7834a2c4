/* Draws on the device against the host's sampler, id for id, one by one and in graphs of steps. */
#include "base/mem.h"
#include "device_support.h"
#include "engine/sampler.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 8, MAX_RANGES = 24, NUM_SLOTS = 9, MAX_HISTORY = 40 };

static struct qep_backend *be;

#define OK(expr) ck_assert_msg((expr) == QEP_OK, "%s: %s", #expr, qep_last_error())

static void setup(void) {
    be = open_cuda();
}

static void teardown(void) {
    close_cuda(be);
}

static uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static int below(uint64_t *state, int n) {
    return (int)(next_random(state) % (uint64_t)n);
}

static double uniform(uint64_t *state) {
    return (double)(next_random(state) >> 11) * 0x1p-53;
}

static void *dev_new(size_t bytes) {
    void *dev = NULL;
    OK(be->ops->alloc(be, bytes ? bytes : 4, "test", &dev));
    return dev;
}

static void *dev_copy(const void *host, size_t bytes) {
    void *dev = dev_new(bytes);
    if (bytes)
        OK(be->ops->upload(be, dev, host, bytes));
    return dev;
}

static void *host_new(size_t bytes) {
    void *host = NULL;
    OK(qep_calloc(1, bytes, "test", &host));
    return host;
}

/* ---- a batch of draws ---- */

struct row {
    struct qep_sampling params;
    struct qep_draw draw;
    int32_t slot;
    int32_t prompt[MAX_HISTORY], generated[MAX_HISTORY];
};

struct batch {
    int32_t vocab, num_ids, num_rows, num_ranges;
    int32_t cut[MAX_RANGES + 1]; /* range r: ids [cut[r], cut[r + 1]) */
    float *logits;               /* [num_rows, vocab] */
    uint8_t *allowed;            /* [vocab] or NULL */
    struct row rows[MAX_ROWS];
};

static struct qep_device_draw device_draw(const struct row *row) {
    const struct qep_sampling *p = &row->params;
    return (struct qep_device_draw){.seed = p->seed,
                                    .position = row->draw.position,
                                    .temperature = p->temperature,
                                    .top_p = p->top_p,
                                    .min_p = p->min_p,
                                    .presence_penalty = p->presence_penalty,
                                    .repetition_penalty = p->repetition_penalty,
                                    .top_k = p->top_k,
                                    .greedy = p->greedy,
                                    .choice = row->draw.choice,
                                    .slot = row->slot};
}

static size_t seen_bytes(const struct batch *b) {
    return ((size_t)NUM_SLOTS * (size_t)b->vocab + 3) / 4 * 4;
}

/* What is on the device for a batch. */
struct device_batch {
    float *logits[MAX_RANGES];
    uint8_t *allowed, *seen;
    struct qep_device_draw *draws;
    struct qep_row_candidates *candidates;
    int32_t *tokens;
};

static float *upload_range(const struct batch *b, int range) {
    size_t num = (size_t)(b->cut[range + 1] - b->cut[range]), rows = (size_t)b->num_rows;
    float *part = host_new((num * rows + 1) * sizeof *part);
    for (size_t row = 0; row < rows; row++)
        memcpy(part + row * num, b->logits + row * (size_t)b->vocab + b->cut[range],
               num * sizeof *part);
    float *dev = dev_copy(part, num * rows * sizeof *part);
    free(part);
    return dev;
}

static void mark(const struct batch *b, uint8_t *seen, int32_t slot, const int32_t *ids, size_t n,
                 uint8_t bits) {
    int32_t *dev = dev_copy(ids, n * sizeof *ids);
    OK(be->device->mark_seen(be, seen, slot, b->vocab, dev, (int32_t)n, bits));
    OK(be->ops->sync(be));
    be->ops->free(be, dev);
}

static struct device_batch to_device(const struct batch *b) {
    struct device_batch d = {0};
    struct qep_device_draw draws[MAX_ROWS];
    size_t rows = (size_t)b->num_rows;
    for (int range = 0; range < b->num_ranges; range++)
        d.logits[range] = upload_range(b, range);
    if (b->allowed)
        d.allowed = dev_copy(b->allowed, (size_t)b->vocab);
    d.seen = dev_new(seen_bytes(b));
    OK(be->ops->zero(be, d.seen, seen_bytes(b)));
    for (int i = 0; i < b->num_rows; i++) {
        const struct row *row = &b->rows[i];
        draws[i] = device_draw(row);
        if (row->slot < 0)
            continue;
        mark(b, d.seen, row->slot, row->prompt, row->draw.num_prompt, 2);
        mark(b, d.seen, row->slot, row->generated, row->draw.num_generated, 1);
    }
    d.draws = dev_copy(draws, rows * sizeof *draws);
    d.candidates = dev_new(rows * (size_t)b->num_ranges * sizeof *d.candidates);
    d.tokens = dev_new(rows * sizeof *d.tokens);
    return d;
}

static void free_device(const struct batch *b, const struct device_batch *d) {
    for (int range = 0; range < b->num_ranges; range++)
        be->ops->free(be, d->logits[range]);
    be->ops->free(be, d->allowed);
    be->ops->free(be, d->seen);
    be->ops->free(be, d->draws);
    be->ops->free(be, d->candidates);
    be->ops->free(be, d->tokens);
}

static void sample(const struct batch *b, const struct device_batch *d) {
    for (int range = 0; range < b->num_ranges; range++)
        OK(be->device->sample_candidates(be, d->candidates + range * b->num_rows, d->logits[range],
                                         b->num_rows, b->cut[range + 1] - b->cut[range],
                                         b->cut[range], b->vocab, b->num_ids, d->allowed, d->seen,
                                         d->draws));
    OK(be->device->sample_final(be, d->tokens, d->candidates, b->num_ranges, b->num_rows, b->vocab,
                                b->num_ids, d->seen, d->draws));
}

/* ---- random batches ---- */

enum logits_kind { NORMAL, PEAKED, FLAT, GRID, SPARSE, WITH_INF, WITH_NAN, NUM_KINDS };

static float random_logit(uint64_t *state, enum logits_kind kind) {
    double v = 0;
    for (int i = 0; i < 6; i++)
        v += uniform(state) - 0.5;
    switch (kind) {
    case PEAKED:
        return (float)(v * v * v * 8);
    case FLAT:
        return 1.25f;
    case GRID:
        return (float)(rint(v * 4) / 2);
    case SPARSE:
        return below(state, 100) ? -1e30f : (float)v;
    case WITH_INF:
        return below(state, 500) ? (float)v : below(state, 2) ? INFINITY : -INFINITY;
    case WITH_NAN:
        return below(state, 1000) ? (float)v : NAN;
    default:
        return (float)(v * 3);
    }
}

static void random_ids(uint64_t *state, const struct batch *b, int32_t *ids, size_t *count) {
    *count = (size_t)below(state, MAX_HISTORY + 1);
    for (size_t i = 0; i < *count; i++) /* often the same, and neighbours */
        ids[i] = below(state, below(state, 2) ? b->vocab : b->vocab < 20 ? b->vocab : 20);
}

#define PICK(state, list) ((list)[below(state, (int)(sizeof(list) / sizeof *(list)))])

static struct qep_sampling any_settings(uint64_t *state) {
    static const double temperature[] = {0, 0.2, 0.7, 1, 1, 3, 1e-3, 1e6};
    static const double top_p[] = {1, 1, 0.95, 0.9, 0.5, 0.1, 0.999, 1e-12};
    static const double min_p[] = {0, 0, 0, 0.05, 0.5, 1};
    static const double presence[] = {0, 0, 1.5, -0.7};
    static const double repetition[] = {1, 1, 1.2, 0.8};
    static const int64_t top_k[] = {0, 0, 1, 5, 20, 63, 64, 65, 200, 1 << 20};
    return (struct qep_sampling){.temperature = PICK(state, temperature),
                                 .top_p = PICK(state, top_p),
                                 .min_p = PICK(state, min_p),
                                 .presence_penalty = PICK(state, presence),
                                 .repetition_penalty = PICK(state, repetition),
                                 .top_k = PICK(state, top_k),
                                 .greedy = below(state, 12) == 0,
                                 .seed = next_random(state)};
}

static void set_row(uint64_t *state, struct batch *b, int i, struct qep_sampling params) {
    struct row *row = &b->rows[i];
    memset(row, 0, sizeof *row);
    row->params = params;
    row->slot = (i * 5 + 2) % NUM_SLOTS;
    random_ids(state, b, row->prompt, &row->draw.num_prompt);
    random_ids(state, b, row->generated, &row->draw.num_generated);
    row->draw.logits = b->logits + (size_t)i * (size_t)b->vocab;
    row->draw.num_ids = b->num_ids;
    row->draw.allowed = b->allowed;
    row->draw.prompt_ids = row->prompt;
    row->draw.generated_ids = row->generated;
    row->draw.position = next_random(state) >> below(state, 64);
    row->draw.choice = (uint32_t)below(state, 3);
}

static void set_cuts(uint64_t *state, struct batch *b) {
    b->cut[0] = 0;
    for (int i = 1; i < b->num_ranges; i++)
        b->cut[i] = below(state, b->vocab + 1);
    b->cut[b->num_ranges] = b->vocab;
    for (int i = 1; i < b->num_ranges; i++) /* few: any sort does */
        for (int j = i; j > 1 && b->cut[j] < b->cut[j - 1]; j--) {
            int32_t cut = b->cut[j];
            b->cut[j] = b->cut[j - 1];
            b->cut[j - 1] = cut;
        }
}

static struct batch new_batch(uint64_t *state, int vocab, int num_rows, int num_ranges,
                              bool masked) {
    struct batch b = {.vocab = vocab,
                      .num_ids = vocab - (below(state, 3) ? 0 : below(state, vocab)),
                      .num_rows = num_rows,
                      .num_ranges = num_ranges};
    set_cuts(state, &b);
    b.logits = host_new((size_t)num_rows * (size_t)vocab * sizeof *b.logits);
    if (masked) {
        b.allowed = host_new((size_t)vocab);
        for (int i = 0; i < vocab; i++)
            b.allowed[i] = below(state, 4) != 0;
    }
    return b;
}

static void fill_row(uint64_t *state, struct batch *b, int row, enum logits_kind kind) {
    for (int id = 0; id < b->vocab; id++)
        b->logits[(size_t)row * (size_t)b->vocab + (size_t)id] = random_logit(state, kind);
}

static void free_batch(struct batch *b) {
    free(b->logits);
    free(b->allowed);
}

/* ---- comparing ---- */

struct score {
    int draws, flagged; /* of rows in which the host draws */
};

static void check_seen(const struct batch *b, const uint8_t *seen, int i, int32_t token) {
    const struct row *row = &b->rows[i];
    uint8_t *want = host_new((size_t)b->vocab);
    for (size_t j = 0; j < row->draw.num_prompt; j++)
        want[row->prompt[j]] |= 2;
    for (size_t j = 0; j < row->draw.num_generated; j++)
        want[row->generated[j]] |= 1;
    if (token >= 0)
        want[token] |= 1;
    ck_assert_mem_eq(seen + (size_t)row->slot * (size_t)b->vocab, want, (size_t)b->vocab);
    free(want);
}

static void check_row(struct qep_sampler *sampler, const struct batch *b, int i, int32_t token,
                      const uint8_t *seen, struct score *score) {
    const struct row *row = &b->rows[i];
    const struct qep_sampling *p = &row->params;
    int32_t want = -1;
    if (row->slot < 0) {
        ck_assert_int_eq(token, -1);
        return;
    }
    check_seen(b, seen, i, token);
    if (qep_sampler_draw(sampler, p, &row->draw, &want) != QEP_OK) {
        ck_assert_int_eq(token, QEP_TOKEN_FLAGGED);
        return;
    }
    score->draws++;
    score->flagged += token == QEP_TOKEN_FLAGGED;
    ck_assert_msg(token == want || token == QEP_TOKEN_FLAGGED,
                  "row %d: id %d, expected %d (vocab %d, ranges %d, T %g, k %lld, p %g, min %g)", i,
                  token, want, b->vocab, b->num_ranges, p->temperature, (long long)p->top_k,
                  p->top_p, p->min_p);
}

static void compare(struct batch *b, struct score *score) {
    struct device_batch d = to_device(b);
    struct qep_sampler *sampler = NULL;
    int32_t tokens[MAX_ROWS];
    uint8_t *seen = host_new(seen_bytes(b));
    OK(qep_sampler_create(b->vocab, &sampler));
    sample(b, &d);
    OK(be->ops->download(be, tokens, d.tokens, (size_t)b->num_rows * sizeof *tokens));
    OK(be->ops->download(be, seen, d.seen, seen_bytes(b)));
    for (int i = 0; i < b->num_rows; i++)
        check_row(sampler, b, i, tokens[i], seen, score);
    qep_sampler_destroy(sampler);
    free_device(b, &d);
    free(seen);
}

START_TEST(draws_like_the_host) {
    static const int vocabs[] = {1, 7, 64, 65, 300, 1023, 1025, 2500};
    uint64_t state = (uint64_t)_i + 1;
    struct score score = {0};
    for (int round = 0; round < 6; round++) {
        /* Now and then more lists than the last launch looks at. */
        int num_ranges = below(&state, 8) ? 1 + below(&state, 5) : MAX_RANGES;
        struct batch b = new_batch(&state, PICK(&state, vocabs), 1 + below(&state, MAX_ROWS),
                                   num_ranges, below(&state, 3) == 0);
        for (int i = 0; i < b.num_rows; i++) {
            fill_row(&state, &b, i, (enum logits_kind)below(&state, NUM_KINDS));
            set_row(&state, &b, i, any_settings(&state));
            if (below(&state, 8) == 0)
                b.rows[i].slot = -1;
        }
        compare(&b, &score);
        free_batch(&b);
    }
    ck_assert_int_gt(score.draws, 0);
}
END_TEST

/* With every id among the candidates nothing is left open. */
START_TEST(few_ids_decide) {
    uint64_t state = (uint64_t)_i + 77;
    struct score score = {0};
    for (int round = 0; round < 4; round++) {
        struct batch b = new_batch(&state, 64, MAX_ROWS, 1, false);
        for (int i = 0; i < b.num_rows; i++) {
            struct qep_sampling p = any_settings(&state);
            p.temperature = p.temperature > 10 ? 1 : p.temperature;
            fill_row(&state, &b, i, (enum logits_kind)below(&state, WITH_INF));
            set_row(&state, &b, i, p);
        }
        compare(&b, &score);
        free_batch(&b);
    }
    ck_assert_int_eq(score.flagged, 0);
}
END_TEST

static const struct qep_sampling usual[] = {
    {.temperature = 0.7, .top_p = 0.8, .top_k = 20, .repetition_penalty = 1},
    {.temperature = 1,
     .top_p = 0.95,
     .top_k = 20,
     .presence_penalty = 1.5,
     .repetition_penalty = 1},
    {.temperature = 1, .top_p = 0.95, .top_k = 64, .repetition_penalty = 1.1},
    {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
    {.temperature = 0.6, .top_p = 1, .min_p = 0.2, .repetition_penalty = 1},
    {.temperature = 0.3, .top_p = 0.5, .repetition_penalty = 1.3},
    {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .greedy = true},
};
enum { NUM_USUAL = sizeof usual / sizeof *usual };

START_TEST(usual_settings_decide) {
    uint64_t state = (uint64_t)_i + 1234;
    struct score score = {0};
    struct batch b = new_batch(&state, 5000, NUM_USUAL, 1 + _i % 4, false);
    b.num_ids = 4990;
    for (int i = 0; i < b.num_rows; i++) {
        struct qep_sampling p = usual[i];
        p.seed = next_random(&state);
        fill_row(&state, &b, i, PEAKED);
        set_row(&state, &b, i, p);
    }
    compare(&b, &score);
    ck_assert_int_eq(score.draws, NUM_USUAL);
    ck_assert_int_eq(score.flagged, 0);
    free_batch(&b);
}
END_TEST

START_TEST(full_vocabulary) {
    uint64_t state = 9;
    struct score score = {0};
    struct batch b = new_batch(&state, 248320, 3, 1 + 3 * _i, false);
    b.num_ids = 248077;
    for (int i = 0; i < b.num_rows; i++) {
        struct qep_sampling p = usual[_i + i];
        p.seed = next_random(&state);
        fill_row(&state, &b, i, NORMAL);
        set_row(&state, &b, i, p);
    }
    compare(&b, &score);
    ck_assert_int_eq(score.draws, 3);
    free_batch(&b);
}
END_TEST

/* ---- candidates ---- */

struct ranked {
    double value;
    int32_t id;
};

static int by_rank(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    if (x->value < y->value || x->value > y->value)
        return x->value > y->value ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static void check_candidates(const struct batch *b, int row, int range,
                             const struct qep_row_candidates *c) {
    struct ranked *all = host_new((size_t)b->vocab * sizeof *all);
    int n = 0;
    for (int32_t id = b->cut[range]; id < b->cut[range + 1]; id++) {
        float v = b->logits[(size_t)row * (size_t)b->vocab + (size_t)id];
        if (id < b->num_ids && v > -INFINITY)
            all[n++] = (struct ranked){(double)v, id};
    }
    qsort(all, (size_t)n, sizeof *all, by_rank);
    int num = n < QEP_SAMPLE_CANDIDATES ? n : QEP_SAMPLE_CANDIDATES;
    ck_assert_int_eq(c->num_ids, n);
    ck_assert_int_eq(c->num, num);
    ck_assert(n > 0 ? c->max == all[0].value : c->max == -INFINITY);
    for (int i = 0; i < num; i++) {
        ck_assert_int_eq(c->id[i], all[i].id);
        ck_assert(c->value[i] == all[i].value);
    }
    ck_assert_int_eq(c->tied, n > num && all[num].value == all[num - 1].value);
    ck_assert_int_eq(c->has_nan, 0);
    free(all);
}

START_TEST(candidates_are_the_largest) {
    static const enum logits_kind kinds[] = {NORMAL, GRID, FLAT, SPARSE};
    uint64_t state = (uint64_t)_i + 5;
    struct qep_sampling p = QEP_SAMPLING_DEFAULT;
    struct batch b = new_batch(&state, _i == 0 ? 70000 : 3000 + 700 * _i, 4, 1 + _i % 3, false);
    struct qep_row_candidates *c = host_new((size_t)(b.num_rows * b.num_ranges) * sizeof *c);
    p.top_p = 0.9;
    for (int i = 0; i < b.num_rows; i++) {
        fill_row(&state, &b, i, kinds[i]);
        set_row(&state, &b, i, p);
    }
    struct device_batch d = to_device(&b);
    sample(&b, &d);
    OK(be->ops->download(be, c, d.candidates, (size_t)(b.num_rows * b.num_ranges) * sizeof *c));
    for (int range = 0; range < b.num_ranges; range++)
        for (int i = 0; i < b.num_rows; i++)
            check_candidates(&b, i, range, &c[range * b.num_rows + i]);
    free_device(&b, &d);
    free_batch(&b);
    free(c);
}
END_TEST

/* ---- steps and graphs ---- */

enum { STEPS = 12 };

static void one_step(const struct batch *b, const struct device_batch *d, struct qep_span *spans,
                     int32_t *ids) {
    sample(b, d);
    OK(be->device->advance(be, spans, d->draws, ids, d->tokens, b->num_rows));
}

/* Draws STEPS times, in a graph or without; rows of tokens. */
static void draw_steps(const struct batch *b, bool graphed, int32_t *out) {
    struct device_batch d = to_device(b);
    struct qep_span spans[MAX_ROWS];
    struct qep_graph *graph = NULL;
    size_t bytes = (size_t)b->num_rows * sizeof(int32_t);
    for (int i = 0; i < b->num_rows; i++)
        spans[i] = (struct qep_span){i, 1, b->rows[i].slot, 10, 1};
    struct qep_span *dev_spans = dev_copy(spans, sizeof spans);
    int32_t *ids = dev_new(bytes);
    int first = 0;
    if (graphed) { /* the first step is eager: workspaces grow */
        one_step(b, &d, dev_spans, ids);
        OK(be->ops->download(be, out, ids, bytes));
        first = 1;
        OK(be->device->capture_begin(be));
        one_step(b, &d, dev_spans, ids);
        OK(be->device->capture_end(be, &graph));
    }
    for (int step = first; step < STEPS; step++) {
        if (graphed)
            OK(be->device->graph_launch(be, graph));
        else
            one_step(b, &d, dev_spans, ids);
        OK(be->ops->download(be, out + step * b->num_rows, ids, bytes));
    }
    be->device->graph_destroy(be, graph);
    be->ops->free(be, dev_spans);
    be->ops->free(be, ids);
    free_device(b, &d);
}

/* What the host draws, the drawn ids among the generated ones; a row ends with its first flag. */
static void check_steps(struct batch *b, const int32_t *tokens) {
    struct qep_sampler *sampler = NULL;
    OK(qep_sampler_create(b->vocab, &sampler));
    for (int i = 0; i < b->num_rows; i++) {
        struct row *row = &b->rows[i];
        bool ended = row->slot < 0;
        row->draw.num_generated = 0;
        for (int step = 0; step < STEPS; step++) {
            int32_t token = tokens[step * b->num_rows + i], want = -1;
            if (ended) {
                ck_assert_int_eq(token, -1);
                continue;
            }
            if (qep_sampler_draw(sampler, &row->params, &row->draw, &want) != QEP_OK)
                want = QEP_TOKEN_FLAGGED;
            ck_assert_int_eq(token, want);
            ended = token < 0;
            if (!ended)
                row->generated[row->draw.num_generated++] = token;
            row->draw.position++;
        }
    }
    qep_sampler_destroy(sampler);
}

START_TEST(graphs_draw_like_ops) {
    uint64_t state = 31;
    struct batch b = new_batch(&state, 2100, 5, 2, false);
    int32_t eager[STEPS * MAX_ROWS], graphed[STEPS * MAX_ROWS];
    b.num_ids = b.vocab;
    for (int i = 0; i < b.num_rows; i++) {
        fill_row(&state, &b, i, PEAKED);
        set_row(&state, &b, i, usual[i]);
        b.rows[i].params.presence_penalty = 2;
        b.rows[i].draw.num_generated = 0;
    }
    b.rows[2].slot = -1;
    b.logits[(size_t)b.vocab + 17] = NAN; /* row 1 is flagged at once */
    draw_steps(&b, false, eager);
    draw_steps(&b, true, graphed);
    ck_assert_mem_eq(eager, graphed, (size_t)(STEPS * b.num_rows) * sizeof *eager);
    check_steps(&b, graphed);
    free_batch(&b);
}
END_TEST

int main(void) {
    Suite *s = suite_create("cuda_sample");
    TCase *tc = device_case(s, "cuda_sample", 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, draws_like_the_host, 0, 24);
    tcase_add_loop_test(tc, few_ids_decide, 0, 6);
    tcase_add_loop_test(tc, usual_settings_decide, 0, 8);
    tcase_add_loop_test(tc, full_vocabulary, 0, 2);
    tcase_add_loop_test(tc, candidates_are_the_largest, 0, 5);
    tcase_add_test(tc, graphs_draw_like_ops);
    return run_device_suite(s);
}

/* Routed experts of the cuda backend: `experts` against the reference, `routed` + `combine` over
 * several splits of the experts against `experts` + `tree_sum` bit for bit, through plain arrays
 * and through packets, eager and replayed. */
#include "experts_support.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static struct qep_backend *ref, *cuda;

static void setup(void) {
    ref = open_reference();
    cuda = open_cuda();
}

static void teardown(void) {
    ref->ops->destroy(ref);
    close_cuda(cuda);
}

static const struct expert_case cases[] = {
    {"one token", 1, 4, 64, 32, -1, -1},
    {"two rows, odd sizes", 2, 2, 33, 40, -1, 1},
    {"all on one", 23, 1, 64, 48, 4, -1},
    {"many rows", 37, 4, 96, 70, -1, 5},
    {"every expert", 5, NUM_EXPERTS, 32, 20, -1, 0},
    {"one expert's tiles", 70, 1, 40, 24, 19, 69},
    {"long rows", 3, 3, 520, 136, -1, -1},
    {"wide tiles", 70, NUM_EXPERTS, 32, 20, -1, 2},
};

enum { NUM_CASES = sizeof cases / sizeof cases[0] };

/* ---- `experts` ---- */

struct items {
    int32_t count;
    int32_t *expert, *row;
    float *weight;
};

static struct items list_items(const struct layer *l) {
    size_t pairs = (size_t)l->c->num_rows * (size_t)l->c->top_k;
    struct items items = {0, must_alloc(pairs * 4), must_alloc(pairs * 4), must_alloc(pairs * 4)};
    for (int32_t e = 0; e < NUM_EXPERTS; e++)
        for (int32_t i = 0; i < (int32_t)pairs; i++)
            if (l->idx[i] == e) {
                items.expert[items.count] = e;
                items.row[items.count] = i / l->c->top_k;
                items.weight[items.count++] = l->weights[i];
            }
    return items;
}

static void free_items(struct items *items) {
    free(items->expert);
    free(items->row);
    free(items->weight);
}

/* Items first .. first + count on cuda; free the result [count, hidden]. */
static float *run_experts(const struct layer *l, const struct items *items, int32_t first,
                          int32_t count, int32_t decode) {
    size_t bytes = (size_t)(count > 0 ? count : 1) * (size_t)l->c->hidden * sizeof(float);
    float *out = dev_put(cuda, NULL, bytes);
    struct qep_expert_args args = {.rows = l->dev_rows,
                                   .row_stride = l->row_bytes,
                                   .act_type = QEP_ACT_BF16,
                                   .num_rows = l->c->num_rows,
                                   .num_items = count,
                                   .item_expert = items->expert + first,
                                   .item_row = items->row + first,
                                   .item_weight = items->weight + first,
                                   .gate_up = (const struct qep_weight *const *)l->weight,
                                   .down =
                                       (const struct qep_weight *const *)l->weight + NUM_EXPERTS,
                                   .hidden_size = l->c->hidden,
                                   .intermediate_size = l->c->inner,
                                   .decode = decode};
    OK(cuda->ops->experts(cuda, &args, out));
    float *host = to_host(cuda, out, bytes);
    cuda->ops->free(cuda, out);
    return host;
}

/* What the reference makes of them, with the hidden rows rounded as activation rows are. */
static float *reference_items(const struct layer *l, const struct items *items) {
    const struct expert_case *c = l->c;
    size_t hidden = (size_t)c->hidden, inner = (size_t)c->inner;
    float *out = must_alloc((size_t)(items->count + 1) * hidden * sizeof *out);
    float *gate = must_alloc(2 * inner * sizeof *gate);
    char *act = must_alloc(qep_act_row_bytes(QEP_ACT_BF16, c->inner));
    for (int32_t i = 0; i < items->count; i++) {
        int32_t e = items->expert[i];
        float *row = out + (size_t)i * hidden;
        OK(multiply(ref, gate, l->plain + (size_t)items->row[i] * hidden, hidden * 4, QEP_ACT_F32,
                    l->ref_weight[e], 1, 0));
        OK(ref->ops->swiglu(ref, qep_f32_rows(gate), gate, gate + inner, 1, c->inner));
        OK(ref->ops->act_convert(ref, act, qep_act_row_bytes(QEP_ACT_BF16, c->inner), QEP_ACT_BF16,
                                 gate, 1, c->inner));
        decode_act_row(QEP_ACT_BF16, act, c->inner, gate);
        OK(multiply(ref, row, gate, inner * 4, QEP_ACT_F32, l->ref_weight[e + NUM_EXPERTS], 1, 0));
        for (size_t h = 0; h < hidden; h++)
            row[h] *= items->weight[i];
    }
    free(gate);
    free(act);
    return out;
}

static void check_experts(const struct layer *l, int32_t decode) {
    size_t hidden = (size_t)l->c->hidden;
    struct items items = list_items(l);
    float *want = reference_items(l, &items);
    float *got = run_experts(l, &items, 0, items.count, decode);
    char what[128];
    snprintf(what, sizeof what, "experts, %s, decode %d", l->c->name, decode);
    /* A hidden value on the edge of two bf16 may fall to either side. */
    assert_close(got, want, (size_t)items.count * hidden, 4e-3, what);
    for (int32_t first = 0; first < items.count; first += 1 + items.count / 3) {
        int32_t count = first == 0 ? 1 : items.count - first;
        float *part = run_experts(l, &items, first, count, decode);
        assert_same_bits(part, got + (size_t)first * hidden, (size_t)count * hidden * 4, what);
        free(part);
    }
    free(got);
    free(want);
    free_items(&items);
}

/* ---- `routed` and `combine` ---- */

static const struct split splits[] = {
    {1, {0, NUM_EXPERTS}},
    {2, {0, 8, NUM_EXPERTS}},
    {4, {0, 5, 6, 6, NUM_EXPERTS}},
};

enum { NUM_SPLITS = sizeof splits / sizeof splits[0] };

static void launch_plain(const struct layer *l, const struct ranks *r, int32_t decode,
                         float *partials, float *out) {
    for (int p = 0; p < r->split->num_ranks; p++) {
        struct qep_routed_args args = routed_args(l, r, p, decode);
        if (r->sets[p] != NULL)
            OK(cuda->device->routed(cuda, &args, rank_partials(partials, l, r, p)));
    }
    struct qep_combine_args args = combine_args(l, r, partials, NULL);
    OK(cuda->device->combine(cuda, &args, out));
}

/* Every rank sees every row. */
static float *run_plain(const struct layer *l, const struct ranks *r, int32_t decode) {
    size_t bytes = (size_t)l->c->num_rows * (size_t)l->c->hidden * 4;
    float *partials = nan_partials(l, r), *out = dev_put(cuda, NULL, bytes);
    launch_plain(l, r, decode, partials, out);
    float *host = to_host(cuda, out, bytes);
    cuda->ops->free(cuda, partials);
    cuda->ops->free(cuda, out);
    return host;
}

/* One rank without partials, in place. */
static float *run_alone(const struct layer *l, const struct ranks *r, int32_t decode) {
    size_t bytes = (size_t)l->c->num_rows * (size_t)l->c->hidden * 4;
    float *out = dev_put(cuda, l->base, bytes);
    struct qep_routed_args args = routed_args(l, r, 0, decode);
    args.base = out;
    args.expert_range = NULL;
    args.ranges = NULL;
    OK(cuda->device->routed(cuda, &args, out));
    float *host = to_host(cuda, out, bytes);
    cuda->ops->free(cuda, out);
    return host;
}

/* The lists against a plain scan of the ids. */
static void check_lists(const struct layer *l, const struct ranks *r, const int32_t *rows,
                        const int32_t *positions, const int32_t *counts) {
    int32_t n = l->c->num_rows;
    for (int p = 0; p < r->split->num_ranks; p++) {
        int32_t count = 0;
        for (int32_t i = 0; i < n; i++) {
            bool meets = false;
            for (int32_t j = 0; j < l->c->top_k; j++) {
                int32_t id = l->idx[i * l->c->top_k + j];
                meets = meets || (id >= 0 && r->expert_rank[id] == p);
            }
            ck_assert_int_eq(positions[p * n + i], meets ? count : -1);
            if (meets)
                ck_assert_int_eq(rows[p * n + count++], i);
        }
        ck_assert_int_eq(counts[p], count);
    }
}

/* Every rank gets packets of the rows that need it. */
static float *run_packets(const struct layer *l, const struct ranks *r, int32_t decode) {
    int32_t n = l->c->num_rows, k = l->c->top_k;
    size_t ranks = (size_t)r->split->num_ranks, list_bytes = ranks * (size_t)n * 4;
    size_t bytes = (size_t)n * (size_t)l->c->hidden * 4;
    size_t packet = qep_packet_bytes(l->row_bytes, k);
    int32_t *dev_rows = dev_put(cuda, NULL, list_bytes),
            *dev_positions = dev_put(cuda, NULL, list_bytes);
    int32_t *dev_counts = dev_put(cuda, NULL, ranks * 4);
    float *partials = nan_partials(l, r), *out = dev_put(cuda, l->base, bytes);
    char *packets = dev_put(cuda, NULL, (size_t)n * packet);
    struct qep_topk topk = plain_topk(l);
    OK(cuda->device->route_lists(cuda, &topk, n, r->dev_expert_rank, (int32_t)ranks, dev_rows,
                                 dev_positions, dev_counts));
    int32_t *rows = to_host(cuda, dev_rows, list_bytes);
    int32_t *positions = to_host(cuda, dev_positions, list_bytes);
    int32_t *counts = to_host(cuda, dev_counts, ranks * 4);
    check_lists(l, r, rows, positions, counts);
    for (int p = 0; p < r->split->num_ranks; p++) {
        struct qep_routed_args args = routed_args(l, r, p, decode);
        OK(cuda->device->pack(cuda, packets, l->dev_rows, l->row_bytes, &topk, dev_rows + p * n,
                              counts[p]));
        args.rows = packets;
        args.row_stride = packet;
        args.num_rows = counts[p];
        args.topk = (struct qep_topk){(const void *)(packets + l->row_bytes),
                                      (const void *)(packets + l->row_bytes + (size_t)k * 4),
                                      packet, packet, k};
        if (r->sets[p] != NULL)
            OK(cuda->device->routed(cuda, &args, rank_partials(partials, l, r, p)));
    }
    struct qep_combine_args args = combine_args(l, r, partials, dev_positions);
    args.base = out; /* in place */
    OK(cuda->device->combine(cuda, &args, out));
    float *host = to_host(cuda, out, bytes);
    free(rows);
    free(positions);
    free(counts);
    cuda->ops->free(cuda, dev_rows);
    cuda->ops->free(cuda, dev_positions);
    cuda->ops->free(cuda, dev_counts);
    cuda->ops->free(cuda, packets);
    cuda->ops->free(cuda, partials);
    cuda->ops->free(cuda, out);
    return host;
}

/* base + tree of all items: `experts`, then tree_sum on the device and by the reference. */
static float *run_tree(const struct layer *l, int32_t decode) {
    struct items items = list_items(l);
    int32_t n = l->c->num_rows, at = 0;
    size_t hidden = (size_t)l->c->hidden, bytes = (size_t)n * hidden * 4;
    float *leaves = run_experts(l, &items, 0, items.count, decode);
    int32_t *begin = must_alloc((size_t)(n + 1) * 4),
            *row = must_alloc((size_t)items.count * 4 + 4);
    int32_t *id = must_alloc((size_t)items.count * 4 + 4);
    for (int32_t r = 0; r < n; r++) {
        for (int32_t i = 0; i < items.count; i++)
            if (items.row[i] == r) {
                row[at] = i;
                id[at++] = items.expert[i];
            }
        begin[r + 1] = at;
    }
    float *dev_leaves =
        dev_put(cuda, leaves, (size_t)(items.count > 0 ? items.count : 1) * hidden * 4);
    float *out = dev_put(cuda, NULL, bytes), *want = must_alloc(bytes);
    struct qep_tree_args args = {l->base, leaves, n, l->c->hidden, begin, row, id};
    OK(ref->ops->tree_sum(ref, &args, want));
    args.base = l->dev_base;
    args.src = dev_leaves;
    OK(cuda->ops->tree_sum(cuda, &args, out));
    float *got = to_host(cuda, out, bytes);
    assert_same_bits(got, want, bytes, "tree_sum");
    cuda->ops->free(cuda, dev_leaves);
    cuda->ops->free(cuda, out);
    free(want);
    free(leaves);
    free(begin);
    free(row);
    free(id);
    free_items(&items);
    return got;
}

/* The padding row has no experts, but NaN for weights. */
static void pad(struct layer *l) {
    size_t k = (size_t)l->c->top_k, bytes = (size_t)l->c->num_rows * k * 4;
    for (size_t j = 0; j < k && l->c->padding >= 0; j++) {
        l->idx[(size_t)l->c->padding * k + j] = -1;
        l->weights[(size_t)l->c->padding * k + j] = NAN;
    }
    OK(cuda->ops->upload(cuda, l->dev_idx, l->idx, bytes));
    OK(cuda->ops->upload(cuda, l->dev_weights, l->weights, bytes));
}

/* The last num_splits of the splits. */
static void check_routed(const struct layer *l, int32_t decode, int num_splits) {
    size_t bytes = (size_t)l->c->num_rows * (size_t)l->c->hidden * 4;
    float *want = run_tree(l, decode);
    for (int s = NUM_SPLITS - num_splits; s < NUM_SPLITS; s++) {
        struct ranks r;
        char what[128];
        make_ranks(&r, l, &splits[s]);
        snprintf(what, sizeof what, "routed, %s, split %d, decode %d", l->c->name, s, decode);
        float *plain = run_plain(l, &r, decode), *packets = run_packets(l, &r, decode);
        assert_same_bits(plain, want, bytes, what);
        assert_same_bits(packets, want, bytes, what);
        if (r.split->num_ranks == 1) {
            float *alone = run_alone(l, &r, decode);
            assert_same_bits(alone, want, bytes, what);
            free(alone);
        }
        free(plain);
        free(packets);
        free_ranks(&r);
    }
    free(want);
}

static void check_types(struct rng *rng, const struct expert_case *c, enum qep_weight_type first,
                        enum qep_weight_type second, int num_splits) {
    struct layer l;
    make_layer(&l, cuda, ref, rng, c, first, second);
    pad(&l);
    for (int32_t decode = 0; decode < 2; decode++) {
        check_experts(&l, decode);
        check_routed(&l, decode, num_splits);
    }
    free_layer(&l);
}

START_TEST(experts_agree) {
    struct rng rng = {(uint64_t)_i + 500};
    check_types(&rng, &cases[_i], QEP_WEIGHT_BF16, QEP_WEIGHT_BF16, 1);
    check_types(&rng, &cases[_i], QEP_WEIGHT_INT8, QEP_WEIGHT_INT4, 1);
    check_types(&rng, &cases[_i], QEP_WEIGHT_INT4, QEP_WEIGHT_INT8, NUM_SPLITS);
}
END_TEST

/* Enough pairs for the sort in blocks; a row's bits are those it has alone. */
START_TEST(many_rows_sort_in_blocks) {
    static const struct expert_case many = {"very many rows", 1100, 4, 32, 16, -1, 700};
    static const struct expert_case one = {"one of them", 1, 4, 32, 16, -1, -1};
    struct rng rng = {77};
    struct layer l;
    struct ranks r;
    make_layer(&l, cuda, ref, &rng, &many, QEP_WEIGHT_INT4, QEP_WEIGHT_INT8);
    pad(&l);
    float *want = run_tree(&l, 0);
    make_ranks(&r, &l, &splits[1]);
    float *got = run_packets(&l, &r, 0);
    assert_same_bits(got, want, 1100 * 32 * 4, many.name);
    free(got);
    free_ranks(&r);
    make_ranks(&r, &l, &splits[0]);
    got = run_alone(&l, &r, 0);
    assert_same_bits(got, want, 1100 * 32 * 4, many.name);
    for (int32_t row = 3; row < 1100; row += 500) {
        struct layer part = l;
        part.c = &one;
        part.dev_rows = (char *)l.dev_rows + (size_t)row * l.row_bytes;
        part.dev_idx = (char *)l.dev_idx + (size_t)row * 16;
        part.dev_weights = (char *)l.dev_weights + (size_t)row * 16;
        part.dev_base = (char *)l.dev_base + (size_t)row * 128;
        struct ranks alone;
        make_ranks(&alone, &part, &splits[2]);
        float *single = run_plain(&part, &alone, 0);
        assert_same_bits(single, want + row * 32, 128, one.name);
        free(single);
        free_ranks(&alone);
    }
    free(want);
    free(got);
    free_ranks(&r);
    free_layer(&l);
}
END_TEST

/* A captured step replays with the ids that stand in memory then. */
START_TEST(captured_steps_follow_new_ids) {
    static const struct expert_case c = {"captured", 9, 4, 64, 48, -1, -1};
    struct rng rng = {31};
    struct layer l;
    struct ranks r;
    struct qep_graph *graph = NULL;
    size_t bytes = 9 * 64 * 4;
    make_layer(&l, cuda, ref, &rng, &c, QEP_WEIGHT_INT4, QEP_WEIGHT_INT4);
    make_ranks(&r, &l, &splits[1]);
    float *partials = nan_partials(&l, &r), *out = dev_put(cuda, NULL, bytes);
    launch_plain(&l, &r, 1, partials, out); /* workspaces grow now */
    OK(cuda->device->capture_begin(cuda));
    launch_plain(&l, &r, 1, partials, out);
    OK(cuda->device->capture_end(cuda, &graph));
    for (int turn = 0; turn < 3; turn++) {
        choose_experts(&rng, &l);
        for (int32_t j = 0; j < c.top_k && turn == 1; j++)
            l.idx[2 * c.top_k + j] = -1;
        OK(cuda->ops->upload(cuda, l.dev_idx, l.idx, 9 * 4 * 4));
        OK(cuda->ops->upload(cuda, l.dev_weights, l.weights, 9 * 4 * 4));
        OK(cuda->device->graph_launch(cuda, graph));
        float *got = to_host(cuda, out, bytes), *want = run_tree(&l, 1);
        assert_same_bits(got, want, bytes, "replayed");
        free(got);
        free(want);
    }
    cuda->device->graph_destroy(cuda, graph);
    cuda->ops->free(cuda, partials);
    cuda->ops->free(cuda, out);
    free_ranks(&r);
    free_layer(&l);
}
END_TEST

START_TEST(experts_take_no_items) {
    struct qep_expert_args args = {.hidden_size = 32, .intermediate_size = 32};
    if (cuda != NULL)
        OK(cuda->ops->experts(cuda, &args, NULL));
}
END_TEST

START_TEST(unlike_experts_are_refused) {
    struct rng rng = {1};
    struct qep_host_weight a = random_weight(&rng, QEP_WEIGHT_INT4, 32, 64, 32);
    struct qep_host_weight b = random_weight(&rng, QEP_WEIGHT_INT4, 32, 64, 64);
    struct qep_host_weight f = random_weight(&rng, QEP_WEIGHT_F32, 32, 64, 0);
    struct qep_host_weight *host[] = {&a, &b, &f};
    struct qep_weight *w[3] = {NULL};
    struct qep_expert_set *set = NULL;
    for (int i = 0; cuda != NULL && i < 3; i++)
        OK(cuda->ops->weight_create(cuda, host[i], &w[i]));
    if (cuda != NULL) {
        const struct qep_weight *same[] = {w[0], w[0]}, *unlike[] = {w[0], w[1]}, *f32[] = {w[2]};
        ck_assert_int_eq(cuda->device->expert_set_create(cuda, unlike, same, 2, &set),
                         QEP_ERR_USAGE);
        ck_assert_int_eq(cuda->device->expert_set_create(cuda, same, f32, 1, &set), QEP_ERR_USAGE);
        ck_assert_ptr_null(set);
    }
    for (int i = 0; i < 3; i++) {
        if (cuda != NULL)
            cuda->ops->weight_destroy(cuda, w[i]);
        free_weight(host[i]);
    }
}
END_TEST

/* Random leaf sets, ids up to the sign bit, columns around a block's. */
START_TEST(tree_sum_agrees) {
    enum { OUT = 7, LEAVES = 40, SRC = 11 };
    static const int32_t cols[] = {1, 31, 128, 129, 300};
    struct rng rng = {(uint64_t)_i + 9};
    int32_t begin[OUT + 1] = {0}, row[LEAVES], id[LEAVES], at = 0;
    size_t width = (size_t)cols[_i], bytes = OUT * width * 4;
    for (int o = 0; o < OUT; o++) {
        int64_t next = rng_below(&rng, 3);
        int32_t count = o == 2 ? 0 : o == 3 ? 1 : rng_below(&rng, 9);
        for (int32_t i = 0; i < count && at < LEAVES && next <= INT32_MAX; i++) {
            row[at] = rng_below(&rng, SRC);
            id[at++] = (int32_t)next;
            next += 1 + rng_below(&rng, 1 << rng_below(&rng, o == 6 ? 29 : 4));
        }
        begin[o + 1] = at;
    }
    float *src = random_floats(&rng, SRC * width, 1.0f),
          *base = random_floats(&rng, OUT * width, 1.0f);
    float *want = must_alloc(bytes);
    for (int with_base = 0; cuda != NULL && with_base < 2; with_base++) {
        float *dev_src = dev_put(cuda, src, SRC * width * 4),
              *dev_base = dev_put(cuda, base, bytes);
        float *out = dev_put(cuda, NULL, bytes);
        struct qep_tree_args args = {with_base ? base : NULL, src, OUT, cols[_i], begin, row, id};
        OK(ref->ops->tree_sum(ref, &args, want));
        args.base = with_base ? dev_base : NULL;
        args.src = dev_src;
        OK(cuda->ops->tree_sum(cuda, &args, out));
        float *got = to_host(cuda, out, bytes);
        assert_same_bits(got, want, bytes, "tree_sum");
        free(got);
        cuda->ops->free(cuda, dev_src);
        cuda->ops->free(cuda, dev_base);
        cuda->ops->free(cuda, out);
    }
    free(want);
    free(src);
    free(base);
}
END_TEST

START_TEST(gather_rows_copies) {
    static const size_t widths[] = {4, 52, 64, 2064};
    static const int32_t list[] = {4, 0, 0, 3, 1};
    enum { ROWS = 5, NUM = sizeof list / sizeof list[0] };
    size_t bytes = widths[_i];
    struct rng rng = {2};
    uint8_t *rows = must_alloc(ROWS * bytes);
    for (size_t i = 0; i < ROWS * bytes; i++)
        rows[i] = (uint8_t)rng_next(&rng);
    if (cuda != NULL) {
        void *dev = dev_put(cuda, rows, ROWS * bytes), *out = dev_put(cuda, NULL, NUM * bytes);
        int32_t *dev_list = dev_put(cuda, list, sizeof list);
        OK(cuda->device->gather_rows(cuda, out, dev, bytes, dev_list, NUM));
        uint8_t *got = to_host(cuda, out, NUM * bytes);
        for (size_t j = 0; j < NUM; j++)
            assert_same_bits(got + j * bytes, rows + (size_t)list[j] * bytes, bytes, "gather_rows");
        free(got);
        cuda->ops->free(cuda, dev);
        cuda->ops->free(cuda, out);
        cuda->ops->free(cuda, dev_list);
    }
    free(rows);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda_experts");
    TCase *tc = device_case(suite, "experts", 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, tree_sum_agrees, 0, 5);
    tcase_add_loop_test(tc, gather_rows_copies, 0, 4);
    tcase_add_test(tc, experts_take_no_items);
    tcase_add_test(tc, unlike_experts_are_refused);
    tcase_add_loop_test(tc, experts_agree, 0, NUM_CASES);
    tcase_add_test(tc, many_rows_sort_in_blocks);
    tcase_add_test(tc, captured_steps_follow_new_ids);
    return run_device_suite(suite);
}

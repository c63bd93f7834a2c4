#include "dist/placement.h"

#include <check.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_P = 40, MAX_E = 512, TOP_K = 8, ROW = 5 };

static const int32_t expert_counts[] = {0, 1, 3, 7, 16, 24, 32, 60, 100, 128, 256, 300, 512};
enum { NUM_EXPERT_COUNTS = sizeof expert_counts / sizeof expert_counts[0] };

/* The dims of the 35B model. */
static struct qep_model_config config_35b(void) {
    struct qep_model_config c = {.vocab_size = 248320,
                                 .hidden_size = 2048,
                                 .num_hidden_layers = 40,
                                 .num_attention_heads = 16,
                                 .num_key_value_heads = 2,
                                 .head_dim = 256,
                                 .linear_num_key_heads = 16,
                                 .linear_num_value_heads = 32,
                                 .linear_key_head_dim = 128,
                                 .linear_value_head_dim = 128,
                                 .linear_conv_kernel_dim = 4,
                                 .num_experts = 256,
                                 .num_experts_per_tok = 8,
                                 .moe_intermediate_size = 512,
                                 .shared_expert_intermediate_size = 512};
    for (int l = 0; l < c.num_hidden_layers; l++)
        c.layer_types[l] = l % 4 == 3 ? QEP_LAYER_FULL_ATTENTION : QEP_LAYER_LINEAR_ATTENTION;
    return c;
}

static struct qep_placement *place(int32_t num_experts, int num_ranks) {
    struct qep_model_config c = config_35b();
    struct qep_placement *pl = NULL;
    c.num_experts = num_experts;
    c.intermediate_size = 1024;
    ck_assert_int_eq(qep_placement_create(&c, num_ranks, QEP_ATTENTION_LAYERS, &pl), QEP_OK);
    return pl;
}

static void check_cover(const struct qep_range *ranges, int num_ranks, int32_t count) {
    int32_t at = 0;
    for (int r = 0; r < num_ranks; r++) {
        ck_assert_int_eq(ranges[r].begin, at);
        ck_assert_int_ge(ranges[r].end, at);
        at = ranges[r].end;
    }
    ck_assert_int_eq(at, count);
}

static void check_experts(const struct qep_placement *pl) {
    int32_t unit = (pl->num_experts + 31) / 32, least = INT32_MAX, most = 0;
    check_cover(pl->experts, pl->num_ranks, pl->num_experts);
    for (int r = 0; r < pl->num_ranks; r++) {
        struct qep_range range = pl->experts[r];
        int32_t n = range.end - range.begin;
        for (int32_t e = range.begin; e < range.end; e++)
            ck_assert_int_eq(pl->expert_rank[e], r);
        if (unit > 0 && range.end < pl->num_experts)
            ck_assert_int_eq(range.end % unit, 0);
        least = n < least ? n : least;
        most = n > most ? n : most;
    }
    if (unit > 0) /* the last block may be short */
        ck_assert_int_le(most - least, 2 * unit - 1);
}

/* The ranges of a rank: ascending, gapless, from its first id to its last (or the padded end), and
 * no two of them form a dyadic range together. */
static void check_dyadic(const struct qep_placement *pl) {
    int32_t padded = pl->num_experts_padded;
    ck_assert(padded >= 1 && (padded & (padded - 1)) == 0 && padded >= pl->num_experts);
    ck_assert(padded == 1 || padded / 2 < pl->num_experts);
    ck_assert_int_eq(pl->dyadic_begin[0], 0);
    for (int r = 0; r < pl->num_ranks; r++) {
        struct qep_range range = pl->experts[r];
        int32_t first = pl->dyadic_begin[r], last = pl->dyadic_begin[r + 1], at = range.begin;
        if (range.begin == range.end) {
            ck_assert_int_eq(first, last);
            continue;
        }
        for (int32_t i = first; i < last; i++) {
            struct qep_dyadic d = pl->dyadic[i];
            ck_assert_int_eq(d.index << d.level, at);
            int32_t next = (d.index + 1) << d.level;
            for (int32_t e = at; e < next && e < pl->num_experts; e++)
                ck_assert_int_eq(pl->expert_dyadic[e], i);
            bool has_pair = i + 1 < last && pl->dyadic[i + 1].level == d.level;
            ck_assert(!has_pair || (d.index & 1) != 0);
            at = next;
        }
        ck_assert_int_eq(at, range.end == pl->num_experts ? padded : range.end);
    }
}

static void check_layers(const struct qep_placement *pl) {
    int32_t before = 0;
    for (int32_t l = 0; l < pl->num_layers; l++) {
        ck_assert_int_ge(pl->layer_rank[l], before);
        ck_assert_int_lt(pl->layer_rank[l], pl->num_ranks);
        ck_assert_int_eq(qep_owner(pl, l, 77), pl->layer_rank[l]);
        before = pl->layer_rank[l];
    }
    ck_assert_int_eq(qep_owner(pl, pl->num_layers, 0), before);
}

START_TEST(tables_hold_for_every_p) {
    for (int p = 1; p <= MAX_P; p++) {
        struct qep_placement *pl = place(expert_counts[_i], p);
        check_experts(pl);
        check_dyadic(pl);
        check_layers(pl);
        check_cover(pl->vocab_rows, p, 248320);
        check_cover(pl->vocab_blocks, p, 64);
        qep_placement_destroy(pl);
    }
}
END_TEST

START_TEST(many_ranks) {
    struct qep_placement *pl = place(256, 4096);
    check_experts(pl);
    check_dyadic(pl);
    check_layers(pl);
    qep_placement_destroy(pl);
    struct qep_model_config c = config_35b();
    ck_assert_int_eq(qep_placement_create(&c, 4097, QEP_ATTENTION_LAYERS, &pl), QEP_ERR_USAGE);
    ck_assert_ptr_null(pl);
    ck_assert_int_eq(qep_placement_create(&c, 0, QEP_ATTENTION_LAYERS, &pl), QEP_ERR_USAGE);
}
END_TEST

START_TEST(small_vocabularies) {
    static const int32_t sizes[] = {1, 2, 63, 64, 65, 101, 1000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (int p = 1; p <= MAX_P; p++) {
            struct qep_model_config c = config_35b();
            struct qep_placement *pl = NULL;
            c.vocab_size = sizes[i];
            ck_assert_int_eq(qep_placement_create(&c, p, QEP_ATTENTION_LAYERS, &pl), QEP_OK);
            check_cover(pl->vocab_rows, p, sizes[i]);
            qep_placement_destroy(pl);
        }
    }
}
END_TEST

/* (DeltaNet, full attention) layers of each rank. */
START_TEST(layer_blocks_of_the_35b_model) {
    static const struct {
        int num_ranks;
        int counts[8][2];
    } cases[] = {
        {1, {{30, 10}}},
        {2, {{15, 5}, {15, 5}}},
        {4, {{8, 2}, {7, 3}, {8, 2}, {7, 3}}},
        {5, {{6, 2}, {6, 2}, {6, 2}, {6, 2}, {6, 2}}},
        {8, {{4, 1}, {4, 1}, {4, 1}, {3, 2}, {4, 1}, {4, 1}, {4, 1}, {3, 2}}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct qep_model_config c = config_35b();
        struct qep_placement *pl = place(256, cases[i].num_ranks);
        int counts[8][2] = {{0}};
        for (int l = 0; l < 40; l++)
            counts[pl->layer_rank[l]][c.layer_types[l]]++;
        ck_assert_mem_eq(counts, cases[i].counts, sizeof counts);
        qep_placement_destroy(pl);
    }
}
END_TEST

/* No rank's block is more than one layer longer or shorter than another's: costs are near equal. */
START_TEST(layer_blocks_are_even) {
    for (int p = 1; p <= MAX_P; p++) {
        struct qep_placement *pl = place(256, p);
        int counts[MAX_P] = {0}, least = 40, most = 0;
        for (int l = 0; l < 40; l++)
            counts[pl->layer_rank[l]]++;
        for (int r = 0; r < p; r++) {
            least = counts[r] < least ? counts[r] : least;
            most = counts[r] > most ? counts[r] : most;
        }
        ck_assert_int_le(most - least, 2);
        qep_placement_destroy(pl);
    }
}
END_TEST

START_TEST(sequences_take_turns) {
    struct qep_model_config c = config_35b();
    struct qep_placement *pl = NULL;
    ck_assert_int_eq(qep_placement_create(&c, 3, QEP_ATTENTION_SEQUENCES, &pl), QEP_OK);
    for (int32_t slot = 0; slot < 10; slot++)
        for (int32_t l = 0; l <= 40; l++)
            ck_assert_int_eq(qep_owner(pl, l, slot), slot % 3);
    qep_placement_destroy(pl);
}
END_TEST

/* --- the sum tree: partials of any placement merge to the same bits --- */

struct leaf {
    bool present;
    float row[ROW];
};

/* The sum over ids [index << level, (index + 1) << level): present children added left to right. */
static struct leaf tree_sum(const struct leaf *leaves, int32_t count, int32_t level,
                            int32_t index) {
    struct leaf sum = {.present = false};
    if (index << level >= count)
        return sum;
    if (level == 0)
        return leaves[index];
    struct leaf left = tree_sum(leaves, count, level - 1, 2 * index);
    struct leaf right = tree_sum(leaves, count, level - 1, 2 * index + 1);
    if (!left.present || !right.present)
        return left.present ? left : right;
    sum.present = true;
    for (int i = 0; i < ROW; i++)
        sum.row[i] = left.row[i] + right.row[i];
    return sum;
}

static bool inside(struct qep_dyadic inner, int32_t level, int32_t index) {
    return inner.level <= level && inner.index >> (level - inner.level) == index;
}

/* The receiver's side: the same tree, whose leaves are the ranks' partials. */
static struct leaf merge_partials(const struct qep_placement *pl, const struct leaf *partials,
                                  int32_t first, int32_t last, int32_t level, int32_t index) {
    struct leaf sum = {.present = false};
    while (first < last && !inside(pl->dyadic[first], level, index))
        first++;
    while (last > first && !inside(pl->dyadic[last - 1], level, index))
        last--;
    if (first == last)
        return sum;
    if (last - first == 1)
        return partials[first];
    struct leaf left = merge_partials(pl, partials, first, last, level - 1, 2 * index);
    struct leaf right = merge_partials(pl, partials, first, last, level - 1, 2 * index + 1);
    if (!left.present || !right.present)
        return left.present ? left : right;
    sum.present = true;
    for (int i = 0; i < ROW; i++)
        sum.row[i] = left.row[i] + right.row[i];
    return sum;
}

static uint32_t next_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static void random_leaves(struct leaf *leaves, int32_t num_experts, uint32_t *state) {
    memset(leaves, 0, (size_t)num_experts * sizeof *leaves);
    for (int k = 0; k < TOP_K; k++) {
        struct leaf *leaf = &leaves[next_random(state) % (uint32_t)num_experts];
        leaf->present = true;
        for (int i = 0; i < ROW; i++) {
            float unit = (float)next_random(state) / 16777216.0f - 0.5f;
            leaf->row[i] = ldexpf(unit, (int)(next_random(state) % 16) - 8);
        }
    }
}

START_TEST(partials_of_any_p_give_the_same_bits) {
    int32_t num_experts = expert_counts[_i];
    static struct leaf leaves[MAX_E], partials[MAX_E];
    uint32_t state = (uint32_t)num_experts;
    if (num_experts == 0)
        return;
    for (int p = 1; p <= MAX_P; p++) {
        struct qep_placement *pl = place(num_experts, p);
        int32_t top = 0, num_dyadic = pl->dyadic_begin[p];
        while (1 << top < pl->num_experts_padded)
            top++;
        for (int round = 0; round < 50; round++) {
            random_leaves(leaves, num_experts, &state);
            struct leaf whole = tree_sum(leaves, num_experts, top, 0);
            for (int32_t i = 0; i < num_dyadic; i++)
                partials[i] =
                    tree_sum(leaves, num_experts, pl->dyadic[i].level, pl->dyadic[i].index);
            struct leaf merged = merge_partials(pl, partials, 0, num_dyadic, top, 0);
            ck_assert(whole.present && merged.present);
            ck_assert_mem_eq(merged.row, whole.row, sizeof whole.row);
        }
        qep_placement_destroy(pl);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("placement");
    TCase *tcase = tcase_create("placement");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, tables_hold_for_every_p, 0, NUM_EXPERT_COUNTS);
    tcase_add_loop_test(tcase, partials_of_any_p_give_the_same_bits, 0, NUM_EXPERT_COUNTS);
    tcase_add_test(tcase, many_ranks);
    tcase_add_test(tcase, small_vocabularies);
    tcase_add_test(tcase, layer_blocks_of_the_35b_model);
    tcase_add_test(tcase, layer_blocks_are_even);
    tcase_add_test(tcase, sequences_take_turns);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

/* The expert exchange alone, on exact integers: every row's experts contribute a known whole
 * number, so the sum at owner(l + 1) is exact whatever the split. Also: which rows arrive where. */
#include "dist/exchange.h"
#include "kernels/backend.h"

#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { HIDDEN = 4, TOP_K = 3, EXPERTS = 24, LAYERS = 4, ROWS = 37, SLOTS = 5, MAX_RANKS = 9 };

struct world {
    int num_ranks;
    enum qep_attention_mode attention;
    bool decode;
    struct qep_model_config config;
    pthread_barrier_t barrier;
};

struct rank_arg {
    struct world *world;
    struct qep_comm *comm;
    int failures;
};

static int32_t row_slot(int32_t row) {
    return row % SLOTS;
}

/* Three distinct experts of a row. */
static int32_t row_expert(int32_t layer, int32_t row, int32_t j) {
    return (row * 7 + layer * 5 + j * 8 + row % 3) % EXPERTS;
}

static float base_value(int32_t layer, int32_t row, int32_t col) {
    return (float)(layer * 1000 + row * 10 + col);
}

static float item_value(int32_t expert, int32_t row, int32_t col) {
    return (float)(expert * 64 + row * 4 + col);
}

static float expected(int32_t layer, int32_t row, int32_t col) {
    float sum = base_value(layer, row, col);
    for (int32_t j = 0; j < TOP_K; j++)
        sum += item_value(row_expert(layer, row, j), row, col);
    return sum;
}

/* Plays experts: partials by plain addition (whole numbers, exact in any order). */
static void fill_partials(const struct qep_exchange_items *items, const struct qep_range *mine,
                          const char *recv, size_t stride, float *partials) {
    for (int32_t o = 0; o < items->num_partials; o++)
        for (int32_t c = 0; c < HIDDEN; c++) {
            float sum = 0;
            for (int32_t l = items->leaf_begin[o]; l < items->leaf_begin[o + 1]; l++) {
                int32_t item = items->leaf_row[l], row;
                memcpy(&row, recv + (size_t)items->item_row[item] * stride, sizeof row);
                sum += item_value(items->item_expert[item] + mine->begin, row, c);
            }
            partials[o * HIDDEN + c] = sum;
        }
}

static int check_layer(struct rank_arg *me, struct qep_exchange *ex, const struct qep_placement *pl,
                       int32_t layer) {
    struct qep_exchange_rows rows = {.num_rows = ROWS, .decode = me->world->decode};
    int32_t slots[ROWS], idx[ROWS * TOP_K], n = 0, num_recv;
    float weights[ROWS * TOP_K], base[ROWS * HIDDEN], *partials;
    char act[ROWS * 16] = {0};
    const void *recv;
    size_t stride;
    const struct qep_exchange_items *items;
    const struct qep_exchange_sums *sums;
    int failures = 0;
    for (int32_t g = 0; g < ROWS; g++)
        slots[g] = row_slot(g);
    rows.row_slot = slots;
    for (int32_t g = 0; g < ROWS; g++) {
        if (qep_owner(pl, layer, slots[g]) != me->comm->rank)
            continue;
        memcpy(act + n * 16, &g, sizeof g); /* the row names itself */
        for (int32_t j = 0; j < TOP_K; j++) {
            idx[n * TOP_K + j] = row_expert(layer, g, j);
            weights[n * TOP_K + j] = (float)j;
        }
        for (int32_t c = 0; c < HIDDEN; c++)
            base[n * HIDDEN + c] = base_value(layer, g, c);
        n++;
    }
    failures += n != qep_exchange_num_local(ex, &rows, layer);
    if (qep_exchange_dispatch(ex, &rows, layer, act, 16, idx, weights, base, &recv, &stride,
                              &num_recv, &items) != QEP_OK)
        return 1000;
    partials = calloc((size_t)items->num_partials * HIDDEN + 1, sizeof *partials);
    fill_partials(items, &pl->experts[me->comm->rank], recv, stride, partials);
    if (qep_exchange_combine(ex, partials, &sums) != QEP_OK)
        return 1000;
    int32_t o = 0;
    for (int32_t g = 0; g < ROWS; g++) {
        if (qep_owner(pl, layer + 1, slots[g]) != me->comm->rank)
            continue;
        for (int32_t c = 0; c < HIDDEN; c++) {
            float sum = sums->base[o * HIDDEN + c];
            for (int32_t l = sums->leaf_begin[o]; l < sums->leaf_begin[o + 1]; l++)
                sum += sums->partials[sums->leaf_row[l] * HIDDEN + c];
            failures += sum != expected(layer, g, c);
        }
        for (int32_t l = sums->leaf_begin[o] + 1; l < sums->leaf_begin[o + 1]; l++)
            failures += sums->leaf_id[l] <= sums->leaf_id[l - 1];
        o++;
    }
    failures += o != sums->num_rows;
    free(partials);
    return failures;
}

static void *rank_main(void *p) {
    struct rank_arg *me = p;
    struct qep_placement *pl = NULL;
    struct qep_exchange *ex = NULL;
    me->failures = 1;
    if (qep_placement_create(&me->world->config, me->world->num_ranks, me->world->attention, &pl) ==
            QEP_OK &&
        qep_exchange_create(me->comm, pl, HIDDEN, TOP_K, &ex) == QEP_OK) {
        me->failures = 0;
        for (int32_t layer = 0; layer < LAYERS; layer++)
            me->failures += check_layer(me, ex, pl, layer);
    }
    qep_exchange_destroy(ex);
    qep_placement_destroy(pl);
    qep_comm_destroy(me->comm);
    return NULL;
}

static void fill_config(struct qep_model_config *c) {
    memset(c, 0, sizeof *c);
    c->vocab_size = 100;
    c->hidden_size = HIDDEN;
    c->num_hidden_layers = LAYERS;
    c->layer_types[3] = QEP_LAYER_FULL_ATTENTION;
    c->num_attention_heads = c->num_key_value_heads = c->head_dim = 1;
    c->linear_num_key_heads = c->linear_num_value_heads = 1;
    c->linear_key_head_dim = c->linear_value_head_dim = 1;
    c->linear_conv_kernel_dim = 4;
    c->num_experts = EXPERTS;
    c->num_experts_per_tok = TOP_K;
    c->moe_intermediate_size = 1;
}

/* _i: ranks, placement and phase in one number. */
START_TEST(rows_come_back_summed) {
    struct world world = {.num_ranks = _i / 4 + 1,
                          .attention = _i & 1 ? QEP_ATTENTION_SEQUENCES : QEP_ATTENTION_LAYERS,
                          .decode = (_i & 2) != 0};
    struct qep_comm *comms[MAX_RANKS];
    struct rank_arg args[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    fill_config(&world.config);
    ck_assert_int_eq(qep_comm_threads_create(world.num_ranks, comms), QEP_OK);
    for (int r = 0; r < world.num_ranks; r++) {
        args[r] = (struct rank_arg){.world = &world, .comm = comms[r]};
        ck_assert_int_eq(pthread_create(&threads[r], NULL, rank_main, &args[r]), 0);
    }
    for (int r = 0; r < world.num_ranks; r++)
        pthread_join(threads[r], NULL);
    for (int r = 0; r < world.num_ranks; r++)
        ck_assert_msg(args[r].failures == 0, "rank %d of %d: %d failures", r, world.num_ranks,
                      args[r].failures);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("exchange");
    TCase *tc = tcase_create("exchange");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, rows_come_back_summed, 0, 4 * MAX_RANKS);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

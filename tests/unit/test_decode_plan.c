/* What a decode run begins with survives the way from the coordinator to a rank, and plans whose
 * bytes do not fit their counts are refused. */
#include "model/decode.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 7 };

static struct qep_plan plan;

static void setup(void) {
    qep_plan_init(&plan);
}

static void teardown(void) {
    qep_plan_free(&plan);
}

/* Two sequences, slots 3 and 1; the second has a penalty. */
static void make_begin(const uint8_t *allowed) {
    static const int32_t ids[] = {5, 6}, prompt[] = {1, 2, 2}, generated[] = {4};
    static const struct qep_plan_span spans[] = {
        {.slot = 3, .position = 10, .num_rows = 1, .decode = 1},
        {.slot = 1, .position = 70, .num_rows = 1, .decode = 1}};
    const struct qep_decode_options options = {.num_ids = VOCAB, .allowed = allowed};
    struct qep_device_draw draws[] = {
        {.seed = 11, .temperature = 1, .repetition_penalty = 1, .slot = -7},
        {.seed = 12, .greedy = 1, .repetition_penalty = 1.5, .slot = -7}};
    const struct qep_decode_history history[] = {
        {.prompt_ids = prompt, .num_prompt = 3},
        {.prompt_ids = prompt, .num_prompt = 3, .generated_ids = generated, .num_generated = 1}};
    qep_plan_clear(&plan, QEP_PLAN_DECODE_BEGIN, 0);
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(qep_plan_add(&plan, &spans[i], &ids[i]), QEP_OK);
    ck_assert_int_eq(qep_decode_plan_begin(&plan, &options, draws, history), QEP_OK);
}

START_TEST(begin_comes_back) {
    static const uint8_t some[VOCAB] = {1, 0, 1, 1, 0, 1, 1};
    static const int32_t want[][3] = {{1, 1, DECODE_SEEN_PROMPT},
                                      {1, 2, DECODE_SEEN_PROMPT},
                                      {1, 2, DECODE_SEEN_PROMPT},
                                      {1, 4, DECODE_SEEN_GENERATED}};
    const uint8_t *allowed = _i == 0 ? NULL : some;
    struct decode_begin begin;
    make_begin(allowed);
    ck_assert_int_eq(decode_plan_read_begin(&plan, &begin), QEP_OK);
    ck_assert_int_eq(begin.num_ids, VOCAB);
    ck_assert_int_eq(begin.num_allowed, _i == 0 ? 0 : VOCAB);
    if (_i == 1)
        ck_assert_mem_eq(begin.allowed, some, VOCAB);
    for (int i = 0; i < 2; i++) {
        struct qep_device_draw draw = decode_draw(&begin, i);
        ck_assert_uint_eq(draw.seed, i == 0 ? 11 : 12);
        ck_assert_int_eq(draw.slot, i == 0 ? 3 : 1);
        ck_assert_uint_eq(draw.position, i == 0 ? 11 : 71);
    }
    ck_assert_int_eq(begin.num_seen, 4);
    for (int i = 0; i < 4; i++) {
        struct decode_seen_id seen = decode_seen(&begin, i);
        ck_assert_int_eq(seen.slot, want[i][0]);
        ck_assert_int_eq(seen.id, want[i][1]);
        ck_assert_int_eq(seen.bits, want[i][2]);
    }
}
END_TEST

START_TEST(begin_of_another_size_is_refused) {
    struct decode_begin begin;
    make_begin(NULL);
    size_t bytes = plan.extra_bytes;
    for (size_t n = 0; n < bytes + 2; n++) {
        plan.extra_bytes = n;
        ck_assert_int_eq(decode_plan_read_begin(&plan, &begin), n == bytes ? QEP_OK : QEP_ERR_BUG);
        if (n == bytes)
            ck_assert_int_eq(qep_plan_extend(&plan, bytes + 1), QEP_OK);
    }
}
END_TEST

START_TEST(logits_name_sequence_and_step) {
    int32_t sequence = 0, step = 0;
    make_begin(NULL);
    ck_assert_int_eq(qep_decode_plan_logits(&plan, 4, 123456), QEP_OK);
    ck_assert_int_eq(plan.kind, QEP_PLAN_DECODE_LOGITS);
    ck_assert_int_eq(plan.num_spans, 0);
    ck_assert_int_eq(decode_plan_read_logits(&plan, &sequence, &step), QEP_OK);
    ck_assert_int_eq(sequence, 4);
    ck_assert_int_eq(step, 123456);
    plan.extra_bytes--;
    ck_assert_int_eq(decode_plan_read_logits(&plan, &sequence, &step), QEP_ERR_BUG);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("decode_plan");
    TCase *tc = tcase_create("decode_plan");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, begin_comes_back, 0, 2);
    tcase_add_test(tc, begin_of_another_size_is_refused);
    tcase_add_test(tc, logits_name_sequence_and_step);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* Transports on device memory over a device of plain memory. */
#include "device_comm_support.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static const int rank_counts[] = {1, 2, 3, 4, 7};
enum { NUM_RANK_COUNTS = sizeof rank_counts / sizeof rank_counts[0] };

static void (*const bodies[])(struct rank_arg *) = {alltoallv_body, nothing_body, allgather_body,
                                                    alltoall_body,  chain_body,   move_body,
                                                    warm_up_body};
enum { NUM_BODIES = sizeof bodies / sizeof bodies[0] };

START_TEST(staged_moves_what_the_host_transport_moves) {
    run_ranks(rank_counts[_i % NUM_RANK_COUNTS], &plain_device, QEP_DEVICE_TRANSPORT_STAGED, true,
              bodies[_i / NUM_RANK_COUNTS]);
}
END_TEST

static void choice_body(struct rank_arg *arg) {
    bool alone = arg->comm->num_ranks == 1;
    RANK_CHECK(strcmp(arg->dc->ops->name, alone ? "self" : "staged") == 0);
    RANK_CHECK(arg->dc->capturable == alone);
    RANK_CHECK(alone || strstr(arg->dc->detail, "threads") != NULL);
}

START_TEST(one_rank_needs_no_transport) {
    run_ranks(1, &plain_device, QEP_DEVICE_TRANSPORT_AUTO, true, choice_body);
    run_ranks(1, &plain_device, QEP_DEVICE_TRANSPORT_STAGED, true, choice_body);
    run_ranks(2, &plain_device, QEP_DEVICE_TRANSPORT_STAGED, true, choice_body);
}
END_TEST

/* rank:        0 1 2 3
 * device here: 1 2 3 2 */
static void shared_body(struct rank_arg *arg) {
    int first = 0, second = 0;
    RANK_CHECK(qep_device_duplicates(arg->comm, arg->memory.uuid, &first, &second) == QEP_OK);
    RANK_CHECK(first == -1 && second == -1);
    if (arg->comm->rank == 3)
        arg->memory.uuid[0] = 2;
    RANK_CHECK(qep_device_duplicates(arg->comm, arg->memory.uuid, &first, &second) == QEP_OK);
    RANK_CHECK(first == 1 && second == 3);
    RANK_CHECK(qep_device_comm_create(arg->comm, &arg->memory, QEP_DEVICE_TRANSPORT_AUTO, 5.0,
                                      &arg->dc) == QEP_OK);
    RANK_CHECK(strcmp(arg->dc->ops->name, "staged") == 0);
    RANK_CHECK(strstr(arg->dc->detail, "not NCCL: ") == arg->dc->detail);
    RANK_CHECK(!arg->comm->failure_shared);
    qep_device_comm_destroy(arg->dc);
}

START_TEST(ranks_that_share_a_device_are_found) {
    run_ranks(4, &plain_device, QEP_DEVICE_TRANSPORT_AUTO, false, shared_body);
}
END_TEST

static void own_size_body(struct rank_arg *arg) {
    size_t bytes[MAX_TEST_RANKS] = {0}, offset[MAX_TEST_RANKS] = {0}, none[MAX_TEST_RANKS] = {0};
    char byte = 0;
    bytes[arg->comm->rank] = 1;
    RANK_CHECK(arg->dc->ops->alltoallv(arg->dc, &byte, bytes, offset, &byte, none, offset) ==
               QEP_ERR_BUG);
    RANK_CHECK(strstr(qep_last_error(), "sends itself 1 bytes but expects 0") != NULL);
}

START_TEST(own_sizes_must_agree) {
    run_ranks(1, &plain_device, QEP_DEVICE_TRANSPORT_STAGED, true, own_size_body);
    run_ranks(2, &plain_device, QEP_DEVICE_TRANSPORT_STAGED, true, own_size_body);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("device_comm");
    TCase *tcase = tcase_create("device_comm");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, staged_moves_what_the_host_transport_moves, 0,
                        NUM_BODIES * NUM_RANK_COUNTS);
    tcase_add_test(tcase, one_rank_needs_no_transport);
    tcase_add_test(tcase, ranks_that_share_a_device_are_found);
    tcase_add_test(tcase, own_sizes_must_agree);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed > 0;
}

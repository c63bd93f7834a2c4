/* Numbers that are not finite stay so through every op of the host backends, on every ISA level. */
#include "nonfinite_support.h"

static struct variant variants[MAX_VARIANTS];
static struct nf_backends backends;

static void setup(void) {
    backends = (struct nf_backends){
        .num = open_variants(variants), .same_from = 1, .tolerance = 1e-5, .acts = 7, .kvs = 7};
    for (int v = 0; v < backends.num; v++) {
        backends.be[v] = variants[v].be;
        backends.name[v] = variants[v].name;
    }
}

static void teardown(void) {
    close_variants(variants, backends.num);
}

static void (*const plain[])(const struct nf_backends *) = {
    nf_embed,  nf_rms_norm, nf_act_convert, nf_swiglu,     nf_delta_norm,
    nf_router, nf_tree_sum, nf_kv_int8,     nf_delta_conv, nf_delta};

START_TEST(op_keeps_what_is_not_finite) {
    plain[_i](&backends);
}
END_TEST

START_TEST(matmul_keeps_what_is_not_finite) {
    nf_matmul(&backends, (enum qep_weight_type)_i);
}
END_TEST

START_TEST(experts_keep_what_is_not_finite) {
    nf_experts(&backends, (enum qep_weight_type)_i);
}
END_TEST

START_TEST(attention_keeps_what_is_not_finite) {
    nf_attention(&backends, (enum qep_kv_type)_i);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("nonfinite");
    TCase *tc = tcase_create("nonfinite");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, op_keeps_what_is_not_finite, 0, (int)(sizeof plain / sizeof plain[0]));
    tcase_add_loop_test(tc, matmul_keeps_what_is_not_finite, QEP_WEIGHT_F32, QEP_WEIGHT_INT4 + 1);
    tcase_add_loop_test(tc, experts_keep_what_is_not_finite, QEP_WEIGHT_F32, QEP_WEIGHT_INT4 + 1);
    tcase_add_loop_test(tc, attention_keeps_what_is_not_finite, QEP_KV_F32, QEP_KV_INT8 + 1);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

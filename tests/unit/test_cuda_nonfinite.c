/* Numbers that are not finite stay so through every op of the CUDA backend. */
#include "nonfinite_support.h"

static struct nf_backends backends;

static void setup(void) {
    backends = (struct nf_backends){.num = 1,
                                    .be = {open_cuda()},
                                    .name = {"cuda"},
                                    .tolerance = 1e-5,
                                    .acts = 7,
                                    .kvs = 7,
                                    .expert_acts = 1u << QEP_ACT_BF16,
                                    .tiles = true,
                                    .brief = true};
}

static void teardown(void) {
    close_cuda(backends.be[0]);
}

static void (*const plain[])(const struct nf_backends *) = {
    nf_embed,  nf_rms_norm, nf_act_convert, nf_swiglu,    nf_delta_norm,
    nf_router, nf_tree_sum, nf_kv_int8,     nf_delta_conv};

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

/* Chunks multiply in tf32. */
START_TEST(delta_keeps_what_is_not_finite) {
    backends.tolerance = 2e-3;
    nf_delta(&backends);
}
END_TEST

/* bf16 queries, keys, weights and values. */
START_TEST(attention_keeps_what_is_not_finite) {
    backends.tolerance = 1.5e-2;
    nf_attention(&backends, (enum qep_kv_type)_i);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda nonfinite");
    TCase *tc = device_case(suite, "cuda nonfinite", 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, op_keeps_what_is_not_finite, 0, (int)(sizeof plain / sizeof plain[0]));
    tcase_add_loop_test(tc, matmul_keeps_what_is_not_finite, QEP_WEIGHT_F32, QEP_WEIGHT_INT4 + 1);
    tcase_add_loop_test(tc, experts_keep_what_is_not_finite, QEP_WEIGHT_BF16, QEP_WEIGHT_INT4 + 1);
    tcase_add_test(tc, delta_keeps_what_is_not_finite);
    tcase_add_loop_test(tc, attention_keeps_what_is_not_finite, QEP_KV_F32, QEP_KV_INT8 + 1);
    return run_device_suite(suite);
}

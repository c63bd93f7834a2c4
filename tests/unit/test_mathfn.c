/* The elementary functions against libm in double, over their ranges and at their limits. */
#include "kernels/mathfn.h"

#include <check.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>

/* Error in units in the last place of the fp32 result. */
static double ulps(float got, double want) {
    int exponent;
    float nearest = (float)want;
    if (isinf(nearest) || nearest == 0.0f)
        return got == nearest ? 0.0 : 1e9;
    frexp((double)nearest, &exponent);
    return fabs((double)got - want) / ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
}

static double exp_double(double x) {
    return exp(x);
}
static double sigmoid_double(double x) {
    return 1.0 / (1.0 + exp(-x));
}
static double silu_double(double x) {
    return x / (1.0 + exp(-x));
}
static double softplus_double(double x) {
    return x > 30.0 ? x + exp(-x) : log1p(exp(x));
}

static const struct {
    const char *name;
    float (*function)(float);
    double (*exact)(double);
    double low, high, most_ulps;
} functions[] = {
    {"exp", qep_expf, exp_double, -103.0, 88.7, 2.0},
    {"sigmoid", qep_sigmoidf, sigmoid_double, -87.0, 100.0, 3.0},
    {"silu", qep_siluf, silu_double, -87.0, 100.0, 3.0},
    {"softplus", qep_softplusf, softplus_double, -87.0, 100.0, 3.0},
    {"log", qep_logf, log, 1e-6, 100.0, 2.0},
    {"log1p", qep_log1p_unit, log1p, 0.0, 1.0, 2.0},
};

enum { NUM_FUNCTIONS = sizeof functions / sizeof functions[0], POINTS = 2000003 };

START_TEST(function_is_accurate) {
    double span = functions[_i].high - functions[_i].low;
    for (int i = 0; i < POINTS; i++) {
        float x = (float)(functions[_i].low + span * i / (POINTS - 1));
        double error = ulps(functions[_i].function(x), functions[_i].exact((double)x));
        if (!(error <= functions[_i].most_ulps))
            ck_abort_msg("%s(%.9g) is off by %.2f ulp", functions[_i].name, (double)x, error);
    }
}
END_TEST

START_TEST(log_is_accurate_over_all_exponents) {
    for (uint32_t bits = 0x00800000u; bits < 0x7f800000u; bits += 1009) {
        float x = qep_float_from_bits(bits);
        ck_assert_double_le(ulps(qep_logf(x), log((double)x)), 2.0);
    }
}
END_TEST

START_TEST(limits_are_those_of_libm) {
    ck_assert(qep_expf(-INFINITY) == 0.0f && qep_expf(INFINITY) == INFINITY);
    ck_assert(qep_expf(-1e30f) == 0.0f && qep_expf(1e30f) == INFINITY);
    ck_assert(qep_expf(0.0f) == 1.0f && qep_expf(-0.0f) == 1.0f);
    ck_assert(isnan(qep_expf(NAN)) && isnan(qep_logf(NAN)) && isnan(qep_siluf(NAN)));
    ck_assert(isnan(qep_sigmoidf(NAN)) && isnan(qep_softplusf(NAN)));
    ck_assert(isnan(qep_sigmoidf(-INFINITY)) && isnan(qep_sigmoidf(INFINITY)));
    ck_assert(isnan(qep_siluf(-INFINITY)) && qep_siluf(INFINITY) == INFINITY);
    ck_assert(qep_siluf(-FLT_MAX) == 0.0f && qep_siluf(-1e30f) == 0.0f);
    ck_assert(isnan(qep_softplusf(-INFINITY)) && isnan(qep_softplusf(INFINITY)));
    ck_assert(qep_softplusf(20.5f) == 20.5f && qep_softplusf(1e30f) == 1e30f);
    ck_assert(qep_logf(INFINITY) == INFINITY && qep_logf(1.0f) == 0.0f);
    for (int n = -126; n <= 127; n++)
        ck_assert(qep_pow2i(n) == ldexpf(1.0f, n));
    static const struct {
        float x;
        int32_t want;
    } ties[] = {{0.5f, 0}, {1.5f, 2}, {2.5f, 2}, {-0.5f, 0}, {-1.5f, -2}, {126.5f, 126}};
    for (size_t i = 0; i < sizeof ties / sizeof ties[0]; i++)
        ck_assert_int_eq(qep_round_even_int(ties[i].x), ties[i].want);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("mathfn");
    TCase *tc = tcase_create("mathfn");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, function_is_accurate, 0, NUM_FUNCTIONS);
    tcase_add_test(tc, log_is_accurate_over_all_exponents);
    tcase_add_test(tc, limits_are_those_of_libm);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

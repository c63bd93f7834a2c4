/* The pool of device memory on host memory: blocks never overlap, are aligned, are reused, and all
 * goes back. */
#include "kernels/cuda/pool.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static int num_live;

static enum qep_status source_alloc(void *ctx, size_t bytes, void **out) {
    size_t *left = ctx;
    if (*left < bytes)
        return qep_fail(QEP_ERR_SYSTEM, "out of device memory");
    *left -= bytes;
    *out = aligned_alloc(CUDA_POOL_ALIGN, (bytes + 255) / 256 * 256);
    num_live++;
    return *out == NULL ? QEP_ERR_SYSTEM : QEP_OK;
}

static void source_free(void *ctx, void *block) {
    (void)ctx;
    num_live--;
    free(block);
}

enum { NUM_BLOCKS = 3000 };

static void exercise(size_t slab_bytes) {
    static unsigned char *blocks[NUM_BLOCKS];
    static size_t bytes[NUM_BLOCKS];
    size_t left = (size_t)1 << 40;
    uint32_t state = 7;
    struct cuda_pool *pool;
    num_live = 0;
    memset(blocks, 0, sizeof blocks);
    ck_assert_int_eq(cuda_pool_create(slab_bytes,
                                      (struct cuda_pool_source){source_alloc, source_free, &left},
                                      &pool),
                     QEP_OK);
    for (int step = 0; step < 20000; step++) {
        state = state * 1664525u + 1013904223u;
        int i = (int)(state >> 8) % NUM_BLOCKS;
        unsigned char tag = (unsigned char)(i % 251);
        if (blocks[i] != NULL) {
            size_t same = 0;
            while (same < bytes[i] && blocks[i][same] == tag)
                same++;
            ck_assert_uint_eq(same, bytes[i]);
            cuda_pool_free(pool, blocks[i]);
            blocks[i] = NULL;
            continue;
        }
        bytes[i] = state >> 28 == 0 ? state % 9000 : state % 700;
        ck_assert_int_eq(cuda_pool_alloc(pool, bytes[i], (void **)&blocks[i]), QEP_OK);
        ck_assert_uint_eq((uintptr_t)blocks[i] % CUDA_POOL_ALIGN, 0);
        memset(blocks[i], tag, bytes[i]);
    }
    ck_assert_uint_gt(cuda_pool_held(pool), 0);
    cuda_pool_destroy(pool);
    ck_assert_int_eq(num_live, 0);
}

START_TEST(blocks_keep_to_themselves) {
    exercise(0);
    exercise(1 << 15);
    exercise(1 << 20);
}
END_TEST

START_TEST(equal_sizes_are_reused) {
    size_t left = (size_t)1 << 30;
    struct cuda_pool *pool;
    void *first, *second;
    ck_assert_int_eq(cuda_pool_create(1 << 20,
                                      (struct cuda_pool_source){source_alloc, source_free, &left},
                                      &pool),
                     QEP_OK);
    ck_assert_int_eq(cuda_pool_alloc(pool, 10000, &first), QEP_OK);
    cuda_pool_free(pool, first);
    ck_assert_int_eq(cuda_pool_alloc(pool, 10000, &second), QEP_OK);
    ck_assert_ptr_eq(first, second);
    ck_assert_uint_eq(cuda_pool_held(pool), 1 << 20);
    cuda_pool_free(pool, NULL);
    cuda_pool_destroy(pool);
}
END_TEST

START_TEST(little_is_lost) {
    enum { KIB = 1024, SLAB = 1024 * KIB };
    size_t left = (size_t)1 << 30;
    struct cuda_pool *pool;
    void *block;
    ck_assert_int_eq(
        cuda_pool_create(SLAB, (struct cuda_pool_source){source_alloc, source_free, &left}, &pool),
        QEP_OK);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(cuda_pool_alloc(pool, 256 * KIB, &block), QEP_OK);
    ck_assert_int_eq(cuda_pool_alloc(pool, 16 * KIB, &block), QEP_OK);
    ck_assert_int_eq(cuda_pool_alloc(pool, 256 * KIB, &block), QEP_OK); /* a slab of its own */
    ck_assert_uint_eq(cuda_pool_held(pool), 2 * SLAB);
    for (int i = 0; i < 3; i++) /* 240 KiB were left, 768 are */
        ck_assert_int_eq(cuda_pool_alloc(pool, 256 * KIB, &block), QEP_OK);
    for (int kib = 128; kib >= 16; kib /= 2)
        ck_assert_int_eq(cuda_pool_alloc(pool, (size_t)kib * KIB, &block), QEP_OK);
    ck_assert_uint_eq(cuda_pool_held(pool), 2 * SLAB);
    for (int i = 0; i < 15; i++) /* int8 KV blocks: 65 KiB */
        ck_assert_int_eq(cuda_pool_alloc(pool, 65 * KIB, &block), QEP_OK);
    ck_assert_uint_eq(cuda_pool_held(pool), 3 * SLAB);
    cuda_pool_destroy(pool);
}
END_TEST

START_TEST(exhaustion_is_reported_and_survived) {
    size_t left = 1 << 20;
    struct cuda_pool *pool;
    void *first, *second;
    ck_assert_int_eq(cuda_pool_create(1 << 20,
                                      (struct cuda_pool_source){source_alloc, source_free, &left},
                                      &pool),
                     QEP_OK);
    ck_assert_int_eq(cuda_pool_alloc(pool, 100, &first), QEP_OK);
    ck_assert_int_eq(cuda_pool_alloc(pool, 1 << 19, &second), QEP_ERR_SYSTEM);
    ck_assert_ptr_null(second);
    ck_assert_int_eq(cuda_pool_alloc(pool, 100, &second), QEP_OK);
    cuda_pool_destroy(pool);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda_pool");
    TCase *tc = tcase_create("cuda_pool");
    tcase_add_test(tc, blocks_keep_to_themselves);
    tcase_add_test(tc, equal_sizes_are_reused);
    tcase_add_test(tc, little_is_lost);
    tcase_add_test(tc, exhaustion_is_reported_and_survived);
    tcase_set_timeout(tc, 60);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

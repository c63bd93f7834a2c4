#include "device_support.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static bool is_set(const char *name) {
    const char *text = getenv(name);
    return text != NULL && text[0] != '\0' && text[0] != '0';
}

/* Is there a device? In a child. */
static int look_for_device(void) {
    struct qep_backend *be = NULL;
    if (qep_cuda_present())
        return 0;
    if (qep_backend_cuda_create(NULL, -1, 0, &be) == QEP_OK)
        return 0; /* another of the devices does */
    bool must = is_set("QEP_TEST_NEEDS_DEVICE");
    printf("%s: %s\n", must ? "FAILED, a device is needed" : "skipped", qep_last_error());
    return must ? EXIT_FAILURE : SKIPPED;
}

int in_child(int (*fn)(void)) {
    int status = 0;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        int code = fn();
        fflush(NULL);
        _exit(code);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
        return EXIT_FAILURE;
    return WEXITSTATUS(status);
}

static SRunner *runner;
static bool stops_at_first;

/* Before every test, in this process or in the test's. */
static void begin_test(void) {
    if (!stops_at_first || srunner_ntests_failed(runner) == 0)
        return;
    srunner_print(runner, CK_NORMAL);
    fflush(NULL);
    _exit(EXIT_FAILURE);
}

TCase *device_case(Suite *suite, const char *name, int timeout_s) {
    TCase *tc = tcase_create(name);
    tcase_set_timeout(tc, timeout_s);
    tcase_add_checked_fixture(tc, begin_test, NULL);
    suite_add_tcase(suite, tc);
    return tc;
}

int run_device_suite(Suite *suite) {
    runner = srunner_create(suite);
    int code = in_child(look_for_device);
    stops_at_first = is_set("QEP_TEST_STOP") && srunner_fork_status(runner) == CK_NOFORK;
    if (code == 0) {
        srunner_run_all(runner, CK_ENV);
        bool good = srunner_ntests_run(runner) > 0 && srunner_ntests_failed(runner) == 0;
        code = good ? EXIT_SUCCESS : EXIT_FAILURE;
    }
    srunner_free(runner);
    return code;
}

void ok(enum qep_status st) {
    if (st != QEP_OK)
        ck_abort_msg("status %d: %s", (int)st, qep_last_error());
}

struct qep_backend *open_cuda(void) {
    struct qep_backend *be = NULL;
    ok(qep_backend_cuda_create(NULL, -1, 0, &be));
    return be;
}

struct qep_backend *open_reference(void) {
    struct qep_backend *be = NULL;
    ok(qep_backend_reference_create(&be));
    return be;
}

void *dev_put(struct qep_backend *be, const void *host, size_t bytes) {
    void *dev = NULL;
    ok(be->ops->alloc(be, bytes, "test", &dev));
    if (host != NULL)
        ok(be->ops->upload(be, dev, host, bytes));
    return dev;
}

void dev_get(struct qep_backend *be, void *host, const void *dev, size_t bytes) {
    ok(be->ops->download(be, host, dev, bytes));
}

void *to_host(struct qep_backend *be, const void *dev, size_t bytes) {
    void *host = must_alloc(bytes);
    dev_get(be, host, dev, bytes);
    return host;
}

void dev_take(struct qep_backend *be, void *host, void *dev, size_t bytes) {
    dev_get(be, host, dev, bytes);
    be->ops->free(be, dev);
}

struct qep_batch dev_batch(struct qep_backend *be, const struct qep_span *spans, int32_t num_spans,
                           int32_t slack) {
    struct qep_batch batch = {.num_spans = num_spans, .spans = spans};
    for (int32_t s = 0; s < num_spans; s++) {
        int32_t end = spans[s].position + spans[s].num_rows;
        batch.num_rows += spans[s].num_rows;
        batch.max_end = end > batch.max_end ? end : batch.max_end;
    }
    batch.max_end += slack;
    batch.dev_spans = dev_put(be, spans, (size_t)num_spans * sizeof *spans);
    return batch;
}

void dev_batch_free(struct qep_backend *be, struct qep_batch *batch) {
    union {
        const struct qep_span *spans;
        void *memory;
    } dev = {batch->dev_spans};
    be->ops->free(be, dev.memory);
}

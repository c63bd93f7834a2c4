/* bench_cuda: the CUDA backend's ops at the shapes of Qwen3.5-35B-A3B, as shares of the copy
 * bandwidth and of the mma.sync rate that this device shows. Markdown on stdout.
 * Usage: bench_cuda [--json FILE] [--only OP] [--repeats N] [--tiny]; OP: matmul, experts,
 * attention, delta, small, or peaks: only what the device can do. */
#include "bench/cuda/harness.h"

#include "base/number.h"
#include "base/streams.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

static enum qep_status open_device(struct bench *b) {
    struct qep_cuda_device device;
    int l2_bytes = 0;
    QEP_TRY(qep_backend_cuda_create(NULL, 0, 0, &b->be));
    b->stream = b->be->device->stream(b->be);
    QEP_TRY(qep_backend_cuda_device(b->be, &device));
    QEP_TRY(cuda_check(
        cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, cuda_backend_of(b->be)->device),
        "cudaDeviceGetAttribute"));
    b->rotate_bytes = 4 * (size_t)l2_bytes;
    QEP_TRY(cuda_check(cudaEventCreate(&b->begin), "cudaEventCreate"));
    QEP_TRY(cuda_check(cudaEventCreate(&b->end), "cudaEventCreate"));
    QEP_TRY(bench_measure_peaks(b));
    printf("%s (%s), L2 %.0f MB: copies %.0f GB/s (read + write), mma.sync bf16 %.0f TFLOP/s\n\n",
           device.name, b->be->isa, 1e-6 * l2_bytes, b->copy_gb_s, b->mma_tflop_s);
    if (b->json == NULL)
        return QEP_OK;
    return qep_output_printf(
        b->json,
        "{\"device\": \"%s\", \"isa\": \"%s\", \"l2_bytes\": %d, \"copy_gb_s\": %.1f, "
        "\"mma_tflop_s\": %.1f, \"repeats\": %d, \"cases\": [",
        device.name, b->be->isa, l2_bytes, b->copy_gb_s, b->mma_tflop_s, b->repeats);
}

static void close_device(struct bench *b) {
    if (b->begin != NULL)
        cudaEventDestroy(b->begin);
    if (b->end != NULL)
        cudaEventDestroy(b->end);
    if (b->be != NULL)
        b->be->ops->destroy(b->be);
}

/* Into its place, whether a part failed or not: what the others measured is whole. */
static enum qep_status end_json(struct bench *b) {
    if (b->json == NULL)
        return QEP_OK;
    QEP_TRY(qep_output_printf(b->json, "\n]}\n"));
    return qep_output_finish(b->json);
}

static int complain(enum qep_status st) {
    if (st != QEP_OK)
        fprintf(stderr, "bench_cuda: %s\n", qep_last_error());
    return (int)st;
}

static enum qep_status run(struct bench *b) {
    static enum qep_status (*const parts[])(struct bench *) = {
        bench_matmul, bench_experts, bench_attention, bench_delta, bench_small};
    enum qep_status worst = open_device(b);
    if (worst != QEP_OK)
        return (enum qep_status)complain(worst);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        enum qep_status st = parts[i](b);
        complain(st);
        worst = st != QEP_OK ? st : worst;
    }
    enum qep_status st = end_json(b);
    complain(st);
    return st != QEP_OK ? st : worst;
}

static bool is_op(const char *name) {
    static const char *const ops[] = {"matmul", "experts", "attention", "delta", "small", "peaks"};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (strcmp(name, ops[i]) == 0)
            return true;
    return false;
}

static int usage(void) {
    fprintf(stderr, "usage: bench_cuda [--json FILE] [--repeats N] [--tiny]\n"
                    "       [--only matmul|experts|attention|delta|small|peaks]\n");
    return QEP_ERR_USAGE;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"json", required_argument, NULL, 'j'},
                                            {"only", required_argument, NULL, 'o'},
                                            {"repeats", required_argument, NULL, 'r'},
                                            {"tiny", no_argument, NULL, 't'},
                                            {NULL, 0, NULL, 0}};
    struct bench b = {.repeats = 21};
    const char *json = NULL;
    int64_t repeats = b.repeats;
    if (qep_streams_init() != QEP_OK)
        return complain(QEP_ERR_SYSTEM);
    for (int opt; (opt = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (opt == 'j')
            json = optarg;
        else if (opt == 'o')
            b.only = optarg;
        else if (opt == 'r' &&
                 qep_parse_int(optarg, strlen(optarg), 1, BENCH_MAX_REPEATS, &repeats))
            b.repeats = (int)repeats;
        else if (opt == 't')
            b.tiny = true;
        else
            return usage();
    }
    if (optind < argc || (b.only != NULL && !is_op(b.only)))
        return usage();
    if (json != NULL) {
        enum qep_status opened = qep_output_create(json, "--json", QEP_OUTPUT_STREAM, &b.json);
        if (opened != QEP_OK)
            return complain(opened);
    }
    enum qep_status st = run(&b);
    close_device(&b);
    qep_output_destroy(b.json);
    return (int)st;
}

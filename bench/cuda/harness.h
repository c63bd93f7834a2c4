/* Measuring ops of the CUDA backend. A case is one call with fixed shapes; its weights and states
 * rotate through more memory than the L2 cache holds, all rotations are recorded into one graph,
 * and the graph is timed with CUDA events: launch costs of the host do not count, gaps between
 * kernels do. */
#ifndef QEP_BENCH_CUDA_HARNESS_H
#define QEP_BENCH_CUDA_HARNESS_H

#include "base/output.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/device_ops.h"

#include <stdio.h>

enum { BENCH_MAX_ROTATIONS = 512, BENCH_MAX_REPEATS = 1000 };

struct bench {
    struct qep_backend *be;
    cudaStream_t stream;
    cudaEvent_t begin, end;
    size_t rotate_bytes; /* more than 4 times the L2 cache */
    int repeats;
    bool tiny;        /* small shapes: for machines that only emulate */
    const char *only; /* the op to measure, NULL: all */
    double copy_gb_s, mma_tflop_s;
    struct qep_output *json; /* NULL: none */
    int num_cases;
};

struct bench_case {
    const char *op;
    const char *types;
    char shape[96];
    int32_t rows;
    double bytes; /* least traffic of one call */
    double flops;
    int rotations;
    enum qep_status (*call)(struct bench *b, void *ctx, int rotation);
    void *ctx;
};

bool bench_wants(const struct bench *b, const char *op);
/* Median and best of b->repeats, as a Markdown row on stdout and a member of the JSON list. */
enum qep_status bench_run(struct bench *b, const struct bench_case *c);
/* Fills copy_gb_s and mma_tflop_s. */
enum qep_status bench_measure_peaks(struct bench *b);

/* How many copies of `bytes` a case rotates through. */
int bench_rotations(const struct bench *b, size_t bytes);

/* Device memory, freed with ops->free: zeros, a copy of host data, uniform numbers in [-1, 1). */
enum qep_status bench_zeros(struct bench *b, size_t bytes, void **dev);
enum qep_status bench_upload(struct bench *b, const void *host, size_t bytes, void **dev);
enum qep_status bench_noise(struct bench *b, size_t count, float **dev);
uint32_t bench_random(void);

/* rows x cols of random weights, `num` times. */
enum qep_status bench_weights(struct bench *b, enum qep_weight_type type, int64_t rows,
                              int64_t cols, int num, struct qep_weight **out);
double bench_weight_bytes(enum qep_weight_type type, int64_t rows, int64_t cols);
const char *bench_types(enum qep_weight_type weight, enum qep_act_type act);

enum qep_status bench_matmul(struct bench *b);
enum qep_status bench_experts(struct bench *b);
enum qep_status bench_attention(struct bench *b);
enum qep_status bench_delta(struct bench *b);
enum qep_status bench_small(struct bench *b);

/* peak.cu: returns the floating-point operations of the launch. */
#ifdef __cplusplus
extern "C"
#endif
    double
    bench_launch_mma(float *out, int blocks, int steps, cudaStream_t stream, cudaError_t *error);
enum { BENCH_MMA_THREADS = 256 };

#endif

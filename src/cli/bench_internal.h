/* What the files of `qwen-ep bench` share. */
#ifndef QEP_CLI_BENCH_INTERNAL_H
#define QEP_CLI_BENCH_INTERNAL_H

#include "base/output.h"
#include "cli/common.h"
#include "quant/recipe.h"

enum { BENCH_MAX_LIST = 16, BENCH_MAX_REPEATS = 1000, BENCH_WARM_UP_STEPS = 4 };

struct bench_list {
    int64_t items[BENCH_MAX_LIST];
    int count;
};

struct bench {
    struct qep_common common;
    const char *prompts, *depths, *batches, *format, *weights;
    const char *launch_times; /* FILE, or NULL */
    const char *config, *recipe;
    int64_t num_layers;
    struct qep_model_config random_config; /* what the three before say */
    struct qep_recipe random_recipe;
    int64_t num_new, repeats;
    struct bench_list prompt_list, depth_list, batch_list;
    struct qep_engine *engine;
    struct qep_output *launches; /* for launch_times on rank 0, else NULL */
    int rows_printed;
};

struct bench_result {
    char test[64]; /* pp512, tg128 */
    bool decode;
    int64_t batch, depth;
    double mean, sd; /* tokens per second */
};

/* bench_steps.c: a prompt's prefill, the decoding of `batch` sequences after `depth` positions;
 * seconds without what comes before. Tokens that no draw gave are QEP_ERR_DATA. */
enum qep_status bench_time_prefill(struct bench *b, struct qep_plan *plan, int32_t n,
                                   double *seconds);
enum qep_status bench_time_decode(struct bench *b, struct qep_plan *plan, int32_t batch,
                                  int32_t depth, double *seconds);
/* The launches on rank 0's GPU of one more prefill of n tokens, or of one more decode step. */
enum qep_status bench_time_launches(struct bench *b, struct qep_plan *plan,
                                    const struct bench_result *r, int32_t n);

/* bench_report.c: fills mean and sd, prints a row (QEP_ERR_IO). */
void bench_statistics(const double *rates, int64_t n, struct bench_result *r);
enum qep_status bench_print(struct bench *b, const struct bench_result *r);
/* An object a line to b->launches. */
enum qep_status bench_print_launches(struct bench *b, const struct bench_result *r,
                                     const struct qep_launch_time *times, size_t num);

#endif

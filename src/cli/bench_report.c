/* The rows of `qwen-ep bench`. */
#include "cli/bench_internal.h"

#include "base/streams.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void bench_statistics(const double *rates, int64_t n, struct bench_result *r) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++)
        sum += rates[i];
    r->mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++)
        squares += (rates[i] - r->mean) * (rates[i] - r->mean);
    r->sd = n > 1 ? sqrt(squares / (double)(n - 1)) : 0;
}

/* `text` in quotes, those inside it marked by `escape`: '\\' for JSON, '"' for CSV. The text has no
 * control characters. Cut where `out` ends. */
static const char *quote(const char *text, char escape, char *out, size_t out_bytes) {
    size_t n = 0;
    out[n++] = '"';
    for (; *text != '\0' && n + 4 < out_bytes; text++) {
        if (*text == '"' || *text == escape)
            out[n++] = escape;
        out[n++] = *text;
    }
    memcpy(out + n, "\"", 2);
    return out;
}

enum qep_status bench_print(struct bench *b, const struct bench_result *r) {
    char recipe[2 * QEP_RECIPE_NAME_MAX + 4];
    const struct qep_engine_facts *f = qep_engine_get_facts(b->engine);
    int ranks = qep_engine_comm(b->engine)->num_ranks;
    bool first = b->rows_printed++ == 0;
    if (strcmp(b->format, "md") == 0) {
        if (first)
            puts("| recipe | backend | ranks | threads | test | batch | depth | tok/s |\n"
                 "| --- | --- | --: | --: | --- | --: | --: | --: |");
        printf("| %s | %s %s | %d | %d | %s | %lld | %lld | %.2f ± %.2f |\n", f->recipe, f->backend,
               f->isa, ranks, f->num_threads, r->test, (long long)r->batch, (long long)r->depth,
               r->mean, r->sd);
    } else if (strcmp(b->format, "csv") == 0) {
        if (first)
            puts("recipe,backend,isa,activations,transport,attention,ranks,threads,test,batch,"
                 "depth,tok_s,sd,repeats");
        printf("%s,%s,%s,%s,%s,%s,%d,%d,%s,%lld,%lld,%.4f,%.4f,%lld\n",
               strpbrk(f->recipe, "\",") == NULL ? f->recipe
                                                 : quote(f->recipe, '"', recipe, sizeof recipe),
               f->backend, f->isa, f->activations, f->transport, f->attention, ranks,
               f->num_threads, r->test, (long long)r->batch, (long long)r->depth, r->mean, r->sd,
               (long long)b->repeats);
    } else {
        printf(
            "{\"recipe\": %s, \"backend\": \"%s\", \"isa\": \"%s\", \"activations\": \"%s\", "
            "\"transport\": \"%s\", \"attention\": \"%s\", \"ranks\": %d, \"threads\": %d, "
            "\"test\": \"%s\", "
            "\"batch\": %lld, \"depth\": %lld, \"tok_s\": %.4f, \"sd\": %.4f, \"repeats\": %lld, "
            "\"load_s\": %.4f, \"load_gb_s\": %.4f, \"step_bytes\": %.0f}\n",
            quote(f->recipe, '\\', recipe, sizeof recipe), f->backend, f->isa, f->activations,
            f->transport, f->attention, ranks, f->num_threads, r->test, (long long)r->batch,
            (long long)r->depth, r->mean, r->sd, (long long)b->repeats, f->load_s,
            f->load_s > 0 ? 1e-9 * (double)f->tensor_bytes / f->load_s : 0.0,
            r->decode ? qep_engine_step_bytes(b->engine, r->batch, r->depth) : 0.0);
    }
    return qep_stdout_flush();
}

enum qep_status bench_print_launches(struct bench *b, const struct bench_result *r,
                                     const struct qep_launch_time *times, size_t num) {
    for (size_t i = 0; i < num; i++) {
        const struct qep_launch_time *t = &times[i];
        QEP_TRY(qep_output_printf(
            b->launches,
            "{\"test\": \"%s\", \"batch\": %lld, \"depth\": %lld, \"launch\": %zu, "
            "\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], "
            "\"shared_bytes\": %zu, \"us\": %.3f}\n",
            r->test, (long long)r->batch, (long long)r->depth, i, t->kernel, t->grid[0], t->grid[1],
            t->grid[2], t->block[0], t->block[1], t->block[2], t->shared_bytes, t->us));
    }
    return QEP_OK;
}

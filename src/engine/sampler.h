/* Draws the next token from a row of logits. Filters decide the set first, in Hugging Face's order
 * (mask, repetition penalty, presence penalty, temperature, top-k, top-p, min-p); then Gumbel-max
 * picks one: argmax of logit / temperature + noise(seed, choice, position, id), ties to the lowest
 * id. The noise belongs to the token id, so a draw is the same for any split of the vocabulary, any
 * number of ranks and any batch. Arithmetic is double. No I/O. */
#ifndef QEP_ENGINE_SAMPLER_H
#define QEP_ENGINE_SAMPLER_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct qep_sampling {
    double temperature;        /* >= 0; 0 is greedy */
    double top_p;              /* [0, 1]; 1 is off; 0 is greedy: it keeps the one id */
    double min_p;              /* [0, 1]; 0 is off */
    double presence_penalty;   /* subtracted once from every id already generated; 0 is off */
    double repetition_penalty; /* > 0, over prompt and generated ids; 1 is off */
    int64_t top_k;             /* >= 0; 0 is off; ids tied with the k-th stay */
    bool greedy;               /* the largest logit, whatever the temperature */
    uint64_t seed;
};

#define QEP_SAMPLING_DEFAULT                                                                       \
    { 1.0, 1.0, 0.0, 0.0, 1.0, 0, false, 0 }

/* QEP_ERR_USAGE with the option's name when a value is out of range, infinite or NaN. */
enum qep_status qep_sampling_check(const struct qep_sampling *params);

/* Is the draw the lowest id of the largest value, whatever the seed? */
bool qep_sampling_is_greedy(const struct qep_sampling *params);

/* What one draw looks at; all borrowed for the call. */
struct qep_draw {
    const float *logits;          /* [vocab_size]; -inf is never drawn, +inf wins */
    int32_t num_ids;              /* ids >= num_ids never come out; 1..vocab_size */
    const uint8_t *allowed;       /* [num_ids], 0 for ids that never come out; NULL: all may */
    const int32_t *prompt_ids;    /* [num_prompt] */
    const int32_t *generated_ids; /* [num_generated] */
    size_t num_prompt;
    size_t num_generated;
    uint64_t position; /* in the sequence, of the token to be drawn */
    uint32_t choice;   /* tells apart several completions of one prompt */
};

struct qep_sampler; /* the scratch of one caller at a time; it remembers nothing between draws */

enum qep_status qep_sampler_create(int32_t vocab_size, struct qep_sampler **out);
void qep_sampler_destroy(struct qep_sampler *sampler); /* NULL is fine */

/* Draws one id. params must have passed qep_sampling_check. QEP_ERR_DATA: an allowed logit is NaN,
 * no id can be drawn, or a prompt or generated id is outside the vocabulary. */
enum qep_status qep_sampler_draw(struct qep_sampler *sampler, const struct qep_sampling *params,
                                 const struct qep_draw *draw, int32_t *out_id);

/* The noise of one id: -ln(-ln u), u in (0, 1) from Philox4x32-10 with key = seed, counter =
 * (id / 4, position's low word, its high word, choice), lane id % 4. */
double qep_sampler_noise(uint64_t seed, uint32_t choice, uint64_t position, int32_t id);

#ifdef __cplusplus
}
#endif
#endif

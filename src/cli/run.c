/* qwen-ep run: one prompt, a chat file, or an interactive chat. Rank 0 reads, tokenises, samples
 * and writes; the other ranks serve. */
#include "cli/command.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/streams.h"
#include "cli/logits_file.h"
#include "cli/run_prompt.h"
#include "cli/spare.h"
#include "dist/drain.h"
#include "dist/watchdog.h"
#include "engine/generate.h"
#include "engine/generation_config.h"
#include "shard/verify.h"
#include "text/detokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

/* Rank 0's side of a run. */
struct coordinator {
    const struct qep_run_options *opt;
    struct qep_engine *engine;
    struct qep_text text;
    struct qep_generation_config config;
    struct qep_sampling sampling;
    struct qep_ids prompt;
    uint8_t *allowed; /* [num_ids], NULL without a tokenizer */
    int32_t num_ids;
    struct qep_detokenizer detok;
    struct qep_bytes reply; /* text of the current answer */
    struct qep_logits_file *logits;
    bool print_text, print_ids;
    size_t ids_printed;
};

static enum qep_status choose_sampling(struct coordinator *c) {
    const struct qep_run_options *o = c->opt;
    struct qep_sampling s = c->config.sampling;
    if (o->temperature_given || o->top_k_given || o->top_p_given || o->min_p_given)
        s.greedy = false;
    if (o->sampling.greedy)
        s.greedy = true;
    s.temperature = o->temperature_given ? o->sampling.temperature : s.temperature;
    s.top_k = o->top_k_given ? o->sampling.top_k : s.top_k;
    s.top_p = o->top_p_given ? o->sampling.top_p : s.top_p;
    s.min_p = o->min_p_given ? o->sampling.min_p : s.min_p;
    s.presence_penalty = o->presence_given ? o->sampling.presence_penalty : s.presence_penalty;
    s.repetition_penalty =
        o->repetition_given ? o->sampling.repetition_penalty : s.repetition_penalty;
    s.seed = (uint64_t)o->seed;
    if (!o->seed_given && getrandom(&s.seed, sizeof s.seed, 0) == (ssize_t)sizeof s.seed)
        s.seed >>= 2; /* so that it can be given back as --seed */
    c->sampling = s;
    return qep_sampling_check(&s);
}

/* Ids beyond the tokenizer, and holes in it, never come out. */
static enum qep_status choose_ids(struct coordinator *c, int32_t vocab_size) {
    c->num_ids = vocab_size;
    if (c->text.tok == NULL)
        return QEP_OK;
    int32_t known = qep_tokenizer_num_ids(c->text.tok);
    c->num_ids = known < vocab_size ? known : vocab_size;
    c->allowed = malloc((size_t)c->num_ids + 1);
    if (c->allowed == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "tokenizer: out of memory");
    for (int32_t id = 0; id < c->num_ids; id++)
        c->allowed[id] = qep_tokenizer_has_id(c->text.tok, id);
    return QEP_OK;
}

static enum qep_status check_ids(const struct qep_ids *ids, int32_t vocab_size) {
    if (ids->count == 0)
        return qep_fail(QEP_ERR_USAGE, "the prompt is empty, expected at least one token");
    for (size_t i = 0; i < ids->count; i++)
        if (ids->items[i] >= vocab_size)
            return qep_fail(QEP_ERR_USAGE,
                            "prompt token %zu: id %d is outside the vocabulary 0..%d", i,
                            ids->items[i], vocab_size - 1);
    return QEP_OK;
}

static enum qep_status create_logits(struct coordinator *c, int32_t vocab_size) {
    const struct qep_run_options *o = c->opt;
    const char *inputs[] = {o->prompt_file, o->chat, o->common.config_file};
    if (o->logits == NULL)
        return QEP_OK;
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        QEP_TRY(qep_spare_file("--logits", o->logits, inputs[i]));
    QEP_TRY(qep_spare_model("--logits", o->logits, o->common.engine.model));
    return qep_logits_file_create(o->logits, vocab_size, &c->logits);
}

/* All that can go wrong with the user's input, before any weight is read. */
static enum qep_status prepare(struct coordinator *c) {
    const struct qep_run_options *o = c->opt;
    struct qep_shard_dir *dir = NULL;
    enum qep_status st = qep_shard_dir_open(o->common.engine.model, &dir);
    if (st != QEP_OK)
        return st;
    const struct qep_model_config *config = qep_shard_dir_config(dir);
    QEP_TRY_GOTO(st, done, qep_shard_verify_side_files(dir));
    QEP_TRY_GOTO(
        st, done,
        qep_text_open(o->common.engine.model, o->template_as, config->vocab_size, &c->text));
    QEP_TRY_GOTO(st, done, qep_generation_config_read(o->common.engine.model, config, &c->config));
    QEP_TRY_GOTO(st, done, choose_sampling(c));
    QEP_TRY_GOTO(st, done, choose_ids(c, config->vocab_size));
    if (o->interactive) {
        QEP_TRY_GOTO(st, done, qep_text_need_tokenizer(&c->text));
        QEP_TRY_GOTO(st, done, qep_text_need_template(&c->text));
    } else {
        QEP_TRY_GOTO(st, done, qep_run_prompt(o, &c->text, &c->prompt));
    }
    if (!o->interactive)
        QEP_TRY_GOTO(st, done, check_ids(&c->prompt, config->vocab_size));
    int64_t ctx = o->common.engine.ctx > 0 ? o->common.engine.ctx : config->max_position_embeddings;
    if ((int64_t)c->prompt.count > ctx)
        st = qep_fail(QEP_ERR_USAGE, "the prompt has %zu tokens, the context (--ctx) holds %lld",
                      c->prompt.count, (long long)ctx);
    if (st == QEP_OK)
        st = create_logits(c, config->vocab_size);
    if (c->text.tok != NULL)
        qep_detokenizer_init(&c->detok, c->text.tok, true);
    c->print_text = c->text.tok != NULL && !o->json;
    c->print_ids = c->text.tok == NULL && !o->json;
done:
    qep_shard_dir_close(dir);
    return st;
}

/* What came to the reply since it had `before` bytes. */
static enum qep_status write_reply(const struct coordinator *c, size_t before) {
    return c->reply.len > before ? qep_stdout_write(c->reply.data + before, c->reply.len - before)
                                 : QEP_OK;
}

static enum qep_status on_token(void *ctx, int32_t id, bool is_stop) {
    struct coordinator *c = ctx;
    if (c->print_ids) {
        char text[16];
        int n = snprintf(text, sizeof text, c->ids_printed++ > 0 ? ",%d" : "%d", id);
        return qep_stdout_write(text, (size_t)n);
    }
    if (c->text.tok == NULL || is_stop)
        return QEP_OK;
    size_t before = c->reply.len;
    QEP_TRY(qep_detokenizer_push(&c->detok, id, &c->reply));
    return c->print_text ? write_reply(c, before) : QEP_OK;
}

static enum qep_status on_row(void *ctx, int32_t token_id, const float *logits) {
    struct coordinator *c = ctx;
    return qep_logits_file_add(c->logits, token_id, logits);
}

static enum qep_status generate(struct coordinator *c, struct qep_generate_result *res) {
    const struct qep_generate_request request = {.prompt_ids = c->prompt.items,
                                                 .num_prompt = (int32_t)c->prompt.count,
                                                 .max_new_tokens = (int32_t)c->opt->max_new_tokens,
                                                 .prefill_chunk =
                                                     (int32_t)c->opt->common.engine.prefill_chunk,
                                                 .sampling = c->sampling,
                                                 .stop_ids = c->config.eos_token_id,
                                                 .num_stop = c->config.num_eos,
                                                 .ignore_eos = c->opt->ignore_eos,
                                                 .num_ids = c->num_ids,
                                                 .allowed = c->allowed,
                                                 .trace_nonfinite = c->opt->common.verbose,
                                                 .on_token = on_token,
                                                 .token_ctx = c,
                                                 .on_row = c->logits != NULL ? on_row : NULL,
                                                 .row_ctx = c};
    c->reply.len = 0;
    QEP_TRY(qep_generate(c->engine, &request, res));
    size_t before = c->reply.len;
    if (c->text.tok != NULL)
        QEP_TRY(qep_detokenizer_flush(&c->detok, &c->reply));
    if (c->print_text)
        QEP_TRY(write_reply(c, before));
    return c->opt->json ? QEP_OK : qep_stdout_write("\n", 1);
}

static double per_second(double count, double seconds) {
    return seconds > 0 ? count / seconds : 0.0;
}

static void summarise(const struct coordinator *c, const struct qep_generate_result *r) {
    double prompt = (double)c->prompt.count, steps = r->num_tokens > 0 ? r->num_tokens - 1 : 0;
    if (!qep_sampling_is_greedy(&c->sampling))
        qep_info("seed: %llu", (unsigned long long)c->sampling.seed);
    qep_info(
        "prefill: %.0f tokens in %.3f s (%.1f tok/s), first token after %.3f s; decode: %.0f steps "
        "in %.3f s (%.1f tok/s); %s",
        prompt, r->prefill_s, per_second(prompt, r->prefill_s), r->ttft_s, steps, r->decode_s,
        per_second(steps, r->decode_s), qep_finish_text(r->finish));
    const struct qep_model_times *t = qep_model_get_times(qep_engine_model(c->engine));
    qep_detail("seconds in mixer %.3f, router and shared expert %.3f, dispatch %.3f, experts %.3f, "
               "combine "
               "%.3f, head %.3f",
               t->mixer, t->moe_local, t->dispatch, t->experts, t->combine, t->head);
}

static enum qep_status append_ids(struct qep_bytes *out, const char *key, const int32_t *ids,
                                  size_t count) {
    struct qep_ids list = {.items = (int32_t *)ids, .count = count};
    QEP_TRY(qep_bytes_append_str(out, key));
    return qep_json_append_ids(out, &list);
}

static enum qep_status append_format(struct qep_bytes *out, const char *text, int n) {
    return qep_bytes_append(out, text, (size_t)n);
}

static enum qep_status append_text(const struct coordinator *c, struct qep_bytes *out) {
    QEP_TRY(qep_bytes_append_str(out, ", \"text\": "));
    return c->text.tok == NULL ? qep_bytes_append_str(out, "null")
                               : qep_json_append_string(out, c->reply.data, c->reply.len);
}

static enum qep_status print_json(const struct coordinator *c,
                                  const struct qep_generate_result *r) {
    const struct qep_engine_facts *f = qep_engine_get_facts(c->engine);
    struct qep_bytes out = {0};
    char text[512];
    double steps = r->num_tokens > 0 ? r->num_tokens - 1 : 0;
    enum qep_status st =
        append_ids(&out, "{\"prompt_token_ids\": ", c->prompt.items, c->prompt.count);
    if (st == QEP_OK)
        st = append_ids(&out, ", \"token_ids\": ", r->token_ids, (size_t)r->num_tokens);
    if (st == QEP_OK)
        st = append_text(c, &out);
    int n = snprintf(
        text, sizeof text,
        ", \"finish_reason\": \"%s\", \"usage\": {\"prompt_tokens\": %zu, "
        "\"completion_tokens\": %d, \"total_tokens\": %zu}, \"timings\": {\"load_s\": %.6f, "
        "\"prefill_s\": %.6f, \"ttft_s\": %.6f, \"decode_s\": %.6f, "
        "\"prefill_tok_s\": %.3f, \"decode_tok_s\": %.3f}, \"isa\": \"%s\", \"seed\": %llu}\n",
        qep_finish_text(r->finish), c->prompt.count, r->num_tokens,
        c->prompt.count + (size_t)r->num_tokens, f->load_s, r->prefill_s, r->ttft_s, r->decode_s,
        per_second((double)c->prompt.count, r->prefill_s), per_second(steps, r->decode_s), f->isa,
        (unsigned long long)c->sampling.seed);
    if (st == QEP_OK)
        st = append_format(&out, text, n);
    if (st == QEP_OK)
        st = qep_stdout_write(out.data, out.len);
    qep_bytes_free(&out);
    return st;
}

static enum qep_status one_shot(struct coordinator *c) {
    struct qep_generate_result r = {0};
    QEP_TRY(generate(c, &r));
    enum qep_status st = QEP_OK;
    if (r.finish == QEP_FINISH_INTERRUPTED)
        st = qep_fail(QEP_ERR_INTERRUPTED, "interrupted after %d tokens", r.num_tokens);
    if (st == QEP_OK && c->logits != NULL)
        st = qep_logits_file_finish(c->logits);
    if (c->opt->json) {
        enum qep_status printed = print_json(c, &r);
        st = st == QEP_OK ? printed : st;
    }
    summarise(c, &r);
    free(r.token_ids);
    return st;
}

static enum qep_status turn(struct coordinator *c, struct qep_talk *talk, const char *line,
                            size_t len) {
    struct qep_generate_result r = {0};
    QEP_TRY(qep_talk_add(talk, "user", line, len));
    c->prompt.count = 0;
    QEP_TRY(qep_talk_encode(talk, c->opt, &c->text, &c->prompt));
    QEP_TRY(generate(c, &r));
    summarise(c, &r);
    free(r.token_ids);
    return qep_talk_add(talk, "assistant", c->reply.data != NULL ? c->reply.data : "",
                        c->reply.len);
}

/* Reads a line from stdin while the job idles. *len < 0: end of input. */
static enum qep_status read_line(struct coordinator *c, char **line, size_t *cap, ssize_t *len) {
    QEP_TRY(qep_engine_idle(c->engine));
    if (isatty(STDIN_FILENO))
        QEP_TRY(qep_stdout_write("> ", 2));
    QEP_TRY(qep_stdin_line(line, cap, len));
    while (*len > 0 && ((*line)[*len - 1] == '\n' || (*line)[*len - 1] == '\r'))
        (*len)--;
    return QEP_OK;
}

static enum qep_status chat(struct coordinator *c) {
    struct qep_talk talk = {0};
    char *line = NULL;
    size_t cap = 0;
    ssize_t len = 0;
    enum qep_status st = QEP_OK;
    qep_info(
        "interactive chat: an empty line or the end of input leaves; every turn prefills the whole "
        "conversation again");
    if (c->opt->system != NULL)
        st = qep_talk_add(&talk, "system", c->opt->system, strlen(c->opt->system));
    while (st == QEP_OK && !qep_drain_requested()) {
        st = read_line(c, &line, &cap, &len);
        if (st != QEP_OK || len <= 0)
            break;
        st = turn(c, &talk, line, (size_t)len);
    }
    free(line);
    qep_talk_free(&talk);
    if (st == QEP_OK && qep_drain_requested())
        st = qep_fail(QEP_ERR_INTERRUPTED, "interrupted");
    return st;
}

static void coordinator_free(struct coordinator *c) {
    qep_text_close(&c->text);
    qep_ids_free(&c->prompt);
    qep_bytes_free(&c->reply);
    qep_logits_file_destroy(c->logits);
    free(c->allowed);
}

/* Rank 0's work between start and stop. An error of its own (input, output) still lets the job
 * leave together; a broken step does not. */
static enum qep_status coordinate(struct coordinator *c) {
    enum qep_status st = c->opt->interactive ? chat(c) : one_shot(c);
    if (qep_engine_is_broken(c->engine))
        return st;
    char message[QEP_ERROR_MAX];
    snprintf(message, sizeof message, "%s", qep_last_error());
    QEP_TRY(qep_engine_stop(c->engine));
    return st == QEP_OK ? QEP_OK : qep_fail(st, "%s", message);
}

static enum qep_status run_rank(struct qep_comm *comm, void *arg) {
    struct coordinator c = {.opt = arg};
    enum qep_status st = QEP_OK;
    qep_watchdog_stamp(comm->dog, "start: prompt", -1, -1);
    if (comm->rank == 0)
        st = prepare(&c);
    QEP_TRY_GOTO(st, done, qep_comm_agree(comm, st));
    QEP_TRY_GOTO(st, done, qep_engine_create(comm, &c.opt->common.engine, &c.engine));
    qep_common_report(c.engine);
    st = comm->rank == 0 ? coordinate(&c) : qep_engine_serve(c.engine);
    if (!qep_engine_is_broken(c.engine))
        st = qep_comm_agree(comm, st);
    qep_engine_destroy(c.engine);
done:
    coordinator_free(&c);
    return st;
}

enum qep_status qep_cmd_run(struct qep_job *job, int argc, char **argv) {
    struct qep_run_options options;
    QEP_TRY(qep_run_options_parse(job->comm, argc, argv, &options));
    if (options.common.answered)
        return QEP_OK;
    return qep_common_launch(job->comm, &options.common, run_rank, &options);
}

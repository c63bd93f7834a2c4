#include "hostile.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static bool starts(struct bytes line, const char *text) {
    size_t n = strlen(text);
    return line.n >= n && memcmp(line.p, text, n) == 0;
}

/* Cuts the next line off; its end is not part of it. */
static bool next_line(struct bytes *rest, struct bytes *line) {
    if (rest->n == 0)
        return false;
    uint8_t *end = memchr(rest->p, '\n', rest->n);
    size_t n = end != NULL ? (size_t)(end - rest->p) : rest->n;
    *line = (struct bytes){.p = rest->p, .n = n};
    n += end != NULL;
    *rest = (struct bytes){.p = rest->p + n, .n = rest->n - n};
    return true;
}

/* How many bytes the character at i has; 0 when it is no UTF-8. */
static size_t char_bytes(struct bytes b, size_t i) {
    size_t n = b.p[i] < 0x80 ? 1 : b.p[i] >= 0xf0 ? 4 : b.p[i] >= 0xe0 ? 3 : b.p[i] >= 0xc2 ? 2 : 0;
    if (i + n > b.n || b.p[i] > 0xf4)
        return 0;
    for (size_t k = 1; k < n; k++)
        if (b.p[i + k] >> 6 != 2)
            return 0;
    bool overlong = (b.p[i] == 0xe0 && b.p[i + 1] < 0xa0) || (b.p[i] == 0xf0 && b.p[i + 1] < 0x90);
    bool beyond = (b.p[i] == 0xed && b.p[i + 1] >= 0xa0) || (b.p[i] == 0xf4 && b.p[i + 1] >= 0x90);
    return overlong || beyond ? 0 : n;
}

/* Well-formed, and no marks that normalisation would join with what is before them. */
static bool is_utf8(struct bytes b) {
    for (size_t i = 0, n; i < b.n; i += n) {
        n = char_bytes(b, i);
        if (n == 0 || b.p[i] == 0xcc || b.p[i] == 0xcd)
            return false;
    }
    return true;
}

/* Something that a terminal obeys, or that is no UTF-8. */
static bool is_unprintable(struct bytes b) {
    for (size_t i = 0, n; i < b.n; i += n) {
        n = char_bytes(b, i);
        if (n == 0 || b.p[i] < 0x20 || b.p[i] == 0x7f)
            return true;
        if (b.p[i] == 0xc2 && b.p[i + 1] < 0xa0)
            return true;
        if (b.p[i] == 0xe2 && b.p[i + 1] == 0x80 && b.p[i + 2] >= 0xaa && b.p[i + 2] <= 0xae)
            return true;
    }
    return false;
}

static const char *judge_lines(const struct outcome *o) {
    struct bytes rest = o->err, line = {0}, last = {0};
    int errors = 0;
    while (next_line(&rest, &line)) {
        errors += starts(line, "qwen-ep:");
        last = line;
    }
    if (o->code == 0)
        return errors > 0 ? "exit 0 with an error line" : NULL;
    if (errors != 1)
        return format("%d error lines", errors);
    if (!starts(last, "qwen-ep:"))
        return "the error line is not the last";
    return is_unprintable(last) ? "the error line has controls or no UTF-8" : NULL;
}

/* What holds for every command. */
static const char *judge_outcome(const struct command *c, const struct outcome *o,
                                 const struct limits *limits) {
    if (o->timed_out)
        return format("not done after %.0f s of work, %.0f s in all", limits->seconds,
                      limits->wall_seconds);
    if (o->code < 0)
        return format("signal %d", -o->code);
    if (o->left_process)
        return "a process was left";
    if (o->rss_bytes > limits->rss_bytes)
        return format("%zu MB of memory", o->rss_bytes >> 20);
    if (o->code != 0 && (o->code < 64 || o->code > 78 || (c->codes & CODE(o->code)) == 0))
        return format("exit %d is not for this input", o->code);
    if (o->code != 0 && c->form == FORM_RUN && o->out.n > 0)
        return "an answer and an error";
    return judge_lines(o);
}

/* --- answers */
static struct bytes run_answer(struct bytes out) {
    static const char *const keys[] = {"prompt_token_ids", "token_ids", "text", "finish_reason"};
    struct json d = json_scan(out);
    char *text = format("%s", "");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        int node = d.valid ? json_member(&d, 0, keys[i]) : -1;
        text = format("%s%s %s\n", text, keys[i], node >= 0 ? json_source(&d, node) : "missing");
    }
    return bytes_of(text);
}

static struct bytes answer_of(const struct hcase *c, const struct command *command,
                              const struct outcome *o) {
    if (command->form == FORM_RUN)
        return run_answer(o->out);
    if (command->form == FORM_MANIFEST)
        return file_read(format("%s/out/manifest.json", c->cwd));
    return command->form == FORM_NONE ? (struct bytes){0} : o->out;
}

static struct outcome run_command(const struct hcase *c, const struct command *command,
                                  const struct limits *limits) {
    return run_process(c->dir, command->argv, command->input, limits);
}

/* The answer to the input as it was laid out, from the store or the program. */
static struct bytes right_answer(struct hcase *c, const struct judge *how) {
    struct command *command = &c->command;
    char *key = format("%s|%s", c->area->name, c->source != NULL ? c->source : "");
    for (int i = 1; i < command->argc; i++)
        key = format("%s|%s", key, command->argv[i]);
    if (command->input != NULL || strstr(key, ".json") != NULL) {
        const char *names[] = {"chat.json", "options.json"};
        for (int i = 0; i < 2; i++)
            if (file_exists(format("%s/%s", c->cwd, names[i])))
                key = format("%s|%s", key, (char *)file_read(format("%s/%s", c->cwd, names[i])).p);
    }
    const char *path =
        format("%s/%016llx", how->answers, (unsigned long long)XXH3_64bits(key, strlen(key)));
    if (file_exists(path))
        return file_read(path);
    struct outcome o = run_command(c, command, &how->limits);
    if (o.code != 0 || o.timed_out)
        die("undamaged input is refused: %s: exit %d, %.160s", key, o.code, (char *)o.err.p);
    struct bytes answer = answer_of(c, command, &o);
    if (command->output != NULL && strcmp(command->output, "out") == 0)
        remove_tree(format("%s/%s", c->cwd, command->output));
    const char *temporary = format("%s.%d", path, (int)getpid());
    file_write(temporary, answer);
    if (rename(temporary, path) != 0)
        die("%s: %s", path, strerror(errno));
    return answer;
}

/* Of lines all but one are as they were, and as many; each is a JSON value. */
static const char *judge_answers(const struct hcase *c, struct bytes right, struct bytes found) {
    struct bytes a = {0}, b = {0};
    for (size_t i = 0; next_line(&right, &a); i++) {
        if (!next_line(&found, &b))
            return format("only %zu lines", i);
        if (!json_scan(b).valid)
            return format("line %zu is no JSON", i + 1);
        if (i != c->line && !bytes_equal(a, b))
            return format("line %zu has another answer: %.160s", i + 1, (char *)b.p);
    }
    return found.n > 0 ? "more lines than requests" : NULL;
}

/* --- what an answer that may differ has to agree with */

static bool has(const struct command *c, const char *word) {
    for (int i = 0; i < c->argc; i++)
        if (strcmp(c->argv[i], word) == 0)
            return true;
    return false;
}

/* Another way to the same: the same exit code and answer. */
static const char *agree(const struct hcase *c, const struct command *command,
                         const struct outcome *o, struct command other, const char *words,
                         const struct judge *how) {
    args(&other, words);
    struct outcome p = run_command(c, &other, &how->limits);
    const char *wrong = judge_outcome(&other, &p, &how->limits);
    if (wrong == NULL && p.code != o->code)
        wrong = format("exit %d, not %d: %.160s", p.code, o->code, (char *)p.err.p);
    if (wrong == NULL && o->code == 0 &&
        !bytes_equal(answer_of(c, command, o), answer_of(c, &other, &p)))
        wrong = format("another answer: %.160s", (char *)p.out.p);
    return wrong != NULL ? format("with %s: %s", words, wrong) : NULL;
}

static const char *cross_check_run(const struct hcase *c, const struct command *command,
                                   const struct outcome *o, const struct judge *how) {
    const char *wrong = NULL;
    if (!has(command, "--ranks"))
        wrong = agree(c, command, o, *command, "--transport threads --ranks 2", how);
    if (wrong == NULL && has(command, "fp32") && !has(command, "int8"))
        wrong = agree(c, command, o, *command, "--backend reference", how);
    return wrong;
}

/* What convert took has to be whole, and to run as any other. */
static const char *cross_check_convert(const struct hcase *c, const struct judge *how) {
    struct command verify = {.codes = 0}, run = {.form = FORM_RUN, .codes = CODE(65) | CODE(64)};
    arg(&verify, c->exe);
    args(&verify, "inspect out --verify --jobs 1");
    struct outcome o = run_command(c, &verify, &how->limits);
    const char *wrong = judge_outcome(&verify, &o, &how->limits);
    if (wrong != NULL)
        return format("inspect --verify of what was converted: %s: %.160s", wrong, (char *)o.err.p);
    arg(&run, c->exe);
    args(&run,
         "run --model out --prompt-tokens 1,2,3 --greedy -n 3 --json -q -t 1 --activations fp32");
    o = run_command(c, &run, &how->limits);
    wrong = judge_outcome(&run, &o, &how->limits);
    if (wrong == NULL)
        wrong = cross_check_run(c, &run, &o, how);
    return wrong != NULL ? format("run of what was converted: %s: %.160s", wrong, (char *)o.err.p)
                         : NULL;
}

/* The ids of a prompt are those that tokenize gives; run may have added the beginning of an answer.
 */
static const char *cross_check_prompt(const struct hcase *c, const struct outcome *o,
                                      const char *words, const struct judge *how) {
    struct command ids = {.form = FORM_TEXT, .codes = 0};
    struct json d = json_scan(o->out);
    int node = json_member(&d, 0, "prompt_token_ids");
    if (o->code != 0 || node < 0)
        return NULL;
    arg(&ids, c->exe);
    args(&ids, words);
    struct outcome p = run_command(c, &ids, &how->limits);
    const char *wrong = judge_outcome(&ids, &p, &how->limits);
    char *ids_of_run = json_source(&d, node), *found = (char *)p.out.p;
    size_t n =
        strlen(found) > 2 ? strlen(found) - 2 : 0; /* without the bracket and the line's end */
    if (wrong == NULL && strncmp(found, ids_of_run, n) != 0)
        wrong = format("%.80s, not %.80s", found, ids_of_run);
    return wrong != NULL ? format("%s: %s", words, wrong) : NULL;
}

/* Whether the products overflow must not depend on what they run on. */
static const char *cross_check_types(const struct hcase *c, const struct outcome *o,
                                     const struct judge *how) {
    struct command other = c->command;
    args(&other, "--backend auto --activations fp32");
    struct outcome p = run_command(c, &other, &how->limits);
    const char *wrong = judge_outcome(&other, &p, &how->limits);
    if (wrong == NULL && p.code != o->code)
        wrong = format("exit %d, not %d", p.code, o->code);
    return wrong != NULL ? format("with fp32: %s", wrong) : NULL;
}

/* The options of a file that was taken do what they do on the command line. */
static const char *cross_check_options(const struct hcase *c, const struct outcome *o,
                                       const struct judge *how) {
    struct json d = json_scan(file_read(format("%s/options.json", c->cwd)));
    struct command line = {.form = c->command.form, .codes = c->command.codes};
    arg(&line, c->exe);
    arg(&line, "run");
    for (int i = 1; o->code == 0 && i < d.num; i++) {
        char *value = json_source(&d, i);
        if (strchr(value, '\\') != NULL || strchr(json_key(&d, i), '\\') != NULL ||
            line.argc > MAX_ARGS - 3)
            return NULL;
        if (d.nodes[i].kind == '0' && strpbrk(value, ".eE") != NULL)
            return NULL; /* 2e0 is a whole number in JSON alone */
        if (d.nodes[i].kind == '"')
            value = format("%.*s", (int)strlen(value) - 2, value + 1);
        if (strcmp(value, "null") != 0 && strcmp(value, "false") != 0)
            arg(&line, format("--%s", json_key(&d, i)));
        if (d.nodes[i].kind != 't')
            arg(&line, value);
    }
    if (o->code != 0 || !d.valid)
        return o->code == 0 ? "what is no JSON was taken" : NULL;
    struct outcome p = run_command(c, &line, &how->limits);
    const char *wrong = judge_outcome(&line, &p, &how->limits);
    if (wrong == NULL && p.code != 0)
        wrong = format("exit %d: %.160s", p.code, (char *)p.err.p);
    if (wrong == NULL && !bytes_equal(run_answer(o->out), run_answer(p.out)))
        wrong = format("another answer: %.160s", (char *)p.out.p);
    return wrong != NULL ? format("on the command line: %s", wrong) : NULL;
}

/* The ids are the numbers of the list, which has nothing but numbers, commas and spaces. */
static const char *cross_check_tokens(const struct hcase *c, const struct outcome *o) {
    struct json d = json_scan(o->out);
    int node = json_member(&d, 0, "prompt_token_ids");
    const char *list = c->command.argv[c->command.argc - 1];
    char *copy = format("%s", list), *save = NULL, *ids = format("%s", "[");
    if (o->code != 0)
        return NULL;
    if (list[strspn(list, "0123456789, ")] != '\0')
        return "taken";
    for (char *w = strtok_r(copy, ", ", &save); w != NULL; w = strtok_r(NULL, ", ", &save))
        ids = format("%s%s%lld", ids, ids[1] != '\0' ? ", " : "", atoll(w));
    ids = format("%s]", ids);
    return json_is(&d, node, ids) ? NULL : format("ids are %.160s", json_source(&d, node));
}

/* The ids of well-formed text give the text. */
static const char *cross_check_round(const struct hcase *c, const struct outcome *o,
                                     const struct judge *how) {
    struct bytes text = file_read(format("%s/prompt.txt", c->cwd));
    struct command decode = {.form = FORM_TEXT, .codes = 0};
    if (o->code != 0 || text.n > 4000 || !is_utf8(text))
        return NULL;
    arg(&decode, c->exe);
    args(&decode, "tokenize --model m --decode");
    arg(&decode, (char *)o->out.p);
    decode.argv[decode.argc - 1][o->out.n - 1] = '\0'; /* the line's end */
    struct outcome p = run_command(c, &decode, &how->limits);
    const char *wrong = judge_outcome(&decode, &p, &how->limits);
    if (wrong == NULL && !bytes_equal(p.out, bytes_splice(text, text.n, text.n, bytes_of("\n"))))
        wrong = "other text";
    return wrong != NULL ? format("decoded again: %s", wrong) : NULL;
}

/* A conversion that went on is whole, or what was damaged meanwhile is found. */
static const char *cross_check_resume(const struct hcase *c, const struct outcome *o,
                                      const struct judge *how) {
    struct command verify = {.form = FORM_TEXT, .codes = CODE(65)};
    if (o->code != 0)
        return NULL;
    arg(&verify, c->exe);
    args(&verify, "inspect out --verify --jobs 1");
    struct outcome p = run_command(c, &verify, &how->limits);
    return judge_outcome(&verify, &p, &how->limits);
}

static const char *cross_check(const struct hcase *c, const struct outcome *o,
                               const struct judge *how) {
    const char *wrong = NULL;
    if (c->command.form == FORM_RUN)
        wrong = cross_check_run(c, &c->command, o, how);
    if (wrong == NULL && c->command.form == FORM_MANIFEST && o->code == 0 &&
        c->check != CHECK_RESUME)
        wrong = cross_check_convert(c, how);
    if (wrong != NULL)
        return wrong;
    switch (c->check) {
    case CHECK_CHAT:
        return cross_check_prompt(c, o, "tokenize --model m --chat chat.json", how);
    case CHECK_PROMPT:
        return cross_check_prompt(c, o, "tokenize --model m --text-file prompt.txt", how);
    case CHECK_TOKENS:
        return cross_check_tokens(c, o);
    case CHECK_ROUND:
        return cross_check_round(c, o, how);
    case CHECK_RANKS:
        return agree(c, &c->command, o, c->command, "--transport threads --ranks 2", how);
    case CHECK_RESUME:
        return cross_check_resume(c, o, how);
    case CHECK_TYPES:
        return cross_check_types(c, o, how);
    case CHECK_OPTIONS:
        return cross_check_options(c, o, how);
    default:
        return NULL;
    }
}

static const char *judge_expected(const struct hcase *c, const struct outcome *o,
                                  struct bytes right) {
    if (c->expect == EXPECT_REFUSAL && o->code == 0)
        return "damage not seen";
    if (c->expect == EXPECT_EQUAL && o->code != 0)
        return "refused";
    if (o->code != 0)
        return NULL;
    struct bytes found = answer_of(c, &c->command, o);
    if (c->command.form == FORM_LINES)
        return judge_answers(c, right, found);
    if (c->expect == EXPECT_SAME || c->expect == EXPECT_EQUAL)
        return bytes_equal(right, found) ? NULL : format("another answer: %.160s", (char *)found.p);
    return NULL;
}

/* What is there but for what the command may make: a directory, or the manifest in "m". */
static char *list_case(const struct hcase *c, bool done) {
    const char *output = c->command.output;
    if (output != NULL && strcmp(output, "m") == 0)
        output = done ? "manifest.json" : NULL;
    return format("%s%s", list_tree(c->cwd, output), list_tree(format("%s/tmp", c->dir), NULL));
}

const char *judge(struct hcase *c, const struct judge *how) {
    c->area->lay_out(c);
    struct bytes right = right_answer(c, how);
    c->area->damage(c);
    char *before[] = {list_case(c, false), list_case(c, true)};
    struct outcome o = run_command(c, &c->command, &how->limits);
    if (c->command.output != NULL && o.code != 0 &&
        file_exists(format("%s/out/manifest.json", c->cwd)))
        return "a refused conversion left a manifest";
    const char *wrong = judge_outcome(&c->command, &o, &how->limits);
    c->refused = o.code != 0;
    if (wrong == NULL)
        wrong = judge_expected(c, &o, right);
    if (wrong == NULL && rng_one_in(&c->rng, how->cross_check_one_in))
        wrong = cross_check(c, &o, how);
    if (c->command.output != NULL && strcmp(c->command.output, "out") == 0)
        remove_tree(format("%s/%s", c->cwd, c->command.output));
    if (wrong == NULL && strcmp(before[o.code == 0], list_case(c, o.code == 0)) != 0)
        wrong = "files were made, changed or removed";
    if (wrong != NULL)
        wrong = format("%s\n    exit %d after %.2f s, %zu MB: %.160s", wrong, o.code, o.seconds,
                       o.rss_bytes >> 20, (char *)o.err.p);
    return wrong;
}

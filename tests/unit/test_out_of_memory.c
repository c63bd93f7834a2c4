/* Whole commands while memory runs out at every single request: each ends with its status and one
 * message, or does its work all the same, frees what it took, and leaves nothing that looks whole
 * and is not. */
#include "base/file.h"
#include "base/log.h"
#include "cli/command.h"
#include "shard/shard.h"
#include "shard/verify.h"
#include "tests/support/failing_memory.h"
#include "tests/support/run_model.h"

#include <cjson/cJSON.h>
#include <check.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define HF "tests/data/tiny-chat"
enum { MAX_ARGS = 16, OUTPUT_BYTES = 4096, APART_REQUESTS = 20000 };

typedef enum qep_status command_fn(struct qep_job *job, int argc, char **argv);

struct scenario {
    const char *name;
    command_fn *run;
    const char *args[MAX_ARGS]; /* DIR: a directory to make; MODEL: a shard directory; CHAT, LOGITS,
                                   CONFIG */
    void (*prepare)(void);
    void (*look)(enum qep_status st, long n);
    bool threads; /* the order of requests differs from run to run */
    bool varies;  /* so does the output */
    bool apart;   /* in a process of its own, which a rank that fails alone ends */
};

static char *scratch, *model, out_dir[128], chat_file[128], logits_file[128], config_file[128];
static int out_fd;
static bool every; /* all n, not a part of them */

static int complaints;

/* Goes on: the next request may show another fault. */
__attribute__((format(printf, 1, 2))) static void complain(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    if (complaints++ < 30)
        vfprintf(stderr, fmt, ap);
    va_end(ap);
    if (complaints <= 30)
        fputc('\n', stderr);
}

static const char *argument(const char *arg) {
    static const char *const names[] = {"DIR", "MODEL", "CHAT", "LOGITS", "CONFIG"};
    const char *values[] = {out_dir, model, chat_file, logits_file, config_file};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(arg, names[i]) == 0)
            return values[i];
    return arg;
}

static enum qep_status run_command(const struct scenario *s) {
    char text[MAX_ARGS][256], *argv[MAX_ARGS + 1] = {NULL};
    struct qep_comm *self = NULL;
    int argc = 0;
    for (; argc < MAX_ARGS && s->args[argc] != NULL; argc++) {
        snprintf(text[argc], sizeof text[argc], "%s", argument(s->args[argc]));
        argv[argc] = text[argc];
    }
    QEP_TRY(qep_comm_self_create(&self));
    struct qep_job job = {.comm = self};
    enum qep_status st = s->run(&job, argc, argv);
    fflush(stdout);
    qep_comm_destroy(self);
    return st;
}

/* Its exit status as a status; a hang is QEP_ERR_BUG. */
static enum qep_status run_apart(const struct scenario *s, long n, bool and_after) {
    int how = 0;
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        alarm(60);
        int null = open("/dev/null", O_WRONLY);
        dup2(null, STDERR_FILENO);
        memory_fail_at(n, and_after); /* not above: Check takes memory as well */
        enum qep_status st = run_command(s);
        _exit((int)st);
    }
    ck_assert_int_eq(waitpid(child, &how, 0), child);
    if (!WIFEXITED(how))
        return qep_fail(QEP_ERR_BUG, "ended by signal %d", WTERMSIG(how));
    return WEXITSTATUS(how) == 0 ? QEP_OK
                                 : qep_fail((enum qep_status)WEXITSTATUS(how), "exit status");
}

static enum qep_status run_here(const struct scenario *s, long n, bool and_after) {
    memory_fail_at(n, and_after);
    return run_command(s);
}

/* What the command has written to stdout since the last call. */
static void take_output(char out[OUTPUT_BYTES]) {
    ssize_t n = pread(out_fd, out, OUTPUT_BYTES - 1, 0);
    out[n > 0 ? n : 0] = '\0';
    ck_assert_int_eq(ftruncate(out_fd, 0), 0);
    lseek(out_fd, 0, SEEK_SET);
}

/* ---- convert ---- */

static void remove_out_dir(void) {
    remove_tree(out_dir);
}

static const struct scenario convert_again;

static bool opens_whole(void) {
    struct qep_shard_dir *shards = NULL;
    enum qep_status st = qep_shard_dir_open(out_dir, &shards);
    if (st != QEP_OK)
        return false;
    const struct qep_manifest *m = qep_shard_dir_manifest(shards);
    for (size_t i = 0; st == QEP_OK && i < m->layout.num_files; i++)
        st = qep_shard_verify_file(shards, i);
    if (st == QEP_OK)
        st = qep_shard_verify_side_files(shards);
    ck_assert_msg(st == QEP_OK, "a directory that is not whole opens: %s", qep_last_error());
    qep_shard_dir_close(shards);
    return true;
}

/* Not there, or whole; and the same command makes it whole. */
static void look_at_directory(enum qep_status st, long n) {
    bool whole = opens_whole();
    ck_assert_msg(whole || st != QEP_OK, "request %ld: done without a directory", n);
    if (n % 16 != 0)
        return;
    if (!whole) {
        st = run_command(&convert_again);
        ck_assert_msg(st == QEP_OK, "after request %ld: %s", n, qep_last_error());
    }
    ck_assert(opens_whole());
}

/* ---- the walk ---- */

/* One run with the n-th request failing; false: it made fewer. */
static bool try_request(const struct scenario *s, long n, bool and_after, const char *expected) {
    char output[OUTPUT_BYTES];
    if (s->prepare != NULL)
        s->prepare();
    qep_fail(QEP_OK, "%s", "");
    long before = memory_blocks();
    enum qep_status st = s->apart ? run_apart(s, n, and_after) : run_here(s, n, and_after);
    bool has_failed = s->apart ? n <= APART_REQUESTS : memory_has_failed();
    memory_fail_at(0, false);
    long left = memory_blocks() - before;
    take_output(output);
    if (left != 0)
        complain("%s, request %ld: %ld blocks are not freed", s->name, n, left);
    if (st != QEP_ERR_SYSTEM && st != QEP_OK)
        complain("%s, request %ld: status %d: %s", s->name, n, (int)st, qep_last_error());
    if (st != QEP_OK && *qep_last_error() == '\0')
        complain("%s, request %ld: no message", s->name, n);
    if (st == QEP_OK && !s->varies && strcmp(output, expected) != 0)
        complain("%s, request %ld: went on to \"%s\", expected \"%s\"", s->name, n, output,
                 expected);
    if (s->look != NULL && has_failed)
        s->look(st, n);
    return has_failed;
}

/* All; or the first from each place, for each size, and some of the others. */
static long next_after(const struct scenario *s, long n) {
    if (s->apart)
        return n + (every ? 7 : n < 20 ? 1 : 1 + n / 5);
    long step = every ? 1 : 1 + n / 5, next = n + 1;
    while (next < n + step && (s->threads || !memory_is_new_place(next)))
        next++;
    return next;
}

static void walk(const struct scenario *s) {
    char expected[OUTPUT_BYTES];
    long n = 1, runs = 0, total = 0;
    for (int i = 0; i < 2; i++) { /* twice: what is kept from the first time on is no leak */
        if (s->prepare != NULL)
            s->prepare();
        memory_record();
        enum qep_status st = run_command(s);
        long requests = memory_requests();
        memory_fail_at(0, false);
        total = requests;
        ck_assert_msg(st == QEP_OK, "%s: %s", s->name, qep_last_error());
        take_output(expected);
    }
    total = s->apart ? APART_REQUESTS : total;
    for (; try_request(s, n, false, expected); n = next_after(s, n), runs++)
        if (runs % 4 == 0)
            try_request(s, n, true, expected);
    fprintf(stderr, "%s: %ld requests, %ld runs\n", s->name, total, runs);
    ck_assert_msg(complaints == 0, "%s: %d complaints, see above", s->name, complaints);
    ck_assert_msg(s->threads || every || labs(n - total) <= 1 + n / 4, "%s: %ld of %ld", s->name, n,
                  total);
}

static const struct scenario convert_again = {
    .name = "convert again",
    .run = qep_cmd_convert,
    .args = {"convert", "--from", HF, "--to", "DIR", "--recipe", "q4", "--jobs", "1"}};

static const struct scenario scenarios[] = {
    {.name = "convert",
     .run = qep_cmd_convert,
     .args = {"convert", "--from", HF, "--to", "DIR", "--recipe", "q4", "--jobs", "1"},
     .prepare = remove_out_dir,
     .look = look_at_directory},
    {.name = "convert-jobs",
     .run = qep_cmd_convert,
     .args = {"convert", "--from", HF, "--to", "DIR", "--recipe", "bf16", "--jobs", "3"},
     .prepare = remove_out_dir,
     .threads = true},
    /* Buffers grow on the way, from tensor to tensor. */
    {.name = "synth",
     .run = qep_cmd_synth,
     .args = {"synth", "--config", "CONFIG", "--out", "DIR", "--recipe", "q4-all", "--jobs", "1"},
     .prepare = remove_out_dir},
    {.name = "run",
     .run = qep_cmd_run,
     .args = {"run", "--model", "MODEL", "--prompt", "What is 15% of 80 \u00e9e\u0301?",
              "--max-new-tokens", "3", "--threads", "1", "--timeout", "0", "--quiet"}},
    {.name = "run-threads",
     .run = qep_cmd_run,
     .args = {"run", "--model", "MODEL", "--prompt", "What is 15% of 80?", "--max-new-tokens", "3",
              "--threads", "3", "--json"},
     .threads = true,
     .varies = true},
    {.name = "run-ranks",
     .run = qep_cmd_run,
     .args = {"run", "--model", "MODEL", "--prompt", "What is 15% of 80?", "--max-new-tokens", "3",
              "--threads", "1", "--transport", "threads", "--ranks", "2", "--quiet"},
     .threads = true,
     .apart = true},
    {.name = "chat",
     .run = qep_cmd_run,
     .args = {"run", "--model", "MODEL", "--chat", "CHAT", "--max-new-tokens", "2", "--threads",
              "1", "--greedy", "--quiet", "--logits", "LOGITS"}},
    {.name = "tokenize",
     .run = qep_cmd_tokenize,
     .args = {"tokenize", "--model", "MODEL", "--text",
              "caf\u00e9 e\u0301 <|im_end|> superlongwordabcdefghijklmnop   x"}},
    {.name = "bench",
     .run = qep_cmd_bench,
     .args = {"bench", "--model", "MODEL", "-p", "8", "-n", "2", "-r", "1", "--threads", "1"},
     .varies = true},
    {.name = "reseal", .run = qep_cmd_reseal, .args = {"reseal", "MODEL"}},
    {.name = "inspect", .run = qep_cmd_inspect, .args = {"inspect", "MODEL", "--verify"}},
};

START_TEST(every_request_may_fail) {
    walk(&scenarios[_i]);
}
END_TEST

static const char talk[] =
    "{\"tools\": [{\"name\": \"f\", \"x\": [1, 2.5, null, true]}], \"messages\": ["
    "{\"role\": \"system\", \"content\": \"Be brief.\"},"
    "{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"What is 15% of 80?\"}]},"
    "{\"role\": \"assistant\", \"content\": \"<think>a</think>b\", \"tool_calls\": [{\"name\": "
    "\"f\", "
    "\"arguments\": {\"a\": 1, \"b\": [2], \"a\": \"c\"}}]},"
    "{\"role\": \"tool\", \"content\": \"12\"}, {\"role\": \"user\", \"content\": \"So?\"}]}";

/* A model whose shared expert is larger than what comes before it in its file. */
static void write_config(void) {
    char *text = NULL;
    size_t len = 0;
    ck_assert_int_eq(qep_file_read("configs/tiny-random.json", 1 << 20, &text, &len), QEP_OK);
    cJSON *root = cJSON_Parse(text);
    cJSON *inner = cJSON_GetObjectItem(root, "text_config");
    cJSON_ReplaceItemInObject(inner != NULL ? inner : root, "shared_expert_intermediate_size",
                              cJSON_CreateNumber(2048));
    char *out = cJSON_PrintUnformatted(root);
    ck_assert_ptr_nonnull(out);
    snprintf(config_file, sizeof config_file, "%s/config.json", scratch);
    ck_assert_int_eq(qep_file_write_atomic(config_file, out, strlen(out)), QEP_OK);
    cJSON_free(out);
    cJSON_Delete(root);
    free(text);
}

static void set_up(void) {
    scratch = temp_dir();
    model = model_convert(HF, scratch, "q4", 3);
    snprintf(out_dir, sizeof out_dir, "%s/out", scratch);
    snprintf(chat_file, sizeof chat_file, "%s/chat.json", scratch);
    snprintf(logits_file, sizeof logits_file, "%s/logits", scratch);
    ck_assert_int_eq(qep_file_write_atomic(chat_file, talk, sizeof talk - 1), QEP_OK);
    write_config();
    qep_log_set_level(QEP_LOG_QUIET);
    out_fd = memfd_create("output", MFD_CLOEXEC);
    ck_assert_int_ge(out_fd, 0);
    ck_assert_int_ge(dup2(out_fd, STDOUT_FILENO), 0);
}

static void tear_down(void) {
    remove_tree(scratch);
    free(model);
    free(scratch);
}

int main(void) {
    Suite *suite = suite_create("out_of_memory");
    every = getenv("QEP_TEST_EVERY") != NULL;
    for (int i = 0; i < (int)(sizeof scenarios / sizeof *scenarios); i++) {
        TCase *tc = tcase_create(scenarios[i].name); /* CK_RUN_CASE picks one */
        tcase_set_timeout(tc, 3000);
        tcase_add_checked_fixture(tc, set_up, tear_down);
        tcase_add_loop_test(tc, every_request_may_fail, i, i + 1);
        suite_add_tcase(suite, tc);
    }
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

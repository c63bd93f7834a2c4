/* qwen-ep tokenize, run in this process: arguments and stdin in, stdout and status out. */
#include "cli/command.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TINY "--model", "tests/data/tiny-chat"
#define HELLO "[{\"role\": \"user\", \"content\": \"hi\"}]"

static const struct {
    const char *args[6];
    const char *input;
    enum qep_status status;
    const char *output, *error; /* NULL: any */
} cases[] = {
    {{TINY, "--text", "What is 15% of 80?"},
     "",
     QEP_OK,
     "[265, 257, 220, 16, 20, 4, 259, 220, 23, 15, 30]\n",
     NULL},
    {{TINY, "--text", ""}, "", QEP_OK, "[]\n", NULL},
    {{TINY, "--text", "<|im_end|>"}, "", QEP_OK, "[418]\n", NULL},
    {{TINY, "--no-special", "--text", "<|im_end|>"},
     "",
     QEP_OK,
     "[27, 91, 72, 76, 62, 68, 77, 67, 91, 29]\n",
     NULL},
    {{TINY, "--text-file", "-"}, "hi", QEP_OK, "[71, 72]\n", NULL},
    {{TINY, "--decode", "[71, 72, 418]"}, "", QEP_OK, "hi<|im_end|>\n", NULL},
    {{TINY, "--decode", "71,72,418", "--skip-special"}, "", QEP_OK, "hi\n", NULL},
    {{TINY, "--decode", "71,x"}, "", QEP_ERR_USAGE, "", "'x'"},
    {{TINY, "--decode", "424000"}, "", QEP_ERR_USAGE, "", "no token has id 424000"},
    {{TINY, "--chat", "/dev/stdin"}, HELLO, QEP_OK, "[417, 275, 198, 71, 72, 418, 198]\n", NULL},
    {{TINY, "--chat", "/dev/stdin", "--render"},
     "{\"messages\": " HELLO ", \"add_generation_prompt\": true}",
     QEP_OK,
     "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
     NULL},
    {{"--template-as", "qwen3.6", "--chat", "/dev/stdin", "--render"},
     "{\"messages\": " HELLO ", \"add_generation_prompt\": true}",
     QEP_OK,
     "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n",
     NULL},
    {{TINY, "--chat", "/dev/stdin"}, "[]", QEP_ERR_DATA, "", "/dev/stdin: No messages provided."},
    {{TINY, "--chat", "/dev/stdin"}, "[", QEP_ERR_DATA, "", "/dev/stdin: invalid JSON at byte 1"},
    {{TINY, "--jsonl"}, "", QEP_OK, "", NULL},
    {{TINY, "--jsonl"},
     "{\"text\": \"hi\", \"other\": [1]}\r\n"
     "{\"messages\": " HELLO "}\n"
     "\n"
     "{\"text\": 5}\n"
     "{\"text\": null}\n"
     "{\"messages\": null}\n"
     "[1]\n"
     "{\"text\": \"\"}",
     QEP_OK,
     "[71, 72]\n"
     "[417, 275, 198, 71, 72, 418, 198]\n"
     "{\"error\": \"invalid JSON at byte 0: unexpected end\"}\n"
     "{\"error\": \"request: \\\"text\\\": expected a string\"}\n"
     "{\"error\": \"request: expected \\\"text\\\" or \\\"messages\\\"\"}\n"
     "{\"error\": \"No messages provided.\"}\n"
     "{\"error\": \"request: expected an object\"}\n"
     "[]\n",
     NULL},
    {{TINY, "--jsonl", "--render"},
     "{\"messages\": " HELLO "}\n{\"text\": \"hi\"}\n{\"messages\": [{\"role\": \"system\"}]}\n",
     QEP_OK,
     "{\"rendered\": \"<|im_start|>user\\nhi<|im_end|>\\n\"}\n[71, 72]\n"
     "{\"error\": \"No user query found in messages.\"}\n",
     NULL},
    {{TINY}, "", QEP_ERR_USAGE, "", "found 0"},
    {{TINY, "--text", "a", "--jsonl"}, "", QEP_ERR_USAGE, "", "found 2"},
    {{TINY, "--text", "a", "b"}, "", QEP_ERR_USAGE, "", "'b'"},
    {{TINY, "--text", "a", "--nope"}, "", QEP_ERR_USAGE, "", "--nope"},
    {{TINY, "--text", "a", "--render"}, "", QEP_ERR_USAGE, "", "--render"},
    {{"--text", "a"}, "", QEP_ERR_USAGE, "", "--model"},
    {{"--model", "tests/no-such-dir", "--text", "a"}, "", QEP_ERR_NOINPUT, "", "no-such-dir"},
    {{"--model", "tests/data/hf", "--text", "a"}, "", QEP_ERR_DATA, "", "tokenizer.json"},
    {{"--tokenizer", "tests/data/hf/README.md", "--text", "a"}, "", QEP_ERR_DATA, "", "README.md"},
    {{TINY, "--text-file", "tests/no-such-file"}, "", QEP_ERR_NOINPUT, "", "no-such-file"},
    {{"--tokenizer", "tests/data/tiny-chat/tokenizer.json", "--chat", "/dev/stdin"},
     HELLO,
     QEP_ERR_DATA,
     "",
     "no chat template"},
    {{"--help"}, "", QEP_OK, NULL, NULL},
};

static void read_back(const char *path, char *out, size_t cap) {
    FILE *f = fopen(path, "rb");
    ck_assert_ptr_nonnull(f);
    out[fread(out, 1, cap - 1, f)] = '\0';
    fclose(f);
}

START_TEST(tokenize_command) {
    char dir[] = "/tmp/qep-tokenize-XXXXXX", in[64], out[64], found[4096];
    char *argv[8] = {"tokenize"};
    int argc = 1;
    struct qep_job job = {NULL};
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(in, sizeof in, "%s/in", dir);
    snprintf(out, sizeof out, "%s/out", dir);
    FILE *f = fopen(in, "wb");
    ck_assert(f != NULL && fputs(cases[_i].input, f) >= 0 && fclose(f) == 0);
    for (int i = 0; i < 6 && cases[_i].args[i] != NULL; i++)
        argv[argc++] = (char *)(uintptr_t)cases[_i].args[i];
    ck_assert(freopen(in, "rb", stdin) != NULL && freopen(out, "wb", stdout) != NULL);
    ck_assert_int_eq(qep_comm_self_create(&job.comm), QEP_OK);
    enum qep_status st = qep_cmd_tokenize(&job, argc, argv);
    qep_comm_destroy(job.comm);
    fflush(stdout);
    read_back(out, found, sizeof found);
    remove(in);
    remove(out);
    remove(dir);
    ck_assert_msg(st == cases[_i].status, "status %d: %s", (int)st, qep_last_error());
    if (cases[_i].output != NULL)
        ck_assert_str_eq(found, cases[_i].output);
    if (cases[_i].error != NULL)
        ck_assert_msg(strstr(qep_last_error(), cases[_i].error) != NULL, "%s", qep_last_error());
}
END_TEST

START_TEST(help_fits_a_screen) {
    char path[] = "/tmp/qep-tokenize-XXXXXX", found[4096];
    char *argv[] = {"tokenize", "--help", NULL};
    struct qep_job job = {NULL};
    int fd = mkstemp(path), lines = 0;
    ck_assert(fd >= 0 && freopen(path, "wb", stdout) != NULL);
    ck_assert_int_eq(qep_comm_self_create(&job.comm), QEP_OK);
    ck_assert_int_eq(qep_cmd_tokenize(&job, 2, argv), QEP_OK);
    qep_comm_destroy(job.comm);
    fflush(stdout);
    read_back(path, found, sizeof found);
    close(fd);
    remove(path);
    for (const char *p = found; (p = strchr(p, '\n')) != NULL; p++)
        lines++;
    ck_assert_int_gt(lines, 10);
    ck_assert_int_le(lines, 24);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("tokenizer_cli");
    TCase *tc = tcase_create("tokenizer_cli");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, tokenize_command, 0, sizeof cases / sizeof *cases);
    tcase_add_test(tc, help_fits_a_screen);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

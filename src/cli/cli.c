#include "cli/cli.h"

#include "cli/command.h"
#include "dist/drain.h"

#include <stdio.h>
#include <string.h>

struct command {
    const char *name, *summary;
    enum qep_status (*run)(struct qep_job *job, int argc, char **argv);
    bool drains; /* looks at qep_drain_requested */
};

static const struct command commands[] = {
    {"run", "answer a prompt, a chat file, or chat interactively (the default)", qep_cmd_run, true},
    {"convert", "Hugging Face directory -> compressed shard directory", qep_cmd_convert, false},
    {"synth", "random weights of any size, for tests and benchmarks", qep_cmd_synth, false},
    {"inspect", "what is in a shard directory, per file and per rank", qep_cmd_inspect, false},
    {"reseal", "accept changed side files (template, tokenizer) of a shard directory",
     qep_cmd_reseal, false},
    {"tokenize", "text <-> ids, chat templates", qep_cmd_tokenize, false},
    {"bench", "prefill and decode speed", qep_cmd_bench, true},
};

static void print_help(void) {
    puts("qwen-ep " QEP_VERSION ": Qwen3.5 models over 1..N ranks\n\n"
         "usage: [mpirun -np P] qwen-ep [COMMAND] [OPTIONS]\n"
         "       qwen-ep --version\n\ncommands:");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        printf("  %-10s %s\n", commands[i].name, commands[i].summary);
    puts("\nqwen-ep COMMAND --help tells a command's options. Results go to stdout, all else to "
         "stderr.\n"
         "\nexamples:\n"
         "  qwen-ep convert --from Qwen3.5-35B-A3B --to 35b-q4 --recipe q4\n"
         "  mpirun -np 4 --bind-to none qwen-ep --model 35b-q4 --prompt \"Hello\" --no-think\n"
         "  qwen-ep --model 35b-q4 -i\n"
         "\nexit codes: 0 ok, 64 usage, 65 bad data, 66 no such input, 69 unavailable, 70 bug,\n"
         "  71 system, 73 cannot create, 74 input/output, 75 no progress or interrupted");
}

/* `--help` without a command belongs to the program, not to run. */
static bool asks_for_commands(const char *arg) {
    return strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0 || strcmp(arg, "help") == 0;
}

static enum qep_status run_command(const struct command *command, struct qep_job *job, int argc,
                                   char **argv) {
    if (!command->drains)
        qep_drain_uninstall();
    return command->run(job, argc, argv);
}

static const struct command *find_command(const char *arg) {
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(arg, commands[i].name) == 0)
            return &commands[i];
    return arg[0] == '-' ? &commands[0] : NULL;
}

/* What the ranks have in common before they do anything together that depends on it. */
static enum qep_status compare_ranks(struct qep_comm *comm, const char *command) {
    char text[64];
    snprintf(text, sizeof text, "%s", command);
    QEP_TRY(qep_comm_same(comm, "build", QEP_VERSION " " __VERSION__));
    return qep_comm_same(comm, "command", text);
}

enum qep_status qep_cli_main(struct qep_comm *comm, int argc, char **argv) {
    struct qep_job job = {.comm = comm};
    const char *arg = argc < 2 ? "none" : asks_for_commands(argv[1]) ? "help" : argv[1];
    const struct command *command = find_command(arg);
    QEP_TRY(compare_ranks(comm, command != NULL ? command->name : arg));
    if (command != NULL) {
        bool named = arg[0] != '-';
        return run_command(command, &job, argc - named, argv + named);
    }
    if (comm->rank == 0 && (argc < 2 || asks_for_commands(argv[1])))
        print_help();
    if (argc < 2)
        return qep_comm_agree(comm, qep_fail(QEP_ERR_USAGE, "no command and no options given"));
    if (asks_for_commands(argv[1]))
        return QEP_OK;
    return qep_comm_agree(
        comm, qep_fail(QEP_ERR_USAGE, "unknown command '%s' (see qwen-ep --help)", argv[1]));
}

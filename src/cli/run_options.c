#include "cli/run_options.h"

#include <stdio.h>
#include <string.h>

static const char help_text[] =
    "usage: [mpirun -np P] qwen-ep [run] --model DIR INPUT [OPTIONS]\n"
    "input   --prompt TEXT | --prompt-file F | --prompt-tokens 1,2,3 | --chat FILE.json | -i "
    "(chat)\n"
    "prompt  --system TEXT  --raw (no template)  --think  --no-think  --no-special (user text "
    "stays text)\n"
    "        --template-as qwen3.5|qwen3.5-0.8b|qwen3.6\n"
    "length  --max-new-tokens N (default 512)  --ignore-eos  -c, --ctx N  --slots N\n"
    "sample  --greedy  --temperature F  --top-k N  --top-p F  --min-p F  --seed N\n"
    "        --presence-penalty F  --repetition-penalty F   (defaults: generation_config.json)\n"
    "output  --json (one object)  --logits FILE (safetensors: logits [n, vocab], token_ids [n])\n"
    "compute --backend auto|cpu|cuda|reference  --isa auto|baseline|avx2|avx512  -t, --threads N\n"
    "        --activations auto|bf16|int8|fp32  --kv-type auto|f32|bf16|int8\n"
    "        --prefill-chunk N (multiple of 64)  --cuda-graphs on|off\n"
    "ranks   --transport auto|self|threads|mpi|nccl  --ranks P (with threads)\n"
    "        --attention auto|layers|sequences  --bind auto|keep  --timeout S (0: no watchdog)\n"
    "other   -m, --model DIR  --progress auto|always|never  -q, --quiet  -v, --verbose\n"
    "        --config-file F (JSON object of options that the command line does not give)\n"
    "        -h, --help  --version\n"
    "\n"
    "  qwen-ep --model 35b-q4 --prompt \"Why is the sky blue?\" --no-think\n"
    "  mpirun -np 4 --bind-to none qwen-ep --model 35b-q4 --chat talk.json --json\n"
    "  qwen-ep --model 35b-q4 --transport threads --ranks 2 --raw --prompt \"Once upon\"";

static struct qep_option_table own_table(struct qep_run_options *o, struct qep_option *rows) {
    const struct qep_option list[] = {
        {"prompt", 'p', QEP_OPTION_STRING, &o->prompt, "TEXT", "", 0, 0, NULL, NULL, false},
        {"prompt-file", 'f', QEP_OPTION_PATH, &o->prompt_file, "F", "", 0, 0, NULL, NULL, false},
        {"prompt-tokens", 0, QEP_OPTION_STRING, &o->prompt_tokens, "IDS", "", 0, 0, NULL, NULL,
         false},
        {"chat", 0, QEP_OPTION_PATH, &o->chat, "F", "", 0, 0, NULL, NULL, false},
        {"interactive", 'i', QEP_OPTION_FLAG, &o->interactive, NULL, "", 0, 0, NULL, NULL, false},
        {"system", 0, QEP_OPTION_STRING, &o->system, "TEXT", "", 0, 0, NULL, NULL, false},
        {"raw", 0, QEP_OPTION_FLAG, &o->raw, NULL, "", 0, 0, NULL, NULL, false},
        {"think", 0, QEP_OPTION_FLAG, &o->think, NULL, "", 0, 0, NULL, NULL, false},
        {"no-think", 0, QEP_OPTION_FLAG, &o->no_think, NULL, "", 0, 0, NULL, NULL, false},
        {"no-special", 0, QEP_OPTION_FLAG, &o->no_special, NULL, "", 0, 0, NULL, NULL, false},
        {"template-as", 0, QEP_OPTION_CHOICE, &o->template_as, "FORM", "", 0, 0,
         "qwen3.5|qwen3.5-0.8b|qwen3.6", NULL, false},
        {"max-new-tokens", 'n', QEP_OPTION_INT, &o->max_new_tokens, "N", "", 0, INT32_MAX, NULL,
         NULL, false},
        {"prefill-chunk", 0, QEP_OPTION_INT, &o->common.engine.prefill_chunk, "N", "", 64, 1 << 20,
         NULL, NULL, false},
        {"ignore-eos", 0, QEP_OPTION_FLAG, &o->ignore_eos, NULL, "", 0, 0, NULL, NULL, false},
        {"json", 0, QEP_OPTION_FLAG, &o->json, NULL, "", 0, 0, NULL, NULL, false},
        {"greedy", 0, QEP_OPTION_FLAG, &o->sampling.greedy, NULL, "", 0, 0, NULL, NULL, false},
        {"temperature", 0, QEP_OPTION_DOUBLE, &o->sampling.temperature, "F", "", 0, 1e6, NULL,
         &o->temperature_given, false},
        {"top-k", 0, QEP_OPTION_INT, &o->sampling.top_k, "N", "", 0, INT32_MAX, NULL,
         &o->top_k_given, false},
        {"top-p", 0, QEP_OPTION_DOUBLE, &o->sampling.top_p, "F", "", 0, 1, NULL, &o->top_p_given,
         false},
        {"min-p", 0, QEP_OPTION_DOUBLE, &o->sampling.min_p, "F", "", 0, 1, NULL, &o->min_p_given,
         false},
        {"presence-penalty", 0, QEP_OPTION_DOUBLE, &o->sampling.presence_penalty, "F", "", -1e6,
         1e6, NULL, &o->presence_given, false},
        {"repetition-penalty", 0, QEP_OPTION_DOUBLE, &o->sampling.repetition_penalty, "F", "", 1e-6,
         1e6, NULL, &o->repetition_given, false},
        {"seed", 0, QEP_OPTION_INT, &o->seed, "N", "", 0, 9.0e18, NULL, &o->seed_given, false},
        {"logits", 0, QEP_OPTION_PATH, &o->logits, "FILE", "", 0, 0, NULL, NULL, false}};
    memcpy(rows, list, sizeof list);
    return (struct qep_option_table){.options = rows, .num_options = sizeof list / sizeof list[0]};
}

static void print_help(const struct qep_option_table *own) {
    (void)own; /* its rows have no help of their own: the text groups them */
    puts(help_text);
}

static enum qep_status check(const struct qep_run_options *o) {
    int inputs = (o->prompt != NULL) + (o->prompt_file != NULL) + (o->prompt_tokens != NULL) +
                 (o->chat != NULL) + o->interactive;
    if (o->common.engine.model == NULL)
        return qep_fail(QEP_ERR_USAGE, "--model DIR is missing");
    if (inputs != 1)
        return qep_fail(QEP_ERR_USAGE,
                        "expected one of --prompt, --prompt-file, --prompt-tokens, "
                        "--chat, -i; found %d",
                        inputs);
    if (o->think && o->no_think)
        return qep_fail(QEP_ERR_USAGE, "--think and --no-think exclude each other");
    if (o->common.engine.prefill_chunk % 64 != 0)
        return qep_fail(QEP_ERR_USAGE, "--prefill-chunk: expected a multiple of 64, found %lld",
                        (long long)o->common.engine.prefill_chunk);
    if (o->raw && (o->chat != NULL || o->interactive || o->system != NULL))
        return qep_fail(QEP_ERR_USAGE, "--raw goes with --prompt and --prompt-file only");
    if (o->chat != NULL && o->system != NULL)
        return qep_fail(QEP_ERR_USAGE,
                        "--system does not go with --chat: put it into the messages");
    if (o->interactive && (o->json || o->logits != NULL))
        return qep_fail(QEP_ERR_USAGE, "-i writes text: --json and --logits do not go with it");
    if (o->sampling.greedy &&
        (o->temperature_given || o->top_k_given || o->top_p_given || o->min_p_given))
        return qep_fail(QEP_ERR_USAGE,
                        "--greedy does not go with --temperature, --top-k, --top-p, --min-p");
    return QEP_OK;
}

enum qep_status qep_run_options_parse(struct qep_comm *comm, int argc, char **argv,
                                      struct qep_run_options *o) {
    struct qep_option own[32], shared[QEP_NUM_COMMON_OPTIONS];
    memset(o, 0, sizeof *o);
    o->sampling = (struct qep_sampling)QEP_SAMPLING_DEFAULT;
    o->max_new_tokens = 512;
    qep_common_init(&o->common, shared);
    const struct qep_option_table own_rows = own_table(o, own);
    const struct qep_option_table shared_rows = {.options = shared,
                                                 .num_options = QEP_NUM_COMMON_OPTIONS};
    QEP_TRY(qep_common_parse(comm, &o->common, &own_rows, &shared_rows, print_help, argc, argv));
    return o->common.answered ? QEP_OK : qep_comm_agree(comm, check(o));
}

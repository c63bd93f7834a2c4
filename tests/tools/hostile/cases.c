#include "hostile.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DATA_ERRORS = CODE(65) | CODE(66), INPUT_ERRORS = DATA_ERRORS | CODE(64) };

void arg(struct command *c, const char *text) {
    if (c->argc + 1 >= MAX_ARGS)
        die("too many arguments");
    c->argv[c->argc++] = format("%s", text);
    c->argv[c->argc] = NULL;
}

void args(struct command *c, const char *words) {
    char *copy = format("%s", words), *save = NULL;
    for (char *w = strtok_r(copy, " ", &save); w != NULL; w = strtok_r(NULL, " ", &save))
        arg(c, w);
}

static const char *in_cwd(const struct hcase *c, const char *name) {
    return format("%s/%s", c->cwd, name);
}

static void begin(struct hcase *c, const char *words, enum form form, unsigned codes) {
    c->command = (struct command){.form = form, .codes = codes};
    arg(&c->command, c->exe);
    args(&c->command, words);
}

static void copy_base(struct hcase *c, const char *from, const char *to) {
    link_tree(format("%s/%s", c->base, from), in_cwd(c, to));
}

typedef struct bytes mutate_fn(struct rng *r, struct bytes b, struct note *note);

static void mutate_file(struct hcase *c, const char *name, mutate_fn *mutate) {
    struct bytes before = file_read(in_cwd(c, name)), after = before;
    say(&c->note, "%s", name);
    for (int tries = 0; tries < 20 && bytes_equal(before, after); tries++)
        after = mutate(&c->rng, before, &c->note);
    file_write(in_cwd(c, name), after);
}

/* --- commands over a shard directory "m" */
static void run_model(struct hcase *c) {
    static const char *const activations[] = {"",
                                              "",
                                              "--activations fp32",
                                              "--activations fp32",
                                              "--activations bf16",
                                              "--backend reference"};
    static const char *const kinds[] = {"", "", "--kv-type int8", "--kv-type f32"};
    static const char *const ranks[] = {"", "", "--transport threads --ranks 2"};
    begin(c, "run --model m --greedy -n 4 --json -q", FORM_RUN, INPUT_ERRORS);
    args(&c->command, PICK(&c->rng, activations));
    args(&c->command, PICK(&c->rng, kinds));
    args(&c->command, PICK(&c->rng, ranks));
    args(&c->command, "-t 1");
    c->command.model = "m";
}

static void run_tokens(struct hcase *c) {
    run_model(c);
    args(&c->command, "--prompt-tokens 417,275,198,265,257,220,16,20,4,259");
}

static void run_text(struct hcase *c) {
    run_model(c);
    arg(&c->command, "--prompt");
    arg(&c->command, "What is 15% of 80?");
}

static void any_model_command(struct hcase *c) {
    static const char *const inspect[] = {"inspect m", "inspect m --ranks 3",
                                          "inspect m --ranks 5 --attention sequences"};
    switch (rng_below(&c->rng, 8)) {
    case 0:
        begin(c, PICK(&c->rng, inspect), FORM_TEXT, DATA_ERRORS);
        break;
    case 1:
        begin(c, "inspect m --verify --jobs 1", FORM_TEXT, DATA_ERRORS);
        break;
    case 2:
        begin(c, "tokenize --model m --text-file prompt.txt", FORM_TEXT, INPUT_ERRORS);
        break;
    case 3:
        run_text(c);
        break;
    default:
        run_tokens(c);
    }
    c->command.model = "m";
}

static const char prompt_text[] =
    "What is 15% of 80? caf\xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac <|im_end|>\r\n\t1234 it's\n";

static void lay_out_model(struct hcase *c) {
    copy_base(c, "q4", "m");
    file_write(in_cwd(c, "prompt.txt"), bytes_of(prompt_text));
    any_model_command(c);
}

static const char *const model_files[] = {"embed.qep", "layer-000.qep", "layer-003.qep",
                                          "shard-00-of-02.qep", "shard-01-of-02.qep"};
static const char *const side_files[] = {"config.json",           "generation_config.json",
                                         "tokenizer.json",        "tokenizer.json",
                                         "tokenizer_config.json", "chat_template.jinja"};

/* What is not resealed is found, whatever it is, by whoever reads it all. */
static void expect_found(struct hcase *c) {
    bool reads_all =
        c->command.form == FORM_RUN || strcmp(c->command.argv[c->command.argc - 1], "1") == 0;
    c->expect = reads_all ? EXPECT_REFUSAL : EXPECT_SAME;
}

static void damage_raw(struct hcase *c) {
    const char *name = rng_one_in(&c->rng, 4)   ? "manifest.json"
                       : rng_one_in(&c->rng, 4) ? PICK(&c->rng, side_files)
                                                : PICK(&c->rng, model_files);
    mutate_file(c, format("m/%s", name), mutate_bytes);
    expect_found(c);
}

static void damage_directory(struct hcase *c) {
    const char *name = PICK(&c->rng, model_files), *other = PICK(&c->rng, model_files);
    const char *path = in_cwd(c, format("m/%s", name));
    switch (rng_below(&c->rng, 5)) {
    case 0:
        say(&c->note, "%s missing", name);
        unlink(path);
        break;
    case 1:
        say(&c->note, "%s of another recipe", name);
        file_write(path, file_read(format("%s/bf16/%s", c->base, name)));
        break;
    case 2:
        if (strcmp(name, other) == 0)
            other = "layer-001.qep";
        say(&c->note, "%s has the bytes of %s", name, other);
        file_write(path, file_read(in_cwd(c, format("m/%s", other))));
        break;
    case 3:
        say(&c->note, "%s is a directory", name);
        unlink(path);
        mkdir(path, 0700);
        break;
    default:
        say(&c->note, "no manifest");
        unlink(in_cwd(c, "m/manifest.json"));
    }
    expect_found(c);
}

static void damage_qep(struct hcase *c) {
    static const enum qep_damage kinds[] = {QEP_HEADER, QEP_FRAMES, QEP_INDEX};
    mutate_qep(&c->rng, in_cwd(c, "m"), PICK(&c->rng, model_files), PICK(&c->rng, kinds), &c->note);
    bool inspects = strcmp(c->command.argv[1], "inspect") == 0; /* prints sizes and hashes */
    c->expect = inspects || c->note.free ? EXPECT_ANY : EXPECT_SAME;
}

static void damage_weights(struct hcase *c) {
    mutate_qep(&c->rng, in_cwd(c, "m"), PICK(&c->rng, model_files), QEP_VALUES, &c->note);
    c->check = c->command.form == FORM_RUN ? CHECK_TYPES : CHECK_NONE;
}

static struct bytes mutate_manifest(struct rng *r, struct bytes text, struct note *note) {
    struct bytes base = manifest_base(text), end = bytes_of("}");
    struct bytes whole =
        bytes_splice(base, base.n, base.n, end); /* an object without its last member */
    bool same = rng_one_in(r, 6);
    whole = same ? respell_json(r, whole, note) : mutate_json(r, whole, note);
    size_t n = whole.n;
    while (n > 0 && whole.p[n - 1] != '}')
        n--;
    whole.n = n > 0 ? n - 1 : whole.n;
    say(note, "resealed");
    return reseal_manifest(whole);
}

static void damage_manifest(struct hcase *c) {
    mutate_file(c, "m/manifest.json", mutate_manifest);
}

static bool is_json(const char *name) {
    return strstr(name, ".json") != NULL;
}

static void damage_side(struct hcase *c) {
    const char *name = PICK(&c->rng, side_files);
    bool raw = !is_json(name) || rng_one_in(&c->rng, 4);
    mutate_file(c, format("m/%s", name), raw ? mutate_bytes : mutate_json);
    if (c->command.form != FORM_NONE) {
        reseal_file(in_cwd(c, "m"), name);
        say(&c->note, "resealed");
    }
}

static void lay_out_side(struct hcase *c) {
    lay_out_model(c);
    if (rng_one_in(&c->rng, 4)) {
        begin(c, "reseal m", FORM_NONE, DATA_ERRORS);
        c->command.output = "m";
    } else if (rng_one_in(&c->rng, 3)) { /* as generation_config.json says */
        begin(c, "run --model m -n 6 --json -q -t 1 --seed 3 --prompt-tokens 417,275,198", FORM_RUN,
              INPUT_ERRORS);
    }
}

/* --- checkpoints */
static void convert(struct hcase *c, const char *from) {
    static const char *const recipes[] = {"q4", "q4", "q8", "bf16", "q4-all"};
    begin(c, format("convert --from %s --to out --jobs 1 --shards 2 --recipe", from), FORM_MANIFEST,
          DATA_ERRORS);
    args(&c->command, PICK(&c->rng, recipes));
    c->command.output = "out";
}

static void lay_out_checkpoint(struct hcase *c) {
    static const char *const sources[] = {"hf", "hf", "tied", "packed", "experts"};
    copy_base(c, c->source = PICK(&c->rng, sources), "hf");
    convert(c, "hf");
}

static void lay_out_indexed(struct hcase *c) {
    copy_base(c, "index", "hf");
    convert(c, "hf");
}

static void damage_header(struct hcase *c) {
    bool same = rng_one_in(&c->rng, 6);
    mutate_file(c, "hf/model.safetensors", same ? respell_header : mutate_header);
    c->expect = same ? EXPECT_EQUAL : c->note.free ? EXPECT_ANY : EXPECT_SAME;
}

static void damage_values(struct hcase *c) {
    mutate_file(c, "hf/model.safetensors", rng_one_in(&c->rng, 3) ? mutate_bytes : mutate_values);
}

static void damage_index(struct hcase *c) {
    bool same = rng_one_in(&c->rng, 5);
    mutate_file(c, "hf/model.safetensors.index.json", same ? respell_json : mutate_json);
    c->expect = same ? EXPECT_EQUAL : EXPECT_SAME;
}

static void damage_config(struct hcase *c) {
    mutate_file(c, "hf/config.json", mutate_json);
}

static void lay_out_source_side(struct hcase *c) {
    copy_base(c, "hf", "hf");
    convert(c, "hf");
}

static void damage_source_side(struct hcase *c) {
    const char *name = PICK(&c->rng, side_files);
    mutate_file(c, format("hf/%s", name), is_json(name) ? mutate_json : mutate_bytes);
}

/* A conversion that was interrupted: the files it had finished are damaged before it goes on. */
static void lay_out_resume(struct hcase *c) {
    copy_base(c, "hf", "hf");
    begin(c, "convert --from hf --to out --jobs 1 --shards 2 --recipe q4", FORM_MANIFEST,
          DATA_ERRORS | CODE(73) | CODE(75));
    c->command.output = "out";
}

static void damage_resume(struct hcase *c) {
    static const char *const names[] = {
        "embed.qep",     "embed.qep.json",     "layer-000.qep", "layer-000.qep.json",
        "layer-003.qep", "layer-003.qep.json", "identity"};
    const char *name = format("out/.convert/%s", PICK(&c->rng, names));
    copy_base(c, "partial", "out");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) { /* they are written to: no links */
        const char *path = in_cwd(c, format("out/.convert/%s", names[i]));
        file_write(path, file_read(path));
    }
    mutate_file(c, name, is_json(name) && !rng_one_in(&c->rng, 3) ? mutate_json : mutate_bytes);
    c->expect = EXPECT_SAME;
    c->check = CHECK_RESUME;
}

/* A model that is made up from its config alone; what it asks for may be more than there is. */
static void lay_out_config(struct hcase *c) {
    static const char *const commands[] = {
        "bench --config hf/config.json --weights random -p 8 -n 2 -r 1 -t 1 -o csv",
        "synth --config hf/config.json --jobs 1 --out out",
        "synth --config hf/config.json --jobs 1 --out out --recipe q4 --shards 2"};
    size_t which = rng_below(&c->rng, 3);
    copy_base(c, "hf", "hf");
    begin(c, commands[which], which == 2 ? FORM_MANIFEST : FORM_NONE,
          INPUT_ERRORS | CODE(71) | CODE(74));
    c->command.output = which > 0 ? "out" : NULL;
}

/* --- requests */
static const char chat_text[] =
    "{\"messages\": [{\"role\": \"system\", \"content\": \"Be brief.\"},\n"
    " {\"role\": \"user\", \"content\": \"What is 15% of 80? caf\\u00e9\"},\n"
    " {\"role\": \"assistant\", \"content\": \"15% of 80 is 12.\", \"reasoning_content\": "
    "\"80/100*15\"},\n"
    " {\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"And \\\"7%\\\" of "
    "30?\"}]}],\n"
    " \"enable_thinking\": false, \"add_generation_prompt\": true}\n";
static const char tools_text[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"Weather?\"},\n"
    " {\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [{\"id\": \"c1\", \"type\": "
    "\"function\",\n"
    "  \"function\": {\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\", \"days\": 1.0, "
    "\"deep\": [1, null]}}}]},\n"
    " {\"role\": \"tool\", \"content\": \"rain\"}],\n"
    " \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"parameters\": "
    "{\"type\": \"object\",\n"
    "  \"properties\": {\"city\": {\"type\": \"string\"}, \"days\": {\"type\": \"number\"}}}}}],\n"
    " \"preserve_thinking\": true}\n";

static void lay_out_chat(struct hcase *c) {
    static const char *const commands[] = {"tokenize --model m --chat chat.json",
                                           "tokenize --model m --chat chat.json --render",
                                           "tokenize --model m --chat chat.json --no-special"};
    copy_base(c, "q4", "m");
    file_write(in_cwd(c, "chat.json"), bytes_of(rng_one_in(&c->rng, 2) ? chat_text : tools_text));
    if (rng_one_in(&c->rng, 2)) {
        run_model(c);
        args(&c->command, "--chat chat.json");
        c->check = CHECK_CHAT;
        return;
    }
    begin(c, PICK(&c->rng, commands), FORM_TEXT, INPUT_ERRORS);
}

static void damage_chat(struct hcase *c) {
    bool same = rng_one_in(&c->rng, 5);
    mutate_file(c, "chat.json", same ? respell_json : mutate_json);
    c->expect = same ? EXPECT_EQUAL : EXPECT_ANY;
}

static const char *const request_lines[] = {
    "{\"text\": \"What is 15% of 80?\"}",
    "{\"messages\": [{\"role\": \"user\", \"content\": \"caf\\u00e9 \\ud83d\\ude00\"}], "
    "\"enable_thinking\": false}",
    "{\"text\": \"<|im_start|>user\\n\"}",
    "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"assistant\", "
    "\"content\": \"y\"}], "
    "\"add_generation_prompt\": false}"};
enum { NUM_LINES = sizeof request_lines / sizeof *request_lines };

static void write_lines(struct hcase *c, size_t changed, struct bytes line) {
    struct bytes all = {0};
    for (size_t i = 0; i < NUM_LINES; i++) {
        struct bytes one = i == changed ? line : bytes_of(request_lines[i]);
        all = bytes_splice(all, all.n, all.n, one);
        all = bytes_splice(all, all.n, all.n, bytes_of("\n"));
    }
    file_write(in_cwd(c, "lines.jsonl"), all);
}

static void lay_out_lines(struct hcase *c) {
    static const char *const ways[] = {"", "--render", "--no-special"};
    copy_base(c, "q4", "m");
    write_lines(c, NUM_LINES, (struct bytes){0});
    begin(c, "tokenize --model m --jsonl", FORM_LINES, 0); /* errors are answers */
    args(&c->command, PICK(&c->rng, ways));
    c->command.input = "lines.jsonl";
}

static void damage_line(struct hcase *c) {
    c->line = rng_below(&c->rng, NUM_LINES);
    struct bytes line = mutate_json(&c->rng, bytes_of(request_lines[c->line]), &c->note);
    line = bytes_copy(line);
    for (size_t i = 0; i < line.n; i++)
        if (line.p[i] == '\n')
            line.p[i] = ' ';
    write_lines(c, c->line, line);
}

static void lay_out_prompt(struct hcase *c) {
    static const char *const ways[] = {"", "--raw", "--no-special", "--no-think"};
    copy_base(c, "q4", "m");
    file_write(in_cwd(c, "prompt.txt"), bytes_of(prompt_text));
    if (rng_one_in(&c->rng, 2)) {
        run_model(c);
        args(&c->command, "--prompt-file prompt.txt");
        const char *way = PICK(&c->rng, ways);
        args(&c->command, way);
        c->check = strcmp(way, "--raw") == 0 ? CHECK_PROMPT : CHECK_NONE;
        return;
    }
    begin(c, "tokenize --model m --text-file prompt.txt", FORM_TEXT, INPUT_ERRORS);
    c->check = CHECK_ROUND;
}

static void damage_prompt(struct hcase *c) {
    mutate_file(c, "prompt.txt", mutate_bytes);
}

static const char talk_text[] =
    "What is 15% of 80?\n/help\n\nAnd caf\xc3\xa9?\n/reset\nWhat is 7% of 30?\n";

static void lay_out_talk(struct hcase *c) {
    copy_base(c, "q4", "m");
    file_write(in_cwd(c, "talk.txt"), bytes_of(talk_text));
    begin(c, "run --model m -i --greedy -n 4 -q -t 1", FORM_TEXT, INPUT_ERRORS);
    c->command.input = "talk.txt";
    c->command.model = "m";
}

static void damage_talk(struct hcase *c) {
    mutate_file(c, "talk.txt", mutate_bytes);
    c->check = CHECK_RANKS;
}

static const char *const token_lists[] = {"417,275,198,265,257,220,16,20,4,259", "1", "0,424",
                                          "5,5,5,5"};

static void lay_out_tokens(struct hcase *c) {
    copy_base(c, "q4", "m");
    if (rng_one_in(&c->rng, 2))
        begin(c, "tokenize --model m --decode", FORM_TEXT, CODE(64));
    else {
        run_model(c);
        args(&c->command, "--prompt-tokens");
    }
    c->command.codes = CODE(64);
    arg(&c->command, PICK(&c->rng, token_lists));
}

static void damage_tokens(struct hcase *c) {
    static const char *const pieces[] = {
        ",",   ",,",  "-", "+",    " ",   "4294967296", "432", "99999999999999999999",
        "1e2", "0x1", ".", "\xff", "1,2", "00",         "\n",  "a"};
    char **list = &c->command.argv[c->command.argc - 1];
    struct bytes text = bytes_of(*list);
    for (size_t times = 1 + rng_below(&c->rng, 2); times > 0; times--) {
        size_t at = rng_below(&c->rng, text.n + 1), to = at + rng_below(&c->rng, 3);
        text = bytes_splice(text, at, to < text.n ? to : text.n, bytes_of(PICK(&c->rng, pieces)));
    }
    *list = format("%s", (char *)text.p);
    c->check = c->command.form == FORM_RUN ? CHECK_TOKENS : CHECK_NONE;
    say(&c->note, "the list is '%s'", *list);
}

static const char *const templates[] = {"Qwen3.5-35B-A3B", "Qwen3.5-0.8B", "Qwen3.6"};

static void lay_out_template(struct hcase *c) {
    copy_base(c, "q4", "m");
    copy_base(c, "templates", "templates");
    file_write(in_cwd(c, "chat.json"), bytes_of(rng_one_in(&c->rng, 2) ? chat_text : tools_text));
    begin(c, "tokenize --tokenizer m/tokenizer.json --chat chat.json --template", FORM_TEXT,
          DATA_ERRORS);
    arg(&c->command, format("templates/%s", PICK(&c->rng, templates)));
}

static void damage_template(struct hcase *c) {
    mutate_file(c, c->command.argv[c->command.argc - 1], mutate_bytes);
    c->expect = EXPECT_SAME;
}

/* --- option files and recipes */
static const char *const option_texts[] = {
    "{\"model\": \"m\", \"prompt-tokens\": \"417,275,198\", \"greedy\": true, \"max-new-tokens\": "
    "4,\n"
    " \"json\": true, \"quiet\": true, \"threads\": 1, \"activations\": \"fp32\", \"ctx\": 64}\n",
    "{\"model\": \"m\", \"prompt\": \"What is 7% of 30?\", \"temperature\": 0.5, \"top-k\": 5, "
    "\"top-p\": 0.9,\n"
    " \"seed\": 7, \"max-new-tokens\": 4, \"json\": true, \"quiet\": true, \"threads\": 1, "
    "\"slots\": 1,\n"
    " \"repetition-penalty\": 1.1, \"kv-type\": \"int8\", \"transport\": \"threads\", \"ranks\": "
    "2}\n"};

static void lay_out_options(struct hcase *c) {
    copy_base(c, "q4", "m");
    file_write(in_cwd(c, "options.json"), bytes_of(PICK(&c->rng, option_texts)));
    begin(c, "run --config-file options.json", FORM_RUN, INPUT_ERRORS | CODE(69) | CODE(73));
}

static void damage_options(struct hcase *c) {
    bool same = rng_one_in(&c->rng, 5);
    mutate_file(c, "options.json", same ? respell_json : mutate_json);
    c->expect = same ? EXPECT_EQUAL : EXPECT_ANY;
    if (!same) /* text, a conversation or nothing: other forms of answers */
        c->command.form = FORM_NONE;
    c->check = same ? CHECK_NONE : CHECK_OPTIONS;
}

static void lay_out_recipe(struct hcase *c) {
    copy_base(c, "hf", "hf");
    file_write(in_cwd(c, "recipe.json"), file_read(format("%s/recipe.json", c->base)));
    begin(c, "convert --from hf --to out --jobs 1 --shards 2 --recipe recipe.json", FORM_MANIFEST,
          DATA_ERRORS);
    c->command.output = "out";
}

static void damage_recipe(struct hcase *c) {
    bool same = rng_one_in(&c->rng, 5);
    mutate_file(c, "recipe.json", same ? respell_json : mutate_json);
    c->expect = same ? EXPECT_EQUAL : EXPECT_ANY;
}

static const struct area areas[] = {{"shard-bytes", 8, lay_out_model, damage_raw},
                                    {"shard-directory", 3, lay_out_model, damage_directory},
                                    {"shard-content", 12, lay_out_model, damage_qep},
                                    {"shard-weights", 8, lay_out_model, damage_weights},
                                    {"shard-manifest", 10, lay_out_model, damage_manifest},
                                    {"shard-side", 10, lay_out_side, damage_side},
                                    {"source-header", 7, lay_out_checkpoint, damage_header},
                                    {"source-values", 5, lay_out_checkpoint, damage_values},
                                    {"source-index", 3, lay_out_indexed, damage_index},
                                    {"source-config", 7, lay_out_checkpoint, damage_config},
                                    {"source-side", 4, lay_out_source_side, damage_source_side},
                                    {"source-resume", 3, lay_out_resume, damage_resume},
                                    {"config-alone", 4, lay_out_config, damage_config},
                                    {"chat", 10, lay_out_chat, damage_chat},
                                    {"lines", 5, lay_out_lines, damage_line},
                                    {"prompt", 4, lay_out_prompt, damage_prompt},
                                    {"template", 2, lay_out_template, damage_template},
                                    {"talk", 2, lay_out_talk, damage_talk},
                                    {"tokens", 3, lay_out_tokens, damage_tokens},
                                    {"options", 7, lay_out_options, damage_options},
                                    {"recipe", 5, lay_out_recipe, damage_recipe}};

void case_draw(struct hcase *c) {
    size_t total = 0, at = 0;
    for (size_t i = 0; i < sizeof areas / sizeof *areas; i++)
        total += areas[i].weight;
    size_t drawn = rng_below(&c->rng, total);
    for (at = 0; drawn >= areas[at].weight; at++)
        drawn -= areas[at].weight;
    c->area = &areas[at];
}

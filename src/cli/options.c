#include "cli/options.h"

#include "cli/option_value.h"

#include <getopt.h>
#include <stdio.h>

/* What getopt_long returns for a long option: an index into its list, above every character. */
enum { FIRST_LONG = 1000, NUM_STANDARD = 2 };

static const struct qep_option standard[NUM_STANDARD] = {
    {.name = "help", .short_name = 'h', .kind = QEP_OPTION_FLAG},
    {.name = "version", .kind = QEP_OPTION_FLAG}};

/* All options in getopt's form; the standard ones are the first. */
struct parser {
    const struct qep_option *all[NUM_STANDARD + QEP_OPTIONS_MAX];
    struct option longs[NUM_STANDARD + QEP_OPTIONS_MAX + 1];
    char shorts[2 * (NUM_STANDARD + QEP_OPTIONS_MAX) + 2];
    int num, num_shorts;
};

static void add_row(struct parser *p, const struct qep_option *opt) {
    bool takes_value = qep_option_takes_value(opt);
    p->all[p->num] = opt;
    p->longs[p->num] = (struct option){.name = opt->name,
                                       .has_arg = takes_value ? required_argument : no_argument,
                                       .val = FIRST_LONG + p->num};
    p->num++;
    if (opt->short_name == 0)
        return;
    p->shorts[p->num_shorts++] = opt->short_name;
    if (takes_value)
        p->shorts[p->num_shorts++] = ':';
}

static enum qep_status add_rows(struct parser *p, const struct qep_option_table *table) {
    if (p->num + (int)table->num_options > NUM_STANDARD + QEP_OPTIONS_MAX)
        return qep_fail(QEP_ERR_BUG, "more than %d options", QEP_OPTIONS_MAX);
    for (size_t i = 0; i < table->num_options; i++)
        add_row(p, &table->options[i]);
    return QEP_OK;
}

static int find(const struct parser *p, int c) {
    if (c >= FIRST_LONG)
        return c - FIRST_LONG;
    for (int i = 0; i < p->num; i++)
        if (p->all[i]->short_name == c)
            return i;
    return -1;
}

/* getopt's '?' or ':'. It tells an option it knows, or a letter it does not, in optopt. */
static enum qep_status refuse(const struct parser *p, int c, char **argv) {
    int idx = optopt == 0 ? -1 : find(p, optopt);
    if (idx >= 0)
        return qep_fail(QEP_ERR_USAGE, "--%s: %s a value", p->all[idx]->name,
                        c == ':' ? "needs" : "does not take");
    if (optopt != 0)
        return qep_fail(QEP_ERR_USAGE, "unknown option '-%c' (see --help)", optopt);
    return qep_fail(QEP_ERR_USAGE, "unknown or ambiguous option '%s' (see --help)",
                    argv[optind - 1]);
}

static enum qep_status take(const struct qep_option *opt, const char *text, bool *given) {
    struct qep_option_value value;
    char expected[256];
    if (opt->kind == QEP_OPTION_CONFIG_FILE && *given)
        return qep_fail(QEP_ERR_USAGE, "--%s: expected once, found again with '%s'", opt->name,
                        text);
    if (!qep_option_read(opt, text, &value)) {
        qep_option_expected(opt, expected, sizeof expected);
        return qep_fail(QEP_ERR_USAGE, "--%s: expected %s, found '%s'", opt->name, expected, text);
    }
    qep_option_store(opt, &value);
    *given = true;
    return QEP_OK;
}

enum qep_status qep_options_parse(const struct qep_option_table *tables, size_t num_tables,
                                  int argc, char **argv, struct qep_options_found *found) {
    struct parser p = {.shorts = ":", .num_shorts = 1};
    *found = (struct qep_options_found){0};
    for (int i = 0; i < NUM_STANDARD; i++)
        add_row(&p, &standard[i]);
    for (size_t t = 0; t < num_tables; t++)
        QEP_TRY(add_rows(&p, &tables[t]));
    optind = 0; /* glibc: start afresh */
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, p.shorts, p.longs, NULL)) != -1;) {
        if (c == '?' || c == ':')
            return refuse(&p, c, argv);
        int idx = find(&p, c);
        if (idx < NUM_STANDARD)
            *(idx == 0 ? &found->help : &found->version) = true;
        else
            QEP_TRY(take(p.all[idx], optarg, &found->given[idx - NUM_STANDARD]));
    }
    found->positional = argv + optind;
    found->num_positional = argc - optind;
    return QEP_OK;
}

enum qep_status qep_options_directory(const char *command, const struct qep_options_found *found,
                                      const char **dir) {
    if (found->num_positional != 1)
        return qep_fail(QEP_ERR_USAGE, "%s: expected one directory (see --help)", command);
    *dir = found->positional[0];
    return **dir != '\0' ? QEP_OK
                         : qep_fail(QEP_ERR_USAGE, "%s: expected a path, found ''", command);
}

bool qep_options_answer(const struct qep_options_found *found, int rank,
                        void (*print_help)(const struct qep_option_table *own),
                        const struct qep_option_table *own) {
    if (rank == 0 && found->version)
        puts("qwen-ep " QEP_VERSION);
    else if (rank == 0 && found->help)
        print_help(own);
    return found->help || found->version;
}

static void print_row(const char *left, const char *help) {
    printf("  %-34s %s\n", left, help);
}

void qep_options_help(const struct qep_option_table *table) {
    for (size_t i = 0; i < table->num_options; i++) {
        const struct qep_option *opt = &table->options[i];
        char left[96], short_part[8] = "";
        if (opt->short_name != 0)
            snprintf(short_part, sizeof short_part, "-%c, ", opt->short_name);
        const char *arg = opt->arg != NULL ? opt->arg : opt->choices != NULL ? opt->choices : "";
        snprintf(left, sizeof left, "%s--%s %s", short_part, opt->name, arg);
        print_row(left, opt->help);
    }
    print_row("-h, --help, --version", "this text; the version");
}

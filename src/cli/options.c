#include "cli/options.h"

#include "base/mem.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_LONG = 1000, MAX_OPTIONS = 128 };

static enum qep_status parse_int(const struct qep_option *opt, const char *text) {
    char *end = NULL;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (*text == '\0' || *end != '\0' || errno != 0 || (double)value < opt->min ||
        (double)value > opt->max)
        return qep_fail(QEP_ERR_USAGE, "--%s: expected a whole number in %.0f..%.0f, found '%s'",
                        opt->name, opt->min, opt->max, text);
    *(int64_t *)opt->target = value;
    return QEP_OK;
}

static enum qep_status parse_double(const struct qep_option *opt, const char *text) {
    char *end = NULL;
    double value = strtod(text, &end);
    if (*text == '\0' || *end != '\0' || !(value >= opt->min && value <= opt->max))
        return qep_fail(QEP_ERR_USAGE, "--%s: expected a number in %g..%g, found '%s'", opt->name,
                        opt->min, opt->max, text);
    *(double *)opt->target = value;
    return QEP_OK;
}

static enum qep_status parse_choice(const struct qep_option *opt, const char *text) {
    size_t len = strlen(text);
    for (const char *c = opt->choices; c != NULL && *c != '\0';) {
        size_t n = strcspn(c, "|");
        if (n == len && strncmp(c, text, n) == 0) {
            *(const char **)opt->target = text;
            return QEP_OK;
        }
        c += n + (c[n] == '|');
    }
    return qep_fail(QEP_ERR_USAGE, "--%s: expected one of %s, found '%s'", opt->name, opt->choices,
                    text);
}

static enum qep_status apply(const struct qep_option *opt, const char *text) {
    if (opt->given != NULL)
        *opt->given = true;
    switch (opt->kind) {
    case QEP_OPTION_FLAG:
        *(bool *)opt->target = true;
        return QEP_OK;
    case QEP_OPTION_CLEAR:
        *(bool *)opt->target = false;
        return QEP_OK;
    case QEP_OPTION_INT:
        return parse_int(opt, text);
    case QEP_OPTION_DOUBLE:
        return parse_double(opt, text);
    case QEP_OPTION_STRING:
        *(const char **)opt->target = text;
        return QEP_OK;
    case QEP_OPTION_CHOICE:
        return parse_choice(opt, text);
    }
    return qep_fail(QEP_ERR_BUG, "--%s: unknown option kind", opt->name);
}

static bool takes_value(const struct qep_option *opt) {
    return opt->kind != QEP_OPTION_FLAG && opt->kind != QEP_OPTION_CLEAR;
}

enum qep_status qep_options_parse(const struct qep_option_table *tables, size_t num_tables,
                                  int argc, char **argv, int *first_positional) {
    const struct qep_option *all[MAX_OPTIONS];
    struct option longs[MAX_OPTIONS + 1];
    char shorts[2 * MAX_OPTIONS + 2];
    size_t n = 0, s = 0;
    shorts[s++] = ':';
    for (size_t t = 0; t < num_tables; t++)
        for (size_t i = 0; i < tables[t].num_options && n < MAX_OPTIONS; i++, n++) {
            const struct qep_option *opt = &tables[t].options[i];
            all[n] = opt;
            longs[n] =
                (struct option){.name = opt->name,
                                .has_arg = takes_value(opt) ? required_argument : no_argument,
                                .val = FIRST_LONG + (int)n};
            if (opt->short_name != 0) {
                shorts[s++] = opt->short_name;
                if (takes_value(opt))
                    shorts[s++] = ':';
            }
        }
    longs[n] = (struct option){0};
    shorts[s] = '\0';
    optind = 0; /* glibc: start afresh */
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
        const struct qep_option *opt = NULL;
        if (c >= FIRST_LONG)
            opt = all[c - FIRST_LONG];
        else
            for (size_t i = 0; i < n && c != '?' && c != ':'; i++)
                if (all[i]->short_name == c)
                    opt = all[i];
        if (opt == NULL && c == ':')
            return qep_fail(QEP_ERR_USAGE, "option '%s' needs a value", argv[optind - 1]);
        if (opt == NULL)
            return qep_fail(QEP_ERR_USAGE, "unknown or ambiguous option '%s' (see --help)",
                            argv[optind - 1]);
        QEP_TRY(apply(opt, optarg));
    }
    *first_positional = optind;
    return QEP_OK;
}

void qep_options_help(const struct qep_option_table *table) {
    for (size_t i = 0; i < table->num_options; i++) {
        const struct qep_option *opt = &table->options[i];
        char left[96], short_part[8] = "";
        if (opt->short_name != 0)
            snprintf(short_part, sizeof short_part, "-%c, ", opt->short_name);
        const char *arg = opt->arg != NULL ? opt->arg : opt->choices != NULL ? opt->choices : "";
        snprintf(left, sizeof left, "%s--%s %s", short_part, opt->name, arg);
        printf("  %-34s %s\n", left, opt->help);
    }
}

#include "cli/option_value.h"

#include "base/number.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool qep_option_takes_value(const struct qep_option *opt) {
    return opt->kind != QEP_OPTION_FLAG;
}

static bool is_choice(const char *choices, const char *text) {
    size_t len = strlen(text);
    for (const char *c = choices; c != NULL && *c != '\0';) {
        size_t n = strcspn(c, "|");
        if (n == len && strncmp(c, text, n) == 0)
            return true;
        c += n + (c[n] == '|');
    }
    return false;
}

bool qep_option_read(const struct qep_option *opt, const char *text, struct qep_option_value *out) {
    *out = (struct qep_option_value){.text = text};
    switch (opt->kind) {
    case QEP_OPTION_FLAG:
    case QEP_OPTION_STRING:
        return true;
    case QEP_OPTION_INT:
        return qep_parse_int(text, strlen(text), (int64_t)opt->min, (int64_t)opt->max, &out->whole);
    case QEP_OPTION_DOUBLE:
        return qep_parse_double(text, strlen(text), opt->min, opt->max, &out->number);
    case QEP_OPTION_PATH:
    case QEP_OPTION_CONFIG_FILE:
        return *text != '\0';
    case QEP_OPTION_CHOICE:
        return is_choice(opt->choices, text);
    }
    return false;
}

void qep_option_store(const struct qep_option *opt, const struct qep_option_value *value) {
    if (opt->given != NULL)
        *opt->given = true;
    if (opt->kind == QEP_OPTION_FLAG)
        *(bool *)opt->target = true;
    else if (opt->kind == QEP_OPTION_INT)
        *(int64_t *)opt->target = value->whole;
    else if (opt->kind == QEP_OPTION_DOUBLE)
        *(double *)opt->target = value->number;
    else
        *(const char **)opt->target = value->text;
}

/* The shorter of two forms, if it says all. */
static void format_double(double value, char *out, size_t bytes) {
    snprintf(out, bytes, "%.15g", value);
    if (strtod(out, NULL) < value || strtod(out, NULL) > value)
        snprintf(out, bytes, "%.17g", value);
}

const char *qep_option_text(const struct qep_option *opt, char number[QEP_OPTION_NUMBER_BYTES]) {
    if (opt->kind == QEP_OPTION_INT)
        snprintf(number, QEP_OPTION_NUMBER_BYTES, "%lld", (long long)*(const int64_t *)opt->target);
    else if (opt->kind == QEP_OPTION_DOUBLE)
        format_double(*(const double *)opt->target, number, QEP_OPTION_NUMBER_BYTES);
    else
        return *(const char *const *)opt->target;
    return number;
}

void qep_option_expected(const struct qep_option *opt, char *out, size_t bytes) {
    if (opt->kind == QEP_OPTION_INT)
        snprintf(out, bytes, "a whole number in %.0f..%.0f", opt->min, opt->max);
    else if (opt->kind == QEP_OPTION_DOUBLE)
        snprintf(out, bytes, "a number in %g..%g", opt->min, opt->max);
    else if (opt->kind == QEP_OPTION_CHOICE)
        snprintf(out, bytes, "one of %s", opt->choices);
    else if (opt->kind == QEP_OPTION_FLAG)
        snprintf(out, bytes, "true or false");
    else
        snprintf(out, bytes, opt->kind == QEP_OPTION_STRING ? "a string" : "a path");
}

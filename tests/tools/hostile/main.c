/* hostile_tool --exe PROGRAM --base DIR --work DIR --seed S --from N --to N [--step N]
 * [--sanitized]
 *              [--known REGEX]... [--area NAME] [--keep]
 * Cases N, N + step, ... below `to`; a line for each that fails, and a count at the end. --keep
 * leaves the inputs of the cases and prints their commands. */
#include "hostile.h"

#include <errno.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_KNOWN = 16 };
struct options {
    regex_t known[MAX_KNOWN];
    int num_known;
    const char *exe, *base, *work, *area;
    uint64_t seed, from, to, step;
    bool sanitized, keep;
};

static uint64_t number(const char *text) {
    char *end = NULL;
    errno = 0;
    uint64_t v = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0')
        die("expected a number, found '%s'", text);
    return v;
}

static void compile(regex_t *known, const char *text) {
    if (regcomp(known, text, REG_EXTENDED | REG_NOSUB) != 0)
        die("no regular expression: %s", text);
}

static struct options parse(int argc, char **argv) {
    struct options o = {.step = 1};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--sanitized") == 0)
            o.sanitized = true;
        else if (strcmp(argv[i], "--keep") == 0)
            o.keep = true;
        else if (i + 1 == argc)
            die("unexpected argument '%s'", argv[i]);
        else if (strcmp(argv[i], "--exe") == 0)
            o.exe = argv[++i];
        else if (strcmp(argv[i], "--base") == 0)
            o.base = argv[++i];
        else if (strcmp(argv[i], "--work") == 0)
            o.work = argv[++i];
        else if (strcmp(argv[i], "--known") == 0 && o.num_known < MAX_KNOWN)
            compile(&o.known[o.num_known++], argv[++i]);
        else if (strcmp(argv[i], "--area") == 0)
            o.area = argv[++i];
        else if (strcmp(argv[i], "--seed") == 0)
            o.seed = number(argv[++i]);
        else if (strcmp(argv[i], "--from") == 0)
            o.from = number(argv[++i]);
        else if (strcmp(argv[i], "--to") == 0)
            o.to = number(argv[++i]);
        else if (strcmp(argv[i], "--step") == 0)
            o.step = number(argv[++i]);
        else
            die("unexpected argument '%s'", argv[i]);
    }
    if (o.exe == NULL || o.base == NULL || o.work == NULL || o.step == 0)
        die("--exe, --base and --work are needed");
    return o;
}

static void make_dir(const char *path) {
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        die("%s: %s", path, strerror(errno));
}

static bool is_known(const struct options *o, const char *line) {
    for (int i = 0; i < o->num_known; i++)
        if (regexec(&o->known[i], line, 0, NULL, 0) == 0)
            return true;
    return false;
}

/* As a shell takes it. */
static void print_command(const struct hcase *c) {
    printf("    cd %s &&", c->cwd);
    for (int i = 0; i < c->command.argc; i++) {
        printf(" '");
        for (const char *p = c->command.argv[i]; *p != '\0'; p++)
            printf(*p == '\'' ? "'\\''" : "%c", *p);
        printf("'");
    }
    printf("%s%s\n", c->command.input != NULL ? " < " : "",
           c->command.input != NULL ? c->command.input : "");
}

struct counts {
    unsigned long long passed, failed, known, refused;
};

static void report(const struct options *o, const struct hcase *c, uint64_t n, const char *wrong,
                   struct counts *counts) {
    const char *line = format("%s: %s: %s", c->area->name, c->note.text, wrong);
    counts->refused += c->refused;
    if (wrong == NULL)
        counts->passed++;
    else if (is_known(o, line))
        counts->known++;
    else
        counts->failed++;
    if (wrong != NULL && (o->keep || !is_known(o, line)))
        printf("FAILED: seed %llu case %llu: %s\n", (unsigned long long)o->seed,
               (unsigned long long)n, line);
    else if (o->keep)
        printf("case %llu: %s: %s: as it should be\n", (unsigned long long)n, c->area->name,
               c->note.text);
    if (o->keep)
        print_command(c);
    fflush(stdout);
}

static void run_case(const struct options *o, uint64_t n, struct counts *counts) {
    struct hcase c = {.rng = {.state = o->seed * 0x2545f4914f6cdd1du + n * 0x9e6c63d0876a9a47u},
                      .base = o->base,
                      .exe = o->exe,
                      .line = SIZE_MAX};
    case_draw(&c);
    if (o->area != NULL && strcmp(o->area, c.area->name) != 0)
        return;
    const struct judge how = {.limits = {.seconds = 10,
                                         .wall_seconds = 60,
                                         .rss_bytes = (size_t)2 << 30,
                                         .address_bytes = o->sanitized ? 0 : (size_t)3 << 30},
                              .cross_check_one_in =
                                  o->sanitized ? 3 : 1, /* of answers, which are the same there */
                              .answers = format("%s/answers", o->work)};
    c.dir = format("%s/case-%llu", o->work, (unsigned long long)n);
    c.cwd = format("%s/cwd", c.dir);
    make_dir(how.answers);
    make_dir(c.dir);
    make_dir(c.cwd);
    make_dir(format("%s/tmp", c.dir));
    make_dir(format("%s/log", c.dir));
    report(o, &c, n, judge(&c, &how), counts);
    if (!o->keep)
        remove_tree(c.dir);
}

int main(int argc, char **argv) {
    struct options o = parse(argc, argv);
    struct counts counts = {0};
    for (uint64_t n = o.from; n < o.to; n += o.step) {
        run_case(&o, n, &counts);
        keep_end();
    }
    for (int i = 0; i < o.num_known; i++)
        regfree(&o.known[i]);
    printf("%llu passed, %llu failed, %llu known (%llu inputs refused)\n", counts.passed,
           counts.failed, counts.known, counts.refused);
    return counts.failed > 0;
}

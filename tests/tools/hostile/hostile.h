/* The mutator behind tests/fault/hostile.sh: takes valid inputs of qwen-ep, damages or bends them
 * by a seed, runs the program on them and judges what it did. A case is a function of (seed,
 * number).
 *
 * Memory comes from `keep` and lives until the case ends; nothing is freed one by one. */
#ifndef QEP_TESTS_HOSTILE_H
#define QEP_TESTS_HOSTILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- base.c: memory of a case, chance, files. Failures of the tool's own end it (exit 2). */
void *keep(size_t n); /* zeroed; until keep_end */
void keep_end(void);  /* drops all of a case */
char *format(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* kept */
void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

struct rng {
    uint64_t state;
};
uint64_t rng_next(struct rng *r);
size_t rng_below(struct rng *r, size_t n); /* n > 0 */
bool rng_one_in(struct rng *r, size_t n);
#define PICK(r, list) ((list)[rng_below((r), sizeof(list) / sizeof *(list))])

struct bytes {
    uint8_t *p;
    size_t n;
};
struct bytes bytes_of(const char *text);
struct bytes bytes_copy(struct bytes b);
/* b with [from, to) replaced. */
struct bytes bytes_splice(struct bytes b, size_t from, size_t to, struct bytes with);
bool bytes_equal(struct bytes a, struct bytes b);
uint64_t get_le(const uint8_t *p, int n);
void put_le(uint8_t *p, int n, uint64_t v);

bool file_exists(const char *path);
struct bytes file_read(const char *path);
void file_write(const char *path, struct bytes b); /* a new file in place of what is there */
void link_tree(const char *from, const char *to);  /* a directory of hard links */
void remove_tree(const char *path);
/* A text of names, sizes, inodes and times below path, to be compared. */
char *list_tree(const char *path, const char *without);

/* --- what the mutators say: appended to, kept */
struct note {
    char *text;
    bool free; /* what was changed may mean another valid thing */
};
void say(struct note *note, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* --- mutate_bytes.c */
struct bytes mutate_bytes(struct rng *r, struct bytes b, struct note *note);

/* --- mutate_json.c: text that was JSON before. `kind` of a node is one of { [ " 0 t (literal). */
struct jnode {
    size_t key_from, key_to; /* of its quotes; 0, 0 outside of objects */
    size_t from, to;
    int parent; /* or -1 */
    char kind;
};
struct json {
    struct bytes text;
    struct jnode *nodes; /* in order of their beginning */
    int num;
    bool valid; /* else there are no nodes */
};
struct json json_scan(struct bytes text);
int json_member(const struct json *doc, int object, const char *key); /* or -1 */
int json_at(const struct json *doc, int list, int idx);               /* or -1 */
bool json_is(const struct json *doc, int node, const char *text);     /* its source */
char *json_source(const struct json *doc, int node);
char *json_key(const struct json *doc, int node); /* as written, without quotes */
struct bytes json_replace(const struct json *doc, int node, const char *text);
/* Another text, well-formed or not. */
struct bytes mutate_json(struct rng *r, struct bytes text, struct note *note);
/* Another text of the same meaning. */
struct bytes respell_json(struct rng *r, struct bytes text, struct note *note);

/* --- mutate_tensors.c: safetensors files */
struct bytes mutate_header(struct rng *r, struct bytes file, struct note *note);
struct bytes respell_header(struct rng *r, struct bytes file, struct note *note);
/* Values of a tensor: NaN, infinities, the largest, denormal ones, arbitrary bits. */
struct bytes mutate_values(struct rng *r, struct bytes file, struct note *note);

/* --- mutate_qep.c: shard directories */
enum qep_damage { QEP_HEADER, QEP_VALUES, QEP_FRAMES, QEP_INDEX };
/* Mutates one .qep file of DIR and reseals the chain of hashes, so that nothing but the content
 * tells. */
void mutate_qep(struct rng *r, const char *dir, const char *name, enum qep_damage damage,
                struct note *note);
void reseal_file(const char *dir, const char *name); /* after any change of it */
struct bytes reseal_manifest(struct bytes text);     /* its last hash */
struct bytes manifest_base(struct bytes text);       /* what that hash runs over */

/* --- process.c */
struct limits {
    double seconds, wall_seconds;    /* of a processor; of a machine that may have other work */
    size_t rss_bytes, address_bytes; /* address_bytes 0: not limited (sanitizers) */
};
struct outcome {
    struct bytes out, err;
    int code; /* or -signal */
    bool timed_out;
    bool left_process; /* a descendant was still there */
    size_t rss_bytes;
    double seconds;
};
/* Runs argv in DIR/cwd with its output in DIR/log; input: path of stdin, relative to cwd, or NULL.
 */
struct outcome run_process(const char *dir, char *const *argv, const char *input,
                           const struct limits *limits);

/* --- cases.c: what is run, on what, and what may come of it */
enum { MAX_ARGS = 48 };
enum expect {
    EXPECT_ANY,    /* an answer or an error */
    EXPECT_SAME,   /* the answer of the input as it was, or an error */
    EXPECT_EQUAL,  /* the answer of the input as it was */
    EXPECT_REFUSAL /* an error */
};
enum check { /* what an answer is compared with, besides */
             CHECK_NONE,
             CHECK_CHAT, /* the ids of tokenize */
             CHECK_PROMPT,
             CHECK_TOKENS, /* the list's own numbers */
             CHECK_ROUND,  /* the text, by tokenize --decode */
             CHECK_RANKS,  /* two ranks */
             CHECK_RESUME, /* whole, or seen to be damaged */
             CHECK_TYPES,  /* the verdict on fp32 */
             CHECK_OPTIONS /* the same options on the command line */
};
enum form {
    FORM_TEXT,     /* stdout as it is */
    FORM_RUN,      /* the object of run --json, less times and the like */
    FORM_LINES,    /* a JSON value a line */
    FORM_MANIFEST, /* what was converted */
    FORM_NONE
};
struct command {
    char *argv[MAX_ARGS]; /* ends with NULL */
    int argc;
    const char *input;  /* stdin, or NULL */
    const char *output; /* the only entry of cwd that it may make, or NULL */
    const char *model;  /* the shard directory it reads, or NULL */
    enum form form;
    unsigned codes; /* bit c - 64: exit code c is right */
};
struct area;
struct hcase {
    struct rng rng;
    const char *base; /* of hostile.sh: hf, index, q4, bf16, recipe.json */
    const char *dir;  /* of the case: cwd, tmp, log */
    const char *cwd;
    const char *exe;
    const char *source; /* of a checkpoint: part of what was laid out */
    const struct area *area;
    struct note note;
    struct command command;
    enum expect expect;
    enum check check;
    bool refused; /* filled in by judge */
    size_t line;  /* FORM_LINES: the one that was damaged */
};
struct area {
    const char *name;
    size_t weight;
    void (*lay_out)(struct hcase *c); /* the input as it was, and the command */
    void (*damage)(struct hcase *c);
};
#define CODE(c) (1u << ((c)-64))
void arg(struct command *c, const char *text);
void args(struct command *c, const char *words); /* separated by spaces */
void case_draw(struct hcase *c);                 /* its area */

/* --- verdict.c */
struct judge {
    struct limits limits;
    size_t cross_check_one_in; /* so many cases */
    const char *answers;       /* a directory of answers to undamaged input */
};
/* Runs a case whose area is drawn. NULL, or what is wrong, kept. */
const char *judge(struct hcase *c, const struct judge *how);

#endif

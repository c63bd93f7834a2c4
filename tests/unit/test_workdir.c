/* What a conversion may touch in a directory, and what is left of it when it ends anywhere: calls
 * that change directories are counted here and can end the process or fail. */
#include "shard/shard.h"

#include "build_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static const char golden[] = "tests/data/golden/moe-all";

/* --- faults: these definitions come before the C library's */

static int calls_left;          /* > 0: renameat and unlinkat end the process when it reaches 0 */
static bool locks_refused;      /* open-file locks give ENOSYS */
static const char *close_fails; /* closing a file whose name ends in this gives EIO */
static uint64_t free_bytes;     /* != 0: what statvfs tells */

static void count_call(void) {
    if (calls_left > 0 && --calls_left == 0)
        syscall(SYS_exit_group, 9);
}

int renameat(int from, const char *a, int to, const char *b) {
    count_call();
    return (int)syscall(SYS_renameat2, from, a, to, b, 0);
}

int unlinkat(int dir, const char *name, int flags) {
    count_call();
    return (int)syscall(SYS_unlinkat, dir, name, flags);
}

static int lock_or_not(int fd, int command, void *arg) {
    if (command == F_OFD_SETLK && locks_refused) {
        errno = ENOSYS;
        return -1;
    }
    return (int)syscall(SYS_fcntl, fd, command, arg);
}

int fcntl(int fd, int command, ...) {
    va_list ap;
    va_start(ap, command);
    void *arg = va_arg(ap, void *);
    va_end(ap);
    return lock_or_not(fd, command, arg);
}

int fcntl64(int fd, int command, ...);
int fcntl64(int fd, int command, ...) {
    va_list ap;
    va_start(ap, command);
    void *arg = va_arg(ap, void *);
    va_end(ap);
    return lock_or_not(fd, command, arg);
}

int close(int fd) {
    char link[64], path[512] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = close_fails != NULL ? readlink(link, path, sizeof path - 1) : 0;
    syscall(SYS_close, fd);
    size_t len = close_fails != NULL ? strlen(close_fails) : 0;
    if (len == 0 || n < (ssize_t)len || strcmp(path + n - len, close_fails) != 0)
        return 0;
    errno = EIO;
    return -1;
}

int statvfs(const char *path, struct statvfs *out) {
    (void)path;
    *out = (struct statvfs){.f_blocks = 1u << 30, .f_bavail = 1u << 30, .f_frsize = 4096};
    if (free_bytes != 0) {
        out->f_bavail = free_bytes;
        out->f_frsize = 1;
    }
    return 0;
}

/* --- scenes */

struct scene {
    char base[64], dir[96], fresh[96], old[96];
};

static void open_scene(struct scene *s) {
    scratch_dir(s->base);
    join(s->dir, sizeof s->dir, s->base, "d");
    join(s->fresh, sizeof s->fresh, s->base, "fresh");
    join(s->old, sizeof s->old, s->base, "old");
}

static enum qep_status convert(const char *from, const char *dir, const char *recipe, int shards,
                               bool force) {
    struct build_fixture f;
    fixture_checkpoint(&f, from, recipe, dir);
    f.options.num_shards = shards;
    f.options.num_threads = 1;
    f.options.force = force;
    enum qep_status st = build_all(&f.options, 1);
    fixture_free(&f);
    return st;
}

static enum qep_status again(const struct scene *s, bool force) {
    return convert(golden, s->dir, "q4", 2, force);
}

static bool opens(const char *dir) {
    struct qep_shard_dir *shards = NULL;
    bool ok = qep_shard_dir_open(dir, &shards) == QEP_OK;
    qep_shard_dir_close(shards);
    return ok;
}

/* The same but for DIR/.convert. */
static bool same_but_state(const char *a, const char *b) {
    char command[512];
    snprintf(command, sizeof command, "diff -r -x .convert '%s' '%s' >/dev/null", a, b);
    return system(command) == 0;
}

static void shell(const struct scene *s, const char *command) {
    char text[1024];
    snprintf(text, sizeof text, "cd '%s' && { %.900s; }", s->base, command);
    ck_assert_msg(system(text) == 0, "%s", text);
}

/* --- the swap */

/* Ends the conversion at its n-th change of a directory; true when it got through. */
static bool killed_at(const struct scene *s, int n, bool force) {
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        calls_left = n;
        enum qep_status st = again(s, force);
        calls_left = 0;
        _exit(st == QEP_OK ? 0 : 1);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status));
    ck_assert_msg(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 9, "call %d: exit %d", n,
                  WEXITSTATUS(status));
    return WEXITSTATUS(status) == 0;
}

/* Whatever opens is the old conversion or the new one, whole; the same command makes the new one
 * of it. */
static void check_remains(const struct scene *s, int n, bool force) {
    if (opens(s->dir))
        ck_assert_msg(same_but_state(s->dir, s->old) || same_but_state(s->dir, s->fresh),
                      "call %d: neither the old nor the new", n);
    enum qep_status st = again(s, force);
    /* all but the empty DIR/.convert was gone: without --force, what is complete is told */
    bool told = !force && st == QEP_ERR_CANTCREATE && strstr(qep_last_error(), "complete") != NULL;
    ck_assert_msg(st == QEP_OK || told, "call %d: %s", n, qep_last_error());
    ck_assert_msg(same_trees(s->dir, s->fresh), "call %d: other bytes", n);
}

START_TEST(ended_anywhere_the_same_command_finishes) {
    struct scene s;
    bool replaces = _i == 1, through = false;
    int n = 1;
    open_scene(&s);
    ck_assert_int_eq(convert(golden, s.fresh, "q4", 2, false), QEP_OK);
    ck_assert_int_eq(convert(golden, s.old, "q8", 4, false), QEP_OK);
    for (; !through; n += replaces ? 1 : 2) {
        remove_tree(s.dir);
        if (replaces)
            shell(&s, "cp -r old d");
        through = killed_at(&s, n, replaces);
        check_remains(&s, n, replaces);
    }
    ck_assert_int_gt(n, 30);
    remove_tree(s.base);
}
END_TEST

/* Two ends in a row, the second within what finishes the first. */
START_TEST(ended_twice_the_same_command_finishes) {
    struct scene s;
    open_scene(&s);
    ck_assert_int_eq(convert(golden, s.fresh, "q4", 2, false), QEP_OK);
    ck_assert_int_eq(convert(golden, s.old, "q8", 4, false), QEP_OK);
    for (int n = 3; n < 70; n += 16)
        for (int m = 1; m < 40; m += 11) {
            remove_tree(s.dir);
            shell(&s, "cp -r old d");
            killed_at(&s, n, true);
            killed_at(&s, m, true);
            check_remains(&s, n, true);
        }
    remove_tree(s.base);
}
END_TEST

/* A swap of one conversion that was interrupted is finished before another one replaces it. */
START_TEST(interrupted_swap_and_another_command) {
    struct scene s;
    int n = 1;
    open_scene(&s);
    ck_assert_int_eq(convert(golden, s.fresh, "q4", 2, false), QEP_OK);
    for (bool swapping = false; !swapping; n++) {
        remove_tree(s.dir);
        ck_assert(!killed_at(&s, n, false));
        char path[128];
        join(path, sizeof path, s.dir, ".convert/swap");
        swapping = qep_path_exists(path) && !opens(s.dir);
    }
    ck_assert_int_eq(convert(golden, s.dir, "q8", 4, false), QEP_ERR_CANTCREATE);
    assert_error_has("unfinished conversion of another");
    ck_assert_int_eq(convert(golden, s.dir, "q8", 4, true), QEP_OK);
    ck_assert_int_eq(convert(golden, s.old, "q8", 4, false), QEP_OK);
    ck_assert(same_trees(s.dir, s.old));
    remove_tree(s.base);
}
END_TEST

static const struct {
    const char *command; /* in the directory of an interrupted swap */
    const char *named;
} tampered[] = {
    {"rm .convert/manifest.json", ".convert/swap: is damaged"},
    {"sed -i 's/q4/q8/' .convert/manifest.json", ".convert/manifest.json: damaged"},
    {"f=$(ls .convert/*.qep | head -n 1); : > $f", ".qep: is not what was to be put into place"},
    {"f=$(ls .convert/*.qep | head -n 1); mv $f ../f; ln -s ../../f $f", ".qep: is in the way"},
    {"f=$(ls .convert/*.qep | head -n 1); rm $f", ".qep: is not what was to be put into place"},
    {"echo x >> .convert/config.json", "config.json: is not what was to be put into place"},
    {"echo mine > config.json", "d/config.json: is in the way"},
    {"echo mine > manifest.json", "d/manifest.json: is in the way"},
    {"mkdir config.json", "d/config.json: is in the way"},
};

/* What came or went since is not swallowed: the command says so, changes nothing, and goes on when
 * it is mended. "d" is a copy of "swapping". */
static void tamper(const struct scene *s, const char *command, const char *named) {
    char text[512];
    snprintf(text, sizeof text, "rm -rf before && cd d && { %.400s; } && cd .. && cp -r d before",
             command);
    shell(s, text);
    enum qep_status st = again(s, true);
    ck_assert_msg(st == QEP_ERR_DATA || st == QEP_ERR_CANTCREATE, "%s: %d %s", command, (int)st,
                  qep_last_error());
    assert_error_has(named);
    shell(s, "diff -r -x lock d before && rm -rf d && cp -r swapping d");
}

START_TEST(interrupted_swap_is_looked_at_first) {
    struct scene s;
    bool swapping = false;
    char path[128];
    open_scene(&s);
    join(path, sizeof path, s.dir, ".convert/swap");
    ck_assert_int_eq(convert(golden, s.fresh, "q4", 2, false), QEP_OK);
    for (int n = 1; !swapping; n++) {
        remove_tree(s.dir);
        ck_assert(!killed_at(&s, n, false));
        swapping = qep_path_exists(path);
    }
    shell(&s, "cp -r d swapping");
    for (size_t i = 0; i < sizeof tampered / sizeof *tampered; i++)
        tamper(&s, tampered[i].command, tampered[i].named);
    ASSERT_OK(again(&s, false));
    ck_assert(same_trees(s.dir, s.fresh));
    remove_tree(s.base);
}
END_TEST

static const char *const tampered_later[][2] = {
    /* when the old manifest has gone and new files come */
    {"rm .convert/manifest.old", ".convert/swap: is damaged"},
    {"sed -i 's/q8/q4/' .convert/manifest.old", ".convert/swap: is damaged"},
    {"mv .convert/manifest.json .", ".convert/swap: is damaged"},
    {"cp .convert/manifest.json .", "d/manifest.json: is in the way"},
    {"echo mine > .convert/thesis.tex", ".convert/thesis.tex: is in the way"},
    {"mkdir .convert/layer-077.qep", ".convert/layer-077.qep: is in the way"},
    {"rm embed.qep", "embed.qep: is not what was to be put into place"},
    {"rm shard-03-of-04.qep; mkdir shard-03-of-04.qep", "shard-03-of-04.qep: is in the way"},
};

START_TEST(interrupted_replacement_is_looked_at_first) {
    struct scene s;
    bool going = false;
    char manifest[128], embed[128];
    open_scene(&s);
    join(manifest, sizeof manifest, s.dir, "manifest.json");
    join(embed, sizeof embed, s.dir, ".convert/embed.qep");
    ck_assert_int_eq(convert(golden, s.fresh, "q4", 2, false), QEP_OK);
    ck_assert_int_eq(convert(golden, s.old, "q8", 4, false), QEP_OK);
    for (int n = 1; !going; n++) {
        remove_tree(s.dir);
        shell(&s, "cp -r old d");
        ck_assert(!killed_at(&s, n, true));
        going = !qep_path_exists(manifest) && !qep_path_exists(embed);
    }
    shell(&s, "cp -r d swapping");
    for (size_t i = 0; i < sizeof tampered_later / sizeof *tampered_later; i++)
        tamper(&s, tampered_later[i][0], tampered_later[i][1]);
    ASSERT_OK(again(&s, true));
    ck_assert(same_trees(s.dir, s.fresh));
    remove_tree(s.base);
}
END_TEST

static void poison(const char *dir) { /* the first bf16 pattern that is a NaN's */
    char command[256];
    snprintf(command, sizeof command,
             "perl -e 'open F, \"+<:raw\", $ARGV[0]; read F, $n, 8; $n = unpack \"Q<\", $n; "
             "seek F, -2, 2; print F \"\\xc0\\x7f\"' '%s/model.safetensors'",
             dir);
    ck_assert_int_eq(system(command), 0);
}

START_TEST(failed_replacement_keeps_the_old) {
    struct scene s;
    char hf[96];
    open_scene(&s);
    join(hf, sizeof hf, s.base, "hf");
    ck_assert_int_eq(qep_mkdirs(hf), QEP_OK);
    copy_tree(golden, hf);
    poison(hf);
    ck_assert_int_eq(convert(golden, s.old, "q8", 2, false), QEP_OK);
    shell(&s, "cp -r old d");
    ck_assert_int_eq(convert(hf, s.dir, "q4", 3, true), QEP_ERR_DATA);
    assert_error_has("NaN");
    ck_assert(opens(s.dir) && same_but_state(s.dir, s.old));
    remove_tree(s.base);
}
END_TEST

/* --- what is in the way */

static const struct {
    const char *before; /* in DIR, a complete conversion of ours or nothing */
    bool ours;
    const char *named;
} in_the_way[] = {
    {"echo '{}' > d/config.json; echo w > d/model.safetensors", false, "d/config.json"},
    {"echo mine > d/config.json", false, "d/config.json"},
    {"echo mine > d/tokenizer.json", false, "d/tokenizer.json"},
    {"echo mine > d/generation_config.json", false, "d/generation_config.json"},
    {"echo mine > d/chat_template.jinja", false, "d/chat_template.jinja"},
    {"echo mine > d/tokenizer_config.json", true, "d/tokenizer_config.json"},
    {"echo mine > d/layer-000.qep", false, "d/layer-000.qep"},
    {"mkdir d/embed.qep", false, "d/embed.qep"},
    {"echo '{\"files\": [\"embed.qep\"]}' > d/manifest.json", false, "d/manifest.json"},
    {"echo '{\"format\": \"webpack\"}' > d/manifest.json; echo mine > d/embed.qep", false,
     "d/manifest.json"},
    {"echo oops > d/manifest.json", true, "d/manifest.json"},
    {"rm d/layer-000.qep; mkdir d/layer-000.qep", true, "d/layer-000.qep"},
    {"mkdir d/.convert; echo mine > d/.convert/thesis.tex", false, "d/.convert/thesis.tex"},
    {"mkdir -p d/.convert/layer-000.qep", true, "d/.convert/layer-000.qep"},
    {"mkdir precious; echo mine > precious/notes.json; ln -s ../precious d/.convert", false,
     "d/.convert"},
    {"mkdir precious; echo mine > precious/identity; ln -s ../precious d/.convert", true,
     "d/.convert"},
    {"mkfifo d/.convert", false, "d/.convert"},
    {"echo x > d/.convert", true, "d/.convert"},
    {"mkdir d/.convert; mkfifo d/.convert/identity", true, "d/.convert/identity"},
    {"mkdir d/.convert; mkfifo d/.convert/layer-000.qep.json", true, "layer-000.qep.json"},
    {"mkdir d/.convert; echo mine > mine; ln -s ../../mine d/.convert/embed.qep.part", true,
     "embed.qep.part"},
    {"mkdir d/.convert; echo mine > mine; ln -s ../../mine d/.convert/lock", true,
     "d/.convert/lock"},
    {"mkdir d/.convert; echo mine > d/.convert/lock", true, "d/.convert/lock"},
    {"mkdir d/.convert; touch mine; ln mine d/.convert/lock", true, "d/.convert/lock"},
    {"mkdir d/.convert; mkfifo d/.convert/lock", false, "d/.convert/lock"},
    {"mkdir d/.convert; mkfifo d/.convert/swap", false, "d/.convert/swap"},
    {"mkdir -p d/.convert/swap", true, "d/.convert/swap"},
    {"mkdir d/.convert; echo mine > d/.convert/swap", true, "d/.convert/swap"},
    {"mkdir d/.convert; echo mine > d/.convert/config.json", false, "d/.convert/config.json"},
    {"mkdir d/.convert; echo mine > d/.convert/layer-000.qep.part", true, "layer-000.qep.part"},
    {"mkdir d/.convert; echo mine > d/.convert/identity", true, "d/.convert/identity"},
    {"mkdir d/.convert; echo mine > d/.convert/identity.tmp", false, "d/.convert/identity.tmp"},
    {"mkdir d/.convert; echo mine > d/.convert/reseal", true, "d/.convert/reseal"},
    {"mkdir d/.convert; head -c 9000 /dev/zero > d/.convert/identity", true, "d/.convert/identity"},
    {"rm d/shard-01-of-02.qep; mkdir d/shard-01-of-02.qep", true, "d/shard-01-of-02.qep"},
    {"rm d/shard-01-of-02.qep; mkfifo d/shard-01-of-02.qep", true, "d/shard-01-of-02.qep"},
    {"echo '{}' > d/config.json; mkdir d/.convert; echo '{}' > d/.convert/manifest.json; printf "
     "'qwen-ep swap 3\n%032d\n%032d\nnone\n' 0 0 > d/.convert/swap",
     false, "d/.convert/manifest.json"},
};

START_TEST(what_is_not_ours_stays) {
    struct scene s;
    open_scene(&s);
    if (in_the_way[_i].ours)
        ck_assert_int_eq(convert(golden, s.dir, "q8", 2, false), QEP_OK);
    else
        shell(&s, "mkdir d");
    shell(&s, in_the_way[_i].before);
    shell(&s, "find . | sort > ../$(basename $PWD).before; "
              "find . -type f -size -100k -exec md5sum {} + | sort >> ../$(basename $PWD).before");
    enum qep_status st = convert(golden, s.dir, "q4", 1, true);
    ck_assert_msg(st == QEP_ERR_CANTCREATE || st == QEP_ERR_DATA, "%d: %s", (int)st,
                  qep_last_error());
    assert_error_has(in_the_way[_i].named);
    shell(&s, "{ find . | sort; find . -type f -size -100k -exec md5sum {} + | sort; } | "
              "diff - ../$(basename $PWD).before; r=$?; rm ../$(basename $PWD).before; exit $r");
    remove_tree(s.base);
}
END_TEST

/* The user's own path, sources and files of a conversion may be links. */
START_TEST(links_of_the_user_work) {
    struct scene s;
    open_scene(&s);
    ck_assert_int_eq(convert(golden, s.fresh, "q4", 2, false), QEP_OK);
    ck_assert_int_eq(convert(golden, s.old, "q8", 2, false), QEP_OK);
    shell(&s, "mkdir hf blobs && cp -r old real && ln -s real d");
    char hf[96], command[512];
    join(hf, sizeof hf, s.base, "hf");
    snprintf(command, sizeof command,
             "cp -p \"$OLDPWD\"/%s/* blobs && for f in blobs/*; do ln -s ../$f hf; done; "
             "mv real/embed.qep away && ln -s ../away real/embed.qep",
             golden);
    shell(&s, command);
    ck_assert_int_eq(convert(hf, s.dir, "q4", 2, true), QEP_OK);
    ck_assert(same_trees(s.dir, s.fresh));
    shell(&s, "test -L d && test ! -L real/embed.qep && test -f away");
    remove_tree(s.base);
}
END_TEST

/* --- one at a time */

static void prepare(struct build_fixture *f, const char *dir, const char *recipe,
                    struct qep_build **build, enum qep_status expected) {
    bool complete = false;
    fixture_checkpoint(f, golden, recipe, dir);
    f->options.force = true;
    ASSERT_OK(qep_build_create(&f->options, build));
    enum qep_status st = qep_build_prepare(*build, &complete);
    ck_assert_msg(st == expected, "%d: %s", (int)st, qep_last_error());
}

START_TEST(second_conversion_is_told_who_is_there) {
    struct scene s;
    struct build_fixture a, b;
    struct qep_build *first = NULL, *second = NULL;
    char me[64];
    locks_refused = _i == 1;
    open_scene(&s);
    snprintf(me, sizeof me, "in use by pid %ld on host ", (long)getpid());
    prepare(&a, s.dir, "q4", &first, QEP_OK);
    for (int same = 0; same < 2; same++) { /* of another recipe, and the very same */
        prepare(&b, s.dir, same ? "q4" : "q8", &second, QEP_ERR_INTERRUPTED);
        assert_error_has(me);
        if (_i == 1)
            assert_error_has("(if that one is gone, remove ");
        qep_build_destroy(second);
        fixture_free(&b);
    }
    ASSERT_OK(qep_build_files(first, 0, 1));
    ASSERT_OK(qep_build_finish(first));
    qep_build_destroy(first);
    fixture_free(&a);
    ck_assert_int_eq(convert(golden, s.fresh, "q4", 2, false), QEP_OK);
    ck_assert(same_trees(s.dir, s.fresh));
    locks_refused = false;
    remove_tree(s.base);
}
END_TEST

/* The system drops a lock with its holder; a file of ours only its maker or a person removes. */
START_TEST(lock_of_the_dead) {
    struct scene s;
    int status = 0;
    open_scene(&s);
    locks_refused = _i == 1;
    pid_t pid = fork();
    if (pid == 0) {
        struct build_fixture f;
        struct qep_build *build = NULL;
        prepare(&f, s.dir, "q4", &build, QEP_OK);
        raise(SIGKILL);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFSIGNALED(status));
    if (_i == 1) {
        ck_assert_int_eq(again(&s, false), QEP_ERR_INTERRUPTED);
        ck_assert_int_eq(again(&s, true), QEP_ERR_INTERRUPTED);
        assert_error_has("in use by pid ");
        shell(&s, "rm d/.convert/in-use");
    }
    ASSERT_OK(again(&s, false));
    ck_assert(opens(s.dir));
    locks_refused = false;
    remove_tree(s.base);
}
END_TEST

/* One without locks of the system, then one with them; and an in-use that is no more ours. */
START_TEST(locks_of_both_kinds) {
    struct scene s;
    struct build_fixture a, b;
    struct qep_build *first = NULL, *second = NULL;
    open_scene(&s);
    locks_refused = true;
    prepare(&a, s.dir, "q4", &first, QEP_OK);
    locks_refused = false;
    prepare(&b, s.dir, "q4", &second, QEP_ERR_INTERRUPTED);
    assert_error_has("(if that one is gone, remove ");
    qep_build_destroy(second);
    fixture_free(&b);
    shell(&s, "echo other > x && mv x d/.convert/in-use");
    qep_build_destroy(first);
    fixture_free(&a);
    shell(&s, "grep -q other d/.convert/in-use && rm d/.convert/in-use");
    prepare(&a, s.dir, "q4", &first, QEP_OK);
    locks_refused = true;
    prepare(&b, s.dir, "q4", &second, QEP_ERR_INTERRUPTED);
    locks_refused = false;
    assert_error_has("in use by pid ");
    assert_error_has(".convert/lock)");
    qep_build_destroy(second);
    shell(&s, "test ! -e d/.convert/in-use && test -s d/.convert/lock");
    qep_build_destroy(first);
    fixture_free(&a);
    fixture_free(&b);
    remove_tree(s.base);
}
END_TEST

/* A failed conversion lets the next one in at once. */
START_TEST(lock_ends_with_the_conversion) {
    struct scene s;
    open_scene(&s);
    locks_refused = _i == 1;
    free_bytes = 1;
    ck_assert_int_eq(again(&s, false), QEP_ERR_CANTCREATE);
    free_bytes = 0;
    ASSERT_OK(again(&s, false));
    locks_refused = false;
    remove_tree(s.base);
}
END_TEST

/* --- errors of the system */

START_TEST(failing_close_is_seen) {
    static const char *const names[] = {".part",
                                        "/identity.tmp",
                                        "layer-000.qep.json.tmp",
                                        "/config.json.tmp",
                                        "/manifest.json.tmp",
                                        "/swap.tmp"};
    struct scene s;
    open_scene(&s);
    close_fails = names[_i];
    enum qep_status st = again(&s, false);
    close_fails = NULL;
    ck_assert_msg(st == QEP_ERR_IO, "%s: %d", names[_i], (int)st);
    assert_error_has("close failed");
    ck_assert(!opens(s.dir));
    ASSERT_OK(again(&s, false));
    ck_assert_int_eq(convert(golden, s.fresh, "q4", 2, false), QEP_OK);
    ck_assert(same_trees(s.dir, s.fresh));
    remove_tree(s.base);
}
END_TEST

START_TEST(space_is_looked_at_first) {
    struct scene s;
    open_scene(&s);
    ck_assert_int_eq(convert(golden, s.old, "q8", 2, false), QEP_OK);
    shell(&s, "cp -r old d");
    free_bytes = 20000;
    ck_assert_int_eq(again(&s, true), QEP_ERR_CANTCREATE);
    assert_error_has("are still to be written");
    assert_error_has("GB are free");
    ck_assert(same_trees(s.dir, s.old)); /* no .convert either */
    free_bytes = 0;
    ck_assert(!killed_at(&s, 12, true));
    free_bytes = 20000;
    shell(&s, "cp -r d before");
    ck_assert_int_eq(convert(golden, s.dir, "bf16", 2, true), QEP_ERR_CANTCREATE);
    assert_error_has("are still to be written");
    shell(&s, "diff -r -x lock d before"); /* what was begun is there still */
    free_bytes = 10 << 20;
    ASSERT_OK(again(&s, true));
    free_bytes = 0;
    remove_tree(s.base);
}
END_TEST

START_TEST(refused_conversion_leaves_no_directories) {
    static const char *const names[] = {"a/b/c", "a/b/c/", "a//b/./c", "kept/b/c"};
    struct scene s;
    char dir[256];
    open_scene(&s);
    shell(&s, "mkdir kept; ls -R > ../$(basename $PWD).before");
    join(dir, sizeof dir, s.base, names[_i]);
    free_bytes = 1;
    ck_assert_int_eq(convert(golden, dir, "q4", 2, false), QEP_ERR_CANTCREATE);
    assert_error_has("are still to be written");
    shell(&s, "ls -R | diff - ../$(basename $PWD).before; r=$?; rm ../$(basename $PWD).before; "
              "exit $r");
    free_bytes = 0;
    ASSERT_OK(convert(golden, dir, "q4", 2, false));
    remove_tree(s.base);
}
END_TEST

START_TEST(space_is_looked_at_by_synth) {
    struct scene s;
    struct random_model m;
    struct qep_hf_writer *writer = NULL;
    open_scene(&s);
    random_model_open(&m, "configs/tiny-random.json", 7);
    struct qep_hf_options options = {.dir = s.dir,
                                     .config_text = m.text,
                                     .config_len = m.len,
                                     .config = &m.config,
                                     .inventory = &m.inventory,
                                     .source = qep_random_rows(m.random),
                                     .num_threads = 1};
    ASSERT_OK(qep_hf_writer_create(&options, &writer));
    free_bytes = qep_hf_total_bytes(writer) - 1;
    ck_assert_int_eq(qep_hf_prepare(writer), QEP_ERR_CANTCREATE);
    assert_error_has("are still to be written");
    free_bytes = 0;
    ASSERT_OK(qep_hf_prepare(writer));
    qep_hf_writer_destroy(writer);
    random_model_close(&m);
    remove_tree(s.base);
}
END_TEST

/* --- a source that changes */

struct change {
    const char *command;
    int countdown;
};

static void change_now(void *arg, const struct qep_build_progress *progress) {
    struct change *c = arg;
    (void)progress;
    if (--c->countdown == 0)
        ck_assert_int_eq(system(c->command), 0);
}

static const struct {
    const char *command; /* in the checkpoint's directory, midway */
    const char *named;   /* in the error; NULL: what was opened at the start is converted */
} changes[] = {
    {"printf x >> model.safetensors", "model.safetensors: was written to"},
    {"printf xx | dd of=model.safetensors bs=1 seek=20000 conv=notrunc status=none",
     "model.safetensors: was written to"},
    {"truncate -s -7 model.safetensors", "model.safetensors"},
    {"touch -d tomorrow model.safetensors", "model.safetensors: was written to"},
    {"cp model.safetensors new && mv new model.safetensors", NULL},
    {"sed -i 's/\"rms_norm_eps\": 1e-06/\"rms_norm_eps\": 1e-05/' config.json", NULL},
    {"rm config.json", NULL},
    {"echo other > chat_template.jinja; rm generation_config.json", NULL},
    {"echo '{}' > tokenizer_config.json", NULL},
    {"mv ../hf ../was && mkdir ../hf && echo other > ../hf/chat_template.jinja", NULL},
};

START_TEST(source_that_changes_is_noticed) {
    struct scene s;
    struct build_fixture f;
    char hf[96], command[512];
    open_scene(&s);
    join(hf, sizeof hf, s.base, "hf");
    ck_assert_int_eq(qep_mkdirs(hf), QEP_OK);
    copy_tree(golden, hf);
    spill(hf, "chat_template.jinja", "mine", 4);
    spill(hf, "generation_config.json", "{}", 2);
    ck_assert_int_eq(convert(hf, s.fresh, "q4", 2, false), QEP_OK);
    snprintf(command, sizeof command, "cd '%s' && %s", hf, changes[_i].command);
    struct change change = {command, 20};
    fixture_checkpoint(&f, hf, "q4", s.dir);
    f.options.on_progress = change_now;
    f.options.progress_arg = &change;
    enum qep_status st = build_all(&f.options, 1);
    ck_assert_int_le(change.countdown, 0);
    ck_assert_msg(st == (changes[_i].named != NULL ? QEP_ERR_DATA : QEP_OK), "%s: %d %s",
                  changes[_i].command, (int)st, qep_last_error());
    if (changes[_i].named != NULL)
        assert_error_has(changes[_i].named);
    else
        ck_assert(same_trees(s.dir, s.fresh));
    ck_assert(opens(s.dir) == (st == QEP_OK));
    ck_assert((qep_checkpoint_moved_file(f.ckpt) != NULL) == (strstr(command, "mv ") != NULL));
    fixture_free(&f);
    remove_tree(s.base);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("workdir");
    TCase *tc = tcase_create("workdir");
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, ended_anywhere_the_same_command_finishes, 0, 2);
    tcase_add_test(tc, ended_twice_the_same_command_finishes);
    tcase_add_test(tc, interrupted_swap_and_another_command);
    tcase_add_test(tc, interrupted_swap_is_looked_at_first);
    tcase_add_test(tc, interrupted_replacement_is_looked_at_first);
    tcase_add_test(tc, failed_replacement_keeps_the_old);
    tcase_add_loop_test(tc, what_is_not_ours_stays, 0, sizeof in_the_way / sizeof *in_the_way);
    tcase_add_test(tc, links_of_the_user_work);
    tcase_add_loop_test(tc, second_conversion_is_told_who_is_there, 0, 2);
    tcase_add_loop_test(tc, lock_of_the_dead, 0, 2);
    tcase_add_test(tc, locks_of_both_kinds);
    tcase_add_loop_test(tc, lock_ends_with_the_conversion, 0, 2);
    tcase_add_loop_test(tc, failing_close_is_seen, 0, 6);
    tcase_add_test(tc, space_is_looked_at_first);
    tcase_add_loop_test(tc, refused_conversion_leaves_no_directories, 0, 4);
    tcase_add_test(tc, space_is_looked_at_by_synth);
    tcase_add_loop_test(tc, source_that_changes_is_noticed, 0, sizeof changes / sizeof *changes);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

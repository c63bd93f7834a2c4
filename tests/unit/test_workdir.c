/* A conversion in a directory that holds another one, or something else: what is replaced, and what
 * is left when it ends anywhere. */
#include "workdir_support.h"

/* The same but for DIR/.convert. */
static bool same_but_state(const char *a, const char *b) {
    char command[512];
    snprintf(command, sizeof command, "diff -r -x .convert '%s' '%s' >/dev/null", a, b);
    return system(command) == 0;
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

static const char *const state_damage[] = {
    "sed -i s/conv1d/conv2d/ d/.convert/layer-000.qep.json",
    ("sed -i 's/\"xxh3_128\":\"[0-9a-f]*/\"xxh3_128\":\"00000000000000000000000000000000/' "
     "d/.convert/layer-000.qep.json"),
    "truncate -s -40 d/.convert/layer-000.qep.json",
    "echo >> d/.convert/layer-000.qep.json",
    ": > d/.convert/layer-000.qep.json",
    "truncate -s -1 d/.convert/layer-000.qep",
};

/* A file whose state is damaged is made again: what goes into the manifest is what was written. */
START_TEST(damaged_state_is_made_again) {
    struct scene s;
    char path[128];
    int n = 1;
    open_scene(&s);
    ck_assert_int_eq(convert(golden, s.fresh, "q4", 2, false), QEP_OK);
    join(path, sizeof path, s.dir, ".convert/layer-000.qep.json");
    for (; !qep_path_exists(path); n++) {
        remove_tree(s.dir);
        ck_assert(!killed_at(&s, n, false));
    }
    shell(&s, state_damage[_i]);
    ck_assert_msg(again(&s, false) == QEP_OK, "%s", qep_last_error());
    ck_assert(same_trees(s.dir, s.fresh));
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

static void add_tests(TCase *tc) {
    tcase_add_loop_test(tc, ended_anywhere_the_same_command_finishes, 0, 2);
    tcase_add_test(tc, ended_twice_the_same_command_finishes);
    tcase_add_loop_test(tc, damaged_state_is_made_again, 0,
                        sizeof state_damage / sizeof *state_damage);
    tcase_add_test(tc, interrupted_swap_and_another_command);
    tcase_add_test(tc, interrupted_swap_is_looked_at_first);
    tcase_add_test(tc, interrupted_replacement_is_looked_at_first);
    tcase_add_test(tc, failed_replacement_keeps_the_old);
    tcase_add_loop_test(tc, what_is_not_ours_stays, 0, sizeof in_the_way / sizeof *in_the_way);
    tcase_add_test(tc, links_of_the_user_work);
}

int main(void) {
    return run_workdir_suite("workdir", add_tests);
}

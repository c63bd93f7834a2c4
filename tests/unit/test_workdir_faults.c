/* Two conversions at once, a system that fails, a source that changes. */
#include "workdir_support.h"

#include <signal.h>
#include <sys/wait.h>

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

static void add_tests(TCase *tc) {
    tcase_add_loop_test(tc, second_conversion_is_told_who_is_there, 0, 2);
    tcase_add_loop_test(tc, lock_of_the_dead, 0, 2);
    tcase_add_test(tc, locks_of_both_kinds);
    tcase_add_loop_test(tc, lock_ends_with_the_conversion, 0, 2);
    tcase_add_loop_test(tc, failing_close_is_seen, 0, 6);
    tcase_add_test(tc, space_is_looked_at_first);
    tcase_add_loop_test(tc, refused_conversion_leaves_no_directories, 0, 4);
    tcase_add_test(tc, space_is_looked_at_by_synth);
    tcase_add_loop_test(tc, source_that_changes_is_noticed, 0, sizeof changes / sizeof *changes);
}

int main(void) {
    return run_workdir_suite("workdir_faults", add_tests);
}

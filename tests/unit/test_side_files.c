/* The small files of a shard directory: every change is found, and only reseal accepts it. */
#include "shard/side_files.h"
#include "shard/verify.h"

#include "build_fixture.h"

#include <sys/stat.h>

static const char tiny[] = "tests/data/tiny-chat";
static const char *const names[] = {"config.json", "generation_config.json", "tokenizer.json",
                                    "tokenizer_config.json", "chat_template.jinja"};
enum { NUM_NAMES = 5 };

/* DIR/hf is a copy of the checkpoint, DIR/q4 what was made of it. */
struct scene {
    char base[64], hf[128], dir[128], file[256];
};

static void convert(const char *from, const char *to) {
    struct build_fixture f;
    fixture_checkpoint(&f, from, "q4", to);
    ASSERT_OK(build_all(&f.options, 1));
    fixture_free(&f);
}

static void set_scene(struct scene *s, const char *name) {
    scratch_dir(s->base);
    join(s->hf, sizeof s->hf, s->base, "hf");
    join(s->dir, sizeof s->dir, s->base, "q4");
    ck_assert_int_eq(mkdir(s->hf, 0777), 0);
    copy_tree(tiny, s->hf);
    convert(s->hf, s->dir);
    join(s->file, sizeof s->file, s->dir, name);
}

static enum qep_status verify(const char *dir) {
    struct qep_shard_dir *opened = NULL;
    enum qep_status st = qep_shard_dir_open(dir, &opened);
    if (st == QEP_OK)
        st = qep_shard_verify_side_files(opened);
    qep_shard_dir_close(opened);
    ck_assert_int_eq(qep_side_files_verify_dir(dir), st);
    return st;
}

/* Refused with the file's name and, at the very end, what to do. */
static void assert_refused(const struct scene *s, const char *what) {
    char advice[160];
    snprintf(advice, sizeof advice, ": qwen-ep reseal %s", s->dir);
    ck_assert_int_eq(verify(s->dir), QEP_ERR_DATA);
    assert_error_has(s->file);
    assert_error_has(what);
    const char *end = strstr(qep_last_error(), advice);
    ck_assert_msg(end != NULL && strcmp(end, advice) == 0, "%s", qep_last_error());
}

static enum qep_status take_all(const struct qep_model_config *model, const char *name,
                                const char *path, const char *text, size_t len) {
    (void)name;
    (void)path;
    ck_assert_int_eq(model->vocab_size > 0, 1);
    ck_assert_int_eq(text[len], '\0');
    return QEP_OK;
}

static enum qep_status refuse(const struct qep_model_config *model, const char *name,
                              const char *path, const char *text, size_t len) {
    (void)model;
    (void)text;
    (void)len;
    return strcmp(name, "tokenizer.json") == 0 ? qep_fail(QEP_ERR_DATA, "%s: refused", path)
                                               : QEP_OK;
}

/* The manifest is, byte by byte, what a conversion of DIR/hf writes now. */
static void assert_as_converted(const struct scene *s) {
    char again[128];
    size_t len = 0, len_again = 0;
    join(again, sizeof again, s->base, "again");
    convert(s->hf, again);
    char *text = slurp(s->dir, "manifest.json", &len);
    char *text_again = slurp(again, "manifest.json", &len_again);
    ck_assert_uint_eq(len, len_again);
    ck_assert_mem_eq(text, text_again, len);
    ck_assert(same_trees(s->dir, again));
    remove_tree(again);
    free(text);
    free(text_again);
}

static void assert_resealed(const struct scene *s, const char *accepted, const char *dropped) {
    struct qep_reseal_result r;
    ASSERT_OK(qep_shard_reseal(s->dir, take_all, &r));
    ck_assert_int_eq(r.num_accepted, accepted != NULL);
    ck_assert_int_eq(r.num_dropped, dropped != NULL);
    if (accepted != NULL)
        ck_assert_str_eq(r.accepted[0], accepted);
    if (dropped != NULL)
        ck_assert_str_eq(r.dropped[0], dropped);
    ASSERT_OK(verify(s->dir));
}

static void flip(const struct scene *s, const char *name, const char *data, size_t len, size_t at,
                 int bit) {
    char *copy = malloc(len + 1);
    ck_assert_ptr_nonnull(copy);
    memcpy(copy, data, len);
    copy[at] = (char)(copy[at] ^ 1 << bit);
    spill(s->dir, name, copy, len);
    free(copy);
}

START_TEST(flipped_bits_are_found) {
    struct scene s;
    size_t len = 0;
    set_scene(&s, names[_i]);
    ASSERT_OK(verify(s.dir));
    char *data = slurp(s.dir, names[_i], &len);
    for (size_t k = 0; k <= 16; k++) {
        flip(&s, names[_i], data, len, k * (len - 1) / 16, (int)(k % 8));
        assert_refused(&s, "changed since the directory was made: expected hash");
    }
    spill(s.dir, names[_i], data, len - 1);
    assert_refused(&s, "changed since");
    spill(s.dir, names[_i], data, len);
    ASSERT_OK(verify(s.dir));
    assert_resealed(&s, NULL, NULL);
    free(data);
    remove_tree(s.base);
}
END_TEST

START_TEST(changes_are_resealed) {
    struct scene s;
    size_t len = 0, n = 0;
    set_scene(&s, names[_i]);
    char *data = slurp(s.dir, names[_i], &len);
    char *before = slurp(s.dir, "manifest.json", &n), *longer = malloc(len + 2);
    ck_assert_ptr_nonnull(longer);
    snprintf(longer, len + 2, "%s\n", data);
    spill(s.dir, names[_i], longer, len + 1);
    spill(s.hf, names[_i], longer, len + 1);
    assert_refused(&s, "changed since");
    assert_resealed(&s, names[_i], NULL);
    assert_as_converted(&s);
    spill(s.dir, names[_i], data, len);
    assert_refused(&s, "changed since");
    assert_resealed(&s, names[_i], NULL);
    char *after = slurp(s.dir, "manifest.json", &len);
    ck_assert_uint_eq(len, n);
    ck_assert_mem_eq(after, before, n);
    free(after);
    free(before);
    free(longer);
    free(data);
    remove_tree(s.base);
}
END_TEST

START_TEST(deleted_and_added_files_are_found) {
    struct scene s;
    size_t len = 0;
    char path[256];
    set_scene(&s, names[_i]);
    char *data = slurp(s.dir, names[_i], &len);
    ck_assert_int_eq(unlink(s.file), 0);
    assert_refused(&s, "missing, the manifest lists it");
    assert_resealed(&s, NULL, names[_i]);
    if (_i > 0) { /* no conversion without config.json */
        join(path, sizeof path, s.hf, names[_i]);
        ck_assert_int_eq(unlink(path), 0);
        assert_as_converted(&s);
        spill(s.hf, names[_i], data, len);
    }
    spill(s.dir, names[_i], data, len);
    assert_refused(&s, "was not there when the directory was made");
    assert_resealed(&s, names[_i], NULL);
    assert_as_converted(&s);
    free(data);
    remove_tree(s.base);
}
END_TEST

/* Reseal cannot accept these, so nobody is told to try. */
START_TEST(other_things_are_refused) {
    struct qep_reseal_result r;
    struct scene s;
    set_scene(&s, names[_i / 2]);
    ck_assert_int_eq(unlink(s.file), 0);
    ck_assert_int_eq(_i % 2 == 0 ? mkfifo(s.file, 0600) : symlink("nowhere", s.file), 0);
    ck_assert_int_eq(verify(s.dir), QEP_ERR_DATA);
    assert_error_has(_i % 2 == 0 ? "is a FIFO" : "is a dangling link to nowhere");
    assert_error_has(s.file);
    ck_assert_ptr_null(strstr(qep_last_error(), "reseal"));
    ck_assert_int_eq(qep_shard_reseal(s.dir, take_all, &r), QEP_ERR_DATA);
    assert_error_has(s.file);
    remove_tree(s.base);
}
END_TEST

/* A conversion that begins while a reseal looks at files, and the other way round. */
START_TEST(reseal_and_conversion_exclude_each_other) {
    struct qep_reseal_result r;
    struct scene s;
    struct build_fixture f;
    struct qep_build *build = NULL;
    bool complete = false;
    set_scene(&s, "chat_template.jinja");
    spill(s.dir, "chat_template.jinja", "x", 1);
    fixture_checkpoint(&f, s.hf, "q8", s.dir);
    f.options.force = true;
    ASSERT_OK(qep_build_create(&f.options, &build));
    ASSERT_OK(qep_build_prepare(build, &complete));
    ck_assert_int_eq(qep_shard_reseal(s.dir, take_all, &r), QEP_ERR_INTERRUPTED);
    assert_error_has("in use by pid ");
    qep_build_destroy(build);
    ck_assert_int_eq(qep_shard_reseal(s.dir, take_all, &r), QEP_ERR_CANTCREATE);
    assert_error_has("holds an unfinished conversion");
    ASSERT_OK(build_all(&f.options, 1));
    ASSERT_OK(qep_shard_reseal(s.dir, take_all, &r));
    ck_assert_int_eq(r.num_accepted + r.num_dropped, 0);
    fixture_free(&f);
    remove_tree(s.base);
}
END_TEST

START_TEST(refused_reseals_change_nothing) {
    struct qep_reseal_result r;
    struct scene s;
    char copy[128], path[160];
    set_scene(&s, "chat_template.jinja");
    spill(s.dir, "chat_template.jinja", "x", 1);
    join(copy, sizeof copy, s.base, "copy");
    ck_assert_int_eq(mkdir(copy, 0777), 0);
    copy_tree(s.dir, copy);
    ck_assert_int_eq(qep_shard_reseal(s.dir, refuse, &r), QEP_ERR_DATA);
    assert_error_has("tokenizer.json: refused");
    ck_assert(same_trees(s.dir, copy));
    join(path, sizeof path, s.dir, ".convert");
    ck_assert_int_eq(mkdir(path, 0777), 0);
    spill(path, "identity", "x", 1);
    ck_assert_int_eq(qep_shard_reseal(s.dir, take_all, &r), QEP_ERR_CANTCREATE);
    assert_error_has("holds an unfinished conversion");
    remove_tree(path);
    ck_assert(same_trees(s.dir, copy));
    join(path, sizeof path, s.dir, "layer-001.qep");
    ck_assert_int_eq(truncate(path, 100), 0);
    ck_assert_int_eq(qep_shard_reseal(s.dir, take_all, &r), QEP_ERR_DATA);
    assert_error_has("layer-001.qep");
    ck_assert_int_eq(qep_shard_reseal(s.hf, take_all, &r), QEP_ERR_NOINPUT);
    remove_tree(s.base);
}
END_TEST

/* What `tokenize --model` may be given. */
START_TEST(other_directories_have_no_manifest_of_ours) {
    struct scene s;
    size_t len = 0;
    set_scene(&s, "tokenizer.json");
    ASSERT_OK(qep_side_files_verify_dir(s.hf));
    spill(s.hf, "manifest.json", "{\"version\": 3}", 14);
    ASSERT_OK(qep_side_files_verify_dir(s.hf));
    spill(s.hf, "manifest.json", "[]", 2);
    ASSERT_OK(qep_side_files_verify_dir(s.hf));
    spill(s.hf, "manifest.json", "{\"format\": \"pt\", \"side_files\": 1}", 33);
    ASSERT_OK(qep_side_files_verify_dir(s.hf));
    ASSERT_OK(qep_side_files_verify_dir(s.dir));
    char *text = slurp(s.dir, "manifest.json", &len);
    spill(s.dir, "manifest.json", text, len - 40);
    ck_assert_int_eq(qep_side_files_verify_dir(s.dir), QEP_ERR_DATA);
    *strstr(text, "format") = 'F';
    spill(s.dir, "manifest.json", text, len);
    ck_assert_int_eq(qep_side_files_verify_dir(s.dir), QEP_ERR_DATA);
    assert_error_has("manifest.json: damaged or edited");
    *strstr(text, "shard dir") = 'S';
    spill(s.dir, "manifest.json", text, len);
    ck_assert_int_eq(qep_side_files_verify_dir(s.dir), QEP_ERR_DATA);
    free(text);
    char path[256];
    join(path, sizeof path, s.dir, "manifest.json");
    ck_assert_int_eq(unlink(path), 0);
    ASSERT_OK(qep_side_files_verify_dir(s.dir));
    join(path, sizeof path, s.dir, ".convert");
    ck_assert_int_eq(mkdir(path, 0777), 0);
    spill(path, "swap", "x", 1);
    ck_assert_int_eq(qep_side_files_verify_dir(s.dir), QEP_ERR_DATA);
    assert_error_has("its conversion was interrupted at the end");
    remove_tree(s.base);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("side_files");
    TCase *tc = tcase_create("side_files");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, flipped_bits_are_found, 0, NUM_NAMES);
    tcase_add_loop_test(tc, changes_are_resealed, 0, NUM_NAMES);
    tcase_add_loop_test(tc, deleted_and_added_files_are_found, 0, NUM_NAMES);
    tcase_add_loop_test(tc, other_things_are_refused, 0, 2 * NUM_NAMES);
    tcase_add_test(tc, reseal_and_conversion_exclude_each_other);
    tcase_add_test(tc, refused_reseals_change_nothing);
    tcase_add_test(tc, other_directories_have_no_manifest_of_ours);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

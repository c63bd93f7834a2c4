/* What happens around the files: interruption and continuation, refusal, failure. */
#include "checkpoint/hf_plan.h"
#include "shard/shard.h"

#include "build_fixture.h"

#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

static const char golden[] = "tests/data/golden/moe-ratio3";

static void build_golden(const char *dir, const char *recipe, int threads, int ranks) {
    struct build_fixture f;
    fixture_checkpoint(&f, golden, recipe, dir);
    f.options.num_threads = threads;
    f.options.num_shards = 3;
    ASSERT_OK(build_all(&f.options, ranks));
    fixture_free(&f);
}

static bool opens(const char *dir) {
    struct qep_shard_dir *shards = NULL;
    bool ok = qep_shard_dir_open(dir, &shards) == QEP_OK;
    qep_shard_dir_close(shards);
    return ok;
}

START_TEST(threads_and_ranks_give_the_same_bytes) {
    static const int cases[][2] = {{2, 1}, {5, 1}, {1, 2}, {2, 3}, {1, 40}};
    char base[64], a[128], b[128];
    scratch_dir(base);
    join(a, sizeof a, base, "a");
    build_golden(a, "q4", 1, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(b, sizeof b, "%s/b%d", base, (int)i);
        build_golden(b, "q4", cases[i][0], cases[i][1]);
        ck_assert(same_trees(a, b));
    }
    remove_tree(base);
}
END_TEST

struct interruption {
    volatile sig_atomic_t stop;
    int countdown;
    bool kill;
};

static void interrupt(void *arg, const struct qep_build_progress *progress) {
    struct interruption *i = arg;
    (void)progress;
    if (--i->countdown > 0)
        return;
    if (i->kill)
        raise(SIGKILL);
    i->stop = 1;
}

static enum qep_status build_interrupted(const char *dir, const char *recipe, int after,
                                         bool kill_it) {
    struct build_fixture f;
    struct interruption i = {.countdown = after, .kill = kill_it};
    fixture_checkpoint(&f, golden, recipe, dir);
    f.options.num_shards = 3;
    f.options.stop = &i.stop;
    f.options.on_progress = interrupt;
    f.options.progress_arg = &i;
    enum qep_status st = build_all(&f.options, 1);
    fixture_free(&f);
    return st;
}

START_TEST(interrupted_build_continues_to_the_same_bytes) {
    static const int stops[] = {1, 5, 17, 30, 60, 100, 150};
    char base[64], whole[128], part[128];
    scratch_dir(base);
    join(whole, sizeof whole, base, "whole");
    join(part, sizeof part, base, "part");
    build_golden(whole, "q4", 2, 1);
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        enum qep_status st = build_interrupted(part, "q4", stops[i], false);
        ck_assert_msg(st == QEP_ERR_INTERRUPTED, "stop %d: %d", stops[i], (int)st);
        ck_assert(!opens(part));
    }
    build_golden(part, "q4", 2, 1);
    ck_assert(same_trees(whole, part));
    remove_tree(base);
}
END_TEST

START_TEST(killed_build_continues_to_the_same_bytes) {
    char base[64], whole[128], part[128];
    scratch_dir(base);
    join(whole, sizeof whole, base, "whole");
    join(part, sizeof part, base, "part");
    build_golden(whole, "q4", 2, 1);
    for (int after = 3; after < 120; after += 23) {
        int status = 0;
        pid_t pid = fork();
        if (pid == 0)
            _exit(build_interrupted(part, "q4", after, true) == QEP_OK ? 0 : 1);
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        ck_assert(!opens(part));
    }
    build_golden(part, "q4", 2, 1);
    ck_assert(same_trees(whole, part));
    remove_tree(base);
}
END_TEST

START_TEST(only_the_same_build_continues) {
    char base[64], dir[128];
    struct build_fixture f;
    scratch_dir(base);
    join(dir, sizeof dir, base, "d");
    ck_assert_int_eq(build_interrupted(dir, "q4", 40, false), QEP_ERR_INTERRUPTED);
    fixture_checkpoint(&f, golden, "q8", dir);
    f.options.num_shards = 3;
    ck_assert_int_eq(build_all(&f.options, 1), QEP_ERR_CANTCREATE);
    assert_error_has("unfinished conversion of another");
    f.options.force = true;
    ASSERT_OK(build_all(&f.options, 1));
    ck_assert(opens(dir));
    fixture_free(&f);
    remove_tree(base);
}
END_TEST

START_TEST(complete_directory_is_kept_without_force) {
    char base[64], dir[128], fresh[128];
    struct build_fixture f;
    scratch_dir(base);
    join(dir, sizeof dir, base, "d");
    join(fresh, sizeof fresh, base, "fresh");
    build_golden(dir, "bf16", 2, 1);
    fixture_checkpoint(&f, golden, "q4", dir);
    f.options.num_shards = 3;
    ck_assert_int_eq(build_all(&f.options, 1), QEP_ERR_CANTCREATE);
    assert_error_has("complete shard directory already (--force");
    ck_assert(opens(dir));
    f.options.force = true;
    ASSERT_OK(build_all(&f.options, 1));
    build_golden(fresh, "q4", 2, 1);
    ck_assert(same_trees(dir, fresh)); /* nothing of the old one is left */
    fixture_free(&f);
    remove_tree(base);
}
END_TEST

START_TEST(forced_build_that_fails_keeps_the_old) {
    char base[64], dir[128], fresh[128];
    struct build_fixture f;
    struct interruption i = {.countdown = 3};
    scratch_dir(base);
    join(dir, sizeof dir, base, "d");
    join(fresh, sizeof fresh, base, "fresh");
    build_golden(dir, "bf16", 2, 1);
    fixture_checkpoint(&f, golden, "q4", dir);
    f.options.num_shards = 3;
    f.options.force = true;
    f.options.stop = &i.stop;
    f.options.on_progress = interrupt;
    f.options.progress_arg = &i;
    ck_assert_int_eq(build_all(&f.options, 1), QEP_ERR_INTERRUPTED);
    ck_assert(opens(dir));
    f.options.stop = NULL;
    f.options.on_progress = NULL;
    ASSERT_OK(build_all(&f.options, 1)); /* the same command goes on */
    build_golden(fresh, "q4", 2, 1);
    ck_assert(same_trees(dir, fresh));
    fixture_free(&f);
    remove_tree(base);
}
END_TEST

START_TEST(foreign_directory_is_left_alone) {
    char dir[64], path[128];
    struct build_fixture f;
    scratch_dir(dir);
    spill(dir, "thesis.tex", "x", 1);
    fixture_checkpoint(&f, golden, "q4", dir);
    ck_assert_int_eq(build_all(&f.options, 1), QEP_ERR_CANTCREATE);
    assert_error_has("is not empty and no shard directory");
    join(path, sizeof path, dir, ".convert");
    ck_assert(!qep_path_exists(path));
    fixture_free(&f);
    join(path, sizeof path, dir, "thesis.tex/below");
    fixture_checkpoint(&f, golden, "q4", path);
    ck_assert_int_eq(build_all(&f.options, 1), QEP_ERR_CANTCREATE);
    fixture_free(&f);
    remove_tree(dir);
}
END_TEST

/* A file may not grow beyond a limit: what a full disk looks like. */
START_TEST(failed_write_can_be_continued) {
    char base[64], dir[128], whole[128];
    struct build_fixture f;
    struct rlimit before, small;
    scratch_dir(base);
    join(dir, sizeof dir, base, "d");
    join(whole, sizeof whole, base, "w");
    fixture_checkpoint(&f, golden, "q4", dir);
    f.options.num_shards = 3;
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 30000;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    enum qep_status st = build_all(&f.options, 1);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
    ck_assert_int_eq(st, QEP_ERR_IO);
    assert_error_has("write failed");
    ck_assert(!opens(dir));
    ASSERT_OK(build_all(&f.options, 1));
    build_golden(whole, "q4", 1, 1);
    ck_assert(same_trees(dir, whole));
    fixture_free(&f);
    remove_tree(base);
}
END_TEST

/* Sets the third value of layers.0 ... gate_up of expert 1 to a bf16 pattern. */
static void poison(const char *dir, const char *tensor, size_t element, uint16_t bits) {
    size_t header_len = 0, len = 0;
    cJSON *root = read_header(dir, "model.safetensors", &header_len);
    cJSON *t = cJSON_GetObjectItemCaseSensitive(root, tensor);
    ck_assert_ptr_nonnull(t);
    size_t begin = (size_t)cJSON_GetObjectItem(t, "data_offsets")->child->valuedouble;
    char *data = slurp(dir, "model.safetensors", &len);
    memcpy(data + 8 + header_len + begin + 2 * element, &bits, 2);
    spill(dir, "model.safetensors", data, len);
    free(data);
    cJSON_Delete(root);
}

/* A bf16 pattern that a weight of the recipe's type cannot stand for, and how it is called. */
static const struct bad_value {
    uint16_t bits;
    const char *recipe, *says;
} bad_values[] = {{0x7fc0, "q4", "NaN or infinity"},
                  {0xff80, "q4", "NaN or infinity"},
                  {0x7f80, "bf16", "NaN or infinity"},
                  {0x7f7f, "q4", "3.38953e+38, too large for int4,"},
                  {0xff7f, "q8", "-3.38953e+38, too large for int8,"}};

START_TEST(values_that_cannot_be_stored_are_refused) {
    static const char tensor[] = "model.language_model.layers.1.mlp.experts.gate_up_proj";
    const struct bad_value *bad = &bad_values[_i];
    char base[64], from[128], dir[128], says[256];
    struct build_fixture f;
    struct qep_shard_dir *shards = NULL;
    struct qep_host_weight w;
    scratch_dir(base);
    join(from, sizeof from, base, "from");
    join(dir, sizeof dir, base, "to");
    ck_assert_int_eq(qep_mkdirs(from), QEP_OK);
    copy_tree("tests/data/golden/moe-all", from);
    /* expert 1 of [5, 48, 32], row 2, column 3 */
    poison(from, tensor, 48 * 32 + 2 * 32 + 3, bad->bits);
    fixture_checkpoint(&f, from, bad->recipe, dir);
    ck_assert_int_eq(build_all(&f.options, 1), QEP_ERR_DATA);
    snprintf(says, sizeof says, "%s: %s at [2, 3] of layers.1.mlp.experts.1.gate_up_proj", tensor,
             bad->says);
    assert_error_has(says);
    ck_assert(!opens(dir));
    f.options.allow_nan = true;
    f.options.force = true;
    ASSERT_OK(build_all(&f.options, 1));
    ASSERT_OK(qep_shard_dir_open(dir, &shards));
    ASSERT_OK(qep_shard_load(shards, "layers.1.mlp.experts.1.gate_up_proj", &w, NULL));
    if (w.type == QEP_WEIGHT_BF16)
        ck_assert_uint_eq(((uint16_t *)w.data)[2 * 32 + 3], bad->bits);
    else
        ck_assert_uint_eq(w.scales[2], 0x7fc0);
    qep_host_weight_free(&w);
    qep_shard_dir_close(shards);
    fixture_free(&f);
    remove_tree(base);
}
END_TEST

/* A random model through a checkpoint on disk, and at once. */
START_TEST(synthesis_is_the_same_either_way) {
    char base[64], hf[128], a[128], b[128];
    struct build_fixture f;
    scratch_dir(base);
    join(hf, sizeof hf, base, "hf");
    join(a, sizeof a, base, "a");
    join(b, sizeof b, base, "b");
    write_hf("configs/tiny-random.json", hf, 300000);
    fixture_checkpoint(&f, hf, "q8", a);
    ASSERT_OK(build_all(&f.options, 1));
    fixture_free(&f);
    fixture_random(&f, "configs/tiny-random.json", 7, "q8", b);
    ASSERT_OK(build_all(&f.options, 1));
    fixture_free(&f);
    ck_assert(same_trees(a, b));
    remove_tree(b);
    fixture_random(&f, "configs/tiny-random.json", 8, "q8", b);
    ASSERT_OK(build_all(&f.options, 1));
    fixture_free(&f);
    ck_assert(!same_trees(a, b));
    remove_tree(base);
}
END_TEST

/* A link that came into the directory while synth wrote there leads to somebody's file. */
START_TEST(a_part_that_is_there_is_left_alone) {
    char base[64], hf[128], part[400];
    size_t len = 0;
    struct random_model m;
    struct qep_hf_writer *writer = NULL;
    scratch_dir(base);
    join(hf, sizeof hf, base, "hf");
    random_model_open(&m, "configs/tiny-random.json", 7);
    struct qep_hf_options options = {.dir = hf,
                                     .config_text = m.text,
                                     .config_len = m.len,
                                     .config = &m.config,
                                     .inventory = &m.inventory,
                                     .source = qep_random_rows(m.random),
                                     .num_threads = 1};
    ASSERT_OK(qep_hf_writer_create(&options, &writer));
    ASSERT_OK(qep_hf_prepare(writer));
    spill(base, "victim", "old", 3);
    snprintf(part, sizeof part, "%s/%s.part", hf, writer->files[0].name);
    ck_assert_int_eq(symlink("../victim", part), 0);
    ck_assert_int_eq(qep_hf_write_file(writer, 0), QEP_ERR_CANTCREATE);
    char *text = slurp(base, "victim", &len);
    ck_assert(len == 3 && memcmp(text, "old", 3) == 0);
    ck_assert_int_eq(unlink(part), 0);
    ck_assert_int_eq(qep_hf_finish(writer), QEP_ERR_IO); /* its rank wrote elsewhere */
    ck_assert_ptr_nonnull(strstr(qep_last_error(), writer->files[0].name));
    ASSERT_OK(qep_hf_write_file(writer, 0));
    ASSERT_OK(qep_hf_finish(writer));
    free(text);
    qep_hf_writer_destroy(writer);
    random_model_close(&m);
    remove_tree(base);
}
END_TEST

START_TEST(random_weights_have_the_scale_they_should) {
    struct random_model m;
    static uint16_t rows[512 * 64];
    random_model_open(&m, "configs/tiny-random.json", 1);
    struct qep_row_source source = qep_random_rows(m.random);
    for (size_t i = 0; i < m.inventory.num_specs; i++) {
        const struct qep_tensor_spec *s = &m.inventory.specs[i];
        double sum = 0, squares = 0, n = (double)(s->rows * s->cols);
        if (strcmp(s->name, "layers.0.linear_attn.in_proj_qkv.weight") != 0)
            continue;
        ck_assert_int_eq(source.read(source.impl, i, 0, s->rows, rows), QEP_OK);
        for (size_t e = 0; e < (size_t)n; e++) {
            double x = (double)qep_bf16_to_f32(rows[e]);
            sum += x;
            squares += x * x;
        }
        ck_assert(fabs(sum / n) < 0.01);
        ck_assert(fabs(sqrt(squares / n) * sqrt((double)s->cols) - 1) < 0.05);
    }
    random_model_close(&m);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("convert");
    TCase *tc = tcase_create("convert");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, threads_and_ranks_give_the_same_bytes);
    tcase_add_test(tc, interrupted_build_continues_to_the_same_bytes);
    tcase_add_test(tc, killed_build_continues_to_the_same_bytes);
    tcase_add_test(tc, only_the_same_build_continues);
    tcase_add_test(tc, complete_directory_is_kept_without_force);
    tcase_add_test(tc, forced_build_that_fails_keeps_the_old);
    tcase_add_test(tc, foreign_directory_is_left_alone);
    tcase_add_test(tc, failed_write_can_be_continued);
    tcase_add_loop_test(tc, values_that_cannot_be_stored_are_refused, 0,
                        sizeof bad_values / sizeof *bad_values);
    tcase_add_test(tc, synthesis_is_the_same_either_way);
    tcase_add_test(tc, a_part_that_is_there_is_left_alone);
    tcase_add_test(tc, random_weights_have_the_scale_they_should);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* Shard directories made in tests from checkpoints or random weights. */
#ifndef QEP_TESTS_BUILD_FIXTURE_H
#define QEP_TESTS_BUILD_FIXTURE_H

#include "checkpoint/checkpoint.h"
#include "shard/build.h"

#include "hf_fixture.h"

struct build_fixture {
    struct qep_recipe recipe;
    struct qep_checkpoint *ckpt; /* or */
    struct random_model random;
    struct qep_build_options options;
};

static inline void fixture_common(struct build_fixture *f, const char *recipe, const char *dir) {
    ck_assert_msg(qep_recipe_builtin(recipe, &f->recipe) == QEP_OK, "%s", qep_last_error());
    f->options.recipe = &f->recipe;
    f->options.dir = dir;
    f->options.num_shards = 2;
    f->options.num_threads = 2;
}

static inline void fixture_checkpoint(struct build_fixture *f, const char *from, const char *recipe,
                                      const char *dir) {
    *f = (struct build_fixture){0};
    ck_assert_msg(qep_checkpoint_open(from, &f->ckpt) == QEP_OK, "%s", qep_last_error());
    fixture_common(f, recipe, dir);
    f->options.config = qep_checkpoint_config(f->ckpt);
    f->options.inventory = qep_checkpoint_inventory(f->ckpt);
    f->options.source = qep_checkpoint_source(f->ckpt);
    f->options.source_identity = qep_checkpoint_identity(f->ckpt);
    f->options.side_dir = from;
}

static inline void fixture_random(struct build_fixture *f, const char *config, uint64_t seed,
                                  const char *recipe, const char *dir) {
    *f = (struct build_fixture){0};
    random_model_open(&f->random, config, seed);
    fixture_common(f, recipe, dir);
    f->options.config = &f->random.config;
    f->options.inventory = &f->random.inventory;
    f->options.source = qep_random_rows(f->random.random);
    f->options.source_identity = seed;
    f->options.config_text = f->random.text;
    f->options.config_len = f->random.len;
}

static inline void fixture_free(struct build_fixture *f) {
    qep_checkpoint_close(f->ckpt);
    if (f->random.random != NULL)
        random_model_close(&f->random);
    qep_recipe_free(&f->recipe);
}

/* All steps as num_ranks ranks would make them, one after the other. */
static inline enum qep_status build_all(const struct qep_build_options *options, int num_ranks) {
    struct qep_build *build = NULL;
    bool complete = false;
    QEP_TRY(qep_build_create(options, &build));
    enum qep_status st = qep_build_prepare(build, &complete);
    for (int r = 0; st == QEP_OK && !complete && r < num_ranks; r++)
        st = qep_build_files(build, r, num_ranks);
    if (st == QEP_OK && !complete)
        st = qep_build_finish(build);
    qep_build_destroy(build);
    return st;
}

#define ASSERT_OK(expr) ck_assert_msg((expr) == QEP_OK, "%s", qep_last_error())

#endif

/* What a stranger's tokenizer.json may cost: time in proportion to its size and to the text. */
#include "base/clock.h"
#include "text/tokenizer.h"
#include "text_support.h"

#include <check.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NUM_TOKENS = 40000, NUM_ADDED = 30000, TEXT_BYTES = 200000 };

static double seconds_to_parse(const struct qep_bytes *json, struct qep_tokenizer **tok) {
    double start = qep_now_s();
    enum qep_status st = qep_tokenizer_parse(json->data, json->len, "t.json", 0, tok);
    ck_assert_msg(st == QEP_OK, "%s", qep_last_error());
    return qep_now_s() - start;
}

/* FNV-1a, as a table without a secret would have it. */
static uint64_t known_hash(const char *text) {
    uint64_t h = 0xcbf29ce484222325u;
    for (; *text != '\0'; text++)
        h = (h ^ (unsigned char)*text) * 0x100000001b3u;
    return h ^ h >> 29;
}

/* A vocabulary whose spellings are anything, or all hash to the first few slots of 2^17. */
static double vocab_seconds(bool colliding) {
    struct qep_bytes vocab = {0}, json = {0};
    struct qep_tokenizer *tok = NULL;
    double best = 1e9;
    enum qep_status st = QEP_OK;
    for (uint32_t i = 0, id = 256; id < 256 + NUM_TOKENS; i++) {
        char spelling[16], entry[48];
        snprintf(spelling, sizeof spelling, "w%u", i);
        if (colliding && (known_hash(spelling) & 0x1ffff) >= 512)
            continue;
        snprintf(entry, sizeof entry, ", \"%s\": %u", spelling, id++);
        if (st == QEP_OK)
            st = qep_bytes_append_str(&vocab, entry);
    }
    ck_assert_int_eq(st, QEP_OK);
    ck_assert_int_eq(qep_bytes_append(&vocab, "", 1), QEP_OK);
    text_small_json(vocab.data, "", "", &json);
    for (int i = 0; i < 3; i++) {
        double spent = seconds_to_parse(&json, &tok);
        best = spent < best ? spent : best;
        qep_tokenizer_destroy(tok);
    }
    qep_bytes_free(&vocab);
    qep_bytes_free(&json);
    return best;
}

START_TEST(spellings_cannot_be_made_to_collide) {
    double ordinary = vocab_seconds(false), colliding = vocab_seconds(true);
    ck_assert_msg(colliding < 5 * ordinary, "%g s, others %g s", colliding, ordinary);
}
END_TEST

static void added_json(bool alike, struct qep_bytes *json) {
    struct qep_bytes added = {0};
    enum qep_status st = QEP_OK;
    for (int i = 0; i < NUM_ADDED; i++) {
        char content[64], entry[160];
        snprintf(content, sizeof content, "<<<<<%d>", alike ? 7 : i);
        snprintf(entry, sizeof entry, "%s{\"id\": %d, \"content\": \"%s\", \"special\": %s}",
                 i > 0 ? "," : "", 256 + i, content, i % 2 == 0 ? "true" : "false");
        if (st == QEP_OK)
            st = qep_bytes_append_str(&added, entry);
    }
    ck_assert_int_eq(st, QEP_OK);
    ck_assert_int_eq(qep_bytes_append(&added, "", 1), QEP_OK);
    text_small_json("", "", added.data, json);
    qep_bytes_free(&added);
}

/* Many added tokens that begin alike; and all spelled alike, every second one special. */
START_TEST(many_added_tokens) {
    struct qep_bytes json = {0};
    struct qep_tokenizer *tok = NULL;
    struct qep_ids ids = {0};
    struct qep_text_span all = {0, TEXT_BYTES};
    char *text = malloc(TEXT_BYTES);
    ck_assert_ptr_nonnull(text);
    memset(text, '<', TEXT_BYTES);
    double start = qep_now_s();
    added_json(_i == 1, &json);
    seconds_to_parse(&json, &tok);
    ck_assert_int_eq(qep_tokenizer_encode(tok, text, TEXT_BYTES, &all, 1, &ids), QEP_OK);
    ck_assert_msg(qep_now_s() - start < 15, "%g s", qep_now_s() - start);
    qep_ids_free(&ids);
    qep_tokenizer_destroy(tok);
    qep_bytes_free(&json);
    free(text);
}
END_TEST

/* The longest counts; of tokens spelled alike the first, and where special ones are plain text the
 * first that is not. */
START_TEST(which_added_token) {
    static const char added[] = "{\"id\": 300, \"content\": \"<a\", \"special\": true},"
                                "{\"id\": 301, \"content\": \"<abc\", \"special\": true},"
                                "{\"id\": 302, \"content\": \"<ab\"},"
                                "{\"id\": 303, \"content\": \"<ab\", \"special\": true},"
                                "{\"id\": 304, \"content\": \"<a\"},"
                                "{\"id\": 305, \"content\": \"<a\"},"
                                "{\"id\": 306, \"content\": \"\\u4f60\"}";
    struct qep_bytes json = {0};
    struct qep_tokenizer *tok = NULL;
    text_small_json("", "", added, &json);
    seconds_to_parse(&json, &tok);
    ck_assert_str_eq(text_ids(tok, "<abc<abd<ax<\u4f60", 15, false), "301 302 100 300 120 60 306");
    ck_assert_str_eq(text_ids(tok, "<abc<abd<ax<\u4f60", 15, true),
                     "302 99 302 100 304 120 60 306");
    qep_tokenizer_destroy(tok);
    qep_bytes_free(&json);
}
END_TEST

START_TEST(long_added_tokens_are_refused) {
    struct qep_bytes json = {0};
    struct qep_tokenizer *tok = NULL;
    char entry[2000] = "{\"id\": 300, \"content\": \"", *end = entry + strlen(entry);
    memset(end, 'x', 1025);
    strcpy(end + 1025, "\"}");
    text_small_json("", "", entry, &json);
    ck_assert_int_eq(qep_tokenizer_parse(json.data, json.len, "t.json", 0, &tok), QEP_ERR_DATA);
    ck_assert_str_eq(qep_last_error(),
                     "t.json: added token 300: expected at most 1024 bytes, found 1025");
    qep_bytes_free(&json);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("tokenizer_bounds");
    TCase *tc = tcase_create("tokenizer_bounds");
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, spellings_cannot_be_made_to_collide);
    tcase_add_loop_test(tc, many_added_tokens, 0, 2);
    tcase_add_test(tc, which_added_token);
    tcase_add_test(tc, long_added_tokens_are_refused);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

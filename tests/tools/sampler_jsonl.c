/* The sampler as a filter: a line of JSON on stdin, a line on stdout.
 *   {"logits": [number or null, ...], "temperature", "top_k", "top_p", "min_p",
 *    "repetition_penalty", "presence_penalty", "prompt_ids", "generated_ids", "n", "seed"}
 * gives [id, ...], n draws (default 1) that differ in `choice` only: 0, 1, ... A null logit is
 * -inf; all else may be absent or null. A bad line gives {"error": "..."}; the exit status is 0. */
#include "base/json.h"
#include "base/mem.h"
#include "engine/sampler.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_VOCAB (1 << 24)
#define MAX_DRAWS 10000000
#define MAX_EXACT_INT ((int64_t)1 << 53)

struct request {
    struct qep_sampling params;
    struct qep_draw draw;
    float *logits;
    int32_t *prompt_ids;
    int32_t *generated_ids;
    int64_t num_draws;
};

static enum qep_status read_logits(const cJSON *line, struct request *request) {
    const cJSON *list = qep_json_get(line, "logits"), *item;
    int count = cJSON_GetArraySize(list), i = 0;
    if (!cJSON_IsArray(list) || count < 1 || count > MAX_VOCAB)
        return qep_fail(QEP_ERR_DATA, "line: \"logits\": expected a list of 1 to %d numbers",
                        MAX_VOCAB);
    QEP_TRY(qep_alloc((size_t)count, sizeof(float), "logits", (void **)&request->logits));
    cJSON_ArrayForEach (item, list) {
        if (!cJSON_IsNumber(item) && !cJSON_IsNull(item))
            return qep_fail(QEP_ERR_DATA, "line: \"logits\": expected a number or null at %d", i);
        request->logits[i++] = cJSON_IsNull(item) ? -INFINITY : (float)item->valuedouble;
    }
    request->draw.logits = request->logits;
    request->draw.num_ids = count;
    return QEP_OK;
}

static enum qep_status read_ids(const cJSON *line, const char *key, int32_t **out_ids,
                                size_t *out_count) {
    const cJSON *list = qep_json_get(line, key), *item;
    size_t count = 0;
    if (!list)
        return QEP_OK;
    if (!cJSON_IsArray(list))
        return qep_fail(QEP_ERR_DATA, "line: \"%s\": expected a list of ids", key);
    QEP_TRY(qep_alloc((size_t)cJSON_GetArraySize(list), sizeof(int32_t), key, (void **)out_ids));
    cJSON_ArrayForEach (item, list) {
        double id = item->valuedouble;
        if (!cJSON_IsNumber(item) || !(id >= 0 && id < MAX_VOCAB) || floor(id) < id)
            return qep_fail(QEP_ERR_DATA, "line: \"%s\": expected an id at %zu", key, count);
        (*out_ids)[count++] = (int32_t)id;
    }
    *out_count = count;
    return QEP_OK;
}

static enum qep_status read_request(const cJSON *line, struct request *request) {
    struct qep_sampling *params = &request->params;
    struct qep_draw *draw = &request->draw;
    int64_t seed = 0;
    if (!cJSON_IsObject(line))
        return qep_fail(QEP_ERR_DATA, "line: expected an object");
    QEP_TRY(read_logits(line, request));
    QEP_TRY(read_ids(line, "prompt_ids", &request->prompt_ids, &draw->num_prompt));
    QEP_TRY(read_ids(line, "generated_ids", &request->generated_ids, &draw->num_generated));
    draw->prompt_ids = request->prompt_ids;
    draw->generated_ids = request->generated_ids;
    draw->position = draw->num_prompt + draw->num_generated;

    struct {
        const char *key;
        double *value;
    } numbers[] = {
        {"temperature", &params->temperature},
        {"top_p", &params->top_p},
        {"min_p", &params->min_p},
        {"presence_penalty", &params->presence_penalty},
        {"repetition_penalty", &params->repetition_penalty},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        QEP_TRY(qep_json_double_opt(line, numbers[i].key, "line", -INFINITY, INFINITY,
                                    numbers[i].value));
    QEP_TRY(qep_json_int_opt(line, "top_k", "line", -MAX_EXACT_INT, MAX_EXACT_INT, &params->top_k));
    QEP_TRY(qep_json_int_opt(line, "n", "line", 0, MAX_DRAWS, &request->num_draws));
    QEP_TRY(qep_json_int_opt(line, "seed", "line", 0, MAX_EXACT_INT, &seed));
    params->seed = (uint64_t)seed;
    return qep_sampling_check(params);
}

static enum qep_status draw_all(struct request *request, int32_t *ids) {
    struct qep_sampler *sampler = NULL;
    enum qep_status st = QEP_OK;
    QEP_TRY(qep_sampler_create(request->draw.num_ids, &sampler));
    for (int64_t i = 0; i < request->num_draws && st == QEP_OK; i++) {
        request->draw.choice = (uint32_t)i;
        st = qep_sampler_draw(sampler, &request->params, &request->draw, &ids[i]);
    }
    qep_sampler_destroy(sampler);
    return st;
}

static enum qep_status answer(const char *text, size_t len) {
    struct request request = {.params = QEP_SAMPLING_DEFAULT, .num_draws = 1};
    enum qep_status st = QEP_OK;
    cJSON *line = NULL;
    int32_t *ids = NULL;
    QEP_TRY_GOTO(st, done, qep_json_parse(text, len, "line", &line));
    QEP_TRY_GOTO(st, done, read_request(line, &request));
    QEP_TRY_GOTO(st, done, qep_alloc((size_t)request.num_draws, sizeof *ids, "ids", (void **)&ids));
    QEP_TRY_GOTO(st, done, draw_all(&request, ids));
    putchar('[');
    for (int64_t i = 0; i < request.num_draws; i++)
        printf(i > 0 ? ", %d" : "%d", ids[i]);
    puts("]");
done:
    free(ids);
    free(request.generated_ids);
    free(request.prompt_ids);
    free(request.logits);
    cJSON_Delete(line);
    return st;
}

static void print_error(void) {
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "error", qep_last_error());
    char *text = cJSON_PrintUnformatted(object);
    puts(text ? text : "{\"error\": \"out of memory\"}");
    cJSON_free(text);
    cJSON_Delete(object);
}

int main(void) {
    char *text = NULL;
    size_t cap = 0;
    ssize_t len;
    while ((len = getline(&text, &cap, stdin)) >= 0) {
        if (len > 0 && text[len - 1] == '\n')
            len--;
        if (answer(text, (size_t)len) != QEP_OK)
            print_error();
        fflush(stdout);
    }
    free(text);
    return 0;
}

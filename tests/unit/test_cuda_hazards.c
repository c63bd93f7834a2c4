/* What goes wrong between ops rather than in one: a graph that remembers what its capture saw, a
 * slot that remembers its last sequence, memory that moved under a graph, a factor applied in
 * another place. tests/seeded_defects.sh plants such faults. */
#include "device_support.h"
#include "engine/generate.h"
#include "kernels/device_ops.h"
#include "model/cache.h"
#include "tests/support/golden.h"
#include "tests/support/run_model.h"

#include "cli/common.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct qep_backend *cuda;

static void setup(void) {
    cuda = open_cuda();
}

static void teardown(void) {
    cuda->ops->destroy(cuda);
}

static float *dev_random(struct rng *rng, size_t count) {
    float *host = random_floats(rng, count, 1.0f);
    float *dev = dev_put(cuda, host, count * sizeof *host);
    free(host);
    return dev;
}

/* ---- graphs ---- */

enum { ROWS = 3, SLOTS = 5, MAX_BLOCKS = 10, BOUND = MAX_BLOCKS * QEP_KV_BLOCK };

static const struct qep_attention_dims attention_dims = {4,    2,     16,          8,
                                                         1e4f, 1e-6f, QEP_KV_BF16, MAX_BLOCKS};
static const struct qep_delta_dims delta_dims = {1, 2, 16, 16, 4, 1e-6f};
enum { Q = 4 * 16, KV = 2 * 16, CHANNELS = 2 * 16 + 2 * 16, DELTA_OUT = 2 * 16 };

/* One step of both mixers, its state and its rows, all in device memory. */
struct mixers {
    int32_t rows; /* of a step, at most ROWS */
    float *qg, *k, *v, *norm, *qkv, *taps, *heads;
    char *kv;
    void **table;
    float *conv, *state;
    size_t kv_bytes, conv_bytes, state_bytes;
    struct qep_span *spans;
    /* attention [ROWS, Q], then conv [ROWS, CHANNELS], then delta [ROWS, DELTA_OUT], then that of
     * delta_decode */
    float *out;
};

enum { OUT_FLOATS = ROWS * (Q + CHANNELS + 2 * DELTA_OUT) };

static struct mixers make_mixers(int32_t rows) {
    struct rng rng = {4};
    struct mixers m = {
        .rows = rows,
        .kv_bytes = SLOTS * MAX_BLOCKS * qep_kv_block_bytes(QEP_KV_BF16, 2, 16),
        .conv_bytes = SLOTS * CHANNELS * 4 * sizeof(float),
        .state_bytes = SLOTS * 2 * 16 * 16 * sizeof(float),
    };
    void *blocks[SLOTS * MAX_BLOCKS];
    m.qg = dev_random(&rng, ROWS * 2 * Q);
    m.k = dev_random(&rng, ROWS * KV);
    m.v = dev_random(&rng, ROWS * KV);
    m.norm = dev_random(&rng, 16);
    m.qkv = dev_random(&rng, ROWS * CHANNELS);
    m.taps = dev_random(&rng, CHANNELS * 4);
    m.heads = dev_random(&rng, ROWS * 2);
    m.kv = dev_put(cuda, NULL, m.kv_bytes);
    m.conv = dev_put(cuda, NULL, m.conv_bytes);
    m.state = dev_put(cuda, NULL, m.state_bytes);
    for (size_t i = 0; i < SLOTS * MAX_BLOCKS; i++)
        blocks[i] = m.kv + i * (m.kv_bytes / (SLOTS * MAX_BLOCKS));
    m.table = dev_put(cuda, blocks, sizeof blocks);
    m.spans = dev_put(cuda, NULL, ROWS * sizeof *m.spans);
    m.out = dev_put(cuda, NULL, OUT_FLOATS * sizeof(float));
    return m;
}

static void free_mixers(struct mixers *m) {
    void *all[] = {m->qg, m->k,    m->v,     m->norm,  m->qkv,   m->taps, m->heads,
                   m->kv, m->conv, m->state, m->table, m->spans, m->out};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        cuda->ops->free(cuda, all[i]);
}

/* `spans` are the host's, which may lag behind the device's. */
static void mix(const struct mixers *m, const struct qep_span *spans) {
    const struct qep_batch batch = {m->rows, m->rows, spans, m->spans, BOUND};
    float *conv = m->out + ROWS * Q;
    ok(cuda->ops->attention_kv(cuda, &attention_dims, &batch, m->k, m->v, m->norm, m->table));
    ok(cuda->ops->attention(cuda, &attention_dims, &batch, qep_f32_rows(m->out), m->qg, m->norm,
                            m->table));
    ok(cuda->ops->delta_conv(cuda, &delta_dims, &batch, conv, m->qkv, m->taps, m->conv));
    ok(cuda->ops->delta(cuda, &delta_dims, &batch, conv + ROWS * CHANNELS, conv, m->heads, m->heads,
                        m->norm, m->norm, m->state));
    const struct qep_delta_decode_args args = {
        .qkv = m->qkv,
        .z = m->qkv,
        .a = m->heads,
        .b = m->heads,
        .conv1d = m->taps,
        .A_log = m->norm,
        .dt_bias = m->norm,
        .norm = m->norm,
        .conv_state = m->conv,
        .recurrent_state = m->state,
    };
    ok(cuda->device->delta_decode(cuda, &delta_dims, &batch,
                                  qep_f32_rows(conv + ROWS * (CHANNELS + DELTA_OUT)), &args));
}

/* The same states for every run: the KV cache holds bf16 numbers around 1. */
static void start_anew(const struct mixers *m) {
    struct rng rng = {9};
    uint16_t *kv = must_alloc(m->kv_bytes);
    for (size_t i = 0; i < m->kv_bytes / 2; i++)
        kv[i] = (uint16_t)(0x3f00 + rng_below(&rng, 0x100));
    float *floats = random_floats(&rng, (m->conv_bytes + m->state_bytes) / 4, 1.0f);
    ok(cuda->ops->upload(cuda, m->kv, kv, m->kv_bytes));
    ok(cuda->ops->upload(cuda, m->conv, floats, m->conv_bytes));
    ok(cuda->ops->upload(cuda, m->state, floats + m->conv_bytes / 4, m->state_bytes));
    ok(cuda->ops->zero(cuda, m->out, OUT_FLOATS * sizeof(float)));
    free(kv);
    free(floats);
}

/* Outputs, then all states: what a step left. */
static char *left_behind(const struct mixers *m, size_t *bytes) {
    size_t out = OUT_FLOATS * sizeof(float), at = 0;
    *bytes = out + m->kv_bytes + m->conv_bytes + m->state_bytes;
    char *all = must_alloc(*bytes);
    dev_get(cuda, all, m->out, out);
    dev_get(cuda, all + (at += out), m->kv, m->kv_bytes);
    dev_get(cuda, all + (at += m->kv_bytes), m->conv, m->conv_bytes);
    dev_get(cuda, all + (at += m->conv_bytes), m->state, m->state_bytes);
    return all;
}

START_TEST(graphs_follow_the_spans) {
    static const struct qep_span captured[ROWS] = {
        {0, 1, 0, 3, 1}, {1, 1, 1, 9, 1}, {2, 1, 2, 40, 1}};
    static const struct qep_span later[][ROWS] = {
        {{0, 1, 0, 4, 1}, {1, 1, 1, 10, 1}, {2, 1, 2, 41, 1}},      /* the next step */
        {{0, 1, 4, 600, 1}, {1, 1, -1, 0, 1}, {2, 1, 3, 255, 1}},   /* other slots, far out */
        {{0, 1, -1, 64, 1}, {1, 1, 0, 639, 1}, {2, 1, 1, 256, 1}}}; /* edges of blocks, pieces */
    struct mixers m = make_mixers(_i == 0 ? 1 : ROWS);
    struct qep_graph *graph = NULL;
    size_t bytes;
    ok(cuda->ops->upload(cuda, m.spans, captured, sizeof captured));
    start_anew(&m);
    mix(&m, captured); /* workspaces take their size */
    ok(cuda->device->capture_begin(cuda));
    mix(&m, captured);
    ok(cuda->device->capture_end(cuda, &graph));
    for (size_t i = 0; i < sizeof later / sizeof later[0]; i++) {
        ok(cuda->ops->upload(cuda, m.spans, later[i], sizeof later[i]));
        start_anew(&m);
        mix(&m, later[i]);
        char *want = left_behind(&m, &bytes);
        start_anew(&m);
        ok(cuda->device->graph_launch(cuda, graph));
        char *got = left_behind(&m, &bytes);
        assert_same_bits(got, want, bytes, "graph");
        free(want);
        free(got);
    }
    cuda->device->graph_destroy(cuda, graph);
    free_mixers(&m);
}
END_TEST

/* A workspace that moves is told: graphs hold its address. */
START_TEST(moved_workspaces_are_told) {
    struct mixers m = make_mixers(ROWS);
    static const struct qep_span spans[ROWS] = {{0, 1, 0, 3, 1}, {1, 1, 1, 9, 1}, {2, 1, 2, 40, 1}};
    ok(cuda->ops->upload(cuda, m.spans, spans, sizeof spans));
    uint64_t before = cuda->generation;
    mix(&m, spans);
    ck_assert_uint_ne(cuda->generation, before);
    before = cuda->generation;
    mix(&m, spans);
    ck_assert_uint_eq(cuda->generation, before);
    free_mixers(&m);
}
END_TEST

/* ---- slots ---- */

START_TEST(reset_slots_are_zero) {
    enum { NUM = 3, CONV = CHANNELS * 4, STATE = 2 * 16 * 16 };
    const struct qep_model_config config = {.num_hidden_layers = 1,
                                            .layer_types = {QEP_LAYER_LINEAR_ATTENTION},
                                            .linear_num_key_heads = 1,
                                            .linear_num_value_heads = 2,
                                            .linear_key_head_dim = 16,
                                            .linear_value_head_dim = 16,
                                            .linear_conv_kernel_dim = 4};
    const struct qep_placement placement = {.num_ranks = 1, .attention = QEP_ATTENTION_SEQUENCES};
    struct qep_cache *cache = NULL;
    struct rng rng = {3};
    float *used = random_floats(&rng, NUM * STATE, 1.0f), *got = must_alloc(NUM * STATE * 4);
    ok(qep_cache_create(cuda, &config, &placement, 0, NUM, 64, QEP_KV_BF16, &cache));
    struct {
        float *dev;
        size_t row;
    } states[] = {{cache->layers[0].conv_state, CONV}, {cache->layers[0].recurrent_state, STATE}};
    for (int s = 0; s < 2; s++)
        ok(cuda->ops->upload(cuda, states[s].dev, used, NUM * states[s].row * 4));
    ok(qep_cache_reset(cache, 0, 1));
    for (int s = 0; s < 2; s++) {
        size_t row = states[s].row;
        dev_get(cuda, got, states[s].dev, NUM * row * 4);
        for (size_t i = 0; i < NUM * row; i++) {
            float want = i / row == 1 ? 0.0f : used[i];
            ck_assert_msg(got[i] == want, "state %d, element %zu of slot %zu is %g", s, i % row,
                          i / row, (double)got[i]);
        }
    }
    qep_cache_destroy(cache);
    free(used);
    free(got);
}
END_TEST

/* ---- routing weights ---- */

static struct qep_weight *expert_matrix(struct rng *rng, int32_t rows, int32_t cols) {
    size_t count = (size_t)rows * (size_t)cols;
    uint16_t *data = must_alloc(count * sizeof *data);
    for (size_t i = 0; i < count; i++)
        data[i] = qep_f32_to_bf16(rng_normal(rng));
    const struct qep_host_weight host = {
        .type = QEP_WEIGHT_BF16, .rows = rows, .cols = cols, .data = data};
    struct qep_weight *weight = NULL;
    ok(cuda->ops->weight_create(cuda, &host, &weight));
    free(data);
    return weight;
}

/* An item's output is its output at weight 1 times its weight, to the bit: down comes first. */
START_TEST(routing_weights_come_last) {
    enum { H = 64, I = 32, N = 5 };
    static const int32_t expert[N] = {0, 0, 0, 0, 0}, row[N] = {0, 1, 2, 3, 4};
    static const float ones[N] = {1, 1, 1, 1, 1}, some[N] = {0.3f, 0.7f, 0.11f, 0.013f, 0.9f};
    struct rng rng = {(uint64_t)_i + 1};
    float plain[N * H], weighted[N * H];
    const struct qep_weight *gate_up = expert_matrix(&rng, 2 * I, H);
    const struct qep_weight *down = expert_matrix(&rng, H, I);
    float *x = dev_random(&rng, N * H), *out = dev_put(cuda, NULL, sizeof plain);
    size_t row_bytes = qep_act_row_bytes(QEP_ACT_BF16, H);
    void *act = dev_put(cuda, NULL, N * row_bytes);
    ok(cuda->ops->act_convert(cuda, act, row_bytes, QEP_ACT_BF16, x, N, H));
    struct qep_expert_args args = {act,  row_bytes, QEP_ACT_BF16, N, N, expert, row,
                                   ones, &gate_up,  &down,        H, I, _i};
    ok(cuda->ops->experts(cuda, &args, out));
    dev_get(cuda, plain, out, sizeof plain);
    args.item_weight = some;
    ok(cuda->ops->experts(cuda, &args, out));
    dev_get(cuda, weighted, out, sizeof weighted);
    for (int i = 0; i < N * H; i++)
        ck_assert_msg(weighted[i] == plain[i] * some[i / H], "element %d is %.9g, expected %.9g", i,
                      (double)weighted[i], (double)(plain[i] * some[i / H]));
    cuda->ops->weight_destroy(cuda, (struct qep_weight *)(uintptr_t)gate_up);
    cuda->ops->weight_destroy(cuda, (struct qep_weight *)(uintptr_t)down);
    cuda->ops->free(cuda, x);
    cuda->ops->free(cuda, out);
    cuda->ops->free(cuda, act);
}
END_TEST

/* ---- one engine, several requests ---- */

enum { NUM_REQUESTS = 4, MAX_NEW = 5 };

struct job {
    const char *dir, *attention;
    const int32_t *ids;
    bool anew; /* an engine for every request */
    int first, last;
    int32_t tokens[NUM_REQUESTS][MAX_NEW];
};

/* Short, long (scratch and workspaces grow), short again: its graphs are from before. */
static const int32_t lengths[NUM_REQUESTS] = {5, 5, 65, 5};

static enum qep_status serve(struct qep_engine *engine, struct job *job) {
    for (int i = job->first; i < job->last; i++) {
        struct qep_generate_result res;
        const struct qep_generate_request request = {
            .prompt_ids = job->ids,
            .num_prompt = lengths[i],
            .max_new_tokens = MAX_NEW,
            .prefill_chunk = 512,
            .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .greedy = true},
            .ignore_eos = true,
            .num_ids = qep_engine_config(engine)->vocab_size};
        QEP_TRY(qep_generate(engine, &request, &res));
        memcpy(job->tokens[i], res.token_ids, sizeof job->tokens[i]);
        free(res.token_ids);
    }
    return qep_engine_stop(engine);
}

static enum qep_status rank_main(struct qep_comm *comm, void *arg) {
    struct job *job = arg;
    struct qep_engine *engine = NULL;
    struct qep_engine_options options = QEP_ENGINE_OPTIONS_DEFAULT;
    options.model = job->dir;
    options.backend = "cuda";
    options.attention = job->attention;
    options.threads = 1;
    options.bind = "keep";
    options.timeout_s = 0;
    QEP_TRY(qep_engine_create(comm, &options, &engine));
    enum qep_status st = comm->rank == 0 ? serve(engine, job) : qep_engine_serve(engine);
    qep_engine_destroy(engine);
    return st;
}

static void run_job(struct job *job, int ranks) {
    struct qep_common common = {.transport = "threads", .ranks = ranks};
    struct qep_comm *self = NULL;
    ok(qep_comm_self_create(&self));
    ok(qep_common_launch(self, &common, rank_main, job));
    qep_comm_destroy(self);
}

static void check_requests(int ranks, const char *attention) {
    struct golden g;
    size_t n;
    char *tmp = temp_dir();
    golden_open("tests/data/golden/moe-ratio3/goldens.safetensors.zst", &g);
    char *dir = model_convert("tests/data/golden/moe-ratio3", tmp, "bf16", 0);
    struct job alone = {.dir = dir, .attention = "layers", .last = 1};
    alone.ids = golden_find(&g, "p65.token_ids", &n);
    struct job together = alone;
    run_job(&alone, 1);
    alone.first = 2;
    alone.last = 3;
    run_job(&alone, 1);
    memcpy(alone.tokens[1], alone.tokens[0], sizeof alone.tokens[0]);
    memcpy(alone.tokens[3], alone.tokens[0], sizeof alone.tokens[0]);
    together.attention = attention;
    together.last = NUM_REQUESTS;
    run_job(&together, ranks);
    for (int i = 0; i < NUM_REQUESTS; i++)
        for (int t = 0; t < MAX_NEW; t++)
            ck_assert_msg(together.tokens[i][t] == alone.tokens[i][t],
                          "request %d, token %d is %d, alone %d", i, t, together.tokens[i][t],
                          alone.tokens[i][t]);
    golden_close(&g);
    remove_tree(tmp);
    free(dir);
    free(tmp);
}

START_TEST(requests_do_not_meet) {
    check_requests(1, "layers");
}
END_TEST

START_TEST(ranks_serve_the_same) {
    check_requests(2, _i == 0 ? "layers" : "sequences");
}
END_TEST

int main(void) {
    Suite *suite = suite_create("cuda hazards");
    setenv("QEP_EMU_DEVICES", "2", 0);
    TCase *tc = device_case(suite, "ops", 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, graphs_follow_the_spans, 0, 2);
    tcase_add_test(tc, moved_workspaces_are_told);
    tcase_add_test(tc, reset_slots_are_zero);
    tcase_add_loop_test(tc, routing_weights_come_last, 0, 2);
    tcase_add_test(device_case(suite, "model", 300), requests_do_not_meet);
    tcase_add_loop_test(device_case(suite, "ranks", 300), ranks_serve_the_same, 0, 2);
    return run_device_suite(suite);
}

/* Scratch is counted block by block as the forward asks for it (attention.c, deltanet.c, dense.c,
 * moe_device.c, head.c, decode.c): whoever adds a block there adds it here. What depends on the
 * routing is counted at its most: every row goes to every rank. */
#include "model/need.h"

#include "model/decode.h"

struct counting {
    const struct qep_backend *be;
    const struct qep_model_config *config;
    const struct qep_placement *placement;
    const struct qep_weights *weights;
    const struct qep_need_options *options;
    int rank;
    bool owns; /* any layer's rows */
    int32_t num_local_slots;
    int32_t capacity, all; /* rows of a decode step: of one owner, of all ranks */
    int32_t rows;          /* of one phase and owner, at most */
    int32_t served;        /* rows that this rank's experts get, at most */
    size_t bytes[SCRATCH_COUNT];
    struct qep_device_load load;
};

static void want(struct counting *c, enum scratch_id id, size_t count, size_t size) {
    size_t bytes = count * size;
    c->bytes[id] = bytes > c->bytes[id] ? bytes : c->bytes[id];
}

static void want_rows(struct counting *c, enum scratch_id id, int32_t cols) {
    want(c, id, (size_t)c->rows * (size_t)cols, sizeof(float));
}

static void want_act(struct counting *c, enum qep_act_type type, bool inner, int32_t cols) {
    size_t row_bytes = qep_act_row_bytes(type, cols);
    if (type != QEP_ACT_F32 || row_bytes != (size_t)cols * sizeof(float))
        want(c, model_act_scratch(inner, type), (size_t)c->rows, row_bytes);
}

static void want_linear(struct counting *c, enum scratch_id id, const struct qep_linear *lin,
                        bool inner) {
    struct qep_device_load *load = &c->load;
    if (lin->rows == 0)
        return;
    want_act(c, lin->act, inner, lin->cols);
    if (id != SCRATCH_COUNT) /* else the product adds to the hidden rows */
        want_rows(c, id, lin->rows);
    if (lin->act != QEP_ACT_F32 || lin->type != QEP_WEIGHT_BF16)
        return;
    load->f32_rows = lin->rows > load->f32_rows ? lin->rows : load->f32_rows;
    load->f32_cols = lin->cols > load->f32_cols ? lin->cols : load->f32_cols;
}

static void count_layer(struct counting *c, int32_t layer) {
    const struct qep_model_config *config = c->config;
    const struct qep_layer_weights *w = &c->weights->layers[layer];
    const struct {
        enum scratch_id id;
        const struct qep_linear *lin;
    } linears[] = {{SCRATCH_QG, &w->q_proj},
                   {SCRATCH_K, &w->k_proj},
                   {SCRATCH_V, &w->v_proj},
                   {SCRATCH_COUNT, &w->o_proj},
                   {SCRATCH_QKV, &w->in_proj_qkv},
                   {SCRATCH_CONV, &w->in_proj_qkv},
                   {SCRATCH_Z, &w->in_proj_z},
                   {SCRATCH_A, &w->in_proj_a},
                   {SCRATCH_B, &w->in_proj_b},
                   {SCRATCH_COUNT, &w->out_proj},
                   {SCRATCH_ROUTER, &w->gate},
                   {SCRATCH_SHARED_GATE, &w->shared_expert_gate},
                   {SCRATCH_GATE, &w->shared_gate_proj},
                   {SCRATCH_UP, &w->shared_up_proj},
                   {SCRATCH_COUNT, &w->shared_down_proj},
                   {SCRATCH_GATE, &w->gate_proj},
                   {SCRATCH_UP, &w->up_proj},
                   {SCRATCH_COUNT, &w->down_proj}};
    bool full = config->layer_types[layer] == QEP_LAYER_FULL_ATTENTION;
    for (size_t i = 0; i < sizeof linears / sizeof linears[0]; i++)
        want_linear(c, linears[i].id, linears[i].lin, linears[i].lin == &w->shared_down_proj);
    if (!full)
        want_rows(c, SCRATCH_MIXED, config->linear_num_value_heads * config->linear_value_head_dim);
    else if (w->o_proj.act != QEP_ACT_BF16) /* else only its activation rows are written */
        want_rows(c, SCRATCH_MIXED, config->num_attention_heads * config->head_dim);
    if (config->num_experts > 0)
        want_act(c, w->expert_act, false, config->hidden_size);
}

/* Of an owner of rows, whatever the layer. */
static void count_owner(struct counting *c) {
    size_t rows = (size_t)c->rows;
    int32_t slots = c->options->num_slots;
    want(c, SCRATCH_IDS, rows, sizeof(int32_t));
    want(c, SCRATCH_SPANS, (size_t)(slots > c->capacity ? slots : c->capacity),
         sizeof(struct qep_span));
    want_rows(c, SCRATCH_HIDDEN, c->config->hidden_size);
    want_rows(c, SCRATCH_NORMED, c->config->hidden_size);
    for (int32_t l = 0; l < c->config->num_hidden_layers; l++)
        if (c->placement->attention == QEP_ATTENTION_SEQUENCES ||
            qep_owner(c->placement, l, 0) == c->rank)
            count_layer(c, l);
}

static void count_head(struct counting *c) {
    size_t row_bytes = qep_act_row_bytes(c->weights->head_act, c->config->hidden_size);
    size_t rows = MODEL_HEAD_ROWS > c->all ? MODEL_HEAD_ROWS : (size_t)c->all;
    want(c, SCRATCH_ACT_BF16, (size_t)c->capacity, row_bytes);
    want(c, SCRATCH_NORMED, (size_t)c->config->hidden_size, sizeof(float));
    want(c, SCRATCH_HEAD, rows, row_bytes);
    want(c, SCRATCH_LOGITS, MODEL_HEAD_ROWS * (size_t)c->weights->lm_head.rows, sizeof(float));
}

/* Messages to and from other ranks, in device memory. */
static void count_exchange(struct counting *c, size_t packet_bytes, size_t num_ranges) {
    size_t ranks = (size_t)c->placement->num_ranks, rows = (size_t)c->rows;
    size_t hidden = (size_t)c->config->hidden_size * sizeof(float);
    bool moves = c->placement->attention != QEP_ATTENTION_SEQUENCES;
    if (c->served > 0)
        want(c, SCRATCH_RECV, (size_t)c->served, packet_bytes);
    if (!c->owns)
        return;
    want(c, SCRATCH_LISTS, 2 * ranks * rows + ranks, sizeof(int32_t));
    want(c, SCRATCH_PACKETS, ranks * rows, packet_bytes);
    want(c, SCRATCH_SUM_IN, rows * num_ranges, hidden);
    if (moves) {
        want(c, SCRATCH_BASE, rows, hidden);
        want(c, SCRATCH_NEXT_IDS, rows * (size_t)c->config->num_experts_per_tok, sizeof(int32_t));
    }
}

static void count_experts(struct counting *c) {
    const struct qep_placement *pl = c->placement;
    size_t k = (size_t)c->config->num_experts_per_tok;
    size_t own_ranges = (size_t)(pl->dyadic_begin[c->rank + 1] - pl->dyadic_begin[c->rank]);
    size_t num_ranges = (size_t)pl->dyadic_begin[pl->num_ranks];
    enum qep_act_type act = c->weights->layers[0].expert_act;
    size_t packet = qep_packet_bytes(qep_act_row_bytes(act, c->config->hidden_size), (int32_t)k);
    if (c->owns) {
        want(c, SCRATCH_TOPK_IDX, (size_t)c->rows * k, sizeof(int32_t));
        want(c, SCRATCH_TOPK_WEIGHTS, (size_t)c->rows * k, sizeof(float));
    }
    if (pl->num_ranks == 1)
        return; /* its experts add to the hidden rows */
    want(c, SCRATCH_RANGES, num_ranges, sizeof(struct qep_expert_range));
    want(c, SCRATCH_PARTIALS, (size_t)c->served * own_ranges * (size_t)c->config->hidden_size,
         sizeof(float));
    count_exchange(c, packet, num_ranges);
}

/* What the backend's ops will keep besides. */
static void fill_load(struct counting *c) {
    const struct qep_model_config *config = c->config;
    const struct qep_range *experts = &c->placement->experts[c->rank],
                           *vocab = &c->placement->vocab_rows[c->rank];
    struct qep_device_load *load = &c->load;
    load->prefill_rows = c->options->prefill_rows;
    load->decode_rows = c->capacity;
    load->prefill_spans = 1; /* chunks of one sequence at a time */
    if (config->num_experts > 0) {
        load->expert_prefill_rows = c->options->prefill_rows;
        load->expert_decode_rows = c->all;
        load->top_k = config->num_experts_per_tok;
        load->num_experts = config->num_experts;
        load->num_local_experts = experts->end - experts->begin;
        load->num_expert_layers = config->num_hidden_layers;
        load->hidden_size = config->hidden_size;
        load->intermediate_size = config->moe_intermediate_size;
    }
    load->sample_rows = c->all;
    load->num_vocab = vocab->end - vocab->begin;
    load->first_id = vocab->begin;
    load->vocab_size = config->vocab_size;
}

static uint64_t workspaces(struct counting *c) {
    const struct qep_model_config *config = c->config;
    const struct qep_attention_dims attention = {.num_heads = config->num_attention_heads,
                                                 .num_kv_heads = config->num_key_value_heads,
                                                 .head_dim = config->head_dim};
    const struct qep_delta_dims delta = {.num_key_heads = config->linear_num_key_heads,
                                         .num_value_heads = config->linear_num_value_heads,
                                         .key_head_dim = config->linear_key_head_dim,
                                         .value_head_dim = config->linear_value_head_dim};
    fill_load(c);
    for (int32_t l = 0; l < config->num_hidden_layers; l++) {
        if (c->placement->attention != QEP_ATTENTION_SEQUENCES &&
            qep_owner(c->placement, l, 0) != c->rank)
            continue;
        if (config->layer_types[l] == QEP_LAYER_FULL_ATTENTION)
            c->load.attention = &attention;
        else
            c->load.delta = &delta;
    }
    return c->be->device->workspace_bytes(c->be, &c->load);
}

static uint64_t running_bytes(struct counting *c) {
    const struct qep_device_ops *dev = c->be->device;
    size_t experts = (size_t)c->config->num_experts * sizeof(int32_t);
    uint64_t bytes = 0;
    if (c->owns)
        count_owner(c);
    count_head(c);
    if (c->config->num_experts > 0)
        count_experts(c);
    else if (c->placement->num_ranks > 1 && c->placement->attention != QEP_ATTENTION_SEQUENCES)
        want_rows(c, SCRATCH_BASE, c->config->hidden_size); /* on every rank */
    for (int i = 0; i < SCRATCH_COUNT; i++)
        if (c->bytes[i] > 0)
            bytes += dev->block_bytes(c->be, model_scratch_grown(c->bytes[i]));
    if (experts > 0)
        bytes += 2 * dev->block_bytes(c->be, experts); /* their ranges and ranks */
    return bytes + workspaces(c) +
           decode_bytes(c->be, c->config, c->placement, c->rank, c->num_local_slots);
}

static int32_t larger(int32_t a, int32_t b) {
    return a > b ? a : b;
}

/* Rows. A plan's prefill rows may all be one owner's, and all go to one rank's experts. */
static void count_rows(struct counting *c) {
    const struct qep_placement *pl = c->placement;
    bool by_sequence = pl->attention == QEP_ATTENTION_SEQUENCES;
    int32_t prefill = c->options->prefill_rows;
    c->num_local_slots = qep_local_slot(pl, c->options->num_slots - 1) + 1;
    c->capacity = decode_capacity(c->num_local_slots);
    c->all = c->capacity * (by_sequence ? pl->num_ranks : 1);
    c->rows = larger(prefill, c->capacity);
    c->served = pl->num_experts > 0 && pl->experts[c->rank].end > pl->experts[c->rank].begin
                    ? larger(prefill, c->all)
                    : 0;
    c->owns = by_sequence;
    for (int32_t l = 0; l < pl->num_layers; l++)
        c->owns = c->owns || qep_owner(pl, l, 0) == c->rank;
}

enum qep_status qep_model_need(struct qep_backend *be, const struct qep_shard_dir *dir,
                               const struct qep_placement *placement, int rank,
                               const struct qep_need_options *options, struct qep_model_need *out) {
    struct counting c = {.be = be,
                         .config = qep_shard_dir_config(dir),
                         .placement = placement,
                         .options = options,
                         .rank = rank};
    struct qep_weights *weights = NULL;
    struct qep_weights_need need;
    struct qep_cache_need cache;
    QEP_TRY(qep_weights_plan(be, dir, placement, rank, options->activations, &weights, &need));
    c.weights = weights;
    count_rows(&c);
    qep_cache_plan(be, c.config, placement, rank, options->num_slots, options->ctx,
                   options->kv_type, &cache);
    *out = (struct qep_model_need){.weights = need.bytes,
                                   .loading = need.loading * (uint64_t)options->num_threads,
                                   .states = cache.states,
                                   .blocks = cache.blocks,
                                   .running = running_bytes(&c)};
    qep_weights_destroy(weights);
    /* Ids for penalties are uploaded in one piece: they count with the positions. */
    out->blocks +=
        be->device->block_bytes(be, model_scratch_grown((size_t)options->num_slots *
                                                        (size_t)options->ctx * sizeof(int32_t)));
    uint64_t later = out->running + out->states;
    out->total_without_blocks = be->device->held_bytes(be, out->weights, out->loading, later);
    out->total = be->device->held_bytes(be, out->weights, out->loading, later + out->blocks);
    return QEP_OK;
}

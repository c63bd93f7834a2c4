#include "model/cache.h"

#include "base/mem.h"
#include "kernels/device_ops.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static size_t conv_floats(const struct qep_model_config *c) {
    size_t channels = 2 * (size_t)c->linear_num_key_heads * (size_t)c->linear_key_head_dim +
                      (size_t)c->linear_num_value_heads * (size_t)c->linear_value_head_dim;
    return channels * (size_t)c->linear_conv_kernel_dim;
}

static size_t state_floats(const struct qep_model_config *c) {
    return (size_t)c->linear_num_value_heads * (size_t)c->linear_key_head_dim *
           (size_t)c->linear_value_head_dim;
}

uint64_t qep_cache_state_bytes(const struct qep_model_config *c) {
    return (conv_floats(c) + state_floats(c)) * sizeof(float);
}

static enum qep_status alloc_dev(struct qep_cache *cache, size_t bytes, const char *what,
                                 void **dev) {
    QEP_TRY(cache->be->ops->alloc(cache->be, bytes, what, dev));
    cache->bytes += bytes;
    return QEP_OK;
}

static int32_t local_slots(const struct qep_placement *placement, int32_t num_slots) {
    return placement->attention == QEP_ATTENTION_SEQUENCES
               ? qep_local_slot(placement, num_slots - 1) + 1
               : num_slots;
}

static int32_t blocks_for(int32_t ctx) {
    return (ctx + QEP_KV_BLOCK - 1) / QEP_KV_BLOCK;
}

void qep_cache_plan(const struct qep_backend *be, const struct qep_model_config *c,
                    const struct qep_placement *placement, int rank, int32_t num_slots, int32_t ctx,
                    enum qep_kv_type kv_type, struct qep_cache_need *need) {
    size_t slots = (size_t)local_slots(placement, num_slots), blocks = (size_t)blocks_for(ctx);
    uint64_t (*taken)(const struct qep_backend *, size_t) = be->device->block_bytes;
    uint64_t block = taken(be, qep_kv_block_bytes(kv_type, c->num_key_value_heads, c->head_dim));
    *need = (struct qep_cache_need){0};
    for (int32_t l = 0; l < c->num_hidden_layers; l++) {
        if (placement->attention != QEP_ATTENTION_SEQUENCES && qep_owner(placement, l, 0) != rank)
            continue;
        if (c->layer_types[l] == QEP_LAYER_LINEAR_ATTENTION)
            need->states += taken(be, slots * conv_floats(c) * sizeof(float)) +
                            taken(be, slots * state_floats(c) * sizeof(float));
        else
            need->blocks += slots * blocks * block + taken(be, slots * blocks * sizeof(void *));
    }
}

static enum qep_status create_layer(struct qep_cache *cache, int32_t layer) {
    struct qep_layer_cache *lc = &cache->layers[layer];
    size_t slots = (size_t)cache->num_local_slots;
    void *mem = NULL;
    if (cache->config->layer_types[layer] == QEP_LAYER_LINEAR_ATTENTION) {
        size_t conv = slots * conv_floats(cache->config),
               state = slots * state_floats(cache->config);
        QEP_TRY(alloc_dev(cache, conv * sizeof(float), "conv_state", &mem));
        lc->conv_state = mem;
        QEP_TRY(alloc_dev(cache, state * sizeof(float), "recurrent_state", &mem));
        lc->recurrent_state = mem;
        return QEP_OK;
    }
    QEP_TRY(qep_calloc(slots * (size_t)cache->max_blocks, sizeof(void *), "KV block table", &mem));
    lc->blocks = mem;
    QEP_TRY(alloc_dev(cache, slots * (size_t)cache->max_blocks * sizeof(void *), "KV block table",
                      &mem));
    lc->dev_blocks = mem;
    QEP_TRY(qep_calloc(slots, sizeof(int32_t), "KV block table", &mem));
    lc->num_blocks = mem;
    return QEP_OK;
}

enum qep_status qep_cache_create(struct qep_backend *be, const struct qep_model_config *config,
                                 const struct qep_placement *placement, int rank, int32_t num_slots,
                                 int32_t ctx, enum qep_kv_type kv_type, struct qep_cache **out) {
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof(struct qep_cache), "cache", &mem));
    struct qep_cache *cache = mem;
    bool by_sequence = placement->attention == QEP_ATTENTION_SEQUENCES;
    *cache = (struct qep_cache){.be = be,
                                .config = config,
                                .placement = placement,
                                .kv_type = kv_type,
                                .num_local_slots = local_slots(placement, num_slots),
                                .max_blocks = blocks_for(ctx)};
    enum qep_status st =
        qep_calloc((size_t)config->num_hidden_layers, sizeof *cache->layers, "cache", &mem);
    cache->layers = st == QEP_OK ? mem : NULL;
    for (int32_t l = 0; st == QEP_OK && l < config->num_hidden_layers; l++)
        if (by_sequence || qep_owner(placement, l, 0) == rank)
            st = create_layer(cache, l);
    if (st == QEP_OK)
        *out = cache;
    else
        qep_cache_destroy(cache);
    return st;
}

void qep_cache_destroy(struct qep_cache *cache) {
    if (cache == NULL)
        return;
    for (int32_t l = 0; cache->layers != NULL && l < cache->config->num_hidden_layers; l++) {
        struct qep_layer_cache *lc = &cache->layers[l];
        for (int32_t s = 0;
             lc->blocks != NULL && lc->num_blocks != NULL && s < cache->num_local_slots; s++)
            for (int32_t b = 0; b < lc->num_blocks[s]; b++)
                cache->be->ops->free(cache->be,
                                     lc->blocks[(size_t)s * (size_t)cache->max_blocks + (size_t)b]);
        cache->be->ops->free(cache->be, lc->conv_state);
        cache->be->ops->free(cache->be, lc->recurrent_state);
        cache->be->ops->free(cache->be, lc->dev_blocks);
        free(lc->blocks);
        free(lc->num_blocks);
    }
    for (size_t i = 0; i < cache->num_free; i++)
        cache->be->ops->free(cache->be, cache->free_blocks[i]);
    free(cache->free_blocks);
    free(cache->layers);
    free(cache);
}

int32_t qep_local_slot(const struct qep_placement *placement, int32_t slot) {
    return placement->attention == QEP_ATTENTION_SEQUENCES ? slot / placement->num_ranks : slot;
}

enum qep_status qep_cache_reset(struct qep_cache *cache, int32_t layer, int32_t local_slot) {
    struct qep_layer_cache *lc = &cache->layers[layer];
    const struct qep_backend_ops *ops = cache->be->ops;
    size_t slot = (size_t)local_slot;
    if (lc->conv_state != NULL) {
        size_t conv = conv_floats(cache->config), state = state_floats(cache->config);
        QEP_TRY(ops->zero(cache->be, lc->conv_state + slot * conv, conv * sizeof(float)));
        return ops->zero(cache->be, lc->recurrent_state + slot * state, state * sizeof(float));
    }
    if (lc->blocks == NULL)
        return QEP_OK;
    size_t used = (size_t)lc->num_blocks[slot];
    void **blocks = lc->blocks + slot * (size_t)cache->max_blocks;
    QEP_TRY(qep_grow((void **)&cache->free_blocks, &cache->free_cap, cache->num_free + used,
                     sizeof(void *), "KV blocks"));
    for (size_t b = 0; b < used; b++) {
        cache->free_blocks[cache->num_free++] = blocks[b];
        blocks[b] = NULL;
    }
    lc->num_blocks[slot] = 0;
    return QEP_OK;
}

enum qep_status qep_cache_reserve(struct qep_cache *cache, int32_t layer, int32_t local_slot,
                                  int32_t end) {
    struct qep_layer_cache *lc = &cache->layers[layer];
    size_t slot = (size_t)local_slot;
    int32_t needed = (end + QEP_KV_BLOCK - 1) / QEP_KV_BLOCK;
    assert(needed <= cache->max_blocks);
    size_t row = slot * (size_t)cache->max_blocks, had = (size_t)lc->num_blocks[slot];
    void **blocks = lc->blocks + row;
    if (lc->num_blocks[slot] >= needed)
        return QEP_OK;
    while (lc->num_blocks[slot] < needed) {
        void *block = NULL;
        if (cache->num_free > 0)
            block = cache->free_blocks[--cache->num_free];
        else
            QEP_TRY(alloc_dev(cache,
                              qep_kv_block_bytes(cache->kv_type, cache->config->num_key_value_heads,
                                                 cache->config->head_dim),
                              "KV block", &block));
        blocks[lc->num_blocks[slot]++] = block;
    }
    return cache->be->ops->upload(cache->be, lc->dev_blocks + row + had, blocks + had,
                                  ((size_t)needed - had) * sizeof(void *));
}

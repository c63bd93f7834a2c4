#include "kernels/cuda/pool.h"

#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>

/* Size classes: this many steps to each power of two, from 256 bytes on. A block is at most 1 / 32
 * larger than asked for, as what fits is counted in bytes asked for. */
enum { CLASS_STEPS = 32, NUM_CLASSES = CLASS_STEPS * 40, NO_CLASS = -1 };

struct entry {
    uintptr_t at; /* 0: never used, 1: deleted */
    size_t bytes; /* taken from the source; 0 for parts of slabs */
    int size_class;
};

struct stack {
    void **blocks;
    size_t num, cap;
};

struct cuda_pool {
    size_t slab_bytes;
    struct cuda_pool_source source;
    struct entry *table; /* [1 << bits] by address */
    size_t num_slots, num_used;
    struct stack free_blocks[NUM_CLASSES];
    struct stack slabs;
    char *slab; /* the one being cut up */
    size_t slab_left;
    uint64_t held;
};

static size_t round_up(size_t bytes, size_t step) {
    return (bytes + step - 1) / step * step;
}

/* The class that holds `bytes`, and its size. */
static int size_class(size_t bytes, size_t *class_bytes) {
    size_t base = CUDA_POOL_ALIGN;
    int power = 0;
    while (base * 2 < bytes) {
        base *= 2;
        power++;
    }
    /* Not below the alignment. */
    size_t step =
        base / CLASS_STEPS < CUDA_POOL_ALIGN ? (size_t)CUDA_POOL_ALIGN : base / CLASS_STEPS;
    *class_bytes = bytes <= base ? base : base + round_up(bytes - base, step);
    int part = (int)((*class_bytes - base) * CLASS_STEPS / base);
    return power * CLASS_STEPS + part;
}

static size_t slot_of(const struct cuda_pool *pool, uintptr_t at) {
    return (size_t)((uint64_t)at * 0x9E3779B97F4A7C15u >> 20) & (pool->num_slots - 1);
}

static struct entry *find(const struct cuda_pool *pool, uintptr_t at) {
    size_t i = slot_of(pool, at);
    while (pool->table[i].at != at && pool->table[i].at != 0)
        i = (i + 1) & (pool->num_slots - 1);
    return pool->table[i].at == at ? &pool->table[i] : NULL;
}

static void put(struct cuda_pool *pool, struct entry entry) {
    size_t i = slot_of(pool, entry.at);
    while (pool->table[i].at > 1)
        i = (i + 1) & (pool->num_slots - 1);
    pool->num_used += pool->table[i].at == 0;
    pool->table[i] = entry;
}

static enum qep_status grow_table(struct cuda_pool *pool) {
    struct entry *old = pool->table;
    size_t num_old = pool->num_slots, live = 0;
    void *mem = NULL;
    if (pool->num_slots > 0 && pool->num_used * 4 < pool->num_slots * 3)
        return QEP_OK;
    for (size_t i = 0; i < num_old; i++)
        live += old[i].at > 1;
    size_t num = 1024;
    while (num < live * 3)
        num *= 2;
    QEP_TRY(qep_calloc(num, sizeof *old, "device memory table", &mem));
    pool->table = mem;
    pool->num_slots = num;
    pool->num_used = 0;
    for (size_t i = 0; i < num_old; i++)
        if (old[i].at > 1)
            put(pool, old[i]);
    free(old);
    return QEP_OK;
}

static enum qep_status push(struct stack *stack, void *block) {
    QEP_TRY(qep_grow((void **)&stack->blocks, &stack->cap, stack->num + 1, sizeof(void *),
                     "device memory table"));
    stack->blocks[stack->num++] = block;
    return QEP_OK;
}

enum qep_status cuda_pool_create(size_t slab_bytes, struct cuda_pool_source source,
                                 struct cuda_pool **out) {
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof **out, "device memory table", &mem));
    struct cuda_pool *pool = mem;
    pool->slab_bytes = slab_bytes;
    pool->source = source;
    enum qep_status st = grow_table(pool);
    if (st == QEP_OK)
        *out = pool;
    else
        free(pool);
    return st;
}

void cuda_pool_destroy(struct cuda_pool *pool) {
    if (pool == NULL)
        return;
    for (size_t i = 0; i < pool->num_slots; i++)
        if (pool->table[i].at > 1 && pool->table[i].bytes > 0)
            pool->source.free(pool->source.ctx, (void *)pool->table[i].at);
    for (size_t i = 0; i < pool->slabs.num; i++)
        pool->source.free(pool->source.ctx, pool->slabs.blocks[i]);
    for (int i = 0; i < NUM_CLASSES; i++)
        free(pool->free_blocks[i].blocks);
    free(pool->slabs.blocks);
    free(pool->table);
    free(pool);
}

static enum qep_status from_source(struct cuda_pool *pool, size_t bytes, void **out) {
    QEP_TRY(pool->source.alloc(pool->source.ctx, bytes, out));
    pool->held += bytes;
    return QEP_OK;
}

static enum qep_status new_slab(struct cuda_pool *pool) {
    void *slab = NULL;
    QEP_TRY(from_source(pool, pool->slab_bytes, &slab));
    enum qep_status st = push(&pool->slabs, slab);
    if (st != QEP_OK) {
        pool->source.free(pool->source.ctx, slab);
        return st;
    }
    pool->slab = slab;
    pool->slab_left = pool->slab_bytes;
    return QEP_OK;
}

/* What is left of the slab, as blocks of powers of two, which is what matrices mostly are. */
static enum qep_status keep_rest(struct cuda_pool *pool) {
    while (pool->slab_left >= CUDA_POOL_ALIGN) {
        size_t piece = CUDA_POOL_ALIGN, class_bytes;
        while (piece * 2 <= pool->slab_left)
            piece *= 2;
        QEP_TRY(push(&pool->free_blocks[size_class(piece, &class_bytes)], pool->slab));
        pool->slab += piece;
        pool->slab_left -= piece;
    }
    return QEP_OK;
}

/* A block of a class: a returned one, else the next piece of the slab. */
static enum qep_status from_slab(struct cuda_pool *pool, size_t bytes, void **out) {
    size_t class_bytes;
    int class = size_class(bytes, &class_bytes);
    struct stack *stack = &pool->free_blocks[class];
    assert(class < NUM_CLASSES);
    if (stack->num > 0) {
        *out = stack->blocks[--stack->num];
    } else {
        if (pool->slab_left < class_bytes) {
            QEP_TRY(keep_rest(pool));
            QEP_TRY(new_slab(pool));
        }
        *out = pool->slab;
        pool->slab += class_bytes;
        pool->slab_left -= class_bytes;
    }
    put(pool, (struct entry){.at = (uintptr_t)*out, .size_class = class});
    return QEP_OK;
}

enum qep_status cuda_pool_alloc(struct cuda_pool *pool, size_t bytes, void **out) {
    *out = NULL;
    bytes = round_up(bytes > 0 ? bytes : 1, CUDA_POOL_ALIGN);
    QEP_TRY(grow_table(pool));
    if (bytes <= pool->slab_bytes / 4)
        return from_slab(pool, bytes, out);
    QEP_TRY(from_source(pool, bytes, out));
    put(pool, (struct entry){.at = (uintptr_t)*out, .bytes = bytes, .size_class = NO_CLASS});
    return QEP_OK;
}

size_t cuda_pool_block_bytes(const struct cuda_pool *pool, size_t bytes) {
    size_t class_bytes;
    bytes = round_up(bytes > 0 ? bytes : 1, CUDA_POOL_ALIGN);
    if (bytes > pool->slab_bytes / 4)
        return bytes;
    size_class(bytes, &class_bytes);
    return class_bytes;
}

void cuda_pool_free(struct cuda_pool *pool, void *block) {
    if (block == NULL)
        return;
    struct entry *entry = find(pool, (uintptr_t)block);
    assert(entry != NULL);
    if (entry->size_class == NO_CLASS) {
        pool->held -= entry->bytes;
        pool->source.free(pool->source.ctx, block);
    } else if (push(&pool->free_blocks[entry->size_class], block) != QEP_OK) {
        return; /* stays in use until the pool goes */
    }
    *entry = (struct entry){.at = 1};
}

uint64_t cuda_pool_held(const struct cuda_pool *pool) {
    return pool->held;
}

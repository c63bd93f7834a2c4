/* Creation, the choice of the ISA level, memory. */
#include "kernels/cpu/cpu.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    const struct qep_backend_ops *ops;
} levels[] = {
    {"baseline", &cpu_ops_baseline},
    {"avx2", &cpu_ops_avx2},
    {"avx512", &cpu_ops_avx512},
};

enum { NUM_LEVELS = sizeof levels / sizeof levels[0] };

int qep_cpu_isa_level(void) {
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vnni");
    return avx512 ? 2 : avx2 ? 1 : 0;
}

const char *qep_cpu_isa_name(int level) {
    return level >= 0 && level < NUM_LEVELS ? levels[level].name : NULL;
}

static enum qep_status choose_level(const char *isa, int *level) {
    int best = qep_cpu_isa_level();
    *level = best;
    if (isa == NULL || strcmp(isa, "auto") == 0)
        return QEP_OK;
    for (int i = 0; i < NUM_LEVELS; i++) {
        if (strcmp(isa, levels[i].name) != 0)
            continue;
        if (i > best)
            return qep_fail(QEP_ERR_UNAVAILABLE, "this CPU has no %s (its best level is %s)", isa,
                            levels[best].name);
        *level = i;
        return QEP_OK;
    }
    return qep_fail(QEP_ERR_USAGE, "unknown ISA level '%s' (auto, baseline, avx2, avx512)", isa);
}

enum qep_status qep_backend_cpu_create(struct qep_team *team, const char *isa,
                                       struct qep_backend **out) {
    void *mem = NULL;
    int level = 0;
    *out = NULL;
    QEP_TRY(choose_level(isa, &level));
    QEP_TRY(qep_calloc(1, sizeof(struct cpu_backend), "cpu backend", &mem));
    struct cpu_backend *cpu = mem;
    cpu->base.ops = levels[level].ops;
    cpu->base.isa = levels[level].name;
    cpu->team = team;
    *out = &cpu->base;
    return QEP_OK;
}

void cpu_destroy(struct qep_backend *be) {
    if (be == NULL)
        return;
    struct cpu_backend *cpu = (struct cpu_backend *)be;
    free(cpu->scratch);
    free(cpu);
}

enum qep_status cpu_arena_init(struct qep_backend *be, struct cpu_arena *arena, size_t bytes) {
    struct cpu_backend *cpu = (struct cpu_backend *)be;
    arena->next = NULL;
    if (bytes > cpu->scratch_bytes) {
        size_t grown = bytes + bytes / 2;
        free(cpu->scratch);
        cpu->scratch_bytes = 0;
        QEP_TRY(qep_alloc(grown, 1, "cpu scratch", &cpu->scratch));
        cpu->scratch_bytes = grown;
    }
    arena->next = cpu->scratch;
    return QEP_OK;
}

int cpu_num_threads(const struct qep_backend *be) {
    return qep_team_size(((const struct cpu_backend *)be)->team);
}

void cpu_run(struct qep_backend *be, size_t work, qep_team_fn *fn, void *arg) {
    enum { WORTH_WAKING = 16384 };
    struct cpu_backend *cpu = (struct cpu_backend *)be;
    qep_team_run(work < WORTH_WAKING ? NULL : cpu->team, fn, arg);
}

enum qep_status cpu_alloc(struct qep_backend *be, size_t bytes, const char *what, void **dev) {
    (void)be;
    return qep_calloc(bytes, 1, what, dev);
}

void cpu_free(struct qep_backend *be, void *dev) {
    (void)be;
    free(dev);
}

enum qep_status cpu_upload(struct qep_backend *be, void *dev, const void *host, size_t bytes) {
    (void)be;
    if (bytes > 0)
        memcpy(dev, host, bytes);
    return QEP_OK;
}

enum qep_status cpu_download(struct qep_backend *be, void *host, const void *dev, size_t bytes) {
    (void)be;
    if (bytes > 0)
        memcpy(host, dev, bytes);
    return QEP_OK;
}

enum qep_status cpu_zero(struct qep_backend *be, void *dev, size_t bytes) {
    (void)be;
    if (bytes > 0)
        memset(dev, 0, bytes);
    return QEP_OK;
}

enum qep_status cpu_sync(struct qep_backend *be) {
    (void)be;
    return QEP_OK;
}

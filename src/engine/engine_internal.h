/* What the files of the engine share. */
#ifndef QEP_ENGINE_INTERNAL_H
#define QEP_ENGINE_INTERNAL_H

#include "engine/engine.h"

struct qep_engine {
    struct qep_comm *comm;
    struct qep_engine_options options;
    struct qep_engine_facts facts;
    struct qep_shard_dir *dir;
    struct qep_team *team;
    struct qep_backend *be;
    bool on_gpu;                /* the backend is cuda */
    struct qep_cuda_device gpu; /* of this rank, when on_gpu */
    int32_t gpu_sharers;        /* ranks on the same GPU */
    struct qep_device_comm *dc; /* NULL on host backends */
    struct qep_placement *placement;
    struct qep_model *model;
    struct qep_watchdog *dog;
    enum qep_activations activations;
    enum qep_kv_type kv_type;
    enum qep_attention_mode attention;
    int64_t step;
    bool broken;
};

/* start.c: everything until the first step, agreed on by all ranks. */
enum qep_status engine_start(struct qep_engine *e);

/* gpu.c: which backend `auto` means, the device, the transport on its memory. Collective. */
enum qep_status engine_choose_backend(struct qep_engine *e);
enum qep_status engine_start_gpu(struct qep_engine *e);
enum qep_status engine_connect_gpus(struct qep_engine *e);
/* A device backend's memory as transports see it; be is borrowed. */
struct qep_device_memory engine_device_memory(struct qep_backend *be,
                                              const struct qep_cuda_device *gpu);

/* memory.c: what fits. */
uint64_t engine_free_memory(const struct qep_engine *e); /* of this rank, on host or GPU */
/* Would this rank hold its experts, all dense weights and its sequences' states in half of its free
 * memory? */
enum qep_status engine_sequences_fit(const struct qep_engine *e, bool *fit);
/* --ctx, or the smaller of the model's and what memory holds. Collective, agreed on. */
enum qep_status engine_choose_ctx(struct qep_engine *e);
/* QEP_ERR_UNAVAILABLE when this rank's part of the model, with all slots at the context's length
 * and a prefill chunk under way, does not fit its GPU: needed, free, and what would do. */
enum qep_status engine_check_gpu_memory(struct qep_engine *e);
/* Does every rank say yes? Collective, agreed on. */
enum qep_status engine_agree_all(struct qep_comm *comm, bool mine, bool *all);

#endif

/* The engine: one rank's part of a running job. Start-up is collective and agreed on phase by phase
 * (options, directory, backend, weights); afterwards rank 0 drives with step plans and the other
 * ranks serve. */
#ifndef QEP_ENGINE_ENGINE_H
#define QEP_ENGINE_ENGINE_H

#include "dist/cpus.h"
#include "model/model.h"

/* A model that needs no files: for measurements. Borrowed while the engine starts. */
struct qep_random_model {
    const struct qep_model_config *config; /* NULL: there is a directory */
    const struct qep_recipe *recipe;
};

struct qep_engine_options {
    const char *model;       /* shard directory */
    const char *backend;     /* auto, cpu, cuda, reference */
    const char *isa;         /* auto, baseline, avx2, avx512 */
    const char *activations; /* auto, bf16, int8, fp32 */
    const char *attention;   /* auto, layers, sequences */
    const char *kv_type;     /* auto, f32, bf16, int8 */
    const char *bind;        /* auto, keep */
    int64_t threads;         /* of this rank; 0: CPUs of the host / local ranks */
    int64_t ctx; /* positions of a sequence; 0: the smaller of the model's and what memory allows */
    int64_t num_slots;              /* sequences at once */
    int64_t prefill_chunk;          /* rows of one plan, at most */
    double timeout_s;               /* watchdog; 0: off */
    struct qep_random_model random; /* instead of model */
    /* GPUs: between them, auto, nccl or staged; decode steps as CUDA graphs */
    const char *device_transport;
    const char *cuda_graphs; /* on, off */
};

#define QEP_ENGINE_OPTIONS_DEFAULT                                                                 \
    {                                                                                              \
        NULL, "auto", "auto", "auto", "auto", "auto", "auto", 0, 0, 1, 512, 60.0, {NULL, NULL},    \
            "auto", "on"                                                                           \
    }

/* What start-up found and decided, for summaries. */
struct qep_engine_facts {
    const char *backend, *isa, *transport, *attention, *kv_type, *activations;
    const char *attention_why; /* the reason for `attention` */
    const char *recipe;
    struct qep_cpu_share cpus;
    int num_threads;
    int32_t ctx;
    uint64_t gpu_need; /* memory this rank was found to need on its GPU; 0 on hosts */
    double load_s, load_read_s, load_place_s; /* wall; thread-seconds of the two stages */
    uint64_t stored_bytes, tensor_bytes;      /* read by this rank, and after decompression */
};

struct qep_engine;

/* Collective over comm (borrowed). All ranks succeed or all fail with the same status and message.
 */
enum qep_status qep_engine_create(struct qep_comm *comm, const struct qep_engine_options *options,
                                  struct qep_engine **out);
/* NULL is fine. A broken engine on several GPUs is left as it is: the job is to be aborted. */
void qep_engine_destroy(struct qep_engine *engine);

const struct qep_model_config *qep_engine_config(const struct qep_engine *engine);
const struct qep_engine_facts *qep_engine_get_facts(const struct qep_engine *engine);
const struct qep_model *qep_engine_model(const struct qep_engine *engine);
struct qep_comm *qep_engine_comm(const struct qep_engine *engine);
/* The fewest bytes of a decode step, see qep_step_bytes. */
double qep_engine_step_bytes(const struct qep_engine *engine, int64_t batch, int64_t depth);

/* Rank 0: broadcasts the plan and runs it. plan->step is set here. */
enum qep_status qep_engine_step(struct qep_engine *engine, struct qep_plan *plan,
                                qep_logits_fn *on_logits, void *ctx);

/* Rank 0: broadcasts a QEP_PLAN_PROBE and runs it, see qep_model_probe. */
enum qep_status qep_engine_probe(struct qep_engine *engine, struct qep_plan *plan, bool *found,
                                 struct qep_nonfinite *out);

/* ---- decoding on GPUs: model.h's decode calls, with the plan broadcast ---- */

/* Sequences that can decode together there; 0: the backend decodes through qep_engine_step. */
int32_t qep_engine_decode_capacity(const struct qep_engine *engine);

/* Rank 0: broadcasts a QEP_PLAN_DECODE_* plan and runs it; row [vocab_size] for DECODE_LOGITS. */
enum qep_status qep_engine_decode(struct qep_engine *engine, struct qep_plan *plan, float *row);

/* Rank 0: the tokens of the oldest step under way, see qep_model_decode_take. */
enum qep_status qep_engine_decode_take(struct qep_engine *engine, int32_t *tokens);

/* Rank 0, between steps: its GPU's launches from begin to end, each timed by itself, see
 * qep_device_ops; *times is the caller's. QEP_ERR_USAGE on hosts. */
enum qep_status qep_engine_profile_begin(struct qep_engine *engine);
enum qep_status qep_engine_profile_end(struct qep_engine *engine, struct qep_launch_time **times,
                                       size_t *num);

/* A step failed on this rank: peers may sit in a collective, the job can only be aborted. */
bool qep_engine_is_broken(const struct qep_engine *engine);

/* Rank 0: tells the workers that nothing comes for a while (before blocking on input); watchdogs
 * rest. */
enum qep_status qep_engine_idle(struct qep_engine *engine);

/* Rank 0: ends the workers' serve loops. */
enum qep_status qep_engine_stop(struct qep_engine *engine);

/* Ranks > 0: runs plans until STOP. */
enum qep_status qep_engine_serve(struct qep_engine *engine);

#endif

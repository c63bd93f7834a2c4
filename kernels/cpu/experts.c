/* Routed experts. Items of one expert form a run; gate and up of all runs, then the activation,
 * then down of all runs, each spread over the team by its cost (runs x row blocks), so that a few
 * tokens use all threads as well as many do. */
#include "kernels/cpu/cpu.h"

#include "kernels/mathfn.h"

#include <assert.h>
#include <string.h>

struct expert_run {
    int32_t expert, first, count; /* items [first, first + count) */
};

struct experts_job {
    const struct qep_expert_args *args;
    float *out;
    struct cpu_act_row *unique, *items, *inner; /* per row; per item: inputs of the two matmuls */
    struct expert_run *runs;
    size_t num_runs;
    char *prepared, *inner_acts, *inner_prepared;
    float *gate_up; /* [num_items, 2 I] */
    float *scratch;
    size_t thread_floats;
    bool second; /* which matmul runs */
};

static void prepare_unique(void *arg, int thread_idx, int num_threads) {
    const struct experts_job *job = arg;
    const struct qep_expert_args *args = job->args;
    size_t bytes = CPU(prepared_bytes)(args->act_type, args->hidden_size), begin, end;
    qep_team_split((size_t)args->num_rows, 1, thread_idx, num_threads, &begin, &end);
    for (size_t i = begin; i < end; i++)
        CPU(prepare_row)
    (args->act_type, (const char *)args->rows + i * args->row_stride, args->hidden_size,
     job->prepared + i * bytes, &job->unique[i]);
}

static void list_items(struct experts_job *job) {
    const struct qep_expert_args *args = job->args;
    size_t inner = (size_t)args->intermediate_size;
    job->num_runs = 0;
    for (int32_t i = 0; i < args->num_items; i++) {
        assert(i == 0 || args->item_expert[i - 1] <= args->item_expert[i]);
        if (i == 0 || args->item_expert[i - 1] != args->item_expert[i])
            job->runs[job->num_runs++] = (struct expert_run){args->item_expert[i], i, 0};
        job->runs[job->num_runs - 1].count++;
        job->items[i] = job->unique[args->item_row[i]];
        job->items[i].out = job->gate_up + (size_t)i * 2 * inner;
    }
}

/* What one row block of a run costs: reading its weights weighs like a few items. */
static size_t block_cost(const struct expert_run *run) {
    return 4 + (size_t)run->count;
}

static const struct qep_weight *run_weight(const struct experts_job *job,
                                           const struct expert_run *run) {
    return job->second ? job->args->down[run->expert] : job->args->gate_up[run->expert];
}

static size_t blocks_before(size_t limit, size_t start, size_t cost, size_t num_blocks) {
    size_t blocks = limit <= start ? 0 : (limit - start + cost - 1) / cost;
    return blocks < num_blocks ? blocks : num_blocks;
}

static void matmul_runs(void *arg, int thread_idx, int num_threads) {
    const struct experts_job *job = arg;
    struct cpu_act_row *rows = job->second ? job->inner : job->items;
    size_t total = 0, start = 0;
    for (size_t r = 0; r < job->num_runs; r++)
        total += block_cost(&job->runs[r]) * (size_t)run_weight(job, &job->runs[r])->num_blocks;
    size_t low = total * (size_t)thread_idx / (size_t)num_threads;
    size_t high = total * ((size_t)thread_idx + 1) / (size_t)num_threads;
    for (size_t r = 0; r < job->num_runs; r++) {
        const struct expert_run *run = &job->runs[r];
        const struct qep_weight *weight = run_weight(job, run);
        size_t cost = block_cost(run), num_blocks = (size_t)weight->num_blocks;
        size_t block0 = blocks_before(low, start, cost, num_blocks);
        size_t block1 = blocks_before(high, start, cost, num_blocks);
        if (block0 < block1)
            CPU(gemm)
        (weight, job->args->act_type == QEP_ACT_INT8, rows + run->first, run->count,
         (int32_t)block0, (int32_t)block1, job->scratch + (size_t)thread_idx * job->thread_floats);
        start += cost * num_blocks;
    }
}

/* silu(gate) * up, converted and prepared for the second matmul. */
static void activate_items(void *arg, int thread_idx, int num_threads) {
    const struct experts_job *job = arg;
    const struct qep_expert_args *args = job->args;
    size_t inner = (size_t)args->intermediate_size, begin, end;
    size_t act_bytes = cpu_padded(qep_act_row_bytes(args->act_type, args->intermediate_size));
    size_t prepared_bytes = CPU(prepared_bytes)(args->act_type, args->intermediate_size);
    qep_team_split((size_t)args->num_items, 1, thread_idx, num_threads, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        float *gate = job->gate_up + i * 2 * inner, *up = gate + inner;
        char *act = job->inner_acts + i * act_bytes;
        for (size_t c = 0; c < inner; c++)
            gate[c] = qep_siluf(gate[c]) * up[c];
        CPU(convert_row)(args->act_type, gate, args->intermediate_size, act);
        CPU(prepare_row)
        (args->act_type, act, args->intermediate_size, job->inner_prepared + i * prepared_bytes,
         &job->inner[i]);
        job->inner[i].out = job->out + i * (size_t)args->hidden_size;
    }
}

static void weigh_items(void *arg, int thread_idx, int num_threads) {
    const struct experts_job *job = arg;
    size_t hidden = (size_t)job->args->hidden_size, begin, end;
    qep_team_split((size_t)job->args->num_items, 1, thread_idx, num_threads, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        float weight = job->args->item_weight[i];
        for (size_t c = 0; c < hidden; c++)
            job->out[i * hidden + c] *= weight;
    }
}

static enum qep_status init_job(struct qep_backend *be, struct experts_job *job) {
    const struct qep_expert_args *args = job->args;
    struct cpu_arena arena;
    size_t rows = (size_t)args->num_rows, items = (size_t)args->num_items;
    size_t threads = (size_t)cpu_num_threads(be), inner = (size_t)args->intermediate_size;
    int32_t longest =
        args->hidden_size > args->intermediate_size ? args->hidden_size : args->intermediate_size;
    job->thread_floats = CPU(gemm_scratch)(args->act_type, longest, args->num_items);
    size_t bytes[] = {
        cpu_padded(rows * sizeof *job->unique),
        cpu_padded(items * sizeof *job->items),
        cpu_padded(items * sizeof *job->inner),
        cpu_padded(items * sizeof *job->runs),
        rows * CPU(prepared_bytes)(args->act_type, args->hidden_size),
        items * cpu_padded(qep_act_row_bytes(args->act_type, args->intermediate_size)),
        items * CPU(prepared_bytes)(args->act_type, args->intermediate_size),
        cpu_padded(items * 2 * inner * sizeof(float)),
        cpu_padded(threads * job->thread_floats * sizeof(float)),
    };
    size_t total = 0;
    for (size_t i = 0; i < sizeof bytes / sizeof bytes[0]; i++)
        total += bytes[i];
    QEP_TRY(cpu_arena_init(be, &arena, total));
    job->unique = cpu_arena_take(&arena, bytes[0]);
    job->items = cpu_arena_take(&arena, bytes[1]);
    job->inner = cpu_arena_take(&arena, bytes[2]);
    job->runs = cpu_arena_take(&arena, bytes[3]);
    job->prepared = cpu_arena_take(&arena, bytes[4]);
    job->inner_acts = cpu_arena_take(&arena, bytes[5]);
    job->inner_prepared = cpu_arena_take(&arena, bytes[6]);
    job->gate_up = cpu_arena_take(&arena, bytes[7]);
    job->scratch = cpu_arena_take(&arena, bytes[8]);
    return QEP_OK;
}

enum qep_status CPU(experts)(struct qep_backend *be, const struct qep_expert_args *args,
                             float *out) {
    struct experts_job job = {.args = args, .out = out};
    size_t items = (size_t)args->num_items, hidden = (size_t)args->hidden_size;
    size_t inner = (size_t)args->intermediate_size, work = items * hidden * inner;
    if (items == 0)
        return QEP_OK;
    QEP_TRY(init_job(be, &job));
    cpu_run(be, (size_t)args->num_rows * hidden / 4, prepare_unique, &job);
    list_items(&job);
    cpu_run(be, work / 4, matmul_runs, &job);
    cpu_run(be, items * inner, activate_items, &job);
    job.second = true;
    cpu_run(be, work / 8, matmul_runs, &job);
    cpu_run(be, items * hidden / 4, weigh_items, &job);
    return QEP_OK;
}

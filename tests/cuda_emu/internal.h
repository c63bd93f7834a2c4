/* What the emulator's own files share. */
#ifndef QEP_CUDA_EMU_INTERNAL_H
#define QEP_CUDA_EMU_INTERNAL_H

#include "cuda_emu/machine.h"
#include "cuda_emu/runtime.h"

#include <functional>
#include <mutex>
#include <string>

namespace emu {

/* One lock for everything: queues, memory and the machine. */
extern std::recursive_mutex lock;
using guard = std::lock_guard<std::recursive_mutex>;

/* report.cpp. A report outside kernels; inside one, fail() does the same and ends the launch. */
void report(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Valid until the next call. (A fiber that fails is never unwound: nothing it holds may need it.)
 */
const char *describe(const allocation &a, intptr_t off);

/* trace.cpp: where the reporting thread is, to stderr, when asked for */
void write_trace();

/* random.cpp: xorshift, seeded by QEP_EMU_SEED */
uint64_t random_bits();
uint32_t random_below(uint32_t n);
uint64_t seed_in_use();

/* memory.cpp */
bool is_device(const void *address);
cell *make_byte_cells(allocation &root);
bool all_initialised(const allocation &a, size_t off, size_t bytes);
void mark_initialised(allocation &a, size_t off, size_t bytes, bool on);

/* order.cpp: what other blocks' fences and atomics made visible to this thread. */
bool acquired(uint32_t tick, uint32_t who);
bool acquired_block(uint32_t tick, uint32_t block_id);
/* An atomic on this word: what it makes visible to later ones, what earlier ones make visible to
 * it. */
void atomic_order(const allocation &a, size_t off);
void forget_order();
void barrier_passed(block &b);

/* One launch, as it is called. */
struct kernel_call {
    std::function<void()> body; /* one thread's run */
    std::string name;
    dim3 grid, block;
    size_t shared;
};
/* Runs to its end or its first error (false). */
bool run_kernel(const kernel_call &call);
/* The call being run, for reports. */
extern const kernel_call *running;
/* Whether this host thread is running a kernel. */
extern thread_local bool inside_kernel;
/* The device of the operation that runs. */
extern int running_device;
/* Back to the scheduler, for good. */
[[noreturn]] void abandon();

/* Forgets every recorded access: the tick is about to run out. */
void restart_time();
void forget_block_cells();

/* Counts atomics, to end a launch that only waits. */
void note_atomic();

/* launch.cpp uses these of block.cpp */
void thread_exit();
/* The next lane to run (it is `self` now), or NULL: the scheduler shall choose. */
thread *next_of_turn();
void leave();
/* Reports why no thread of this block can go on. */
void dead_block(const block &b);
void clear_reports();

} // namespace emu
#endif

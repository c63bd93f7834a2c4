#include "cuda_emu/fiber.h"
#include "cuda_emu/sanitizers.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

#if defined(EMU_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(EMU_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

/* void emu_switch(void **save, void *load): the System V callee-saved registers go onto the stack,
 * the stacks are exchanged. A system call (as swapcontext makes two) would cost more than most of
 * what runs between two switches. */
asm(R"(
.text
.globl emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, . - emu_switch
)");
extern "C" void emu_switch(void **save, void *load);

namespace emu {
namespace {

/* Only pages that are touched cost anything; frames of unoptimised kernels are large. */
constexpr std::size_t stack_bytes = 256 * 1024;
constexpr std::size_t guard_bytes = 4096;

/* Set before each switch to a fiber: its first instructions have no other way to find it. */
fiber *entering;

/* The scheduler's own stack while fibers run. */
struct {
    void *sp, *fake, *tsan;
    const void *bottom;
    std::size_t size;
    bool left_now; /* the newest switch was one from it */
} scheduler;

std::size_t next_colour() {
    /* Stacks that all begin at the same offset of a page would share a handful of cache sets. */
    static std::size_t n = 0;
    return (n++ * 320) % 4096 / 64 * 64;
}

} // namespace

fiber::fiber() : colour_(next_colour()) {
    void *map = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED || mprotect(map, guard_bytes, PROT_NONE)) {
        perror("cuda_emu: a fiber's stack");
        abort();
    }
    map_ = static_cast<char *>(map);
#if defined(EMU_TSAN)
    tsan_ = __tsan_create_fiber(0);
#endif
}

fiber::~fiber() {
#if defined(EMU_TSAN)
    __tsan_destroy_fiber(tsan_);
#endif
    munmap(map_, stack_bytes);
}

void fiber::start(void (*entry)()) {
#if defined(EMU_ASAN)
    /* What an abandoned run left poisoned. */
    __asan_unpoison_memory_region(map_ + guard_bytes, stack_bytes - guard_bytes);
    fake_ = nullptr;
#endif
    entry_ = entry;
    uintptr_t top = reinterpret_cast<uintptr_t>(map_ + stack_bytes - colour_) & ~uintptr_t{63};
    void **frame = reinterpret_cast<void **>(top) - 8;
    frame[6] = reinterpret_cast<void *>(&fiber::trampoline); /* above the six registers */
    frame[7] = nullptr;
    sp_ = frame;
}

/* `fake` keeps what ASan needs to come back to the stack that is left. Inlined: TSan's record of
 * calls is the new stack's when this is over. */
__attribute__((always_inline)) inline void fiber::announce(void **fake) {
    (void)fake;
    entering = this;
#if defined(EMU_ASAN)
    __sanitizer_start_switch_fiber(fake, map_ + guard_bytes, stack_bytes - guard_bytes);
#endif
#if defined(EMU_TSAN)
    __tsan_switch_to_fiber(tsan_, 0);
#endif
}

void fiber::announced() {
#if defined(EMU_ASAN)
    const void *bottom;
    std::size_t size;
    __sanitizer_finish_switch_fiber(fake_, &bottom, &size);
    if (scheduler.left_now) {
        scheduler.bottom = bottom;
        scheduler.size = size;
    }
#endif
}

void fiber::enter() {
    scheduler.left_now = true;
#if defined(EMU_TSAN)
    scheduler.tsan = __tsan_get_current_fiber();
#endif
    announce(&scheduler.fake);
    emu_switch(&scheduler.sp, sp_);
#if defined(EMU_ASAN)
    __sanitizer_finish_switch_fiber(scheduler.fake, nullptr, nullptr);
#endif
}

void fiber::pass_to(fiber &next) {
    scheduler.left_now = false;
    next.announce(&fake_);
    emu_switch(&sp_, next.sp_);
    announced();
}

void fiber::leave(bool last) {
    (void)last;
#if defined(EMU_ASAN)
    __sanitizer_start_switch_fiber(last ? nullptr : &fake_, scheduler.bottom, scheduler.size);
#endif
#if defined(EMU_TSAN)
    __tsan_switch_to_fiber(scheduler.tsan, 0);
#endif
    emu_switch(&sp_, scheduler.sp);
    announced();
}

void fiber::trampoline() {
    fiber *self = entering;
    self->announced();
    self->entry_();
    abort();
}

} // namespace emu

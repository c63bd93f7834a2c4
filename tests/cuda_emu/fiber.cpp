#include "cuda_emu/fiber.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
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

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
constexpr std::size_t stack_bytes = 256 * 1024;
#else
constexpr std::size_t stack_bytes = 64 * 1024;
#endif
constexpr std::size_t guard_bytes = 4096;

/* Set before each switch to a fiber: its first instructions have no other way to find it. */
fiber *entering;

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
#if defined(__SANITIZE_THREAD__)
    tsan_ = __tsan_create_fiber(0);
#endif
}

fiber::~fiber() {
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(tsan_);
#endif
    munmap(map_, stack_bytes);
}

void fiber::start(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
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

void fiber::enter() {
    entering = this;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&scheduler_fake_, map_ + guard_bytes, stack_bytes - guard_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
    tsan_scheduler_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_, 0);
#endif
    emu_switch(&scheduler_sp_, sp_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler_fake_, nullptr, nullptr);
#endif
}

void fiber::leave(bool last) {
    (void)last;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(last ? nullptr : &fake_, scheduler_bottom_, scheduler_size_);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(tsan_scheduler_, 0);
#endif
    emu_switch(&sp_, scheduler_sp_);
    arrived();
}

void fiber::arrived() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_, &scheduler_bottom_, &scheduler_size_);
#endif
}

void fiber::trampoline() {
    fiber *self = entering;
    self->arrived();
    self->entry_();
    abort();
}

} // namespace emu

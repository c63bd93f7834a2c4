/* One stack and the switch to and from it. A fiber runs from start to its last leave; it may then
 * be started anew, also when it was abandoned in the middle. One host thread at a time is the
 * scheduler. */
#ifndef QEP_CUDA_EMU_FIBER_H
#define QEP_CUDA_EMU_FIBER_H

#include <cstddef>

namespace emu {

class fiber {
  public:
    fiber();
    ~fiber();
    fiber(const fiber &) = delete;
    fiber &operator=(const fiber &) = delete;

    /* The next enter calls entry(); entry must not return but leave for good. */
    void start(void (*entry)());
    /* From the scheduler: runs the fiber, and those it passes to, until one leaves. */
    void enter();
    /* From within: straight to another fiber, that was started or had left. */
    void pass_to(fiber &next);
    /* From within: back to the scheduler's enter. last: this run of the fiber is over. */
    void leave(bool last = false);

  private:
    void *sp_ = nullptr;
    char *map_ = nullptr;
    std::size_t colour_ = 0;
    void (*entry_)() = nullptr;
    /* for the sanitizers, who follow stacks */
    [[maybe_unused]] void *fake_ = nullptr, *tsan_ = nullptr;

    static void trampoline();
    void announce(void **fake); /* before a switch to it */
    void announced();           /* on its stack, right after */
};

} // namespace emu
#endif

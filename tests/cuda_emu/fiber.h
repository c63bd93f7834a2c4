/* One stack and the switch between it and the scheduler's. A fiber runs from start to its last
 * leave; it may then be started anew, also when it was abandoned in the middle. */
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
    /* From the scheduler: runs the fiber until it leaves. */
    void enter();
    /* From within: back to the scheduler's enter. last: this run of the fiber is over. */
    void leave(bool last = false);

  private:
    void *sp_ = nullptr, *scheduler_sp_ = nullptr;
    char *map_ = nullptr;
    std::size_t colour_ = 0;
    /* for the sanitizers, who follow stacks */
    void *fake_ = nullptr, *scheduler_fake_ = nullptr, *tsan_ = nullptr, *tsan_scheduler_ = nullptr;
    const void *scheduler_bottom_ = nullptr;
    std::size_t scheduler_size_ = 0;
    void (*entry_)() = nullptr;

    static void trampoline();
    void arrived(); /* on the fiber's stack, right after a switch to it */
};

} // namespace emu
#endif

/* Tests of the emulator: each check has a kernel that passes under many seeds and one, defective in
 * just that respect, that is reported under every seed. */
#ifndef QEP_TESTS_CUDA_EMU_H
#define QEP_TESTS_CUDA_EMU_H

#include "kernels/cuda/cu.h"

#include <functional>
#include <vector>

namespace test {

struct entry {
    entry(const char *name, void (*run)());
};

void check(bool ok, const char *what, const char *file, int line);

enum { many = 40, few = 10 };
/* Without a report under so many seeds. */
void clean(const std::function<void()> &work, const char *file, int line, int seeds = many);
/* Each time a report with this text. */
void reported(const char *text, const std::function<void()> &work, const char *file, int line,
              int seeds = few);

/* Device memory; from(...) initialises it. */
template <class T> class buffer {
  public:
    explicit buffer(size_t count) : count_(count) {
        check(cudaMalloc(&dev_, count * sizeof(T)) == cudaSuccess, "cudaMalloc", __FILE__,
              __LINE__);
    }
    explicit buffer(const std::vector<T> &from) : buffer(from.size()) {
        cudaMemcpy(dev_, from.data(), count_ * sizeof(T), cudaMemcpyHostToDevice);
    }
    ~buffer() {
        cudaFree(dev_);
    }
    buffer(const buffer &) = delete;
    buffer &operator=(const buffer &) = delete;
    T *get() const {
        return dev_;
    }
    std::vector<T> host() const {
        std::vector<T> v(count_);
        cudaMemcpy(v.data(), dev_, count_ * sizeof(T), cudaMemcpyDeviceToHost);
        return v;
    }

  private:
    T *dev_ = nullptr;
    size_t count_;
};

} // namespace test

#define TEST(name)                                                                                 \
    static void name();                                                                            \
    static const test::entry entry_##name(#name, name);                                            \
    static void name()
#define CHECK(...) test::check(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)
#define CLEAN(...) test::clean(__VA_ARGS__, __FILE__, __LINE__)
#define REPORTED(text, ...) test::reported(text, __VA_ARGS__, __FILE__, __LINE__)

/* A launch on the legacy stream, and its end. */
#define RUN(...) (launch(__VA_ARGS__), cudaDeviceSynchronize())

#endif

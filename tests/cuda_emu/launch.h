/* What launch(kernel, grid, block, shared bytes, stream, arguments...) of cu.h becomes here. */
#ifndef QEP_CUDA_EMU_LAUNCH_H
#define QEP_CUDA_EMU_LAUNCH_H

#include "cuda_emu/pointers.h"
#include "cuda_emu/runtime.h"

#include <functional>
#include <tuple>

namespace emu {

/* text: what stood in launch(...), for the kernel's name in reports. */
cudaError_t enqueue_kernel(std::function<void()> body, const char *text, site at, dim3 grid,
                           dim3 block, size_t shared, cudaStream_t stream);

/* For cudaFuncGetName. */
void name_kernel(const void *kernel, const char *text);

struct launcher {
    const char *text;
    site at;
    template <class... Params, class... Args>
    cudaError_t operator()(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared,
                           cudaStream_t stream, Args... args) const {
        static_assert(sizeof...(Params) == sizeof...(Args), "one argument per parameter");
        name_kernel(reinterpret_cast<const void *>(kernel), text);
        std::tuple<Params...> values(static_cast<Params>(args)...);
        return enqueue_kernel([kernel, values] { std::apply(kernel, values); }, text, at, grid,
                              block, shared, stream);
    }
};

} // namespace emu

#endif

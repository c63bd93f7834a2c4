#include "cuda_emu/device.h"

namespace emu {
void restart_time() {
    forget_cells();
    forget_block_cells();
    m.tick = 1;
}
} // namespace emu

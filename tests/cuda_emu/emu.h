/* The words of kernels/cuda/cu.h for g++: kernels compiled with QEP_CUDA_EMU run on the host, every
 * thread a fiber, every access checked. What is reported: accesses out of bounds, misaligned, of
 * uninitialised bytes or of bytes a cp.async has not delivered; races between threads of a block
 * and between blocks; warp operations and barriers not all threads reach. The first report ends
 * the launch, and the device fails as a real one does after an illegal access (runtime.h).
 *
 * Not here: __shared__ variables (sptr instead), volatile or relaxed loads that order anything (a
 * loop that waits must use an atomic), L1 and L2, clocks, textures, cooperative groups. mma sums
 * are rounded once, where hardware rounds in its own way; expf and its like are the host's. */
#ifndef QEP_CUDA_EMU_EMU_H
#define QEP_CUDA_EMU_EMU_H

#include "cuda_emu/atomics.h"
#include "cuda_emu/launch.h"
#include "cuda_emu/pointers.h"
#include "cuda_emu/ptx.h"
#include "cuda_emu/runtime.h"
#include "cuda_emu/warp.h"
#include "cuda_emu/words.h"

#endif

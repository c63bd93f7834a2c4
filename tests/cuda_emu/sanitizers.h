/* Which sanitizer this is compiled with: gcc says it by a macro, clang by a feature. */
#ifndef QEP_CUDA_EMU_SANITIZERS_H
#define QEP_CUDA_EMU_SANITIZERS_H

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define EMU_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define EMU_TSAN 1
#endif

#endif

#include "cuda_emu/internal.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

namespace emu {
namespace {

int errors, quiet;
std::string last;

std::string formatted(const char *format, va_list args) {
    char text[1024];
    vsnprintf(text, sizeof text, format, args);
    return text;
}

/* Who and where, when a kernel is running. */
std::string position() {
    char text[256];
    std::string out;
    if (running)
        out += "kernel " + running->name + ", ";
    if (m.self) {
        const uint3 &b = m.here->index, &t = m.self->index;
        snprintf(text, sizeof text, "block (%u, %u, %u), thread (%u, %u, %u)", b.x, b.y, b.z, t.x,
                 t.y, t.z);
        out += text;
        if (m.self->last.file) {
            snprintf(text, sizeof text, " after %s:%d", m.self->last.file, m.self->last.line);
            out += text;
        }
        out += ": ";
    }
    return out;
}

void raise(const std::string &what) {
    char text[64];
    snprintf(text, sizeof text, " [seed %llu]", static_cast<unsigned long long>(seed_in_use()));
    last = "cuda_emu: " + position() + what + text;
    errors++;
    const char *stop = getenv("QEP_EMU_ABORT");
    if (!quiet || (stop && *stop == '1')) {
        fprintf(stderr, "%s\n", last.c_str());
        write_trace();
    }
    if (stop && *stop == '1')
        abort();
}

} // namespace

void report(const char *format, ...) {
    va_list args;
    va_start(args, format);
    std::string text = formatted(format, args);
    va_end(args);
    guard hold(lock);
    raise(text);
}

void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    raise(formatted(format, args));
    va_end(args);
    abandon();
}

const char *describe(const allocation &a, intptr_t off) {
    static char text[160];
    if (a.kind == allocation::shared_memory)
        snprintf(text, sizeof text, "shared memory +%zd (array at %zu, %zu bytes)",
                 static_cast<ssize_t>(off), static_cast<size_t>(a.lo), a.limit);
    else if (!a.size)
        snprintf(text, sizeof text, "%p, which is %s", reinterpret_cast<void *>(off), a.state);
    else
        snprintf(text, sizeof text, "%s %p + %zd of %zu bytes (%s)",
                 a.kind == allocation::host_memory ? "pinned memory" : "global memory",
                 reinterpret_cast<void *>(a.lo), static_cast<ssize_t>(off), a.size, a.state);
    return text;
}

} // namespace emu

extern "C" {

int emu_errors(void) {
    emu::guard hold(emu::lock);
    return emu::errors;
}

const char *emu_last_report(void) {
    return emu::last.c_str();
}

void emu_quiet(int on) {
    emu::quiet = on;
}
}

namespace emu {
void clear_reports() {
    errors = 0;
    last.clear();
}
} // namespace emu

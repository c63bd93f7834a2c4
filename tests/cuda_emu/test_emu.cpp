#include "test_emu.h"

#include <cstdio>
#include <cstring>

namespace test {
namespace {

struct test_case {
    const char *name;
    void (*run)();
};

std::vector<test_case> &cases() {
    static std::vector<test_case> all;
    return all;
}

int failures;

} // namespace

entry::entry(const char *name, void (*run)()) {
    cases().push_back({name, run});
}

void check(bool ok, const char *what, const char *file, int line) {
    if (ok)
        return;
    failures++;
    printf("%s:%d: %s\n", file, line, what);
}

void clean(const std::function<void()> &work, const char *file, int line, int seeds) {
    for (int seed = 1; seed <= seeds; seed++) {
        emu_set_seed(static_cast<uint64_t>(seed));
        work();
        if (emu_errors()) {
            check(false, emu_last_report(), file, line);
            emu_clear_errors();
            return;
        }
    }
}

void reported(const char *text, const std::function<void()> &work, const char *file, int line,
              int seeds) {
    for (int seed = 1; seed <= seeds; seed++) {
        emu_set_seed(static_cast<uint64_t>(seed));
        work();
        bool found = emu_errors() > 0 && strstr(emu_last_report(), text);
        if (!found) {
            printf("expected a report with \"%s\", got \"%s\"\n", text, emu_last_report());
            check(false, "a report", file, line);
        }
        emu_clear_errors();
        if (!found)
            return;
    }
}

} // namespace test

/* With an argument, only the tests whose name contains it. */
int main(int argc, char **argv) {
    emu_quiet(1);
    int ran = 0;
    for (const test::test_case &t : test::cases()) {
        if (argc > 1 && !strstr(t.name, argv[1]))
            continue;
        int before = test::failures;
        t.run();
        ran++;
        if (test::failures > before)
            printf("FAILED %s\n", t.name);
        test::check(emu_errors() == 0, emu_last_report(), t.name, 0);
        emu_clear_errors();
    }
    printf("%d tests, %d failures\n", ran, test::failures);
    return test::failures != 0 || ran == 0;
}

#include "base/temporary_signals.h"

#include "base/temporary.h"

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* Reporters of faults (a sanitizer's, MPI's backtrace) come after us; other handlers of other
 * signals are how a command wants to end, and end it by returning. */
static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
static const int ends[] = {SIGHUP, SIGINT, SIGQUIT, SIGTRAP,   SIGUSR1,   SIGUSR2, SIGALRM, SIGTERM,
                           SIGIO,  SIGPWR, SIGXCPU, SIGSTKFLT, SIGVTALRM, SIGPROF, SIGSYS};
static struct sigaction before[NSIG];

static bool is_fault(int number) {
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        if (faults[i] == number)
            return true;
    return false;
}

static void on_end(int number, siginfo_t *info, void *context) {
    (void)context;
    qep_temporaries_remove();
    sigaction(number, &before[number], NULL);
    /* A fault that the processor found comes again when its instruction does, with its address for
     * the reporter. */
    if (!(is_fault(number) && number != SIGABRT && info->si_code > 0))
        raise(number);
}

static void install(int number) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_end;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigfillset(&action.sa_mask);
    if (sigaction(number, NULL, &before[number]) != 0)
        return;
    bool ends_by_default = before[number].sa_handler == SIG_DFL;
    if (ends_by_default || (is_fault(number) && before[number].sa_handler != SIG_IGN))
        sigaction(number, &action, NULL);
}

void qep_temporary_signals_install(void) {
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        install(faults[i]);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        install(ends[i]);
    for (int number = SIGRTMIN; number <= SIGRTMAX; number++)
        install(number);
}

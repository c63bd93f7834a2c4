/* The line that ends a job. */
#include "dist/watchdog_internal.h"

#include <stdio.h>

void qep_dog_place(const struct dog_state *state, char *out, size_t cap) {
    char layer[24] = "", step[32] = "";
    if (state->layer >= 0)
        snprintf(layer, sizeof layer, ", layer %d", (int)state->layer);
    if (state->step >= 0)
        snprintf(step, sizeof step, ", step %lld", (long long)state->step);
    snprintf(out, cap, "%.*s%s%s", DOG_PHASE_BYTES - 1, state->phase, layer, step);
}

/* "rank 2", "ranks 1, 2", "ranks 1, 2 and 5 more" */
static void name_silent(const struct qep_watchdog *dog, char *out, size_t cap) {
    enum { MAX_NAMED = 4 };
    int count = 0, len = 0;
    char list[64] = "";
    for (int p = 0; p < dog->comm->num_ranks; p++) {
        if (dog->peers[p].fresh || dog->peers[p].left)
            continue;
        if (count < MAX_NAMED)
            len +=
                snprintf(list + len, sizeof list - (size_t)len, "%s%d", count > 0 ? ", " : "", p);
        count++;
    }
    if (count > MAX_NAMED)
        snprintf(list + len, sizeof list - (size_t)len, " and %d more", count - MAX_NAMED);
    bool one = count == 1;
    snprintf(out, cap, "rank%s %s %s not answer: stopped, swapped out or %s host is gone",
             one ? "" : "s", list, one ? "does" : "do", one ? "its" : "their");
}

void qep_dog_blame(const struct qep_watchdog *dog, const struct dog_finding *finding,
                   char out[DOG_BLAME_BYTES]) {
    char place[DOG_PHASE_BYTES + 48];
    int waiting_for = dog->peers[dog->comm->rank].state.waiting_for;
    out[0] = '\0';
    if (finding->verdict == DOG_SILENT) {
        name_silent(dog, out, DOG_BLAME_BYTES);
    } else if (finding->verdict == DOG_STUCK) {
        qep_dog_place(&dog->peers[finding->culprit].state, place, sizeof place);
        snprintf(out, DOG_BLAME_BYTES, "rank %d is stuck in %s", finding->culprit, place);
    } else if (waiting_for >= 0) {
        snprintf(out, DOG_BLAME_BYTES, "all ranks wait, this one for rank %d", waiting_for);
    } else if (dog->comm->num_ranks > 1) {
        snprintf(out, DOG_BLAME_BYTES, "all ranks wait for others");
    }
}

static _Noreturn void end(struct qep_watchdog *dog, const char *whose,
                          const struct dog_state *state, const char *blame) {
    char place[DOG_PHASE_BYTES + 48];
    qep_dog_place(state, place, sizeof place);
    qep_comm_give_up(dog->comm, QEP_ERR_INTERRUPTED, "no progress%s for %g s in %s%s%s", whose,
                     dog->limits.limit_s, place, blame[0] != '\0' ? ": " : "", blame);
}

/* A rank that only speaks for the one that found out has moved itself. */
_Noreturn void qep_dog_fire(struct qep_watchdog *dog, int finder, const struct dog_state *state,
                            int culprit, const char *blame) {
    const struct dog_state *mine = &dog->peers[dog->comm->rank].state;
    char whose[32] = "";
    qep_dog_announce(dog);
    if (culprit == dog->comm->rank)
        end(dog, whose, mine, "");
    if (mine->age_s >= dog->limits.late_s / 2.0)
        end(dog, whose, mine, blame);
    snprintf(whose, sizeof whose, " of rank %d", finder);
    end(dog, whose, state, finder == culprit ? "" : blame);
}

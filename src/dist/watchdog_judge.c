/* Whose fault it is that nothing moves: a pure function of what the ranks say. */
#include "dist/watchdog_internal.h"

#include <float.h>

#define MAX_PERIOD_S 0.25
#define MAX_GRACE_S 2.0
/* A wait for another rank is known as one after a quarter of a second (dist/backoff.h). */
#define MIN_LATE_S 0.5
/* Ranks that stall together do so within one step of each other. */
#define ABOUT 0.9

struct dog_limits qep_dog_limits(double limit_s) {
    struct dog_limits limits = {.limit_s = limit_s, .period_s = MAX_PERIOD_S};
    limits.late_s = limit_s > MIN_LATE_S ? limit_s : MIN_LATE_S;
    limits.grace_s = limits.late_s < MAX_GRACE_S ? limits.late_s * 0.75 : MAX_GRACE_S;
    if (limit_s > 0.0 && limits.late_s / 8.0 < limits.period_s)
        limits.period_s = limits.late_s / 8.0;
    return limits;
}

static bool answers(const struct dog_peer *peer) {
    return peer->fresh || peer->left;
}

static bool is_stuck(const struct dog_peer *peer, const struct dog_limits *limits) {
    return peer->fresh && !peer->left && peer->state.age_s >= ABOUT * limits->late_s &&
           peer->state.waiting_for == QEP_NOT_WAITING;
}

/* Along "waits for" from `me` to its end; a circle ends somewhere. */
static int end_of_chain(const struct dog_peer *peers, int num, int me) {
    int at = me;
    for (int i = 0; i < num; i++) {
        int next = peers[at].state.waiting_for;
        if (next < 0 || next >= num || !peers[next].fresh)
            break;
        at = next;
    }
    return at;
}

static int find_stuck(const struct dog_peer *peers, int num, int me,
                      const struct dog_limits *limits) {
    int end = end_of_chain(peers, num, me);
    if (end != me && is_stuck(&peers[end], limits))
        return end;
    for (int p = 0; p < num; p++)
        if (is_stuck(&peers[p], limits))
            return p;
    return -1;
}

/* The longest silence, -1 when all answer; *first: the lowest silent rank. */
static double longest_silence(const struct dog_peer *peers, int num, int *first) {
    double longest_s = -1.0;
    for (int p = num - 1; p >= 0; p--)
        if (!answers(&peers[p])) {
            *first = p;
            longest_s = peers[p].silent_s > longest_s ? peers[p].silent_s : longest_s;
        }
    return longest_s;
}

/* Of those that answer, since the latest progress of any. */
static double youngest_age(const struct dog_peer *peers, int num) {
    double age_s = DBL_MAX;
    for (int p = 0; p < num; p++)
        if (answers(&peers[p])) {
            double its_s = peers[p].left ? 0.0 : peers[p].state.age_s;
            age_s = its_s < age_s ? its_s : age_s;
        }
    return age_s;
}

static bool all_had_time(const struct dog_peer *peers, int num, const struct dog_limits *limits) {
    for (int p = 0; p < num; p++)
        if (!answers(&peers[p]) && peers[p].silent_s < limits->grace_s)
            return false;
    return true;
}

/* Silence for a moment proves nothing while others move: a crowded host may leave a thread waiting
 * for seconds. Silence for the whole limit does. */
void qep_dog_judge(const struct dog_peer *peers, int num, int me, const struct dog_limits *limits,
                   struct dog_finding *out) {
    int silent = -1;
    *out = (struct dog_finding){.verdict = DOG_UNKNOWN, .culprit = -1};
    if (!all_had_time(peers, num, limits))
        return;
    double age_s = youngest_age(peers, num), silence_s = longest_silence(peers, num, &silent);
    bool moving = age_s < ABOUT * limits->late_s;
    if (silent >= 0 && (!moving || silence_s >= limits->late_s)) {
        *out = (struct dog_finding){.verdict = DOG_SILENT, .culprit = silent};
        return;
    }
    int stuck = find_stuck(peers, num, me, limits);
    if (stuck >= 0)
        *out = (struct dog_finding){.verdict = DOG_STUCK, .culprit = stuck};
    else if (moving)
        *out = (struct dog_finding){
            .verdict = DOG_MOVING, .culprit = -1, .again_s = limits->late_s - age_s};
    else
        out->verdict = DOG_CIRCLE;
}

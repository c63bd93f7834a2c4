/* What the watchdogs of the ranks tell each other. */
#include "dist/watchdog_internal.h"

#include "base/clock.h"
#include "dist/backoff.h"
#include "dist/drain.h"

#include <stdio.h>
#include <string.h>

enum note_kind { NOTE_QUESTION, NOTE_ANSWER, NOTE_STOP, NOTE_SPEAK, NOTE_SPEAKING, NOTE_GOODBYE };

struct note {
    int32_t kind;
    uint32_t number;        /* of the question */
    struct dog_state state; /* of an answer; of who wants the end */
    int32_t culprit;        /* NOTE_SPEAK; -1: no single one */
    char blame[DOG_BLAME_BYTES];
};
_Static_assert(sizeof(struct note) <= QEP_NOTE_BYTES, "notes have one size");

static bool send_note(const struct qep_watchdog *dog, int to, const struct note *note) {
    char bytes[QEP_NOTE_BYTES] = {0};
    memcpy(bytes, note, sizeof *note);
    return dog->comm->ops->note_send(dog->comm, to, bytes);
}

static bool take_note(const struct qep_watchdog *dog, int *from, struct note *note) {
    char bytes[QEP_NOTE_BYTES];
    if (dog->comm->num_ranks == 1 || !dog->comm->ops->note_take(dog->comm, from, bytes))
        return false;
    memcpy(note, bytes, sizeof *note);
    note->state.phase[DOG_PHASE_BYTES - 1] = '\0';
    note->blame[DOG_BLAME_BYTES - 1] = '\0';
    return true;
}

static const struct dog_state *own_state(const struct qep_watchdog *dog) {
    return &dog->peers[dog->comm->rank].state;
}

static void answer(struct qep_watchdog *dog, int to) {
    struct dog_peer *peer = &dog->peers[to];
    const struct note note = {
        .kind = NOTE_ANSWER, .number = peer->number, .state = *own_state(dog)};
    peer->owed = !send_note(dog, to, &note);
}

static void take_answer(struct qep_watchdog *dog, struct dog_peer *peer, const struct note *note) {
    peer->asked = false;
    peer->state = note->state;
    peer->fresh = note->number == dog->question;
}

static void read_note(struct qep_watchdog *dog, int from, const struct note *note) {
    struct dog_peer *peer = &dog->peers[from];
    peer->silent_s = 0.0;
    switch ((enum note_kind)note->kind) {
    case NOTE_QUESTION:
        peer->number = note->number;
        peer->owed = true;
        break;
    case NOTE_ANSWER:
        take_answer(dog, peer, note);
        break;
    case NOTE_STOP:
        peer->told = true;
        qep_drain_from_peer();
        break;
    case NOTE_SPEAK:
        qep_dog_fire(dog, from, &note->state, note->culprit, note->blame);
    case NOTE_SPEAKING:
        dog->ended_s = 0.0;
        break;
    case NOTE_GOODBYE:
        peer->left = true;
        break;
    }
}

void qep_dog_read_notes(struct qep_watchdog *dog) {
    struct note note;
    for (int from; take_note(dog, &from, &note);)
        read_note(dog, from, &note);
    for (int p = 0; p < dog->comm->num_ranks; p++)
        if (dog->peers[p].owed)
            answer(dog, p);
}

void qep_dog_ask(struct qep_watchdog *dog) {
    const struct note note = {.kind = NOTE_QUESTION, .number = dog->question};
    for (int p = 0; p < dog->comm->num_ranks; p++) {
        struct dog_peer *peer = &dog->peers[p];
        if (p != dog->comm->rank && !peer->fresh && !peer->asked)
            peer->asked = send_note(dog, p, &note);
    }
}

/* Whoever was asked tells rank 0, and rank 0 all others. */
void qep_dog_carry(struct qep_watchdog *dog) {
    const struct note note = {.kind = NOTE_STOP};
    int me = dog->comm->rank, last = me == 0 ? dog->comm->num_ranks - 1 : 0;
    if (!qep_drain_was_heard())
        return;
    for (int p = 0; p <= last; p++)
        if (p != me && !dog->peers[p].told)
            dog->peers[p].told = send_note(dog, p, &note);
}

/* Every rank says goodbye as its last word to every other: what comes before it has been taken
 * out of the transport when it comes. */
static bool exchange_goodbyes(struct qep_watchdog *dog) {
    const struct note goodbye = {.kind = NOTE_GOODBYE};
    struct note note;
    bool done = true;
    for (int from; take_note(dog, &from, &note);)
        if (note.kind == NOTE_GOODBYE)
            dog->peers[from].left = true;
    for (int p = 0; p < dog->comm->num_ranks; p++) {
        struct dog_peer *peer = &dog->peers[p];
        if (p == dog->comm->rank)
            continue;
        peer->fresh = peer->fresh || send_note(dog, p, &goodbye); /* fresh: said by now */
        done = done && peer->fresh && peer->left;
    }
    return done;
}

/* A rank that has said goodbye and is lower lacks the same one's, and speaks. */
static bool is_first_left(const struct qep_watchdog *dog) {
    for (int p = 0; p < dog->comm->rank; p++)
        if (dog->peers[p].left)
            return false;
    return true;
}

static void end_waiting(struct qep_watchdog *dog) {
    const struct dog_finding finding = {.verdict = DOG_SILENT, .culprit = -1};
    char blame[DOG_BLAME_BYTES];
    dog->peers[dog->comm->rank].left = true; /* not one of those to name */
    for (int p = 0; p < dog->comm->num_ranks; p++)
        dog->peers[p].fresh = false;
    qep_dog_blame(dog, &finding, blame);
    dog->peers[dog->comm->rank].state.age_s = dog->limits.late_s;
    qep_dog_fire(dog, dog->comm->rank, own_state(dog), -1, blame);
}

void qep_dog_part(struct qep_watchdog *dog) {
    struct qep_backoff backoff;
    double waited_s = 0.0, last_s = qep_now_s();
    for (int p = 0; p < dog->comm->num_ranks; p++)
        dog->peers[p].fresh = false;
    qep_backoff_init(&backoff, 1);
    while (!exchange_goodbyes(dog)) {
        double now_s = qep_now_s(), step_s = now_s - last_s;
        waited_s += step_s < dog->limits.period_s ? step_s : dog->limits.period_s;
        last_s = now_s;
        if (dog->limits.limit_s > 0.0 && waited_s >= dog->limits.late_s && is_first_left(dog))
            end_waiting(dog);
        qep_backoff_wait(&backoff);
    }
}

void qep_dog_announce(struct qep_watchdog *dog) {
    const struct note note = {.kind = NOTE_SPEAKING};
    for (int p = 0; p < dog->comm->num_ranks; p++)
        if (p != dog->comm->rank)
            send_note(dog, p, &note);
}

/* A launcher that ends a job gives its ranks a second or more each: who was told to speak, or is
 * about to, may be doing so. */
#define HANDED_MAX_S 15.0

void qep_dog_speak(struct qep_watchdog *dog, const struct dog_finding *finding) {
    struct note note = {.kind = NOTE_SPEAK, .state = *own_state(dog), .culprit = finding->culprit};
    int me = dog->comm->rank, speaker = 0;
    if (dog->handed_s >= 0.0 && dog->handed_s < HANDED_MAX_S)
        return;
    if (dog->ended_s >= 0.0 && dog->ended_s < HANDED_MAX_S)
        return;
    qep_dog_blame(dog, finding, note.blame);
    while (speaker < me && (!dog->peers[speaker].fresh || dog->peers[speaker].left))
        speaker++;
    if (speaker == me || dog->handed_s >= HANDED_MAX_S)
        qep_dog_fire(dog, me, own_state(dog), finding->culprit, note.blame);
    if (send_note(dog, speaker, &note))
        dog->handed_s = 0.0;
}

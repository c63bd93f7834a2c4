/* Shared by the files of the watchdog: watchdog.c (the thread, stamps), watchdog_notes.c (what the
 * threads tell each other), watchdog_judge.c (whose fault it is), watchdog_text.c (the line). */
#ifndef QEP_DIST_WATCHDOG_INTERNAL_H
#define QEP_DIST_WATCHDOG_INTERNAL_H

#include "dist/watchdog.h"

#include <pthread.h>
#include <stdatomic.h>

enum { DOG_PHASE_BYTES = 48, DOG_BLAME_BYTES = 128 };

/* What a rank says of itself. */
struct dog_state {
    char phase[DOG_PHASE_BYTES];
    int32_t layer, waiting_for;
    int64_t step;
    double age_s; /* since its last progress; 0 while it rests */
};

/* A rank as its peers see it; a rank's own entry is always fresh. */
struct dog_peer {
    struct dog_state state;
    bool fresh;      /* has answered the present question */
    bool asked;      /* a question is on its way */
    bool owed;       /* has asked, and gets an answer as soon as the transport takes one */
    uint32_t number; /* of its question */
    bool told;       /* that this process was asked to stop */
    bool left;       /* has said goodbye */
    double silent_s; /* since a question went out */
};

enum dog_verdict {
    DOG_UNKNOWN, /* not all have answered, nor had the time to */
    DOG_MOVING,  /* somebody makes progress: wait on */
    DOG_SILENT,  /* ranks that do not answer */
    DOG_STUCK,   /* a late rank that waits for nobody */
    DOG_CIRCLE   /* all are late and wait for each other */
};

struct dog_finding {
    enum dog_verdict verdict;
    int culprit;    /* the lowest silent rank, the stuck one; else -1 */
    double again_s; /* DOG_MOVING: nobody can be late before */
};

struct dog_limits {
    double limit_s; /* as asked for; <= 0: none */
    double late_s;  /* without progress for so long: late */
    double grace_s; /* without an answer for so long: silent */
    double period_s;
};
struct dog_limits qep_dog_limits(double limit_s);

/* Pure. peers [num], `me` is who judges. */
void qep_dog_judge(const struct dog_peer *peers, int num, int me, const struct dog_limits *limits,
                   struct dog_finding *out);

struct qep_watchdog {
    struct qep_comm *comm;
    pthread_t thread;
    pthread_mutex_t lock; /* for stop */
    pthread_cond_t wake;
    bool stop;
    _Atomic double limit_s;
    /* The stamp; `count` moves last. */
    _Atomic(const char *) phase;
    atomic_int layer;
    atomic_long step;
    atomic_bool resting;
    atomic_ulong count;
    /* The thread's alone, after it the destroyer's. */
    struct dog_limits limits;
    struct dog_peer *peers; /* [num_ranks] */
    uint32_t question;      /* number of the last one */
    double still_s;         /* without progress */
    double ask_at_s;        /* of still_s: a question is due */
    double last_s;
    uint64_t seen;
    double handed_s; /* since another rank was told to speak; < 0: none */
    double ended_s;  /* since another rank said that it ends the job; < 0: none */
};

/* watchdog_notes.c */
void qep_dog_read_notes(struct qep_watchdog *dog);
void qep_dog_ask(struct qep_watchdog *dog);   /* those who have not answered and do not know */
void qep_dog_carry(struct qep_watchdog *dog); /* "asked to stop", if so */
void qep_dog_part(struct qep_watchdog *dog);  /* after the thread: goodbyes to and from all */
/* The lowest rank that answers is to end the job; returns while that is not this one. */
void qep_dog_speak(struct qep_watchdog *dog, const struct dog_finding *finding);

void qep_dog_announce(struct qep_watchdog *dog); /* this rank speaks: no other is to */

/* watchdog_text.c: "PHASE, layer L, step T" */
void qep_dog_place(const struct dog_state *state, char *out, size_t cap);
/* What to say of the culprits, "" when the place says it all; a part of a sentence. */
void qep_dog_blame(const struct qep_watchdog *dog, const struct dog_finding *finding,
                   char out[DOG_BLAME_BYTES]);
/* Ends the job. `finder`, whose state is `state`, found the culprit (-1: none of its own). */
_Noreturn void qep_dog_fire(struct qep_watchdog *dog, int finder, const struct dog_state *state,
                            int culprit, const char *blame);

#endif

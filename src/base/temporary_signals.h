/* The signals that end a process without its doing: temporaries go first. */
#ifndef QEP_BASE_TEMPORARY_SIGNALS_H
#define QEP_BASE_TEMPORARY_SIGNALS_H

/* Handlers for every signal that ends the process by default and that nobody handles or ignores,
 * and for faults and abort() whoever handles them: remove the temporaries, then let the signal do
 * what it would have done. Called by the table at the first file. */
void qep_temporary_signals_install(void);

#endif

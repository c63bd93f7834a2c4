/* Notes (comm.h) over MPI: a communicator of their own, so that they never meet the messages of the
 * collectives. Every call but create and destroy is made by one thread at a time. */
#ifndef QEP_DIST_COMM_MPI_NOTES_H
#define QEP_DIST_COMM_MPI_NOTES_H

#include "base/status.h"

#include <mpi.h>
#include <stdbool.h>

struct qep_mpi_notes; /* opaque */

/* Collective over `world`. */
enum qep_status qep_mpi_notes_create(MPI_Comm world, struct qep_mpi_notes **out);

/* See comm.h. An error of MPI counts as a note that does not arrive. */
bool qep_mpi_notes_send(struct qep_mpi_notes *notes, int to, const void *note);
bool qep_mpi_notes_take(struct qep_mpi_notes *notes, int *from, void *note);

/* Gives up the open receive. All notes that were sent have been taken. NULL is fine. */
void qep_mpi_notes_destroy(struct qep_mpi_notes *notes);

#endif

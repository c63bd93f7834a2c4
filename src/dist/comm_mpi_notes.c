#ifdef QEP_HAVE_MPI

#include "dist/comm_mpi_notes.h"

#include "base/mem.h"
#include "dist/comm.h"

#include <stdlib.h>
#include <string.h>

enum { TAG_NOTE = 1 };

struct sent {
    MPI_Request request; /* MPI_REQUEST_NULL: the last note has gone */
    char note[QEP_NOTE_BYTES];
};

struct qep_mpi_notes {
    MPI_Comm comm;
    int num_ranks;
    MPI_Request request; /* the one receive that is open, or MPI_REQUEST_NULL */
    char note[QEP_NOTE_BYTES];
    struct sent *sent; /* [num_ranks] */
};

enum qep_status qep_mpi_notes_create(MPI_Comm world, struct qep_mpi_notes **out) {
    struct qep_mpi_notes *notes = NULL;
    int num_ranks = 1;
    *out = NULL;
    MPI_Comm_size(world, &num_ranks);
    QEP_TRY(qep_calloc(1, sizeof *notes, "transport", (void **)&notes));
    notes->comm = MPI_COMM_NULL;
    notes->request = MPI_REQUEST_NULL;
    notes->num_ranks = num_ranks;
    enum qep_status st =
        qep_calloc((size_t)num_ranks, sizeof *notes->sent, "transport", (void **)&notes->sent);
    for (int p = 0; st == QEP_OK && p < num_ranks; p++)
        notes->sent[p].request = MPI_REQUEST_NULL;
    if (st == QEP_OK && MPI_Comm_dup(world, &notes->comm) != MPI_SUCCESS)
        st = qep_fail(QEP_ERR_UNAVAILABLE, "MPI_Comm_dup failed");
    if (st == QEP_OK)
        *out = notes;
    else
        qep_mpi_notes_destroy(notes);
    return st;
}

bool qep_mpi_notes_send(struct qep_mpi_notes *notes, int to, const void *note) {
    struct sent *sent = &notes->sent[to];
    int done = 0;
    if (MPI_Test(&sent->request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || !done)
        return false;
    memcpy(sent->note, note, QEP_NOTE_BYTES);
    return MPI_Isend(sent->note, QEP_NOTE_BYTES, MPI_BYTE, to, TAG_NOTE, notes->comm,
                     &sent->request) == MPI_SUCCESS;
}

static bool open_receive(struct qep_mpi_notes *notes) {
    return notes->request != MPI_REQUEST_NULL ||
           MPI_Irecv(notes->note, QEP_NOTE_BYTES, MPI_BYTE, MPI_ANY_SOURCE, TAG_NOTE, notes->comm,
                     &notes->request) == MPI_SUCCESS;
}

bool qep_mpi_notes_take(struct qep_mpi_notes *notes, int *from, void *note) {
    MPI_Status status;
    int done = 0;
    if (!open_receive(notes) || MPI_Test(&notes->request, &done, &status) != MPI_SUCCESS || !done)
        return false;
    memcpy(note, notes->note, QEP_NOTE_BYTES);
    *from = status.MPI_SOURCE;
    return true;
}

void qep_mpi_notes_destroy(struct qep_mpi_notes *notes) {
    if (notes == NULL)
        return;
    if (notes->request != MPI_REQUEST_NULL) {
        MPI_Cancel(&notes->request);
        MPI_Wait(&notes->request, MPI_STATUS_IGNORE);
    }
    for (int p = 0; notes->sent != NULL && p < notes->num_ranks; p++)
        MPI_Wait(&notes->sent[p].request, MPI_STATUS_IGNORE);
    if (notes->comm != MPI_COMM_NULL)
        MPI_Comm_free(&notes->comm);
    free(notes->sent);
    free(notes);
}

#else
typedef int qep_no_mpi_notes; /* a source file is never empty */
#endif

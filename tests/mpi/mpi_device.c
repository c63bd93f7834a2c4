/* Device memory staged through the host, between MPI ranks. */
#include "device_comm_support.h"

#include "base/log.h"

#include <stdio.h>

static void (*const bodies[])(struct rank_arg *) = {alltoallv_body, nothing_body, allgather_body,
                                                    alltoall_body,  chain_body,   move_body,
                                                    warm_up_body};

int main(void) {
    struct rank_arg arg = {.device = &plain_device};
    if (qep_comm_mpi_create(&arg.comm) != QEP_OK) {
        qep_error_line("%s", qep_last_error());
        return 1;
    }
    plain_device.open(arg.comm->rank, &arg.memory);
    enum qep_status st =
        qep_device_comm_create(arg.comm, &arg.memory, QEP_DEVICE_TRANSPORT_STAGED, 60.0, &arg.dc);
    for (size_t i = 0; st == QEP_OK && i < sizeof bodies / sizeof bodies[0]; i++) {
        bodies[i](&arg);
        if (arg.failure != NULL || arg.dc->ops->wait(arg.dc) != QEP_OK)
            st = QEP_ERR_BUG;
    }
    if (st != QEP_OK) {
        qep_error_line("rank %d: %s (%s)", arg.comm->rank,
                       arg.failure != NULL ? arg.failure : "transport", qep_last_error());
        arg.comm->ops->abort(arg.comm, 1);
    }
    qep_device_comm_destroy(arg.dc);
    plain_device.close(&arg.memory);
    qep_comm_destroy(arg.comm);
    return 0;
}

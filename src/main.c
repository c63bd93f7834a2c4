/* argv in, exit code out. The only place that ends the process: a failure that all ranks share
 * leaves together, any other failure of a rank aborts the job. */
#include "base/log.h"
#include "base/streams.h"
#include "cli/cli.h"
#include "dist/comm.h"
#include "dist/drain.h"
#include "dist/watchdog.h"

#include <stdbool.h>

int main(int argc, char **argv) {
    struct qep_comm *comm = NULL;
    /* Before MPI starts: it opens files, and a job scheduler's signal must not kill a rank on its
     * way up. */
    enum qep_status st = qep_streams_init();
    if (st == QEP_OK)
        st = qep_drain_install();
    if (st == QEP_OK)
        st = qep_comm_launched_by_mpi() ? qep_comm_mpi_create(&comm) : qep_comm_self_create(&comm);
    if (st != QEP_OK) {
        qep_error_line("%s", qep_last_error());
        return (int)st;
    }
    qep_log_init(QEP_LOG_NORMAL, comm->rank, comm->num_ranks);
    st = qep_watchdog_create(comm, QEP_WATCHDOG_LIMIT_S, &comm->dog);
    if (st == QEP_OK)
        st = qep_cli_main(comm, argc, argv);
    if (st == QEP_OK)
        st = qep_stdout_flush();
    bool alone = st != QEP_OK && !comm->failure_shared && comm->num_ranks > 1;
    if (alone)
        qep_comm_give_up(comm, st, "%s", qep_last_error());
    if (st != QEP_OK && comm->rank == 0)
        qep_error_line("%s", qep_last_error());
    qep_watchdog_destroy(comm->dog);
    qep_comm_destroy(comm);
    return (int)st;
}

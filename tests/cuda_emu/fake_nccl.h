/* What the fake NCCL has beyond NCCL: faults on demand. */
#ifndef QEP_CUDA_EMU_FAKE_NCCL_H
#define QEP_CUDA_EMU_FAKE_NCCL_H

#ifdef __cplusplus
extern "C" {
#endif

/* Comma-separated NAME=NUMBER; names not given take their defaults ("" = no faults). The
 * environment variable QEP_FAKE_NCCL says the same for a whole process. Ranks are those of the
 * communicator; operations count from 1, per rank, launches of graphs included.
 *
 *   version=CODE       of ncclGetVersion (22809)
 *   init_polls=N       the communicator stays in progress for N polls after all have joined (2)
 *   init_fail=RANK     that rank's initialisation fails with ncclSystemError
 *   init_hang=RANK     that rank never joins
 *   progress_polls=N   polls until a call that sets up connections is done (1)
 *   fail_rank=RANK,fail_op=N   that rank's N-th operation ends in ncclSystemError
 *   lost_rank=RANK,lost_op=N   that rank dies in its N-th operation: it never finishes, the others
 *                              get ncclRemoteError
 *   stuck_rank=RANK,stuck_op=N   the same, and nobody notices */
void fake_nccl_configure(const char *knobs);

/* The version this thread sees instead (0: the common one). */
void fake_nccl_set_thread_version(int code);

/* Operations finished in this process since the last fake_nccl_configure. */
long fake_nccl_num_operations(void);

#ifdef __cplusplus
}
#endif
#endif

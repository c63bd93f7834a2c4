# shellcheck shell=bash
# Sourced: what Open MPI wants to be told, without overriding what the user has set.
if [ "$(id -u)" -eq 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=${OMPI_ALLOW_RUN_AS_ROOT:-1}
    export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=${OMPI_ALLOW_RUN_AS_ROOT_CONFIRM:-1}
fi
# Containers often forbid process_vm_readv, which Open MPI then complains about with every message.
if [ -e /.dockerenv ] || [ -e /run/.containerenv ]; then
    export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
fi
# PMIx: its shared-memory store has seen rare SIGBUS at start-up; a job this small does not need it.
export PMIX_MCA_gds=${PMIX_MCA_gds:-hash}

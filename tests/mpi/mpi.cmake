# Tests under mpirun. qep_mpi_test(NAME n COMMAND target-or-program args... RANKS 2 3 4
#   [LABELS l...] [TIMEOUT s]) adds one test mpi.n.npP for each P. Without MPI there are none.
find_program(QEP_MPIRUN NAMES mpirun HINTS ${MPI_C_BIN_DIR})

set(QEP_MPI_ENV
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  OMPI_MCA_rmaps_base_oversubscribe=1
  OMPI_MCA_btl_vader_single_copy_mechanism=none # containers often forbid process_vm_readv
  ASAN_OPTIONS=detect_leaks=0)                  # Open MPI's own

function(qep_mpi_test)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "NAME;TIMEOUT" "COMMAND;RANKS;LABELS")
  if(NOT MPI_C_FOUND OR NOT QEP_MPIRUN)
    return()
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  list(POP_FRONT arg_COMMAND program)
  if(TARGET ${program})
    set(program $<TARGET_FILE:${program}>)
  endif()
  foreach(ranks ${arg_RANKS})
    set(test mpi.${arg_NAME}.np${ranks})
    add_test(NAME ${test} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
      COMMAND ${QEP_MPIRUN} -np ${ranks} --oversubscribe --bind-to none ${program} ${arg_COMMAND})
    set_tests_properties(${test} PROPERTIES LABELS "mpi;${arg_LABELS}" TIMEOUT ${arg_TIMEOUT}
      PROCESSORS ${ranks} ENVIRONMENT "${QEP_MPI_ENV}")
  endforeach()
endfunction()

if(MPI_C_FOUND AND QEP_MPIRUN)
  foreach(program mpi_comm mpi_rank)
    add_executable(${program} ${CMAKE_CURRENT_LIST_DIR}/${program}.c)
    target_link_libraries(${program} PRIVATE qep_dist)
  endforeach()
  qep_mpi_test(NAME comm COMMAND mpi_comm RANKS 1 2 3 4 8)
  qep_mpi_test(NAME idle COMMAND mpi_rank idle RANKS 2 4)

  add_executable(mpi_device ${CMAKE_CURRENT_LIST_DIR}/mpi_device.c)
  target_link_libraries(mpi_device PRIVATE qep_device_comm_support)
  qep_mpi_test(NAME device COMMAND mpi_device RANKS 1 2 3 4)

  # Faults: the script starts mpirun itself and judges exit codes and stderr.
  foreach(mode hang fail mixed alike abort kill drain cpus)
    add_test(NAME mpi.fault.${mode} COMMAND ${CMAKE_CURRENT_LIST_DIR}/faults.sh
      ${QEP_MPIRUN} $<TARGET_FILE:mpi_rank> ${mode})
    set_tests_properties(mpi.fault.${mode} PROPERTIES LABELS "mpi;fault" TIMEOUT 120
      PROCESSORS 4 ENVIRONMENT "${QEP_MPI_ENV}")
  endforeach()
endif()

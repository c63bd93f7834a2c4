# Collectives on device memory: over plain memory here, over the emulator and the fake NCCL below.
add_library(qep_device_comm_support STATIC unit/device_comm_support.c
                                                unit/device_comm_plain.c)
target_include_directories(qep_device_comm_support PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/unit)
target_link_libraries(qep_device_comm_support PUBLIC qep_dist qep::check)
qep_unit_test(device_comm qep_device_comm_support)
set_tests_properties(unit.device_comm PROPERTIES LABELS "unit;threads")

if(TARGET qep_cuda_emu)
  include(${CMAKE_CURRENT_SOURCE_DIR}/cuda_emu/nccl.cmake)
  qep_unit_test(device_nccl qep_device_comm_support)
  qep_link_fake_nccl(test_device_nccl)
  # The same program with a library that has no ncclAlltoAll.
  add_executable(test_device_nccl_old unit/test_device_nccl.c)
  target_link_libraries(test_device_nccl_old PRIVATE qep_device_comm_support)
  qep_link_fake_nccl(test_device_nccl_old old)
  add_test(NAME unit.device_nccl_old COMMAND test_device_nccl_old)
  set_tests_properties(unit.device_nccl unit.device_nccl_old PROPERTIES LABELS "unit;threads"
                       TIMEOUT 600)
endif()

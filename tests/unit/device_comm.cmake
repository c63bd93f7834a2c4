# Collectives on device memory: over plain memory here, over the emulator and the fake NCCL below.
add_library(qep_device_comm_support STATIC unit/device_comm_support.c)
target_link_libraries(qep_device_comm_support PUBLIC qep_dist qep::check)
qep_unit_test(device_comm qep_device_comm_support)
set_tests_properties(unit.device_comm PROPERTIES LABELS "unit;threads")

add_library(qep_kernels_support STATIC unit/kernels_support.c unit/device_support.c
            unit/delta_support.c unit/experts_support.c)
target_include_directories(qep_kernels_support PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/unit)
target_link_libraries(qep_kernels_support PUBLIC qep_kernels_reference qep_kernels_cpu qep_base
                                                 qep::check)
foreach(name matmul attention delta mathfn conformance)
  qep_unit_test(${name} qep_kernels_support)
endforeach()
set_tests_properties(unit.conformance PROPERTIES LABELS "unit;threads") # teams of 1..3 threads

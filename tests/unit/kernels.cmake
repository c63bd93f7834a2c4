add_library(qep_kernels_support STATIC unit/kernels_support.c unit/device_support.c
            unit/delta_support.c unit/experts_support.c unit/nonfinite_support.c
            unit/nonfinite_rows.c unit/nonfinite_products.c unit/nonfinite_mixers.c)
target_include_directories(qep_kernels_support PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/unit)
target_link_libraries(qep_kernels_support PUBLIC qep_kernels_reference qep_kernels_cpu qep_base
                                                 qep::check)
foreach(name matmul attention delta mathfn conformance)
  qep_unit_test(${name} qep_kernels_support)
endforeach()
qep_unit_test(nonfinite qep_kernels_support qep_kernels_cuda) # device_support.c can open it
set_tests_properties(unit.conformance PROPERTIES LABELS "unit;threads") # teams of 1..3 threads

qep_unit_test(base qep_base)
set_tests_properties(unit.base PROPERTIES LABELS "unit;threads")
qep_unit_test(output qep_base)
target_link_options(test_output PRIVATE -Wl,--wrap=close,--wrap=fsync,--wrap=write,--wrap=rename)

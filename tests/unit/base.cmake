qep_unit_test(base qep_base)
set_tests_properties(unit.base PROPERTIES LABELS "unit;threads")
qep_unit_test(number qep_base)

qep_unit_test(exchange qep_dist)
set_tests_properties(unit.exchange PROPERTIES LABELS "unit;threads")

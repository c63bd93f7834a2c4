qep_unit_test(comm qep_dist)
qep_unit_test(placement qep_dist)
qep_unit_test(watchdog qep_dist)
qep_unit_test(cpus qep_dist)
# Ranks as threads: the tests that the thread sanitizer is for.
set_tests_properties(unit.comm unit.watchdog PROPERTIES LABELS "unit;threads")

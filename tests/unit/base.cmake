qep_unit_test(base qep_base)

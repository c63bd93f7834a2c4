# Whole-model tests run the command line's own code in this process.
add_library(qep_test_support STATIC support/golden.c support/run_model.c)
target_link_libraries(qep_test_support PUBLIC qep_cli PkgConfig::CHECK PkgConfig::ZSTD)
qep_unit_test(golden qep_test_support)
qep_unit_test(ranks qep_test_support)
qep_unit_test(tiny_chat qep_test_support)
qep_unit_test(quant_quality qep_test_support)
set_tests_properties(unit.golden unit.ranks PROPERTIES LABELS "unit;threads" TIMEOUT 1800)

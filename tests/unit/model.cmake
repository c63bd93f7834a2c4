# Whole-model tests run the command line's own code in this process.
add_library(qep_test_support STATIC support/golden.c support/golden_run.c support/run_model.c)
target_link_libraries(qep_test_support PUBLIC qep_cli qep::check qep::zstd)
qep_unit_test(decode_plan qep_model)
qep_unit_test(golden qep_test_support)
qep_unit_test(ranks qep_test_support)
qep_unit_test(tiny_chat qep_test_support)
qep_unit_test(quant_quality qep_test_support)
# Ranks as threads under the thread sanitizer: a part of the combinations is enough there.
add_test(NAME threads.ranks COMMAND test_ranks WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
set_tests_properties(threads.ranks PROPERTIES LABELS threads ENVIRONMENT CK_RUN_CASE=some TIMEOUT 600)
set_tests_properties(unit.ranks PROPERTIES ENVIRONMENT CK_RUN_CASE=all)
set_tests_properties(unit.golden unit.ranks unit.tiny_chat unit.quant_quality PROPERTIES TIMEOUT 1800)

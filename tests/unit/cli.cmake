# Option tables, without the commands.
qep_unit_test(options qep_text)
target_sources(test_options PRIVATE ${CMAKE_SOURCE_DIR}/src/cli/options.c
                                    ${CMAKE_SOURCE_DIR}/src/cli/option_value.c
                                    ${CMAKE_SOURCE_DIR}/src/cli/options_file.c)
qep_unit_test(options_same qep_dist qep_shard)
target_sources(test_options_same PRIVATE ${CMAKE_SOURCE_DIR}/src/cli/options.c
                                         ${CMAKE_SOURCE_DIR}/src/cli/option_value.c
                                         ${CMAKE_SOURCE_DIR}/src/cli/options_same.c)
set_tests_properties(unit.options_same PROPERTIES LABELS "unit;threads")

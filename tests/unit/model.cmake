# Whole-model tests run the command line's own code in this process.
add_library(qep_test_support STATIC support/golden.c support/golden_run.c support/run_model.c)
target_link_libraries(qep_test_support PUBLIC qep_cli qep::check qep::zstd)
qep_unit_test(decode_plan qep_model)
qep_unit_test(golden qep_test_support)
qep_unit_test(nonfinite_model qep_test_support)
target_link_options(test_nonfinite_model PRIVATE -Wl,--wrap=qep_shard_load)
qep_unit_test(ranks qep_test_support)
qep_unit_test(tiny_chat qep_test_support)
qep_unit_test(quant_quality qep_test_support)
# Ranks as threads under the thread sanitizer: a part of the combinations is enough there.
add_test(NAME threads.ranks COMMAND test_ranks WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
set_tests_properties(threads.ranks PROPERTIES LABELS threads ENVIRONMENT CK_RUN_CASE=some TIMEOUT 600)
set_tests_properties(unit.ranks PROPERTIES ENVIRONMENT CK_RUN_CASE=all)
set_tests_properties(unit.golden unit.ranks unit.tiny_chat unit.quant_quality PROPERTIES TIMEOUT 1800)
# Memory that runs out: what fails is said in support/failing_memory.c.
qep_unit_test(out_of_memory qep_test_support qep::pcre2 qep::utf8proc qep::xxhash)
target_sources(test_out_of_memory PRIVATE support/failing_memory.c)
foreach(name malloc calloc realloc aligned_alloc free strdup asprintf fopen opendir fdopendir pthread_create fsync
             ZSTD_createCCtx ZSTD_createDCtx ZSTD_compress2 ZSTD_decompressDCtx XXH3_createState utf8proc_map
             pcre2_compile_8 pcre2_jit_compile_8 pcre2_match_data_create_8 pcre2_match_context_create_8
             pcre2_jit_stack_create_8 pcre2_match_8)
  target_link_options(test_out_of_memory PRIVATE -Wl,--wrap=${name})
endforeach()
# Once in CI: under sanitizers, which see what is freed twice. Likewise the other without them.
set(memory_label memory)
if(QEP_SANITIZE)
  set(memory_label unit)
  # Many more of the same, or figures: once without sanitizers is enough (threads.ranks has a part).
  set_tests_properties(unit.nonfinite_model unit.ranks unit.quant_quality PROPERTIES LABELS "unit;long")
endif()
set_tests_properties(unit.out_of_memory PROPERTIES TIMEOUT 1800 LABELS ${memory_label})

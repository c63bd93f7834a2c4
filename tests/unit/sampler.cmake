qep_unit_test(sampler qep_base)
target_sources(test_sampler PRIVATE ${CMAKE_SOURCE_DIR}/src/engine/sampler.c)

# Draws for a line of JSON each: what other programs compare distributions with.
add_executable(sampler_jsonl tools/sampler_jsonl.c ${CMAKE_SOURCE_DIR}/src/engine/sampler.c)
target_link_libraries(sampler_jsonl PRIVATE qep_base)

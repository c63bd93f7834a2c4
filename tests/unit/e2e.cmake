# Scripts that drive the built program as a user does.
function(qep_script_test label name script)
  add_test(NAME ${label}.${name} COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/${script} $<TARGET_FILE:qwen-ep> ${ARGN}
           WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${label}.${name} PROPERTIES LABELS ${label} TIMEOUT 900)
endfunction()

# Seeded damage to all that the program reads; sanitizers see most of it.
file(GLOB hostile_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/tools/hostile/*.c)
add_executable(hostile_tool ${hostile_sources})
# No sanitizers in it: it starts thousands of processes, which they make slow.
target_compile_options(hostile_tool PRIVATE -Wall -Wextra $<$<BOOL:${QEP_WERROR}>:-Werror>)
target_compile_definitions(hostile_tool PRIVATE _GNU_SOURCE)
target_link_libraries(hostile_tool PRIVATE qep::zstd qep::xxhash)
set(hostile_cases 100)
if(QEP_SANITIZE)
  set(hostile_cases 500)
endif()

if(TARGET qwen-ep)
  qep_script_test(e2e chat e2e/chat.sh)
  qep_script_test(e2e ranks e2e/ranks.sh)
  qep_script_test(e2e help e2e/help.sh)
  qep_script_test(fault bad_input fault/bad_input.sh)
  qep_script_test(fault workdir fault/workdir.sh)
  qep_script_test(fault files fault/files.sh)
  qep_script_test(fault options fault/options.sh)
  qep_script_test(fault nonfinite fault/nonfinite.sh $<$<TARGET_EXISTS:qwen-ep-emu>:$<TARGET_FILE:qwen-ep-emu>>)
  qep_script_test(fault hostile fault/hostile.sh $<TARGET_FILE:hostile_tool> --cases ${hostile_cases})
  set_tests_properties(fault.hostile PROPERTIES PROCESSORS 2)
  qep_script_test(fault agree fault/agree.sh)
  qep_script_test(fault stops fault/stops.sh)
  qep_script_test(fault outputs fault/outputs.sh $<$<TARGET_EXISTS:bench_cuda_emu>:$<TARGET_FILE:bench_cuda_emu>>)
endif()
# Many launches of what unit tests (options_same, watchdog, comm) run under sanitizers piece by piece.
if(TARGET qwen-ep AND QEP_SANITIZE)
  set_tests_properties(fault.agree fault.stops PROPERTIES LABELS "fault;long")
endif()
if(TARGET qwen-ep-emu)
  add_test(NAME fault.gpu COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/fault/gpu.sh $<TARGET_FILE:qwen-ep-emu> $<TARGET_FILE:qwen-ep>
           WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(fault.gpu PROPERTIES LABELS fault TIMEOUT 600)
endif()

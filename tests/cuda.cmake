# Tests of the CUDA backend: the same programs over the emulator (label unit) and, in a build with
# CUDA, on the device (label gpu).
if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/cuda_emu/CMakeLists.txt)
  add_subdirectory(cuda_emu)
endif()

# The backend's own sources over the emulator. They are linked as objects, before every library, so
# that they take the place of qep_kernels_cuda.
file(GLOB cuda_c CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.c)
file(GLOB cuda_cu CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
list(REMOVE_ITEM cuda_c ${CMAKE_SOURCE_DIR}/kernels/cuda/none.c)
set(QEP_HAVE_CUDA_EMU OFF)
if(TARGET qep_cuda_emu AND EXISTS ${CMAKE_SOURCE_DIR}/kernels/cuda/backend.c)
  set(QEP_HAVE_CUDA_EMU ON)
  set_source_files_properties(${cuda_cu} PROPERTIES LANGUAGE CXX)
  add_library(qep_kernels_cuda_emu OBJECT ${cuda_c} ${cuda_cu})
  target_compile_definitions(qep_kernels_cuda_emu PUBLIC QEP_CUDA_EMU)
  target_include_directories(qep_kernels_cuda_emu PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
  target_link_libraries(qep_kernels_cuda_emu PUBLIC qep_flags qep_base qep_cuda_emu)
endif()

# qep_link_cuda_emu(TARGET): the program runs the CUDA backend on the emulator.
function(qep_link_cuda_emu target)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:qep_kernels_cuda_emu>)
  target_compile_definitions(${target} PRIVATE QEP_CUDA_EMU)
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(${target} PRIVATE qep_cuda_emu)
endfunction()

set(emulator_only cuda_launches cuda_memory) # they look into the emulator's counters
# tests/gpu_suite.sh runs the basic ones first: what fails there explains the rest.
set(QEP_GPU_TESTS pool ops nonfinite matmul step sample delta_decode delta attention experts hazards golden batch
                  model nccl)
list(TRANSFORM QEP_GPU_TESTS PREPEND cuda_)

# qep_cuda_test(NAME LIBS ...): tests/unit/test_NAME.c; tests unit.NAME and gpu.NAME. Over the
# emulator NCCL is the fake one: a real library would be handed the emulator's memory.
function(qep_cuda_test name)
  if(QEP_HAVE_CUDA_EMU)
    qep_unit_test(${name} ${ARGN})
    qep_link_cuda_emu(test_${name})
    qep_link_fake_nccl(test_${name})
  endif()
  if(QEP_HAVE_CUDA AND NOT name IN_LIST emulator_only)
    add_executable(test_${name}_gpu unit/test_${name}.c)
    target_link_libraries(test_${name}_gpu PRIVATE ${ARGN} qep_kernels_cuda qep::check)
    add_test(NAME gpu.${name} COMMAND test_${name}_gpu WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    set_tests_properties(gpu.${name} PROPERTIES LABELS gpu TIMEOUT 300 SKIP_RETURN_CODE 77)
  endif()
endfunction()

if(QEP_HAVE_CUDA_EMU)
  include(cuda_emu/nccl.cmake)
endif()
set(whole_models golden model hazards batch launches memory)
file(GLOB cuda_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/unit/test_cuda_*.c)
foreach(file ${cuda_tests})
  get_filename_component(name ${file} NAME_WE)
  string(REPLACE "test_" "" name ${name})
  set(libs qep_kernels_support qep_model)
  string(REPLACE "cuda_" "" subject ${name})
  if(subject IN_LIST whole_models)
    set(libs qep_kernels_support qep_test_support)
  elseif(subject STREQUAL "nccl")
    set(libs qep_kernels_support qep_device_comm_support qep_engine)
  endif()
  qep_cuda_test(${name} ${libs})
  if(NOT name IN_LIST QEP_GPU_TESTS AND NOT name IN_LIST emulator_only)
    message(FATAL_ERROR "test_${name}: where in QEP_GPU_TESTS does it belong?")
  endif()
endforeach()
foreach(target test_cuda_sample test_cuda_sample_gpu) # its oracle
  if(TARGET ${target})
    target_sources(${target} PRIVATE ${CMAKE_SOURCE_DIR}/src/engine/sampler.c)
  endif()
endforeach()

# The programs of tests/gpu_suite.sh, in its order, and a target that builds them.
set(suffix _gpu)
if(NOT QEP_HAVE_CUDA)
  set(suffix "")
endif()
list(TRANSFORM QEP_GPU_TESTS PREPEND test_ OUTPUT_VARIABLE gpu_programs)
list(TRANSFORM gpu_programs APPEND "${suffix}")
list(JOIN gpu_programs "\n" lines)
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/gpu_tests.txt "${lines}\n")
if(QEP_HAVE_CUDA)
  add_custom_target(gpu_tests DEPENDS ${gpu_programs})
endif()

# Long over the emulator: not under the sanitizers, which run a part of them.
foreach(name attention batch delta experts golden memory model nonfinite sample)
  if(TARGET test_cuda_${name} AND QEP_HAVE_CUDA_EMU)
    set_tests_properties(unit.cuda_${name} PROPERTIES LABELS "unit;long" TIMEOUT 900)
  endif()
endforeach()
if(QEP_HAVE_CUDA_EMU)
  set_tests_properties(unit.cuda_model PROPERTIES ENVIRONMENT CK_RUN_CASE=more)
  add_test(NAME unit.cuda_model_some COMMAND test_cuda_model WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(unit.cuda_model_some PROPERTIES LABELS unit ENVIRONMENT CK_RUN_CASE=some TIMEOUT 600)
endif()

# The whole program over the emulator: --backend cuda without a GPU. Likewise the benchmark of ops,
# to see that it runs.
if(QEP_HAVE_CUDA_EMU)
  file(GLOB bench_c CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/bench/cuda/*.c)
  file(GLOB bench_cu CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/bench/cuda/*.cu)
  set_source_files_properties(${bench_cu} PROPERTIES LANGUAGE CXX)
  add_executable(bench_cuda_emu ${bench_c} ${bench_cu})
  target_link_libraries(bench_cuda_emu PRIVATE qep_base qep_flags)
  qep_link_cuda_emu(bench_cuda_emu)
  add_executable(qwen-ep-emu ${CMAKE_SOURCE_DIR}/src/main.c)
  target_link_libraries(qwen-ep-emu PRIVATE qep_cli)
  qep_link_cuda_emu(qwen-ep-emu)
  qep_link_fake_nccl(qwen-ep-emu)
endif()

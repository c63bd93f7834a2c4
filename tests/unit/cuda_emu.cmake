# The emulator's own tests: each check on a kernel that passes it and one that does not.
file(GLOB cuda_emu_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cuda_emu/test_*.cpp)
add_executable(test_cuda_emu ${cuda_emu_tests} ${CMAKE_SOURCE_DIR}/kernels/cuda/launch_watch.c)
target_include_directories(test_cuda_emu PRIVATE ${CMAKE_SOURCE_DIR})
set_target_properties(test_cuda_emu PROPERTIES CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON
                                               CXX_EXTENSIONS OFF)
target_compile_options(test_cuda_emu PRIVATE
  -O2 -g -Wall -Wextra -Wpedantic -Wshadow -Wconversion $<$<BOOL:${QEP_WERROR}>:-Werror>)
if(QEP_SANITIZE)
  target_compile_options(test_cuda_emu PRIVATE -fsanitize=${QEP_SANITIZE} -fno-omit-frame-pointer
                                               -fno-sanitize-recover=all)
endif()
target_link_libraries(test_cuda_emu PRIVATE qep_cuda_emu)
add_test(NAME unit.cuda_emu COMMAND test_cuda_emu WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
set_tests_properties(unit.cuda_emu PROPERTIES LABELS unit TIMEOUT 600)
add_test(NAME unit.cuda_emu_devices COMMAND test_cuda_emu device WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
set_tests_properties(unit.cuda_emu_devices PROPERTIES LABELS unit TIMEOUT 60
                                                      ENVIRONMENT QEP_EMU_DEVICES=3)

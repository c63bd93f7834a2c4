# qep_link_fake_nccl(TARGET [old]): the program has NCCL: the transport built against the fake, and
# the fake itself, found with dlsym. Linked as objects, before every library. old: a library from
# before ncclAlltoAll.
include_guard()

function(qep_fake_nccl_objects name)
  add_library(${name} OBJECT ${CMAKE_SOURCE_DIR}/src/dist/device_comm_nccl.c
                             ${CMAKE_SOURCE_DIR}/tests/cuda_emu/fake_nccl.cpp)
  target_compile_definitions(${name} PRIVATE QEP_HAVE_NCCL=1 QEP_CUDA_EMU ${ARGN})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(${name} PRIVATE qep_flags)
endfunction()

qep_fake_nccl_objects(qep_fake_nccl)
qep_fake_nccl_objects(qep_fake_nccl_old FAKE_NCCL_OLD)

function(qep_link_fake_nccl target)
  set(objects qep_fake_nccl)
  if("old" IN_LIST ARGN)
    set(objects qep_fake_nccl_old)
  endif()
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
  target_compile_definitions(${target} PRIVATE QEP_CUDA_EMU)
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(${target} PRIVATE qep_cuda_emu ${CMAKE_DL_LIBS})
  set_target_properties(${target} PROPERTIES ENABLE_EXPORTS ON)
endfunction()

foreach(name tokenizer pretokenize chat_template request_json detokenizer)
  qep_unit_test(${name} qep_text qep::zstd)
  target_sources(test_${name} PRIVATE unit/text_support.c)
endforeach()

# The command itself, without the rest of the program.
qep_unit_test(tokenizer_cli qep_text qep_shard qep_dist)
target_sources(test_tokenizer_cli PRIVATE ${CMAKE_SOURCE_DIR}/src/cli/tokenize.c
                                          ${CMAKE_SOURCE_DIR}/src/cli/command_line.c
                                          ${CMAKE_SOURCE_DIR}/src/cli/options.c
                                          ${CMAKE_SOURCE_DIR}/src/cli/options_file.c
                                          ${CMAKE_SOURCE_DIR}/src/cli/options_same.c
                                          ${CMAKE_SOURCE_DIR}/src/cli/option_value.c)

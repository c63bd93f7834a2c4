foreach(name tokenizer pretokenize chat_template request_json detokenizer)
  qep_unit_test(${name} qep_text PkgConfig::ZSTD)
  target_sources(test_${name} PRIVATE unit/text_support.c)
endforeach()

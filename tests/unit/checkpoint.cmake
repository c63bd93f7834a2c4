qep_unit_test(config qep_checkpoint)
qep_unit_test(quant qep_quant)
qep_unit_test(safetensors qep_checkpoint qep_base)
qep_unit_test(shard qep_shard)
qep_unit_test(side_files qep_shard)
qep_unit_test(convert qep_shard)
set_tests_properties(unit.convert PROPERTIES LABELS "unit;threads") # worker threads
qep_unit_test(workdir qep_shard)
qep_unit_test(random_dir qep_model qep_shard)

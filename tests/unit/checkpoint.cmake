qep_unit_test(config qep_checkpoint)
qep_unit_test(quant qep_quant)
qep_unit_test(safetensors qep_checkpoint qep_base)

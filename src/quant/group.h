/* The search for one group's scale, in variants for instruction sets: equal bits from all. */
#ifndef QEP_QUANT_GROUP_H
#define QEP_QUANT_GROUP_H

enum { QEP_GROUP_LANES = 8 };

/* Quantises w[0..n), n a multiple of QEP_GROUP_LANES (pad with zeros), to whole codes in q[0..n).
 * Returns the scale, which bf16 holds exactly; 0 when all weights are (nearly) 0. */
typedef float qep_group_fn(const float *w, int n, float *q);

qep_group_fn qep_int4_group_base, qep_int8_group_base;
#if defined(__x86_64__)
qep_group_fn qep_int4_group_avx2, qep_int8_group_avx2;
#endif

#endif

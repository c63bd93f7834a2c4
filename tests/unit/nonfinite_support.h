/* The battery of numbers that are not finite, or are about to be: each is planted in turn at some
 * places of every float input of an op, and what comes out is judged by the op in float64
 * (contract: kernels/backend.h).
 *
 *   depends on the place     a NaN gives NaN; else where float64 is not finite, or leaves the range
 *                            of f32, nor is the output; else it is near float64 or not finite
 *   does not                 the bits without the plant
 *
 * An output depends on a place if float64 gives NaN for a NaN there. */
#ifndef QEP_TESTS_NONFINITE_SUPPORT_H
#define QEP_TESTS_NONFINITE_SUPPORT_H

#include "device_support.h"

/* The backends under test; those from same_from on agree in all bits (but which NaN). */
struct nf_backends {
    int num, same_from;
    struct qep_backend *be[MAX_VARIANTS];
    const char *name[MAX_VARIANTS];
    double tolerance; /* of products and sums; of the largest output */
    unsigned acts;    /* bit per enum qep_act_type that act_convert takes */
    unsigned kvs;     /* bit per enum qep_kv_type */
};

/* An input lies at data, where run and exact read it. */
struct nf_input {
    const char *name;
    void *data;
    size_t count;
    bool bf16; /* else f32 */
};

enum { NF_MAX_INPUTS = 8 };

struct nf_op {
    const char *name;
    struct nf_input inputs[NF_MAX_INPUTS]; /* up to the first without data */
    size_t num_out;
    const void *ctx;
    bool (*runs_on)(const void *ctx, const struct qep_backend *be); /* NULL: on all */
    void (*run)(const void *ctx, struct qep_backend *be, float *out);
    void (*exact)(const void *ctx, double *out);
    bool nan_for_nan; /* NaN in float64 is NaN, not infinity, here too */
    double tolerance; /* 0: that of the backends */
};

void nf_check(const struct nf_op *op, const struct nf_backends *b);

/* sqrt of a sum or mean of squares, to divide by: NaN beyond the range of f32. */
double nf_root(double squares);
/* n values as activation rows hold them. */
void nf_as_act(enum qep_act_type type, const float *x, int32_t n, double *out);
/* A row of a stored matrix. */
void nf_weight_row(const struct qep_host_weight *w, int64_t row, double *out);
/* What of the weight a plant can be in: its values or its scales. */
struct nf_input nf_weight_input(const char *name, const struct qep_host_weight *w);

/* One op each, all its shapes and types. */
void nf_embed(const struct nf_backends *b);
void nf_rms_norm(const struct nf_backends *b);
void nf_act_convert(const struct nf_backends *b);
void nf_matmul(const struct nf_backends *b, enum qep_weight_type type);
void nf_swiglu(const struct nf_backends *b);
void nf_delta_norm(const struct nf_backends *b);
void nf_router(const struct nf_backends *b);
void nf_tree_sum(const struct nf_backends *b);
void nf_experts(const struct nf_backends *b, enum qep_weight_type type);
void nf_attention(const struct nf_backends *b, enum qep_kv_type type);
void nf_kv_int8(const struct nf_backends *b);
void nf_delta_conv(const struct nf_backends *b);
void nf_delta(const struct nf_backends *b);

#endif

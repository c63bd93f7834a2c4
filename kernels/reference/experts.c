/* Routed experts, one (row, expert) pair at a time. */
#include "kernels/reference/reference.h"

#include "kernels/mathfn.h"

#include <assert.h>

static void item_forward(const struct qep_expert_args *args, int32_t item, float *row,
                         float *gate_up, float *out) {
    int32_t inner = args->intermediate_size, expert = args->item_expert[item];
    const struct qep_weight *first = args->gate_up[expert], *second = args->down[expert];
    const void *x = (const char *)args->rows + (size_t)args->item_row[item] * args->row_stride;
    for (int32_t r = 0; r < 2 * inner; r++) {
        ref_weight_row(first, r, row);
        gate_up[r] = ref_dot(x, row, args->hidden_size);
    }
    for (int32_t r = 0; r < inner; r++)
        gate_up[r] = qep_siluf(gate_up[r]) * gate_up[r + inner];
    for (int32_t r = 0; r < args->hidden_size; r++) {
        ref_weight_row(second, r, row);
        out[r] = ref_dot(gate_up, row, inner) * args->item_weight[item];
    }
}

enum qep_status ref_experts(struct qep_backend *be, const struct qep_expert_args *args,
                            float *out) {
    size_t hidden = (size_t)args->hidden_size, inner = (size_t)args->intermediate_size;
    size_t longest = hidden > inner ? hidden : inner;
    float *scratch = NULL;
    assert(args->act_type == QEP_ACT_F32);
    QEP_TRY(ref_scratch(be, longest + 2 * inner, &scratch));
    for (int32_t i = 0; i < args->num_items; i++)
        item_forward(args, i, scratch, scratch + longest, out + (size_t)i * hidden);
    return QEP_OK;
}

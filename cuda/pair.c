/* Which calls run as one launch. */
#include "cuda/pair.h"
#include "engine/tensor/weight.h"
#include <string.h>

static bool are(const struct gd_call *first, const char *first_name, const struct gd_call *second, const char *second_name)
{
    return strcmp(first->op->name, first_name) == 0 && strcmp(second->op->name, second_name) == 0;
}

static bool has(const struct gd_call *call, int input)
{
    return input < call->in_count && call->in[input] != NULL;
}

/* The rotation's heads are the norm's vectors. */
static bool of_heads(const struct gd_call *norm, const struct gd_call *rope)
{
    return norm->in[1]->shape[0] == rope->params.i[0] && rope->params.i[0] <= GD_CUDA_PAIR_HEAD_MAX;
}

/* A frozen weight that is multiplied as it lies, not in blocks. */
static bool is_plain_product(const struct gd_call *linear)
{
    const struct gd_weight *weight = linear->in[1]->weight;
    return weight != NULL && gd_dtype_block(gd_weight_source(weight)->dtype) == 1 && !has(linear, 2);
}

gd_pair_fn gd_cuda_pair(const struct gd_call *first, const struct gd_call *second)
{
    const struct gd_value *between = first->out[0];
    if (are(first, "add", second, "rms_norm") && second->in[0] == between && second->in[1]->shape[0] == between->shape[1])
        return gd_cuda_add_rms_norm;
    if (are(first, "add", second, "layer_norm") && second->in[0] == between)
        return gd_cuda_add_layer_norm;
    if (are(first, "rms_norm", second, "rope") && second->in[0] == between && of_heads(first, second))
        return gd_cuda_rms_norm_rope;
    if (are(first, "rope", second, "rms_norm_grad") && second->in[3] == between && second->in[0] != between && of_heads(second, first) &&
        second->params.i[0] == 0 && !has(second, 4))
        return gd_cuda_rope_rms_norm_grad;
    if (are(first, "linear", second, "add_row") && second->in[0] == between && is_plain_product(first))
        return gd_cuda_linear_add_row;
    return NULL;
}
